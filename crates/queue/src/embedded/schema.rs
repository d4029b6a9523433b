//! Creating and upgrading the tables of the embedded queue.

use super::connect::Target;
use handover_core::error::{Class, Error, Result};
use handover_postgres::{Worker, install};
use handover_postgres::{ours::OURS, plain::assert_plain};
use std::time::Duration;
use tokio::time::Instant;

mod embedded {
    refinery::embed_migrations!("../../migrations/queue");
}

/// refinery keeps one history table per database unless told otherwise; ours must not meet the journal's or a
/// plan's.
fn history() -> String {
    format!("{OURS}_queue.refinery_history")
}

/// Any constant that is ours: the lock under which the tables are created.
const LOCK: i64 = 0x68_6f_71_75_65_75_65;

/// Brings the tables up to date. Any number of processes may do so at once.
pub async fn install(target: &Target) -> Result<()> {
    let mut session = target.connect().await?;
    assert_plain(&session.client, target.place()).await?;
    let mut runner = install::named(&embedded::migrations::runner(), OURS.name())?;
    let newest = runner.get_migrations().iter().map(refinery::Migration::version).max().unwrap_or_default();
    if current(target, &session.client).await? == Some(newest) {
        // Spares a role that may use the queue but not create anything.
        return Ok(());
    }
    // Tried again and again rather than waited for: a session that waits for an advisory lock holds a snapshot,
    // and CREATE INDEX CONCURRENTLY elsewhere would wait for that. The lock goes with the session.
    let deadline = Instant::now() + target.options.operation_timeout;
    loop {
        let row = session.client.query_one("select pg_try_advisory_lock($1)", &[&LOCK]).await;
        if row.map_err(|e| target.error(&e, "set the queue up"))?.get(0) {
            break;
        }
        if Instant::now() >= deadline {
            return Err(Error::new(
                Class::Contention,
                format!("Postgres at {}: another session keeps setting the queue up", target.place()),
            )
            .hint("see who holds the advisory lock in pg_locks"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let schema = format!("{OURS}_queue");
    let owner = install::owner_of(&session.client, &schema, &Worker::Own).await;
    if let Some(owner) = owner.map_err(|e| target.error(&e, &format!("look at schema {OURS}_queue")))? {
        owner.assert_ours(&schema).map_err(|e| e.context(format!("the queue at {}", target.place())))?;
    }
    session
        .client
        .batch_execute(&format!(
            "do $$ begin
               if to_regnamespace('{OURS}_queue') is null then create schema {OURS}_queue; end if;
             end $$"
        ))
        .await
        .map_err(|e| target.error(&e, &format!("create schema {OURS}_queue")))?;
    runner.set_migration_table_name(history());
    runner.run_async(&mut session.client).await.map_err(|e| {
        // refinery's own text hides the server's answer.
        match std::error::Error::source(&e).and_then(|s| s.downcast_ref::<tokio_postgres::Error>()) {
            Some(cause) => target.error(cause, "create the queue's tables"),
            None => Error::new(
                Class::Changed,
                format!(
                    "Postgres at {}: the queue's tables are not what this version expects: {e}",
                    target.place()
                ),
            )
            .hint("a newer version of Handover may have set them up: use that one"),
        }
    })?;
    Ok(())
}

/// The version that is in place, if any.
async fn current(target: &Target, client: &tokio_postgres::Client) -> Result<Option<i64>> {
    match client.query_one(&format!("select max(version)::bigint from {}", history()), &[]).await {
        Ok(row) => Ok(row.get(0)),
        Err(e) if super::connect::is_missing(&e) => Ok(None),
        Err(e) => Err(target.error(&e, "look at the queue's tables")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn under_the_default_name_the_checksum_is_that_of_the_histories() {
        let runner = |schema| install::named(&embedded::migrations::runner(), schema).unwrap();
        let sums: Vec<u64> = runner(handover_postgres::ours::DEFAULT)
            .get_migrations()
            .iter()
            .map(refinery::Migration::checksum)
            .collect();
        assert_eq!(sums, [0x2373_4a75_dcd0_1dd0]);
        let other = runner("upkeep");
        let sql = other.get_migrations()[0].sql().unwrap();
        assert!(sql.contains("upkeep_queue.message") && !sql.contains("handover_"), "{sql}");
    }
}
