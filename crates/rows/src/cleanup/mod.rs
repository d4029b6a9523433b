//! Changing, deleting, setting aside or moving the rows of a table of any size.

mod describe;
mod options;

pub use options::{Action, Children, Cleanup};

use crate::archive::{self, Guard, put_back};
use crate::batch::{Effect, Work};
use crate::count::WORK_MEM;
use crate::expected::{self, Meant};
use crate::prepare::prepare;
use crate::sync::{self, Move, Shape};
use crate::table::{Catalog, Table};
use handover_core::error::{Class, Error, Result};
use handover_core::event::StepId;
use handover_port::Port;
use handover_postgres::ours::OURS;
use handover_postgres::{Session, TableName};
use serde_json::{Value, json};

/// What the walks through a table came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walked {
    /// Rows that were changed.
    pub rows: u64,
    /// How often the table was walked through.
    pub walks: u32,
}

impl Cleanup {
    /// A session that its batches run in.
    ///
    /// # Errors
    /// Lease lost, or no connection.
    pub async fn session(&self, cx: &Port) -> Result<Session> {
        let session = cx.operator_writer(&self.on).await?;
        // A runner that is stopped or cut off in a batch must not sit on locked rows.
        session.set("idle_in_transaction_session_timeout", "30s").await?;
        session.set("work_mem", WORK_MEM).await?;
        Ok(session)
    }

    /// A session that looks at what it did.
    ///
    /// # Errors
    /// No connection.
    pub async fn looking(&self, cx: &Port) -> Result<Session> {
        let session = cx.operator_reader(&self.on).await?;
        // Else `not in (select …)` over a long list is gone through once for each row.
        session.set("work_mem", WORK_MEM).await?;
        Ok(session)
    }

    /// Refuses what the plan or the catalog rules out, installs the triggers of a backfill, and walks the table until
    /// no row needs the action. Begins where an earlier attempt stopped.
    ///
    /// # Errors
    /// SQL that is not accepted, another number of rows than expected, or what the server says.
    pub async fn walk(&self, cx: &Port, session: &mut Session) -> Result<Walked> {
        let table = Table::load(Catalog::Session(session), &self.table, self.key.as_deref()).await?;
        self.validate(session, &table).await?;
        let moved = self.maybe_moved(session).await?;
        let work = self.work(session, &table, moved.as_ref())?;
        expected::assert(self.meant(), cx, session, &work).await?;
        if let Some(moved) = &moved {
            moved.install(cx, session, &cx.step).await?;
        }
        let progress = work.run(cx, session).await?;
        Ok(Walked { rows: progress.total, walks: progress.pass + 1 })
    }

    /// Proves that no row needs the action again, and that the triggers of a backfill stand.
    ///
    /// # Errors
    /// Rows that do, triggers that do not, or what the server says.
    pub async fn prove(&self, cx: &Port, session: &Session) -> Result<()> {
        let table = Table::load(Catalog::Session(session), &self.table, self.key.as_deref()).await?;
        let moved = self.maybe_moved(session).await?;
        let work = self.work(session, &table, moved.as_ref())?;
        let remaining: i64 = session.query_one(&work.remaining_sql(1000), &[]).await?.get(0);
        if remaining > 0 {
            let many = if remaining >= 1000 { "1000 or more".into() } else { remaining.to_string() };
            return Err(Error::new(
                Class::Invariant,
                format!("{many} rows of {} need the {} again", self.table, self.action.word()),
            )
            .on_database(&self.on)
            .hint("somebody writes such rows: stop that or add a constraint (NOT VALID), then `handover resume`"));
        }
        if let Some(moved) = &moved
            && !moved.installed(cx, session, &cx.step).await?
        {
            return Err(Error::data("the triggers of the backfill are not there or not enabled")
                .on_database(&self.on)
                .hint("see who dropped or disabled them; `handover rollback` and run again to fill what they missed"));
        }
        Ok(())
    }

    /// Takes the action back: from the archive, or by dropping a backfill's triggers and emptying what was filled.
    /// `given_up_by`: the later step that gave the database's content up, so that nothing is put back.
    ///
    /// # Errors
    /// What the server says, or a table that has another shape now.
    pub async fn take_back(
        &self,
        cx: &Port,
        session: &mut Session,
        given_up_by: Option<&StepId>,
    ) -> Result<Value> {
        match self.action {
            Action::Backfill => self.undo_backfill(cx, session, given_up_by).await,
            Action::Update => {
                let columns: Vec<String> = self.set.keys().cloned().collect();
                put_back(cx, session, Guard::Columns(&columns), given_up_by).await
            }
            _ => put_back(cx, session, Guard::Columns(&[]), given_up_by).await,
        }
    }

    /// Drops what was kept for taking it back, and a backfill's triggers.
    pub async fn forget(&self, cx: &Port, session: &mut Session) -> Result<()> {
        if self.action == Action::Backfill {
            sync::remove(cx, session, &cx.step).await?;
        }
        archive::forget(cx, session).await
    }

    /// Of a backfill that is step `step`: drops its triggers, once every row is in step.
    ///
    /// # Errors
    /// Rows that are not in step, or what the server says.
    pub async fn end_sync(&self, cx: &Port, session: &mut Session, step: &StepId) -> Result<()> {
        self.moved(session).await?.assert_in_step(cx, session, step).await?;
        sync::remove(cx, session, step).await
    }

    /// Of a backfill that is step `step`: proves that its triggers are gone.
    ///
    /// # Errors
    /// Triggers that are there, or what the server says.
    pub async fn prove_ended(&self, cx: &Port, session: &Session, step: &StepId) -> Result<()> {
        let n: i64 = session
            .query_one(
                &format!(
                    "select count(*) from {OURS}.checkpoint where run = $1 and step = $2 and unit = 'sync'"
                ),
                &[&cx.run.0, &step.as_str()],
            )
            .await?
            .get(0);
        if n > 0 || self.moved(session).await?.installed(cx, session, step).await? {
            return Err(Error::data(format!("the triggers of {step} are still there"))
                .on_database(&self.on)
                .hint("`handover resume` drops them again"));
        }
        Ok(())
    }

    /// Of a backfill that is step `step`: creates its triggers again.
    pub async fn sync_again(&self, cx: &Port, session: &mut Session, step: &StepId) -> Result<()> {
        self.moved(session).await?.install(cx, session, step).await
    }

    /// Its condition, or all rows.
    fn condition_or_all(&self) -> String {
        self.condition.clone().unwrap_or_else(|| "true".to_owned())
    }

    fn meant(&self) -> Meant<'_> {
        Meant {
            condition: self.condition.as_deref(),
            expect: self.expect.as_ref(),
            removes: matches!(self.action, Action::Delete | Action::Quarantine),
        }
    }

    async fn maybe_moved(&self, session: &Session) -> Result<Option<Move>> {
        if self.action == Action::Backfill { Ok(Some(self.moved(session).await?)) } else { Ok(None) }
    }

    /// What this backfill moves, against the catalog.
    async fn moved(&self, session: &Session) -> Result<Move> {
        let catalog = Catalog::Session(session);
        let source = Table::load(catalog, &self.table, self.key.as_deref()).await?;
        let target = match &self.to {
            Some(to) => {
                let key: Vec<String> = to.key.keys().cloned().collect();
                Some(Table::load(catalog, &to.table, Some(&key)).await?)
            }
            None => None,
        };
        let shape = Shape::resolve(session.database(), &source, target, &self.set, self.to.as_ref())?;
        let back = self
            .back
            .iter()
            .map(|(name, e)| Ok((source.writable(name, session.database())?.clone(), e.clone())))
            .collect::<Result<Vec<_>>>()?;
        if let (Shape::Columns(set), false) = (&shape, back.is_empty())
            && let Some((column, _)) = set.iter().find(|(c, _)| c.has_default)
        {
            return Err(Error::data(format!(
                "column `{}` has a default, so what new code inserts cannot be told from what old code leaves out",
                column.name
            ))
            .on_database(session.database())
            .hint("drop the default until the cutover, or leave out `back`"));
        }
        Ok(Move { source, condition: self.condition_or_all(), shape, back })
    }

    fn work<'a>(&'a self, session: &Session, table: &'a Table, moved: Option<&Move>) -> Result<Work<'a>> {
        let condition = self.condition_or_all();
        let mut matching = condition.clone();
        let effect = match (self.action, moved) {
            (_, Some(moved)) => {
                matching = moved.matching();
                moved.effect()
            }
            (Action::Update, None) => {
                let set = self
                    .set
                    .iter()
                    .map(|(name, e)| Ok((table.writable(name, session.database())?.clone(), e.clone())))
                    .collect::<Result<Vec<_>>>()?;
                let differs: Vec<String> =
                    set.iter().map(|(c, e)| c.differs(&c.ident(), &format!("{e}\n"))).collect();
                matching = format!("({condition}\n) and ({})", differs.join(" or "));
                Effect::Update { set }
            }
            (action, None) => Effect::Remove {
                action: if action == Action::Quarantine { "quarantine" } else { "delete" },
                children: self.children == Children::Archive,
            },
        };
        if let Effect::Update { set } = &effect
            && let Some((column, _)) = set.iter().find(|(c, _)| table.key.iter().any(|k| k.name == c.name))
        {
            return Err(Error::data(format!(
                "`{}` is part of the key that the rows are walked by and found again by",
                column.name
            ))
            .on_database(session.database())
            .hint("name another unique key under `key`, or change keys in a migration"));
        }
        Ok(Work {
            unit: "rows",
            table,
            matching,
            effect,
            batch: u64::from(self.batch),
            pause: self.pause.0,
            lock_timeout: self.lock_timeout.0,
            throttle: &self.throttle,
            at_most: self.expect.and_then(|e| e.range().1),
        })
    }

    /// Has the server parse the operator's SQL as the SELECTs that it amounts to.
    async fn validate(&self, session: &Session, table: &Table) -> Result<()> {
        let name = table.name.sql();
        if let Some(condition) = &self.condition {
            prepare(session, &format!("select 1 from {name} where {condition}"), "where").await?;
            prepare(session, &format!("select 1 from {name} where ({condition}\n)"), "where").await?;
        }
        let mut expressions: Vec<(String, &TableName, &str)> = Vec::new();
        expressions.extend(self.set.iter().map(|(c, e)| (format!("set.{c}"), &self.table, e.as_str())));
        let target = self.to.as_ref().map_or(&self.table, |to| &to.table);
        expressions.extend(self.back.iter().map(|(c, e)| (format!("back.{c}"), target, e.as_str())));
        if let Some(to) = &self.to {
            expressions.extend(to.key.iter().map(|(c, e)| (format!("to.key.{c}"), &self.table, e.as_str())));
            expressions
                .extend(to.columns.iter().map(|(c, e)| (format!("to.columns.{c}"), &self.table, e.as_str())));
        }
        for (place, over, expression) in expressions {
            let columns =
                prepare(session, &format!("select {expression}\nfrom {}", over.sql()), &place).await?;
            prepare(session, &format!("select ({expression}\n) from {}", over.sql()), &place).await?;
            if columns != 1 {
                return Err(Error::data(format!("`{place}` is {columns} expressions, not one"))
                    .on_database(session.database())
                    .hint("give each column its own expression"));
            }
        }
        Ok(())
    }

    async fn undo_backfill(
        &self,
        cx: &Port,
        session: &mut Session,
        given_up_by: Option<&StepId>,
    ) -> Result<Value> {
        let moved = match self.moved(session).await {
            Ok(moved) => moved,
            // What it names is not there, and it never came to anything: there is nothing to take back.
            Err(e) if e.class() == Class::Data && !sync::touched(cx, session).await? => {
                return Ok(json!({ "removed": 0 }));
            }
            Err(e) => return Err(e),
        };
        sync::remove(cx, session, &cx.step).await?;
        let Some(effect) = moved.undo_effect() else {
            return put_back(cx, session, Guard::Always, given_up_by).await;
        };
        if !moved.begun(cx, session).await? {
            // The run ended before the new table was ours: whatever is in it is not.
            return Ok(json!({ "removed": 0 }));
        }
        let before = moved.left_over(session).await?;
        let work = Work {
            unit: "undo",
            table: &moved.source,
            matching: moved.condition.clone(),
            effect,
            batch: u64::from(self.batch),
            pause: self.pause.0,
            lock_timeout: self.lock_timeout.0,
            throttle: &self.throttle,
            at_most: None,
        };
        work.run(cx, session).await?;
        let left = moved.left_over(session).await?;
        if left > 0 {
            cx.warn(format!(
                "{left} rows of the new table are not what the old one derives, so they are somebody's own and stay"
            ));
        }
        Ok(json!({ "removed": before.saturating_sub(left), "left": left }))
    }
}
