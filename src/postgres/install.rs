//! Our own schema `handover` in a database, created and upgraded by refinery.

use super::session::Session;
use crate::error::{Class, Error, Result};
use std::time::{Duration, Instant};

/// How long to wait for another process that installs.
const PATIENCE: Duration = Duration::from_secs(30);

/// The schema of our tables.
const SCHEMA: &str = "handover";
/// The schema of the embedded queue.
pub const QUEUE_SCHEMA: &str = "handover_queue";

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

/// A schema of our name, and whose it is.
#[derive(Debug)]
pub struct Owner {
    /// The role that it belongs to.
    role: String,
    /// Whether that is us, or somebody who rules over the database anyhow.
    trusted: bool,
    /// Whether we made it: it has our comment, or the history of our own migrations.
    marked: bool,
    /// Whether nothing is in it.
    empty: bool,
}

impl Owner {
    /// Refuses a schema that is not ours: what is in it would be taken for our tables, and would neither be copied nor
    /// frozen; and the triggers of somebody else's tables would fire as our role. An empty one may have been made
    /// for us.
    ///
    /// # Errors
    /// A stranger's schema, with its owner named.
    pub fn assert_ours(&self, schema: &str) -> Result<()> {
        let Owner { role, trusted, marked, empty } = self;
        if *trusted && (*marked || *empty) {
            return Ok(());
        }
        let (what, hint) = if *marked || *empty {
            (
                format!(
                    "schema {schema} belongs to the role {role}, which is not the one that Handover works as"
                ),
                format!(
                    "if Handover made it as that role, go on as that role, or give it over with its tables: \
                     `reassign owned` or `alter schema {schema} owner to …`; if not, drop it"
                ),
            )
        } else {
            (
                format!("schema {schema} belongs to the role {role}, and Handover did not make it"),
                format!(
                    "Handover keeps its own tables in a schema of that name, and leaves it out of copies and freezes: \
                     rename it before the run (`alter schema {schema} rename to …`) in the application too, whose SQL and routines may write \
                     that name; after `handover finish` and `drop schema {schema} cascade` the name is free again"
                ),
            )
        };
        Err(Error::usage(what).hint(hint))
    }
}

/// Whose a schema of our name is, as seen by the role that Handover works as (that of the session unless given); none
/// when there is none.
///
/// # Errors
/// What the server says.
pub async fn owner_of(
    client: &tokio_postgres::Client,
    schema: &str,
    working: Option<&str>,
) -> Result<Option<Owner>, tokio_postgres::Error> {
    let row = client
        .query_opt(
            "select r.rolname::text,
                    coalesce((select pg_has_role(w.oid, n.nspowner, 'member') from pg_roles w
                              where w.rolname = coalesce($2, current_user::text)), false)
                      or r.rolsuper
                      or n.nspowner = (select datdba from pg_database where datname = current_database()),
                    coalesce(starts_with(obj_description(n.oid, 'pg_namespace'), 'Handover''s '), false)
                      or exists (select from pg_class c where c.relnamespace = n.oid and c.relkind = 'r'
                                   and c.relname in ('control_history', 'database_history', 'refinery_history')),
                    not exists (select from pg_class c where c.relnamespace = n.oid)
                      and not exists (select from pg_proc p where p.pronamespace = n.oid)
                      and not exists (select from pg_type t where t.typnamespace = n.oid)
             from pg_namespace n join pg_roles r on r.oid = n.nspowner where n.nspname = $1",
            &[&schema, &working],
        )
        .await?;
    Ok(row.map(|row| Owner { role: row.get(0), trusted: row.get(1), marked: row.get(2), empty: row.get(3) }))
}

/// Refuses a database in which a schema of one of our names is somebody else's.
///
/// # Errors
/// A stranger's schema, with its owner named; what the server says.
pub async fn assert_no_strangers(session: &mut Session, working: Option<&str>) -> Result<()> {
    let database = session.database().to_owned();
    for schema in [SCHEMA, QUEUE_SCHEMA] {
        let owner = owner_of(session.client(), schema, working).await;
        if let Some(owner) = owner.map_err(|e| super::error::from_postgres(&e, &database))? {
            owner.assert_ours(schema).map_err(|e| e.on_database(&database))?;
        }
    }
    Ok(())
}

async fn migrate(client: &mut tokio_postgres::Client, part: Part, database: &str) -> Result<()> {
    let error = |e: tokio_postgres::Error| super::error::from_postgres(&e, database);
    match owner_of(client, SCHEMA, None).await.map_err(error)? {
        None => client
            .batch_execute("create schema handover; comment on schema handover is 'Handover''s own tables; docs/grants.md says how to drop them'")
            .await
            .map_err(error)?,
        Some(owner) => owner.assert_ours(SCHEMA).map_err(|e| e.on_database(database))?,
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
