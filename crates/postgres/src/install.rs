//! Our own schema in a database, created and upgraded by refinery. Our migrations write `{OURS}` for its name.

use super::ours::{self, OURS};
use super::plain::assert_plain;
use super::session::Session;
use super::worker::Worker;
use handover_core::error::{Class, Error, Result};
use std::time::{Duration, Instant};

/// How long to wait for another process that installs.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the comments on our schemas begin with: the mark by which they are known under any name.
const MARKS: [&str; 2] = ["Handover's own tables", "Handover's embedded message queue"];

mod control {
    refinery::embed_migrations!("../../migrations/control");
}

mod database {
    refinery::embed_migrations!("../../migrations/database");
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
    /// Whether that is us, or somebody who rules over the database anyhow; so, too, where it is not known who we are.
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
                    "choose another name for Handover's own schema in the plan, one that nothing else has, for example \
                     `schema: upkeep`: what is in {schema} is then the application's like everything else"
                ),
            )
        };
        Err(Error::usage(what).hint(hint))
    }
}

/// Whose a schema of our name is, as seen by the role that Handover works as; none when there is none.
pub async fn owner_of(
    client: &tokio_postgres::Client,
    schema: &str,
    worker: &Worker,
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
            &[&schema, &worker.named()],
        )
        .await?;
    Ok(row.map(|row| Owner {
        role: row.get(0),
        trusted: row.get(1) || *worker == Worker::Unknown,
        marked: row.get(2),
        empty: row.get(3),
    }))
}

/// Refuses a database in which a schema of one of our names is somebody else's.
///
/// # Errors
/// A stranger's schema, with its owner named; what the server says.
pub async fn assert_no_strangers(session: &mut Session, worker: &Worker) -> Result<()> {
    let database = session.database().to_owned();
    let error = |e: tokio_postgres::Error| super::error::from_postgres(&e, &database);
    assert_plain(session.client(), &database).await?;
    for schema in ours::schemas() {
        let owner = owner_of(session.client(), &schema, worker).await;
        if let Some(owner) = owner.map_err(error)? {
            owner.assert_ours(&schema).map_err(|e| e.on_database(&database))?;
        }
    }
    Ok(())
}

/// Refuses a database in which a Handover of another `schema:` has a schema: it would be taken for the application's.
/// Asked before a run begins, and not later: one that has begun must be able to go on and back whatever others made.
///
/// # Errors
/// Such a schema; what the server says.
pub async fn assert_one_name(session: &mut Session) -> Result<()> {
    let database = session.database().to_owned();
    let others = under_other_names(session.client()).await;
    let others = others.map_err(|e| super::error::from_postgres(&e, &database))?;
    let Some(other) = others.first() else { return Ok(()) };
    let of = other.strip_suffix("_queue").unwrap_or(other);
    Err(Error::usage(format!(
        "schema {other} is Handover's too, of plans with `schema: {of}`, and this plan says `schema: {OURS}`: it would be \
         copied and frozen like the application's"
    ))
    .on_database(&database)
    .hint(format!(
        "write `schema: {of}` in this plan; or, when no run needs it any more, `handover finish` with that plan and \
         `drop schema {other} cascade`"
    )))
}

/// Schemas that a Handover of another `schema:` made here. Only reads.
async fn under_other_names(client: &tokio_postgres::Client) -> Result<Vec<String>, tokio_postgres::Error> {
    let rows = client
        .query(
            "select n.nspname::text from pg_namespace n
             where exists (select from unnest($1::text[]) mark
                           where starts_with(obj_description(n.oid, 'pg_namespace'), mark))
               and n.nspname <> all ($2) order by 1",
            &[&MARKS.as_slice(), &ours::schemas().as_slice()],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Our embedded migrations with the name of our schema in it. With the default name the text, and with it
/// refinery's checksum, is what it was before the name could be chosen.
///
/// # Errors
/// A migration's file of another name than refinery knows, which is a defect.
pub fn named(runner: &refinery::Runner, schema: &str) -> Result<refinery::Runner> {
    let migrations: Result<Vec<refinery::Migration>, refinery::Error> = runner
        .get_migrations()
        .iter()
        .map(|migration| {
            let sql = migration.sql().unwrap_or_default().replace("{OURS}", schema);
            refinery::Migration::unapplied(&format!("V{}__{}", migration.version(), migration.name()), &sql)
        })
        .collect();
    let migrations =
        migrations.map_err(|e| Error::internal(format!("a migration of ours is broken ({e})")))?;
    Ok(refinery::Runner::new(&migrations))
}

async fn migrate(client: &mut tokio_postgres::Client, part: Part, database: &str) -> Result<()> {
    let error = |e: tokio_postgres::Error| super::error::from_postgres(&e, database);
    assert_plain(client, database).await?;
    match owner_of(client, OURS.name(), &Worker::Own).await.map_err(error)? {
        None => client
            .batch_execute(&format!(
                "create schema {OURS};
                 comment on schema {OURS} is 'Handover''s own tables; docs/grants.md says how to drop them'"
            ))
            .await
            .map_err(error)?,
        Some(owner) => owner.assert_ours(OURS.name()).map_err(|e| e.on_database(database))?,
    }
    let (runner, history) = match part {
        Part::Control => (control::migrations::runner(), "control_history"),
        Part::Database => (database::migrations::runner(), "database_history"),
    };
    let mut runner = named(&runner, OURS.name())?;
    // In our schema, so that a plan's own migrations never meet it.
    runner.set_migration_table_name(format!("{OURS}.{history}"));
    runner.run_async(client).await.map(drop).map_err(|e| {
        let source = std::error::Error::source(&e).and_then(|s| s.downcast_ref::<tokio_postgres::Error>());
        match source {
            Some(source) => super::error::from_postgres(source, database)
                .context(format!("Handover's own tables in schema {OURS} cannot be made or upgraded")),
            None => Error::new(Class::Data, format!("Handover's own tables cannot be made or upgraded ({e})"))
                .on_database(database)
                .hint(format!("a schema made by a newer Handover needs that version; see {OURS}.control_history and {OURS}.database_history")),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checksums of the embedded migrations as databases have them in their histories. A text that was released
    /// must never change, and the name's place in it must not show under the default name.
    #[test]
    fn under_the_default_name_the_checksums_are_those_of_the_histories() {
        let sums = |runner: &refinery::Runner, schema| -> Vec<(i64, u64)> {
            let runner = named(runner, schema).unwrap();
            let mut sums: Vec<_> =
                runner.get_migrations().iter().map(|m| (m.version(), m.checksum())).collect();
            sums.sort_unstable();
            sums
        };
        let (control, database) = (control::migrations::runner(), database::migrations::runner());
        assert_eq!(sums(&control, ours::DEFAULT), CONTROL_SUMS);
        assert_eq!(sums(&database, ours::DEFAULT), DATABASE_SUMS);
        assert_ne!(sums(&control, "upkeep"), CONTROL_SUMS);
        for runner in [&control, &database] {
            for migration in named(runner, "upkeep").unwrap().get_migrations() {
                let sql = migration.sql().unwrap();
                assert!(
                    !sql.contains("{OURS}") && !sql.contains(&format!("{OURS}.")),
                    "V{}: {sql}",
                    migration.version()
                );
            }
        }
    }

    const CONTROL_SUMS: [(i64, u64); 1] = [(1, 0xbce6_78ab_89ca_e590)];
    const DATABASE_SUMS: [(i64, u64); 10] = [
        (1, 0x738b_dbe2_2aa6_7f80),
        (2, 0xbc83_e08a_b396_45fd),
        (3, 0x736c_0485_684f_f62c),
        (5, 0x42c3_3f6e_a53b_78fa),
        (6, 0xb474_468b_a408_07be),
        (7, 0x7e16_0d45_75dc_79d4),
        (8, 0xca52_a991_a9ad_a59d),
        (9, 0x59b8_3d2f_a1d6_c1b6),
        (10, 0x3363_6c9a_b888_410c),
        (11, 0xd9b9_c54e_c6de_656d),
    ];
}
