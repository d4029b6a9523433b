//! Selected rows brought back from another database, or from what was set aside.

mod options;
mod resolve;
mod rows;

pub use options::{OnConflict, Restore, Source};

use crate::archive::{self, Guard, put_back};
use crate::table::{Catalog, Table};
use handover_core::error::{Class, Error, Result};
use handover_core::event::{Measure, StepId};
use handover_core::failpoint;
use handover_port::{Description, Port};
use handover_postgres::Session;
use resolve::Resolved;
use rows::{changes, insert, missing, overwrite};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How long a batch waits for a row that somebody changes.
const LOCK_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// How far it is; the checkpoint `rows` on the target.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Progress {
    last: Option<Vec<String>>,
    read: u64,
    inserted: u64,
    overwritten: u64,
    done: bool,
}

/// What was brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Brought {
    /// Rows that were not there.
    pub inserted: u64,
    /// Rows that got the source's values.
    pub overwritten: u64,
    /// Rows that were there and stayed as they were.
    pub kept: u64,
}

impl Restore {
    /// Says what would be brought, and what is there already.
    ///
    /// # Errors
    /// No connection, or what a server says.
    pub async fn dry_run(&self, cx: &Port) -> Result<Description> {
        let mut out = Description::default();
        if let Source::Archive { quarantine } = &self.from {
            out.action(format!("bring rows that `{quarantine}` took away back into {}", self.table));
            if let Some(condition) = &self.condition {
                out.action(format!("only those where {condition}"));
            }
            return Ok(out);
        }
        let (source, target) = (self.source(cx).await?, cx.operator_reader(&self.to).await?);
        match self.resolve(cx, &source, &target).await {
            Ok(resolved) => self.look(&source, &target, &resolved, &mut out).await?,
            Err(e) if e.class() == Class::Data => {
                out.blocker(format!("{} – {}", e.message(), e.next_step().unwrap_or("correct the plan")));
            }
            Err(e) => return Err(e),
        }
        Ok(out)
    }

    /// Brings the rows. Begins where an earlier attempt stopped.
    ///
    /// # Errors
    /// SQL that is not accepted, rows that collide with others, or what a server says.
    pub async fn bring(&self, cx: &Port) -> Result<Brought> {
        let source = self.source(cx).await?;
        let mut target = self.writer(cx).await?;
        let resolved = self.resolve(cx, &source, &target).await?;
        let mut progress = self.progress(cx, &mut target).await?;
        if progress.done {
            // Called again after a failed verification: rows may have come to the source since.
            progress = Progress {
                inserted: progress.inserted,
                overwritten: progress.overwritten,
                ..Progress::default()
            };
        }
        let unit = self.table.to_string();
        while !progress.done {
            cx.proceed()?;
            self.throttle.wait(cx, &target).await?;
            let (rows, last) = self.read(&source, &resolved, progress.last.as_deref()).await?;
            let tx = target.transaction().await?;
            tx.wait_for_locks(LOCK_TIMEOUT).await?;
            if rows.is_empty() {
                progress.done = true;
            } else {
                progress.inserted += insert(cx, &tx, &resolved, &rows).await?;
                if self.on_conflict == OnConflict::Overwrite {
                    progress.overwritten += overwrite(cx, &tx, &resolved, &rows).await?;
                }
                let missing = missing(Catalog::Transaction(&tx), &resolved, &rows).await?;
                if missing > 0 {
                    return Err(Error::data(format!(
                        "{missing} rows of {} collide with other rows in a unique constraint that is not the key, or a trigger keeps them out",
                        self.table
                    ))
                    .on_database(&self.to)
                    .hint("name the constraint's columns under `key`, or leave those rows out with `where`"));
                }
                progress.read += rows.len() as u64;
                progress.last = last;
            }
            tx.save_checkpoint(cx.run, &cx.step, "rows", &progress).await?;
            tx.commit().await?;
            failpoint::at(failpoint::RESTORE_BATCH)?;
            cx.progress(&unit, progress.read, None, Measure::Rows);
            if !progress.done && !self.pause.0.is_zero() {
                cx.sleep(self.pause.0).await?;
            }
        }
        cx.unit_done(&unit);
        let kept = progress.read.saturating_sub(progress.inserted + progress.overwritten);
        Ok(Brought { inserted: progress.inserted, overwritten: progress.overwritten, kept })
    }

    /// Proves that every selected row is there.
    ///
    /// # Errors
    /// Rows that are not, or what a server says.
    pub async fn prove(&self, cx: &Port) -> Result<()> {
        let (source, target) = (self.source(cx).await?, cx.operator_reader(&self.to).await?);
        let resolved = self.resolve(cx, &source, &target).await?;
        let (mut last, mut absent) = (None, 0);
        loop {
            let (rows, next) = self.read(&source, &resolved, last.as_deref()).await?;
            if rows.is_empty() {
                break;
            }
            absent += missing(Catalog::Session(&target), &resolved, &rows).await?;
            last = next;
        }
        if absent > 0 {
            return Err(Error::new(
                Class::Invariant,
                format!("{absent} of the selected rows are not in {}", self.table),
            )
            .on_database(&self.to)
            .hint("somebody deletes them, or they came to the source since; `handover resume` brings them again"));
        }
        Ok(())
    }

    /// Takes away what was brought, and puts back what was overwritten. `given_up_by`: the later step that gave the
    /// database's content up, so that nothing is put back.
    ///
    /// # Errors
    /// What the server says, or a table that has another shape now.
    pub async fn take_back(
        &self,
        cx: &Port,
        target: &mut Session,
        given_up_by: Option<&StepId>,
    ) -> Result<Value> {
        let table = Table::load(Catalog::Session(target), &self.table, self.key.as_deref()).await?;
        let columns: Vec<String> = match &self.columns {
            Some(columns) => columns.keys().cloned().collect(),
            None => table.columns.iter().map(|c| c.name.clone()).collect(),
        };
        put_back(cx, target, Guard::Columns(&columns), given_up_by).await
    }

    /// Drops what was kept for taking it back.
    pub async fn forget(&self, cx: &Port, target: &mut Session) -> Result<()> {
        archive::forget(cx, target).await
    }

    async fn source(&self, cx: &Port) -> Result<Session> {
        let name = match &self.from {
            Source::Database(name) => name,
            Source::Archive { .. } => &self.to,
        };
        cx.operator_reader(name).await
    }

    /// A session that its batches run in.
    ///
    /// # Errors
    /// Lease lost, or no connection.
    pub async fn writer(&self, cx: &Port) -> Result<Session> {
        let session = cx.operator_writer(&self.to).await?;
        session.set("idle_in_transaction_session_timeout", "30s").await?;
        Ok(session)
    }

    async fn progress(&self, cx: &Port, target: &mut Session) -> Result<Progress> {
        let tx = target.transaction().await?;
        let progress = tx.checkpoint(cx.run, &cx.step, "rows").await?.unwrap_or_default();
        tx.rollback().await?;
        Ok(progress)
    }

    async fn look(
        &self,
        source: &Session,
        target: &Session,
        resolved: &Resolved,
        out: &mut Description,
    ) -> Result<()> {
        source.set("statement_timeout", "10s").await?;
        let sql = format!("select count(*) from {} where ({}\n)", resolved.relation, resolved.condition);
        let count = match source.query_one(&sql, &[]).await {
            Ok(row) => row.get::<_, i64>(0).to_string(),
            Err(e) if e.class() == Class::Timeout => "more than could be counted in 10 s".into(),
            Err(e) => return Err(e),
        };
        source.set("statement_timeout", "0").await?;
        out.action(format!("bring rows ({count}) from {} to {}", resolved.relation, self.table));
        let names: Vec<&str> = resolved.columns.iter().map(|(c, _)| c.name.as_str()).collect();
        out.action(format!("columns: {}", names.join(", ")));
        for sql in changes(resolved, self.on_conflict == OnConflict::Overwrite) {
            out.statement(&self.to, &sql);
        }
        let (rows, _) = self.read(source, resolved, None).await?;
        let there = rows.len() as u64 - missing(Catalog::Session(target), resolved, &rows).await?;
        let fate = if self.on_conflict == OnConflict::Skip { "left as they are" } else { "overwritten" };
        if there > 0 {
            out.warning(format!(
                "of the first {} rows, {there} are there already and would be {fate}",
                rows.len()
            ));
        }
        if !resolved.left_out.is_empty() {
            out.warning(format!(
                "the target has no columns {}: their values stay behind",
                resolved.left_out.join(", ")
            ));
        }
        for trigger in &resolved.target.triggers {
            out.warning(format!("this trigger fires for each row: {trigger}"));
        }
        Ok(())
    }
}
