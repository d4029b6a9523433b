//! Executes a file's units, with short waits for locks, and says where in the file something failed.

use super::Migrate;
use super::culprit;
use super::folder::Migration;
use super::locks::{self, Lock};
use super::place::{place, role_error, unknown};
use super::probe::{self, Effect};
use super::script::{Script, Statement, Unit};
use super::vendor::Vendors;
use super::watch::{Blockers, watched};
use crate::error::{Error, Result};
use crate::event::Measure;
use crate::failpoint;
use crate::postgres::ours::OURS;
use crate::postgres::patience::Patience;
use crate::postgres::{Session, Tx, quote_ident};
use crate::steps::Context;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio_postgres::error::SqlState;

/// The longest wait between two attempts to get a lock.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// One session that executes the step's files.
pub struct Worker<'a> {
    pub(super) cx: &'a Context,
    pub(super) step: &'a Migrate,
    /// The history table.
    pub(super) table: String,
    pub(super) session: Session,
    pid: i32,
    /// What refinery is about to apply, in its order.
    pub(super) queue: VecDeque<(i64, &'a Migration)>,
    /// What refinery is about to record without applying it, and whether that is the baseline.
    pub(super) recording: Vec<(i64, &'a Migration)>,
    pub(super) baseline: bool,
    /// Whether a file's row has another checksum than the file, as it may.
    pub(super) diverges: bool,
    /// What statements waited for in vain, to be locked at the beginning of the next attempt.
    learned: Vec<Lock>,
    /// The vendors' tables, in which what is applied is recorded too.
    pub(super) vendors: Vendors,
}

/// What commits with a file's or unit's effect.
pub(super) enum Tail<'t> {
    /// The migration is applied: refinery's row, and our columns of it.
    Applied { insert: &'t str, version: i64, file: &'t Migration },
    /// A unit of a file that runs step by step is done.
    Unit { key: &'t str, position: Position },
    /// The migration is applied again, because its text changed.
    Again { version: i64, checksum: &'t str, file: &'t Migration },
    /// The migration is taken back; in a vendor's table too, if the row there is ours. `previous`: the number
    /// of the one before it in its folder.
    Forgotten { version: Option<i64>, file: &'t Migration, vendor: bool, previous: Option<&'t str> },
}

/// How far a file that runs step by step has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Units done.
    pub done: usize,
    /// Whether the next one was begun; only for one that is not in a transaction.
    pub begun: bool,
    /// Digest of the text that was executed, which must not change any more.
    pub executed: String,
}

impl Position {
    fn at(script: &Script, done: usize, begun: bool) -> Self {
        Position { done, begun, executed: digest(script.prefix(done)) }
    }
}

fn digest(text: &str) -> String {
    crate::value::fingerprint(text, 16)
}

/// An error, the server's code for it if it was the server's, and the statement that failed if it was one.
struct Failed(Error, Option<SqlState>, Option<usize>);

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed(error, None, None)
    }
}

impl<'a> Worker<'a> {
    /// Connects.
    ///
    /// # Errors
    /// Lease lost, or no connection.
    pub async fn open(cx: &'a Context, step: &'a Migrate) -> Result<Self> {
        let session = cx.operator_writer(&step.on).await?;
        session.set("search_path", &step.path(cx)?.sql()).await?;
        let pid = session.backend_pid().await?;
        let table = super::history::table_name(&cx.plan, cx.step.as_str());
        let (queue, recording) = (VecDeque::new(), Vec::new());
        let vendors = Vendors::default();
        Ok(Worker {
            cx,
            step,
            table,
            session,
            pid,
            queue,
            recording,
            baseline: false,
            diverges: false,
            learned: Vec::new(),
            vendors,
        })
    }

    /// Gives the next file a session with the plan's settings, whatever the last one set.
    pub(super) async fn prepare(&mut self) -> Result<()> {
        let millis = |d: Option<crate::value::Duration>| d.map_or(0, |d| d.0.as_millis()).to_string();
        self.session.wait_for_locks(self.step.lock_timeout.0).await?;
        self.session.set("statement_timeout", &millis(self.step.statement_timeout)).await?;
        // The files are written for the tool of their vendor, which leaves policies on.
        self.session.set("row_security", "on").await?;
        self.session.set("search_path", &self.step.path(self.cx)?.sql()).await?;
        Ok(())
    }

    /// A new session, after a file that changed settings of its own.
    pub(super) async fn renew(&mut self, after: &Script) -> Result<()> {
        if after.changes_session() {
            self.session = self.cx.operator_writer(&self.step.on).await?;
            self.pid = self.session.backend_pid().await?;
        }
        Ok(())
    }

    /// Executes statements in one fenced transaction with what commits with them. A lock that is not free in
    /// time gives way to the traffic behind us: everything is rolled back and tried again later.
    pub(super) async fn together(
        &mut self,
        script: &Script,
        statements: &[Statement],
        tail: &Tail<'_>,
        half_done: bool,
    ) -> Result<()> {
        let mut pause = Duration::from_millis(500);
        self.learned.clear();
        for attempt in 1.. {
            self.cx.proceed()?;
            let blockers = Blockers::new(attempt > 1);
            let Failed(error, code, at) =
                match self.attempt(script, statements, tail, half_done, &blockers).await {
                    Ok(()) => return Ok(()),
                    Err(failed) => failed,
                };
            let error = match (at, &code) {
                (Some(at), Some(code)) => self.with_row(error, statements, at, code).await,
                _ => error,
            };
            pause = self.wait_for_lock(script, attempt, pause, error, code.as_ref(), &blockers).await?;
            for lock in blockers.wanted() {
                if !self.learned.iter().any(|known| known.table == lock.table && known.mode >= lock.mode) {
                    self.learned.push(lock);
                }
            }
        }
        Ok(())
    }

    /// Names the row at which a statement failed, where it can be found.
    async fn with_row(&self, error: Error, statements: &[Statement], at: usize, code: &SqlState) -> Error {
        if !(code.code().starts_with("22") || code.code().starts_with("23")) {
            return error;
        }
        let Some(row) = culprit::find(self.cx, self.step, statements, at, code).await else { return error };
        let named = Error::new(error.class(), format!("{}; the first such row is {row}", error.message()))
            .in_file(error.place().file.as_deref().unwrap_or(""), error.place().line)
            .on_database(&self.step.on);
        match error.next_step() {
            Some(hint) => named.hint(hint),
            None => named,
        }
    }

    /// Waits before the next attempt at a lock, or gives up with the error.
    async fn wait_for_lock(
        &self,
        script: &Script,
        attempt: u32,
        pause: Duration,
        error: Error,
        code: Option<&SqlState>,
        blockers: &Blockers,
    ) -> Result<Duration> {
        let locked = matches!(code, Some(&SqlState::LOCK_NOT_AVAILABLE | &SqlState::T_R_DEADLOCK_DETECTED));
        if !locked {
            return Err(error);
        }
        let who = blockers.last().map_or_else(String::new, |who| format!("; the lock was held by {who}"));
        if attempt >= self.step.lock_attempts {
            return Err(Error::new(error.class(), format!("{} after {attempt} attempts{who}", error.message()))
                .in_file(&script.path, error.place().line)
                .on_database(&self.step.on)
                .hint("end or wait for the session that holds the lock, or raise `lock_attempts`; then `handover resume`"));
        }
        let wait = humantime::format_duration(pause);
        self.cx.warn(format!("{error}{who}; rolled back, attempt {} follows in {wait}", attempt + 1));
        self.cx.sleep(pause).await?;
        Ok((pause * 2).min(LONGEST_PAUSE))
    }

    async fn attempt(
        &mut self,
        script: &Script,
        statements: &[Statement],
        tail: &Tail<'_>,
        half_done: bool,
        blockers: &Blockers,
    ) -> Result<(), Failed> {
        let (cx, step, pid) = (self.cx, self.step, self.pid);
        let table = self.table.clone();
        let label = unit_label(tail);
        let started = Instant::now();
        let whole = !matches!(tail, Tail::Unit { .. });
        let tx = self.session.transaction().await?;
        if let Some(role) = &step.role {
            tx.batch(&format!("set local role {}", quote_ident(role)))
                .await
                .map_err(|e| role_error(&e, role))?;
        }
        let mut patience = Patience::of(&tx, step.lock_timeout.0).await?;
        let mut wanted = locks::of(&tx, statements).await?;
        for known in &self.learned {
            match wanted.iter_mut().find(|lock| lock.table == known.table) {
                Some(lock) => lock.mode = lock.mode.max(known.mode),
                None => wanted.push(known.clone()),
            }
        }
        wanted.sort();
        for lock in &wanted {
            patience.apply(&tx).await?;
            let sql = format!("lock table {} in {} mode", lock.table.sql(), lock.mode.sql());
            let run = tx.try_batch(&sql);
            if let Err(e) = watched(cx, &step.on, pid, &label, lock.line, blockers, run).await? {
                let error = tx.error(&e).in_file(&script.path, Some(lock.line));
                let error = error.context(format!("locking {}", lock.table));
                return Err(Failed(error, e.code().cloned(), None));
            }
            patience.begin();
        }
        for (i, statement) in statements.iter().enumerate() {
            cx.progress(&label, i as u64, Some(statements.len() as u64), Measure::Items);
            if locks::is_opaque(&statement.words) {
                patience.apply_late(&tx).await?;
            } else {
                patience.apply(&tx).await?;
            }
            patience.begin();
            if half_done {
                tx.batch("savepoint handover_statement").await?;
            }
            let run = tx.try_batch(&statement.sql);
            let Err(e) = watched(cx, &step.on, pid, &label, statement.line, blockers, run).await? else {
                continue;
            };
            if half_done && e.code().is_some_and(names_nothing) {
                tx.batch("rollback to savepoint handover_statement").await?;
                cx.note(format!(
                    "{}:{}: there was nothing to take back ({})",
                    script.path,
                    statement.line,
                    tx.error(&e).message()
                ));
                continue;
            }
            let error = place(script, statement, &e, tx.error(&e), whole);
            return Err(Failed(error, e.code().cloned(), Some(i)));
        }
        // What follows is ours, whatever role or path the file left in this transaction.
        tx.batch("set local role none").await?;
        finish(&tx, cx, &table, tail, self.baseline, &self.vendors, started.elapsed()).await?;
        match tail {
            Tail::Applied { .. } | Tail::Again { .. } => failpoint::at(failpoint::MIGRATE_BEFORE_COMMIT)?,
            Tail::Unit { .. } => failpoint::at(failpoint::MIGRATE_UNIT_BEFORE_COMMIT)?,
            Tail::Forgotten { .. } => failpoint::at(failpoint::MIGRATE_UNDO_BEFORE_COMMIT)?,
        }
        tx.commit().await.map_err(|e| e.in_file(&script.path, None))?;
        match tail {
            Tail::Applied { .. } | Tail::Again { .. } => failpoint::at(failpoint::MIGRATE_COMMITTED)?,
            Tail::Unit { .. } => failpoint::at(failpoint::MIGRATE_UNIT_COMMITTED)?,
            Tail::Forgotten { .. } => failpoint::at(failpoint::MIGRATE_UNDO_COMMITTED)?,
        }
        cx.unit_done(&label);
        Ok(())
    }

    /// Executes a file unit by unit, from where an earlier attempt stopped.
    ///
    /// `half_done`: it takes back a migration that was never complete, so what it names may be missing.
    pub(super) async fn stepwise(&mut self, script: &Script, key: &str, half_done: bool) -> Result<()> {
        let position = self.position(key).await?.unwrap_or_else(|| Position::at(script, 0, false));
        if position.executed != digest(script.prefix(position.done)) {
            return Err(Error::data(format!(
                "the first {} parts of this file were executed, and their text changed since",
                position.done
            ))
            .in_file(&script.path, None)
            .on_database(&self.step.on)
            .hint("put them back as they were; what follows them may be changed"));
        }
        let total = script.units.len() as u64;
        for (i, unit) in script.units.iter().enumerate() {
            self.cx.proceed()?;
            if i < position.done {
                if let (true, [setting]) = (unit.is_setting(), unit.statements()) {
                    let set = self.session.client().batch_execute(&setting.sql).await;
                    set.map_err(|e| place(script, setting, &e, self.session.error(&e), false))?;
                }
                continue;
            }
            match unit {
                Unit::Together(statements) => {
                    let tail = Tail::Unit { key, position: Position::at(script, i + 1, false) };
                    self.together(script, statements, &tail, half_done).await?;
                }
                Unit::Alone(statement) => {
                    let begun = position.begun && i == position.done;
                    self.alone(script, statement, key, i, begun, half_done).await?;
                }
            }
            self.cx.progress(key, i as u64 + 1, Some(total), Measure::Items);
        }
        self.cx.unit_done(key);
        Ok(())
    }

    /// One statement outside a transaction, with a record before and after it.
    async fn alone(
        &mut self,
        script: &Script,
        statement: &Statement,
        key: &str,
        i: usize,
        begun: bool,
        half_done: bool,
    ) -> Result<()> {
        let done = if begun {
            self.as_role().await?;
            let effect = probe::effect(self.cx, &mut self.session, statement).await;
            self.as_ourselves().await?;
            match effect? {
                Effect::There => true,
                Effect::Absent => false,
                Effect::Unknown(why) => return Err(unknown(script, statement, &why, &self.step.on)),
            }
        } else {
            self.as_role().await?;
            let free = probe::before(&self.session, statement).await;
            self.as_ourselves().await?;
            free.map_err(|e| e.in_file(&script.path, Some(statement.line)))?;
            self.note_position(key, &Position::at(script, i, true)).await?;
            false
        };
        failpoint::at(failpoint::MIGRATE_BEFORE_STATEMENT)?;
        if !done {
            self.execute_alone(script, statement, key, i, half_done).await?;
        }
        failpoint::at(failpoint::MIGRATE_STATEMENT_DONE)?;
        self.note_position(key, &Position::at(script, i + 1, false)).await
    }

    async fn execute_alone(
        &mut self,
        script: &Script,
        statement: &Statement,
        key: &str,
        i: usize,
        half_done: bool,
    ) -> Result<()> {
        let mut pause = Duration::from_millis(500);
        for attempt in 1.. {
            self.cx.proceed()?;
            // Whatever waits for old snapshots does so in the lock manager, where any lock_timeout would end it.
            let patient = statement.words.has(&["concurrently"]);
            let timeout: String =
                self.session.query_one("select current_setting('lock_timeout')", &[]).await?.get(0);
            if patient {
                self.session.set("lock_timeout", "0").await?;
            }
            self.session.check_fence().await?;
            self.as_role().await?;
            let (cx, on, pid) = (self.cx, self.step.on.as_str(), self.pid);
            let blockers = Blockers::default();
            // Its locks are let go of before a synchronous standby has it, which the record of it waits for.
            let durable: String =
                self.session.query_one("select current_setting('synchronous_commit')", &[]).await?.get(0);
            self.session.set("synchronous_commit", "local").await?;
            let run = self.session.client().execute(statement.sql.as_str(), &[]);
            let result = watched(cx, on, pid, key, statement.line, &blockers, run).await?;
            self.as_ourselves().await?;
            self.session.set("synchronous_commit", &durable).await?;
            self.session.set("lock_timeout", &timeout).await?;
            let Err(e) = result else { return Ok(()) };
            if half_done && e.code().is_some_and(names_nothing) {
                cx.note(format!("{}:{}: there was nothing to take back ({e})", script.path, statement.line));
                return Ok(());
            }
            if e.as_db_error().is_some() && !probe::leaves_traces(statement) {
                // The server refused it as a whole, so the next attempt need not wonder whether it had an effect.
                self.note_position(key, &Position::at(script, i, false)).await?;
            }
            let error = place(script, statement, &e, self.session.error(&e), false);
            if probe::leaves_traces(statement) {
                return Err(error);
            }
            pause = self.wait_for_lock(script, attempt, pause, error, e.code(), &blockers).await?;
        }
        Ok(())
    }

    async fn as_role(&mut self) -> Result<()> {
        let Some(role) = &self.step.role else { return Ok(()) };
        let set = self.session.client().batch_execute(&format!("set role {}", quote_ident(role))).await;
        set.map_err(|e| role_error(&self.session.error(&e), role))
    }

    async fn as_ourselves(&mut self) -> Result<()> {
        if self.step.role.is_none() {
            return Ok(());
        }
        let reset = self.session.client().batch_execute("reset role").await;
        reset.map_err(|e| self.session.error(&e))
    }

    async fn position(&mut self, key: &str) -> Result<Option<Position>> {
        let tx = self.session.transaction().await?;
        let position = tx.checkpoint(self.cx.run, &self.cx.step, key).await?;
        tx.commit().await?;
        Ok(position)
    }

    async fn note_position(&mut self, key: &str, position: &Position) -> Result<()> {
        let tx = self.session.transaction().await?;
        tx.save_checkpoint(self.cx.run, &self.cx.step, key, position).await?;
        tx.commit().await
    }
}

/// The key under which a file's progress upwards is kept.
pub(super) fn up_key(file: &Migration) -> String {
    format!("up {}", file.key())
}

/// The key under which a file's progress downwards is kept.
pub(super) fn down_key(file: &Migration) -> String {
    format!("down {}", file.key())
}

fn unit_label(tail: &Tail<'_>) -> String {
    match tail {
        Tail::Applied { file, .. } | Tail::Again { file, .. } => file.file.clone(),
        Tail::Unit { key, .. } => (*key).to_owned(),
        Tail::Forgotten { file, .. } => format!("undo {}", file.file),
    }
}

/// Writes what commits with the effect.
async fn finish(
    tx: &Tx<'_>,
    cx: &Context,
    table: &str,
    tail: &Tail<'_>,
    baseline: bool,
    vendors: &Vendors,
    took: Duration,
) -> Result<()> {
    match tail {
        Tail::Applied { insert, version, file } => {
            tx.batch(insert).await?;
            let vendor = vendors.record(tx, file, took).await?;
            own_columns(tx, cx, table, *version, file, baseline, vendor).await
        }
        Tail::Again { version, checksum, file } => {
            tx.execute(
                format!("update {table} set checksum = $2, applied_on = now()::text where version = $1")
                    .as_str(),
                &[version, checksum],
            )
            .await?;
            let vendor = vendors.record(tx, file, took).await?;
            own_columns(tx, cx, table, *version, file, false, vendor).await
        }
        Tail::Unit { key, position } => tx.save_checkpoint(cx.run, &cx.step, key, position).await,
        Tail::Forgotten { version, file, vendor, previous } => {
            if *vendor {
                vendors.forget(tx, file, *previous).await?;
            }
            if let Some(version) = version {
                tx.execute(format!("delete from {table} where version = $1").as_str(), &[version]).await?;
            }
            for key in [up_key(file), down_key(file)] {
                forget(tx, cx, &key).await?;
            }
            Ok(())
        }
    }
}

/// Fills our columns of a row that refinery just wrote, and drops the record of the way there.
pub(super) async fn own_columns(
    tx: &Tx<'_>,
    cx: &Context,
    table: &str,
    version: i64,
    file: &Migration,
    baseline: bool,
    vendor: Option<String>,
) -> Result<()> {
    tx.execute(
        format!("update {table} set folder = $2, number = $3, file = $4, baseline = $5, run = $6, vendor = $7 where version = $1")
            .as_str(),
        &[&version, &file.folder, &file.number, &file.file, &baseline, &cx.run.0, &vendor],
    )
    .await?;
    forget(tx, cx, &up_key(file)).await
}

async fn forget(tx: &Tx<'_>, cx: &Context, key: &str) -> Result<()> {
    tx.execute(
        &format!("delete from {OURS}.checkpoint where run = $1 and step = $2 and unit = $3"),
        &[&cx.run.0, &cx.step.as_str(), &key],
    )
    .await
    .map(drop)
}

/// Whether an error says that what a statement names is not there.
fn names_nothing(code: &SqlState) -> bool {
    [
        SqlState::UNDEFINED_TABLE,
        SqlState::UNDEFINED_COLUMN,
        SqlState::UNDEFINED_OBJECT,
        SqlState::UNDEFINED_FUNCTION,
        SqlState::INVALID_SCHEMA_NAME,
    ]
    .contains(code)
}
