//! The copy's point in time, kept open by the source itself.
//!
//! An exported snapshot dies with the transaction that exported it
//! (<https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-SNAPSHOT-SYNCHRONIZATION>), so that
//! transaction must not depend on this process. Its last statement is a loop that runs inside the server: it
//! goes on while an advisory lock of ours is seen, and for a bounded time after that. A backend that executes a
//! statement does not look at its connection (`client_connection_check_interval` is 0 there), so the loop
//! outlives a killed engine and even its machine; a resumed engine takes the advisory lock again and goes on
//! from the same snapshot. When nobody comes, the loop ends, and nothing is held any more.

use crate::state::Held;
use handover_core::error::{Error, Result};
use handover_core::event::{RunId, StepId};
use handover_core::value::fingerprint;
use handover_postgres::leftovers::SNAPSHOT_PREFIX;
use handover_postgres::{Databases, Session, TableName, quote_literal};
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};

/// First of the two numbers of the advisory lock that says that an engine is there (`hand`, in ASCII).
const LOCK_CLASS: i32 = 0x6861_6e64;
/// How long a holder may take to begin or to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a table is waited for that somebody alters.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// The session that holds the copy's exported snapshot, seen from an engine that uses it.
#[derive(Debug)]
pub struct SnapshotHolder {
    /// Holds the advisory lock, which says that an engine is there, and asks after the holder.
    presence: Session,
    name: String,
    held: Held,
}

/// `application_name` of the session that holds a step's snapshot. Not of the form of an engine's own
/// connections, which a successor ends.
#[must_use]
pub fn application_name(run: RunId, step: &StepId) -> String {
    format!("{SNAPSHOT_PREFIX}{run}/{}", fingerprint(step.as_str(), 4))
}

fn lock_number(name: &str) -> i32 {
    let digest = Sha256::digest(name.as_bytes());
    i32::from_be_bytes([digest[0] & 0x7f, digest[1], digest[2], digest[3]])
}

/// A transaction that has its locks, and not yet its snapshot.
pub struct Locked {
    session: Session,
}

impl SnapshotHolder {
    /// Begins the transaction that will hold, with ACCESS SHARE on `tables`: after a TRUNCATE or a rewriting
    /// ALTER an older snapshot would see no rows (<https://www.postgresql.org/docs/current/mvcc-caveats.html>).
    /// LOCK takes no snapshot, so the snapshot can be taken, or imported, after it.
    ///
    /// # Errors
    /// A table that cannot be locked within two seconds.
    pub async fn lock(
        databases: &Databases,
        database: &str,
        run: RunId,
        step: &StepId,
        tables: impl Iterator<Item = &TableName>,
    ) -> Result<Locked> {
        let session = databases.read_only(database).await?;
        // A broken connection is found by what it is told next; the holder is to outlive ours.
        if session.major().await? >= 14 {
            session.set("client_connection_check_interval", "0").await?;
        }
        session.set("application_name", &application_name(run, step)).await?;
        session.wait_for_locks(LOCK_TIMEOUT).await?;
        session.query("begin isolation level repeatable read, read only", &[]).await?;
        for tables in tables.collect::<Vec<_>>().chunks(200) {
            let list: Vec<String> = tables.iter().map(|t| t.sql()).collect();
            let sql = format!("lock table only {} in access share mode", list.join(", only "));
            session.query(&sql, &[]).await?;
        }
        Ok(Locked { session })
    }

    /// Joins a holder that an earlier process left; none when it is gone.
    pub async fn join(
        databases: &Databases,
        database: &str,
        run: RunId,
        step: &StepId,
        held: &Held,
    ) -> Result<Option<SnapshotHolder>> {
        let name = application_name(run, step);
        let presence = presence(databases, database, &name).await?;
        let holder = SnapshotHolder { presence, name, held: held.clone() };
        if !holder.is_there().await? {
            return Ok(None);
        }
        // Another look after its next beat: it may have been about to end when our lock came.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        Ok(holder.is_there().await?.then_some(holder))
    }

    /// What is held.
    #[must_use]
    pub fn held(&self) -> &Held {
        &self.held
    }

    async fn is_there(&self) -> Result<bool> {
        let row = self
            .presence
            .query_opt(
                "select 1 from pg_stat_activity
                 where pid = $1 and application_name = $2 and state = 'active' and backend_xmin is not null
                   and datname = current_database() and backend_start::text = $3",
                &[&self.held.pid, &self.name, &self.held.since],
            )
            .await?;
        Ok(row.is_some())
    }

    /// Proves that the snapshot and its locks were held without a gap until now.
    ///
    /// # Errors
    /// They are not held any more.
    pub async fn assert_held(&self) -> Result<()> {
        if self.is_there().await? {
            return Ok(());
        }
        Err(gone(self.presence.database()))
    }

    /// What holding costs the source just now, in words.
    pub async fn burden(&self) -> Result<String> {
        let row = self
            .presence
            .query_one(
                "select (extract(epoch from clock_timestamp() - xact_start) / 60)::int8, age(backend_xmin)::int8,
                        (select coalesce(sum(n_dead_tup), 0)::int8 from pg_stat_user_tables)
                 from pg_stat_activity where pid = $1 and application_name = $2",
                &[&self.held.pid, &self.name],
            )
            .await?;
        Ok(format!(
            "the snapshot on {} is {} minutes and {} transactions old; vacuum there keeps every row version that died since (dead rows in its tables now: {})",
            self.presence.database(),
            row.get::<_, i64>(0),
            row.get::<_, i64>(1),
            row.get::<_, i64>(2)
        ))
    }

    /// Cancels what other backends of ours are reading; for readers whose copy broke off.
    pub async fn cancel(&self, pids: &[i32]) {
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&pids];
        let sql = "select pg_cancel_backend(pid) from unnest($1::int4[]) pid";
        let _ = tokio::time::timeout(Duration::from_secs(5), self.presence.query(sql, &params)).await;
    }

    /// Lets go of it.
    ///
    /// # Errors
    /// See [`release`].
    pub async fn release(self) -> Result<()> {
        release_by_name(&self.presence, &self.name).await
    }
}

fn gone(database: &str) -> Error {
    Error::new(
        handover_core::error::Class::Connection,
        "the session that holds the copy's snapshot has ended",
    )
    .on_database(database)
    .hint("the server restarted or somebody ended it; `handover resume` begins the copy again")
}

impl Locked {
    /// The session, to take its snapshot by a first query or an import.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Hands the transaction over to the server: from here on it outlives this process, for as long as `hold`.
    ///
    /// # Errors
    /// The server does not begin the loop.
    pub async fn hold(
        self,
        databases: &Databases,
        database: &str,
        exported: String,
        hold: Duration,
    ) -> Result<SnapshotHolder> {
        let row = self
            .session
            .query_one(
                "select current_setting('application_name'), pid, backend_start::text
                 from pg_stat_activity where pid = pg_backend_pid()",
                &[],
            )
            .await?;
        let name: String = row.get(0);
        let held = Held { pid: row.get(1), since: row.get(2), exported };
        let presence = presence(databases, database, &name).await?;
        let sql = wait(lock_number(&name), hold);
        let session = self.session;
        tokio::spawn(async move {
            // Its end is seen by `is_there`; why it ended is in the server's log.
            let _ = session.query(&sql, &[]).await;
        });
        let holder = SnapshotHolder { presence, name, held };
        let begun = Instant::now();
        loop {
            let row = holder
                .presence
                .query_opt(
                    "select 1 from pg_stat_activity where pid = $1 and state = 'active' and starts_with(query, 'do ')",
                    &[&holder.held.pid],
                )
                .await?;
            if row.is_some() && holder.is_there().await? {
                return Ok(holder);
            }
            if begun.elapsed() > PATIENCE {
                return Err(gone(database));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A loop that ends when no engine was seen for `hold`. pg_locks shows the present even in an old snapshot.
fn wait(number: i32, hold: Duration) -> String {
    let body = format!(
        "declare seen timestamptz := clock_timestamp();
         begin
             loop
                 perform pg_sleep(1);
                 if exists (select from pg_locks where locktype = 'advisory' and granted and classid = {LOCK_CLASS}
                            and objid = {number} and objsubid = 2
                            and database = (select oid from pg_database where datname = current_database())) then
                     seen := clock_timestamp();
                 end if;
                 exit when clock_timestamp() > seen + make_interval(secs => {});
             end loop;
         end",
        hold.as_secs_f64()
    );
    format!("do {}", quote_literal(&body))
}

/// A session with the advisory lock, which says that an engine is there. Shared, so that a predecessor that is
/// still there is no obstacle, and without waiting, since a wait for one can deadlock with CREATE INDEX CONCURRENTLY.
async fn presence(databases: &Databases, database: &str, name: &str) -> Result<Session> {
    let session = databases.read_only(database).await?;
    let sql = "select pg_try_advisory_lock_shared($1, $2)";
    if session.query_one(sql, &[&LOCK_CLASS, &lock_number(name)]).await?.get::<_, bool>(0) {
        return Ok(session);
    }
    Err(Error::new(handover_core::error::Class::Contention, "somebody else holds the copy's advisory lock")
        .on_database(database)
        .hint(format!("see pg_locks for locktype advisory with classid {LOCK_CLASS}")))
}

/// Ends whatever holds a snapshot for this run and step.
///
/// # Errors
/// What the server says, or a backend that does not end.
pub async fn release(databases: &Databases, database: &str, run: RunId, step: &StepId) -> Result<()> {
    let session = databases.read_only(database).await?;
    release_by_name(&session, &application_name(run, step)).await
}

async fn release_by_name(session: &Session, name: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        let sql = "select pg_terminate_backend(pid), pid from pg_stat_activity
                   where application_name = $1 and datname = current_database() and pid <> pg_backend_pid()";
        let rows = session.query(sql, &[&name]).await?;
        let Some(row) = rows.first() else { return Ok(()) };
        if begun.elapsed() > PATIENCE {
            let pid: i32 = row.get(1);
            return Err(Error::new(
                handover_core::error::Class::Contention,
                format!("the session that holds the copy's snapshot does not end (pid {pid})"),
            )
            .on_database(session.database())
            .hint("end it with pg_terminate_backend as a superuser, then `handover resume`"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
