//! Whether the role that acts may become the one that a step's files run as.

use handover_core::error::Result;
use handover_port::{Description, Port};
use handover_postgres::Session;

/// What is known of a role that another is to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Becomes {
    /// There is no such role.
    Nobody,
    /// `set role` would be refused.
    No,
    /// It may.
    Yes,
}

/// Asks the server whether `acts` may `set role` to `role`. Any role may ask that of others.
pub async fn becomes(session: &Session, acts: &str, role: &str) -> Result<Becomes> {
    // Since 16 a membership may be one without SET.
    let row = session
        .query_opt(
            "select pg_catalog.pg_has_role(a.oid, r.oid, case when current_setting('server_version_num')::int >= 160000
                                                             then 'SET' else 'MEMBER' end)
             from pg_catalog.pg_roles r, pg_catalog.pg_roles a where r.rolname = $1 and a.rolname = $2",
            &[&role, &acts],
        )
        .await?;
    if let Some(row) = row {
        return Ok(if row.get(0) { Becomes::Yes } else { Becomes::No });
    }
    let known = session.query_opt("select from pg_catalog.pg_roles where rolname = $1", &[&role]).await?;
    // One that acts by a name that the server maps to another is not known here.
    Ok(if known.is_some() { Becomes::Yes } else { Becomes::Nobody })
}

/// The refusal, with its way out.
#[must_use]
pub fn refusal(acts: &str, role: &str) -> (String, String) {
    (
        format!("{acts}, which executes the plan, may not become {role}"),
        format!("as a superuser: `grant {role} to {acts}`"),
    )
}

/// What a dry run says. The role that looks may be another than the one that will act.
pub async fn describe(
    port: &Port,
    session: &Session,
    on: &str,
    role: &str,
    out: &mut Description,
) -> Result<()> {
    let Some(acts) = port.databases.worker(on)?.role(session).await? else {
        out.warning(format!("whether the role that executes the plan may become {role} is not known here: the variable of its URL is not set"));
        return Ok(());
    };
    match becomes(session, &acts, role).await? {
        Becomes::Nobody => drop(out.blocker(format!("there is no role {role}"))),
        Becomes::No => {
            let (what, next) = refusal(&acts, role);
            out.blocker(format!("{what}: {next}"));
        }
        Becomes::Yes => {}
    }
    Ok(())
}
