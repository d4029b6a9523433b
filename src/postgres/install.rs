//! Our own schema `handover` in a database, created and upgraded by refinery.

use super::session::Session;
use crate::error::{Class, Error, Result};
use std::time::{Duration, Instant};

/// How long to wait for another process that installs.
const PATIENCE: Duration = Duration::from_secs(30);

/// refinery's table of what was applied. In schema `handover`, so that a plan's own migrations never meet it.
const CONTROL_HISTORY: &str = "handover.control_history";
const DATABASE_HISTORY: &str = "handover.database_history";

mod control {
    refinery::embed_migrations!("migrations/control");
}

mod database {
    refinery::embed_migrations!("migrations/database");
}

/// Which of our tables a database gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Journal, lease and requests.
    Control,
    /// Fence, checkpoints, outbox, archives.
    Database,
}

/// Creates or upgrades our tables. Safe to call at every start and by several processes at once.
///
/// # Errors
/// What the server says; a schema made by a newer Handover.
pub async fn install(session: &mut Session, part: Part) -> Result<()> {
    let database = session.database().to_owned();
    let client = session.client();
    let error = |e: tokio_postgres::Error| super::error::from_postgres(&e, &database);
    // Two first runs at once: refinery itself does not lock. 0x68616e64 is "hand". Asked for again and again:
    // a blocking wait would hold a snapshot, and with it every concurrent index build; and a process that was
    // stopped while it installs must not keep all others waiting for ever.
    let begun = Instant::now();
    while !client
        .query_one("select pg_try_advisory_lock(1751215716)", &[])
        .await
        .map_err(error)?
        .get::<_, bool>(0)
    {
        if begun.elapsed() > PATIENCE {
            return Err(Error::new(
                Class::Contention,
                "another process has been installing Handover's tables for long",
            )
            .on_database(&database)
            .hint("see pg_locks for who holds advisory lock 1751215716; end it and try again"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let result = migrate(client, part, &database).await;
    client.batch_execute("select pg_advisory_unlock(1751215716)").await.map_err(error)?;
    result
}

async fn migrate(client: &mut tokio_postgres::Client, part: Part, database: &str) -> Result<()> {
    let exists = client
        .query_opt("select 1 from pg_namespace where nspname = 'handover'", &[])
        .await
        .map_err(|e| super::error::from_postgres(&e, database))?;
    if exists.is_none() {
        client
            .batch_execute("create schema handover; comment on schema handover is 'Handover''s own tables; dropped by `handover finish --purge`'")
            .await
            .map_err(|e| super::error::from_postgres(&e, database))?;
    }
    let (mut runner, history) = match part {
        Part::Control => (control::migrations::runner(), CONTROL_HISTORY),
        Part::Database => (database::migrations::runner(), DATABASE_HISTORY),
    };
    runner.set_migration_table_name(history);
    runner.run_async(client).await.map(drop).map_err(|e| {
        let source = std::error::Error::source(&e).and_then(|s| s.downcast_ref::<tokio_postgres::Error>());
        match source {
            Some(source) => super::error::from_postgres(source, database)
                .context("Handover's own tables in schema handover cannot be made or upgraded"),
            None => Error::new(Class::Data, format!("Handover's own tables cannot be made or upgraded ({e})"))
                .on_database(database)
                .hint("a schema made by a newer Handover needs that version; see handover.control_history and handover.database_history"),
        }
    })
}
