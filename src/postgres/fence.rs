//! Taking over a database: end what a predecessor left running there, then bump the fence.

use super::connect::Lease;
use super::session::Session;
use crate::error::{Class, Error, Result};
use std::time::Duration;

/// Makes `session`'s lease the only one that can write to its database.
///
/// A killed client's statement lives on in the server, holding locks and doing work; and a stopped client's
/// transaction holds the fence row. Both are found by `application_name` and ended
/// (`pg_terminate_backend` needs no privilege for one's own role). Ending them again after the bump catches
/// one that checked the fence just before it.
///
/// # Errors
/// What the server says, or a newer token in the fence row (then the lease is lost).
pub async fn take_over(session: &mut Session, lease: &Lease) -> Result<u64> {
    let mut ended = end_predecessors(session, lease).await?;
    let row = session
        .query_opt(
            "insert into handover.fence as f (plan, token) values ($1, $2)
             on conflict (plan) do update set token = excluded.token where f.token <= excluded.token
             returning token",
            &[&lease.plan(), &lease.token()],
        )
        .await?;
    if row.is_none() {
        lease.lose();
        return Err(super::connect::lost());
    }
    ended += end_predecessors(session, lease).await?;
    Ok(ended)
}

async fn end_predecessors(session: &Session, lease: &Lease) -> Result<u64> {
    let prefix = Lease::application_prefix(lease.plan());
    end(session, &prefix, "split_part(application_name, '/', 3) <> $2", &lease.token().to_string()).await
}

/// Ends every backend that a step's own connections of this lease left behind, as after a timeout.
///
/// # Errors
/// What the server says, or a backend that does not end.
pub async fn end_step(session: &Session, lease: &Lease, step: &str) -> Result<u64> {
    let name = lease.application_name(step);
    end(session, &name, "application_name = $2", &name).await
}

async fn end(session: &Session, prefix: &str, condition: &str, value: &str) -> Result<u64> {
    let sql = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity
         where starts_with(application_name, $1) and {condition}
           and datname = current_database() and pid <> pg_backend_pid()"
    );
    let count_sql = sql.replace("pg_terminate_backend(pid)", "pid");
    let mut ended = 0;
    for _ in 0..100 {
        let rows = session.query(&sql, &[&prefix, &value]).await?;
        ended = ended.max(rows.len() as u64);
        if session.query(&count_sql, &[&prefix, &value]).await?.is_empty() {
            return Ok(ended);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(Error::new(Class::Contention, "a connection that an earlier runner left does not end")
        .on_database(session.database())
        .hint("look at it in pg_stat_activity (application_name handover/…), then `handover resume`"))
}
