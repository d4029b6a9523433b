//! Whom a gate that is shut lets through.

use crate::postgres::quote_literal;
use handover_events::applies;

/// Whom a gate lets through when it is shut.
#[derive(Debug, Clone, Default)]
pub struct Passes {
    /// The workers of the subscription by this name.
    pub subscription: Option<String>,
    /// Transactions that apply events of the stream by this name.
    pub replay: Option<String>,
    /// Sessions whose `application_name` begins so. It keeps nobody out who means to write; it is there against clients
    /// that were not told.
    pub sessions: Option<String>,
}

impl Passes {
    /// Statements of the gate's function that let them through.
    pub fn sql(&self) -> String {
        let mut out = String::new();
        if let Some(name) = &self.subscription {
            // Its workers fire no statement triggers, but of TRUNCATE.
            out.push_str(&format!(
                "if (tg_level = 'ROW' or tg_op = 'TRUNCATE') and exists (
        select from pg_catalog.pg_stat_subscription s
        where s.subname = {} and s.pid = pg_catalog.pg_backend_pid()) then
        {PASS}
    end if;
    ",
                quote_literal(name)
            ));
        }
        if let Some(stream) = &self.replay {
            out.push_str(&format!(
                "if {} then
        {PASS}
    end if;
    ",
                applies::one_of(std::slice::from_ref(stream))
            ));
        }
        if let Some(prefix) = &self.sessions {
            out.push_str(&format!(
                "if pg_catalog.starts_with(pg_catalog.current_setting('application_name'), {}) then
        {PASS}
    end if;
    ",
                quote_literal(prefix)
            ));
        }
        out
    }
}

/// What lets a write through.
pub const PASS: &str = "if tg_level = 'STATEMENT' then return null; end if;
    if tg_op = 'DELETE' then return old; end if;
    return new;";
