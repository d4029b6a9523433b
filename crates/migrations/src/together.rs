//! Statements in one transaction, with short waits for their locks, and where in the file something failed.

use crate::culprit;
use crate::locks;
use crate::place::{place, role_error};
use crate::script::{Script, Statement};
use crate::tail::{Tail, finish, unit_label};
use crate::watch::{Blockers, watched};
use crate::worker::Worker;
use handover_core::event::Measure;
use handover_core::{Error, Result, failpoint};
use handover_postgres::patience::Patience;
use handover_postgres::quote_ident;
use std::time::{Duration, Instant};
use tokio_postgres::error::SqlState;

/// The longest wait between two attempts to get a lock.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// An error, the server's code for it if it was the server's, and the statement that failed if it was one.
struct Failed(Error, Option<SqlState>, Option<usize>);

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed(error, None, None)
    }
}

impl Worker<'_> {
    /// Executes statements in one fenced transaction with what commits with them. A lock that is not free in
    /// time gives way to the traffic behind us: everything is rolled back and tried again later.
    pub async fn together(
        &mut self,
        script: &Script,
        statements: &[Statement],
        tail: &Tail<'_>,
        half_done: bool,
    ) -> Result<()> {
        let mut pause = Duration::from_millis(500);
        self.learned.clear();
        for attempt in 1.. {
            self.port.proceed()?;
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
        let Some(row) = culprit::find(self.port, self.step, statements, at, code).await else { return error };
        let named = Error::new(error.class(), format!("{}; the first such row is {row}", error.message()))
            .in_file(error.place().file.as_deref().unwrap_or(""), error.place().line)
            .on_database(&self.step.on);
        match error.next_step() {
            Some(hint) => named.hint(hint),
            None => named,
        }
    }

    /// Waits before the next attempt at a lock, or gives up with the error.
    pub async fn wait_for_lock(
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
        self.port.warn(format!("{error}{who}; rolled back, attempt {} follows in {wait}", attempt + 1));
        self.port.sleep(pause).await?;
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
        let (port, step, pid) = (self.port, self.step, self.pid);
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
            if let Err(e) = watched(port, &step.on, pid, &label, lock.line, blockers, run).await? {
                let error = tx.error(&e).in_file(&script.path, Some(lock.line));
                let error = error.context(format!("locking {}", lock.table));
                return Err(Failed(error, e.code().cloned(), None));
            }
            patience.begin();
        }
        for (i, statement) in statements.iter().enumerate() {
            port.progress(&label, i as u64, Some(statements.len() as u64), Measure::Items);
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
            let Err(e) = watched(port, &step.on, pid, &label, statement.line, blockers, run).await? else {
                continue;
            };
            if half_done && e.code().is_some_and(names_nothing) {
                tx.batch("rollback to savepoint handover_statement").await?;
                port.note(format!(
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
        finish(&tx, port, &table, tail, self.baseline, &self.vendors, started.elapsed()).await?;
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
        port.unit_done(&label);
        Ok(())
    }
}

/// Whether an error says that what a statement names is not there.
pub fn names_nothing(code: &SqlState) -> bool {
    [
        SqlState::UNDEFINED_TABLE,
        SqlState::UNDEFINED_COLUMN,
        SqlState::UNDEFINED_OBJECT,
        SqlState::UNDEFINED_FUNCTION,
        SqlState::INVALID_SCHEMA_NAME,
    ]
    .contains(code)
}
