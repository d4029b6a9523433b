//! A file that cannot run as one: unit by unit, with a record before and after each.

use crate::place::{place, unknown};
use crate::probe::{self, Effect};
use crate::script::{Script, Statement, Unit};
use crate::tail::{Position, Tail, digest};
use crate::together::names_nothing;
use crate::watch::{Blockers, watched};
use crate::worker::Worker;
use handover_core::event::Measure;
use handover_core::{Error, Result, failpoint};
use std::time::Duration;

impl Worker<'_> {
    /// Executes a file unit by unit, from where an earlier attempt stopped.
    ///
    /// `half_done`: it takes back a migration that was never complete, so what it names may be missing.
    pub async fn stepwise(&mut self, script: &Script, key: &str, half_done: bool) -> Result<()> {
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
            self.port.proceed()?;
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
            self.port.progress(key, i as u64 + 1, Some(total), Measure::Items);
        }
        self.port.unit_done(key);
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
            let effect = probe::effect(self.port, &mut self.session, statement).await;
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
            self.port.proceed()?;
            // Whatever waits for old snapshots does so in the lock manager, where any lock_timeout would end it.
            let patient = statement.words.has(&["concurrently"]);
            let timeout: String =
                self.session.query_one("select current_setting('lock_timeout')", &[]).await?.get(0);
            if patient {
                self.session.set("lock_timeout", "0").await?;
            }
            self.session.check_fence().await?;
            self.as_role().await?;
            let (port, on, pid) = (self.port, self.step.on.as_str(), self.pid);
            let blockers = Blockers::default();
            // Its locks are let go of before a synchronous standby has it, which the record of it waits for.
            let durable: String =
                self.session.query_one("select current_setting('synchronous_commit')", &[]).await?.get(0);
            self.session.set("synchronous_commit", "local").await?;
            let run = self.session.client().execute(statement.sql.as_str(), &[]);
            let result = watched(port, on, pid, key, statement.line, &blockers, run).await?;
            self.as_ourselves().await?;
            self.session.set("synchronous_commit", &durable).await?;
            self.session.set("lock_timeout", &timeout).await?;
            let Err(e) = result else { return Ok(()) };
            if half_done && e.code().is_some_and(names_nothing) {
                port.note(format!(
                    "{}:{}: there was nothing to take back ({e})",
                    script.path, statement.line
                ));
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
}
