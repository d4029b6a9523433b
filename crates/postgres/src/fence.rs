//! Taking over a database: end what a predecessor left running there, then bump the fence.

use super::lease::Lease;
use super::ours::OURS;
use super::session::{Params, Session};
use handover_core::error::{Class, Error, Result};
use std::time::Duration;

/// How often the fence is tried when somebody holds its row.
const BUMPS: u32 = 5;

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
    let mut ended = 0;
    for attempt in 1.. {
        ended += end_predecessors(session, lease).await?;
        match bump(session, lease).await {
            Ok(true) => break,
            Ok(false) => {
                lease.lose();
                return Err(Error::new(
                    Class::LeaseLost,
                    "this database has seen a newer runner of the plan than the control database knows of",
                )
                .on_database(session.database())
                .hint(
                    "if another runner acts (`handover status`), leave it to that one; if the control database was \
                     restored from an older state or is a new one, docs/runbook.md says what to do",
                ));
            }
            // A predecessor began a transaction after we ended its others: end this one too.
            Err(error) if error.class() == Class::Contention && attempt < BUMPS => {}
            Err(error) if error.class() == Class::Contention => {
                return Err(error.context(format!("another session holds this plan's row in {OURS}.fence")).hint(
                    format!("see pg_locks and pg_prepared_xacts for who holds {OURS}.fence; end it, then `handover resume`"),
                ));
            }
            Err(error) => return Err(error),
        }
    }
    ended += end_predecessors(session, lease).await?;
    Ok(ended)
}

/// Writes our token into the fence; false when a newer one is there. Waits two seconds for others at most.
async fn bump(session: &mut Session, lease: &Lease) -> Result<bool> {
    session.set("lock_timeout", "2s").await?;
    let row = session
        .query_opt(
            &format!(
                "insert into {OURS}.fence as f (plan, token) values ($1, $2)
             on conflict (plan) do update set token = excluded.token where f.token <= excluded.token
             returning token"
            ),
            &[&lease.plan(), &lease.token()],
        )
        .await;
    session.set("lock_timeout", "0").await?;
    Ok(row?.is_some())
}

async fn end_predecessors(session: &Session, lease: &Lease) -> Result<u64> {
    let prefix = Lease::application_prefix(lease.plan());
    // `$1` ends in a slash, and the token follows it: another plan's or our own connections never match.
    let which = "starts_with(application_name, $1) and split_part(application_name, '/', 3) <> $2";
    end(session, which, &[&prefix, &lease.token().to_string()]).await
}

/// Ends every backend that a step's own connections of this lease left behind, as after a timeout.
///
/// # Errors
/// What the server says, or a backend that does not end.
pub async fn end_step(session: &Session, lease: &Lease, step: &str) -> Result<u64> {
    end(session, "application_name = $1", &[&lease.application_name(step)]).await
}

/// Ends the backends of this database that `which` selects, and waits until they are gone.
async fn end(session: &Session, which: &str, params: Params<'_>) -> Result<u64> {
    let from = format!(
        "from pg_stat_activity where {which} and datname = current_database() and pid <> pg_backend_pid()"
    );
    let (end, look) = (format!("select pg_terminate_backend(pid) {from}"), format!("select pid {from}"));
    let mut ended = 0;
    let mut left = Vec::new();
    for _ in 0..100 {
        ended = ended.max(session.query(&end, params).await?.len() as u64);
        left = session.query(&look, params).await?;
        if left.is_empty() {
            return Ok(ended);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let pids: Vec<String> = left.iter().map(|row| row.get::<_, i32>(0).to_string()).collect();
    Err(Error::new(
        Class::Contention,
        format!("the connection that an earlier attempt left does not end (pid {})", pids.join(", ")),
    )
    .on_database(session.database())
    .hint("it may wait for its disk or be in code that cannot be interrupted; see pg_stat_activity, and `handover resume` when it is gone"))
}
