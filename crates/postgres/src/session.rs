//! A connection bound to a lease, and the transaction that proves it still holds it.

use super::address::Address;
use super::error::from_postgres;
use super::lease::{Lease, lost};
use super::ours::OURS;
use super::standby::{self, Told, Watch};
use handover_core::error::{Error, Result};
use handover_core::event::{RunId, StepId};
use handover_core::failpoint;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_postgres::types::{Json, ToSql};
use tokio_postgres::{Client, CopyInSink, CopyOutStream, Row, Statement, ToStatement};

/// Parameters of a query.
pub type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// One connection to a database of the plan.
///
/// A writer's every transaction begins by locking the plan's fence row and comparing the token, so a runner
/// that was superseded gets nothing committed. Statements that cannot run in a transaction
/// ([`Session::autocommit`]) check it just before; a successor ends those by their `application_name`.
#[derive(Debug)]
pub struct Session {
    client: Client,
    database: String,
    lease: Option<Lease>,
    /// For commits that wait for a standby.
    watch: Option<Watch>,
    /// Whether its waits for locks are bounded: others may want what its transactions hold.
    hurried: AtomicBool,
}

macro_rules! queries {
    ($client:ident) => {
        /// All rows of a query.
        ///
        /// # Errors
        /// What the server says, with this database's name.
        pub async fn query<T: ?Sized + ToStatement>(&self, sql: &T, params: Params<'_>) -> Result<Vec<Row>> {
            self.$client.query(sql, params).await.map_err(|e| self.error(&e))
        }

        /// The one row of a query.
        ///
        /// # Errors
        /// What the server says, or another number of rows.
        pub async fn query_one<T: ?Sized + ToStatement>(&self, sql: &T, params: Params<'_>) -> Result<Row> {
            self.$client.query_one(sql, params).await.map_err(|e| self.error(&e))
        }

        /// The only row of a query, or none.
        ///
        /// # Errors
        /// What the server says, or more than one row.
        pub async fn query_opt<T: ?Sized + ToStatement>(
            &self,
            sql: &T,
            params: Params<'_>,
        ) -> Result<Option<Row>> {
            self.$client.query_opt(sql, params).await.map_err(|e| self.error(&e))
        }

        /// The rows of a query as they arrive, so that a large result needs no memory.
        pub async fn query_stream(&self, sql: &str) -> Result<tokio_postgres::RowStream> {
            let none: [&(dyn ToSql + Sync); 0] = [];
            self.$client.query_raw(sql, none).await.map_err(|e| self.error(&e))
        }

        /// Prepares a statement for repeated use.
        pub async fn prepare(&self, sql: &str) -> Result<Statement> {
            self.$client.prepare(sql).await.map_err(|e| self.error(&e))
        }

        /// Starts a `COPY … TO STDOUT`.
        pub async fn copy_out<T: ?Sized + ToStatement>(&self, sql: &T) -> Result<CopyOutStream> {
            self.$client.copy_out(sql).await.map_err(|e| self.error(&e))
        }

        /// An error of this database.
        #[must_use]
        pub fn error(&self, error: &tokio_postgres::Error) -> Error {
            from_postgres(error, &self.database)
        }

        /// The database's name in the plan.
        #[must_use]
        pub fn database(&self) -> &str {
            &self.database
        }
    };
}

impl Session {
    pub(super) fn writer(
        client: Client,
        database: &str,
        lease: Lease,
        address: Address,
        told: Option<Told>,
    ) -> Self {
        let watch = Watch { address, database: database.to_owned(), told };
        let session = Session::unleased(client, database);
        Session { lease: Some(lease), watch: Some(watch), ..session }
    }

    /// From here on commits are waited for no longer than [`standby::PATIENCE`] when a standby does not answer.
    pub(super) fn hurry(&self) {
        self.hurried.store(true, Ordering::Relaxed);
    }

    /// A session of the engine itself (journal, installation), under no lease.
    #[must_use]
    pub fn unleased(client: Client, database: &str) -> Self {
        Session {
            client,
            database: database.to_owned(),
            lease: None,
            watch: None,
            hurried: AtomicBool::new(false),
        }
    }

    /// The driver's client, for a caller that manages the connection itself.
    #[must_use]
    pub fn into_client(self) -> Client {
        self.client
    }

    queries!(client);

    /// Sets a session parameter, e.g. `("lock_timeout", "2s")`.
    pub async fn set(&self, name: &str, value: &str) -> Result<()> {
        self.query("select set_config($1, $2, false)", &[&name, &value]).await.map(drop)
    }

    /// Begins a transaction; a writer's is fenced.
    ///
    /// # Errors
    /// Lease lost, or what the server says.
    pub async fn transaction(&mut self) -> Result<Tx<'_>> {
        if let Some(lease) = &self.lease {
            lease.assert_held()?;
        }
        let inner = self.client.transaction().await.map_err(|e| from_postgres(&e, &self.database))?;
        let tx = Tx {
            inner,
            database: self.database.clone(),
            checkpoint: AtomicBool::new(false),
            watch: self.watch.clone(),
            hurried: AtomicBool::new(self.hurried.load(Ordering::Relaxed)),
        };
        if let Some(lease) = &self.lease {
            tx.check_fence(lease).await?;
        }
        Ok(tx)
    }

    /// Executes one statement outside a transaction block, for those that refuse to run in one (such as
    /// `CREATE INDEX CONCURRENTLY`). One statement only: the extended protocol refuses more.
    ///
    /// # Errors
    /// Lease lost, or what the server says.
    pub async fn autocommit(&self, sql: &str, params: Params<'_>) -> Result<u64> {
        self.check_fence().await?;
        if !self.hurried.load(Ordering::Relaxed) {
            return self.client.execute(sql, params).await.map_err(|e| self.error(&e));
        }
        // Its locks are let go of before a synchronous standby has it; what is written behind it waits for that.
        let row = self.query_one("select current_setting('synchronous_commit')", &[]).await?;
        self.set("synchronous_commit", "local").await?;
        let result = self.client.execute(sql, params).await.map_err(|e| self.error(&e));
        self.set("synchronous_commit", row.get(0)).await?;
        let changed = result?;
        // A role may have been refused this function; then the next commit of ours waits.
        drop(
            self.client
                .batch_execute("select pg_catalog.pg_logical_emit_message(true, 'handover', '')")
                .await,
        );
        Ok(changed)
    }

    /// Proves outside any transaction that this session's lease still holds the fence, right before a
    /// statement that cannot run in one.
    ///
    /// # Errors
    /// Lease lost, or what the server says.
    pub async fn check_fence(&self) -> Result<()> {
        let lease = self.lease.as_ref().ok_or_else(lost)?;
        lease.assert_held()?;
        let row = self
            .query_opt(
                &format!("select 1 from {OURS}.fence where plan = $1 and token = $2"),
                &[&lease.plan(), &lease.token()],
            )
            .await?;
        if row.is_none() {
            lease.lose();
            return Err(lost());
        }
        Ok(())
    }

    /// The driver's client, for reading and for libraries that bring their own statements (refinery). A write
    /// through it is not fenced: use [`Session::transaction`] for those.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// The backend's process id.
    pub async fn backend_pid(&self) -> Result<i32> {
        Ok(self.query_one("select pg_backend_pid()", &[]).await?.get(0))
    }

    /// The server's major version.
    pub async fn major(&self) -> Result<u32> {
        let sql = "select current_setting('server_version_num')::int4 / 10000";
        Ok(self.query_one(sql, &[]).await?.get::<_, i32>(0).unsigned_abs())
    }

    /// A handle that cancels whatever this connection is executing.
    #[must_use]
    pub fn cancel_token(&self) -> tokio_postgres::CancelToken {
        self.client.cancel_token()
    }
}

/// A transaction. Dropping it rolls back.
pub struct Tx<'a> {
    inner: tokio_postgres::Transaction<'a>,
    database: String,
    /// Whether a checkpoint commits with it.
    checkpoint: AtomicBool,
    watch: Option<Watch>,
    /// As the session's.
    hurried: AtomicBool,
}

impl Tx<'_> {
    queries!(inner);

    async fn check_fence(&self, lease: &Lease) -> Result<()> {
        // FOR SHARE: a takeover's UPDATE of the row waits for us (or ends us), and we for it.
        let row = self
            .query_opt(
                &format!("select 1 from {OURS}.fence where plan = $1 and token = $2 for share"),
                &[&lease.plan(), &lease.token()],
            )
            .await?;
        if row.is_none() {
            lease.lose();
            return Err(lost());
        }
        Ok(())
    }

    /// Executes a statement; returns the number of rows it changed.
    pub async fn execute<T: ?Sized + ToStatement>(&self, sql: &T, params: Params<'_>) -> Result<u64> {
        self.inner.execute(sql, params).await.map_err(|e| self.error(&e))
    }

    /// Executes several statements of ours through the simple protocol. Never for an operator's SQL.
    pub async fn batch(&self, sql: &str) -> Result<()> {
        self.inner.batch_execute(sql).await.map_err(|e| self.error(&e))
    }

    /// Executes one statement of an operator's script through the simple protocol, and keeps the driver's
    /// error: its position tells the line in the script ([`Tx::error`] turns it into ours).
    pub async fn try_batch(&self, sql: &str) -> Result<(), tokio_postgres::Error> {
        self.inner.batch_execute(sql).await
    }

    /// Starts a `COPY … FROM STDIN`.
    pub async fn copy_in<T: ?Sized + ToStatement>(&self, sql: &T) -> Result<CopyInSink<bytes::Bytes>> {
        self.inner.copy_in(sql).await.map_err(|e| self.error(&e))
    }

    /// The checkpoint of one unit of a step's work.
    ///
    /// # Errors
    /// What the server says, or a checkpoint of another shape (written by another version).
    pub async fn checkpoint<T: DeserializeOwned>(
        &self,
        run: RunId,
        step: &StepId,
        unit: &str,
    ) -> Result<Option<T>> {
        let row = self
            .query_opt(
                &format!("select state from {OURS}.checkpoint where run = $1 and step = $2 and unit = $3"),
                &[&run.0, &step.as_str(), &unit],
            )
            .await?;
        let Some(row) = row else { return Ok(None) };
        let Json(state) = row.try_get::<_, Json<T>>(0).map_err(|e| {
            Error::internal(format!("the checkpoint of {unit} cannot be read ({e})"))
                .on_database(&self.database)
        })?;
        Ok(Some(state))
    }

    /// Writes a unit's checkpoint; it commits with the effect it speaks of.
    pub async fn save_checkpoint<T: Serialize + Sync + std::fmt::Debug>(
        &self,
        run: RunId,
        step: &StepId,
        unit: &str,
        state: &T,
    ) -> Result<()> {
        self.checkpoint.store(true, Ordering::Relaxed);
        self.execute(
            &format!(
                "insert into {OURS}.checkpoint (run, step, unit, state) values ($1, $2, $3, $4)
             on conflict (run, step, unit) do update set state = excluded.state, at = clock_timestamp()"
            ),
            &[&run.0, &step.as_str(), &unit, &Json(state)],
        )
        .await
        .map(drop)
    }

    /// Forgets all checkpoints of a step, as the last act of its undo.
    pub async fn forget_checkpoints(&self, run: RunId, step: &StepId) -> Result<()> {
        self.execute(
            &format!("delete from {OURS}.checkpoint where run = $1 and step = $2"),
            &[&run.0, &step.as_str()],
        )
        .await
        .map(drop)
    }

    /// Makes this transaction's commit wait until it is durable, whatever a role, a database or the server says. What
    /// waits for more than that (`remote_apply`) stays.
    pub async fn durable(&self) -> Result<()> {
        self.query(
            "select set_config('synchronous_commit', 'on', true)
             where current_setting('synchronous_commit') not in ('on', 'remote_apply')",
            &[],
        )
        .await
        .map(drop)
    }

    /// As [`Session::hurry`], for this transaction.
    pub(super) fn hurry(&self) {
        self.hurried.store(true, Ordering::Relaxed);
    }

    /// Commits. Where the waits for locks are bounded, the wait for a synchronous standby is too; see
    /// [`super::standby`].
    ///
    /// # Errors
    /// What the server says. After a broken connection the outcome is unknown: read the checkpoint.
    pub async fn commit(self) -> Result<()> {
        self.commit_within(standby::PATIENCE).await.map(drop)
    }

    /// Commits; whether that took no longer than `limit`, which a synchronous standby that does not answer makes it.
    /// Where the waits for locks are not bounded, nor is this one.
    ///
    /// # Errors
    /// As [`Tx::commit`].
    pub async fn commit_within(self, limit: Duration) -> Result<bool> {
        let Tx { inner, database, checkpoint, watch, hurried } = self;
        let (result, confirmed) = match watch {
            Some(watch) if hurried.into_inner() => {
                // Else checked by the commit, which may be cancelled.
                let checked = inner.batch_execute("set constraints all immediate").await;
                checked.map_err(|e| from_postgres(&e, &database))?;
                let token = inner.cancel_token();
                watch.over(inner.commit(), &token, limit).await
            }
            _ => (inner.commit().await, true),
        };
        result.map_err(|e| from_postgres(&e, &database))?;
        if checkpoint.into_inner() {
            failpoint::at(failpoint::CHECKPOINT_COMMITTED)?;
        }
        Ok(confirmed)
    }

    /// Rolls back.
    pub async fn rollback(self) -> Result<()> {
        let Tx { inner, database, .. } = self;
        inner.rollback().await.map_err(|e| from_postgres(&e, &database))
    }
}
