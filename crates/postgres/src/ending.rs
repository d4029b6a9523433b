//! Ending what clients do that are in the way of a freeze: their statements, or their sessions.
//!
//! A process id alone names nobody: between the look and the signal the session may have ended, or may be in another
//! transaction. So a signal is sent by a statement that finds the very transaction that was seen, or nobody.
//! (<https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-SIGNAL>)

use super::Session;
use super::blockers::holding_against_freeze;
use super::foreign::{KEPT, masked};
use handover_core::error::Result;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;
use tokio_postgres::types::ToSql;

/// How many are looked at in one go.
const MANY: usize = 100;

/// How one is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The statement that runs; the client may go on in its session. Does nothing to one that is idle in its transaction.
    Cancel,
    /// The session, and with it its transaction.
    Terminate,
}

/// A client's session that is in the way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InTheWay {
    /// Its process id.
    pub pid: i32,
    /// Its role.
    pub role: String,
    /// What it calls itself.
    pub application: String,
    /// What it does: `active`, `idle in transaction`.
    pub state: String,
    /// How long its transaction has been open, in seconds.
    pub age: f64,
    /// The beginning of its query, masked.
    pub query: String,
    /// What tells this transaction of this session from every other one.
    pub transaction: String,
}

impl InTheWay {
    /// Whether both are the same transaction of the same session.
    #[must_use]
    pub fn is(&self, other: &InTheWay) -> bool {
        self.pid == other.pid && self.transaction == other.transaction
    }

    /// Whether a statement runs that could be cancelled.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.state == "active"
    }
}

impl fmt::Display for InTheWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} ({}", self.pid, self.role)?;
        if !self.application.is_empty() {
            write!(f, ", {}", self.application)?;
        }
        write!(f, ", {}, open for {:.0} s)", self.state, self.age)?;
        if self.query.is_empty() { Ok(()) } else { write!(f, ": {}", self.query) }
    }
}

/// A transaction of a session, however often it is looked at.
const TRANSACTION: &str =
    "extract(epoch from a.backend_start)::text || '/' || extract(epoch from a.xact_start)::text";

/// Clients, of which none is a Handover.
const CLIENTS: &str = "a.backend_type = 'client backend' and a.application_name not like 'handover/%'";

/// Clients whose transactions are older than that and hold a lock which a freeze of the application's tables would wait
/// for.
///
/// # Errors
/// What the server says.
pub async fn of_freeze(session: &Session, older_than: Duration) -> Result<Vec<InTheWay>> {
    find(session, &holding_against_freeze(), &[&older_than.as_secs_f64()]).await
}

/// Clients whose transactions are older than that and that keep a backend waiting right now.
///
/// # Errors
/// What the server says.
pub async fn of_backend(session: &Session, pid: i32, older_than: Duration) -> Result<Vec<InTheWay>> {
    // Asked once, and not for each session that there is: it takes the lock manager's locks.
    let row = session.query_one("select pg_blocking_pids($1)", &[&pid]).await?;
    let pids: Vec<i32> = row.get(0);
    if pids.is_empty() {
        return Ok(Vec::new());
    }
    let old = "a.pid = any($1) and a.xact_start < clock_timestamp() - make_interval(secs => $2)";
    find(session, old, &[&pids, &older_than.as_secs_f64()]).await
}

async fn find(session: &Session, which: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<InTheWay>> {
    let sql = format!(
        "select a.pid, coalesce(a.usename::text, '?'), coalesce(a.application_name, ''), coalesce(a.state, '?'),
                extract(epoch from clock_timestamp() - a.xact_start)::float8, left(coalesce(a.query, ''), {KEPT}),
                {TRANSACTION}
         from pg_stat_activity a where {CLIENTS} and {which} order by a.xact_start limit {MANY}"
    );
    let rows = session.query(&sql, params).await?;
    Ok(rows
        .iter()
        .map(|row| InTheWay {
            pid: row.get(0),
            role: row.get(1),
            application: row.get(2),
            state: row.get(3),
            age: row.get(4),
            query: masked(row.get(5)),
            transaction: row.get(6),
        })
        .collect())
}

/// Sends the signal; false where that transaction has ended by itself.
///
/// # Errors
/// No right to end that role's sessions, or what the server says.
pub async fn end(session: &Session, one: &InTheWay, way: Way) -> Result<bool> {
    let function = match way {
        Way::Cancel => "pg_cancel_backend",
        Way::Terminate => "pg_terminate_backend",
    };
    let sql =
        format!("select {function}(a.pid) from pg_stat_activity a where a.pid = $1 and {TRANSACTION} = $2");
    let row = session.query_opt(&sql, &[&one.pid, &one.transaction]).await?;
    Ok(row.is_some_and(|row| row.get(0)))
}

/// A role with sessions in this database that `role` may not end, and how those call themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protected {
    /// Their role.
    pub role: String,
    /// What they call themselves.
    pub application: String,
}

/// The clients here whose sessions `role` may not end. Those of superusers are for superusers only and not among them:
/// no grant helps.
///
/// # Errors
/// What the server says.
pub async fn protected(session: &Session, role: &str) -> Result<Vec<Protected>> {
    let sql = format!(
        "select distinct a.usename::text, coalesce(a.application_name, '')
         from pg_stat_activity a join pg_roles r on r.oid = a.usesysid
         where a.datname = current_database() and {CLIENTS} and not r.rolsuper
           and not pg_has_role($1::text::name, a.usesysid, 'usage')
           and not pg_has_role($1::text::name, 'pg_signal_backend', 'usage')
         order by 1, 2"
    );
    let rows = session.query(&sql, &[&role]).await?;
    Ok(rows.iter().map(|row| Protected { role: row.get(0), application: row.get(1) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_ended_is_named_with_its_program() {
        let mut one = InTheWay {
            pid: 7,
            role: "app".into(),
            application: "psql".into(),
            state: "idle in transaction".into(),
            age: 34.6,
            query: "lock t".into(),
            transaction: String::new(),
        };
        assert_eq!(one.to_string(), "pid 7 (app, psql, idle in transaction, open for 35 s): lock t");
        one.application.clear();
        one.query.clear();
        assert_eq!(one.to_string(), "pid 7 (app, idle in transaction, open for 35 s)");
    }
}
