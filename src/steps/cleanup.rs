//! `cleanup`: changes, deletes or sets aside rows of a table of any size, in batches; or moves columns.
//!
//! Each batch is one fenced transaction with its effect, the archived old rows and its checkpoint. The walk goes
//! by key, never by OFFSET, so it costs the same at the end of a table as at its beginning. Undo reads the
//! archive backwards. Triggers of the table fire, in batches and on undo: keeping them from it
//! (`session_replication_role`) would take a superuser and would skip foreign keys as well.

mod archive;
pub(in crate::steps) mod aside;
mod batch;
mod children;
mod count;
mod describe;
mod expected;
mod pace;
mod sync;
mod table;
mod throttle;

use crate::postgres::ours::OURS;
pub(super) use archive::{Guard, forget, put_back};
pub use expected::Expect;
pub(super) use table::{Catalog, Column, Table, object, params};
pub use throttle::Throttle;

use super::{Access, CheckContext, Context, Description, StepKind, Undo};
use crate::error::{Class, Error, Result};
use crate::event::StepId;
use crate::postgres::binding::assert_bound;
use crate::postgres::{Session, TableName};
use crate::problem::Problems;
use crate::value::Duration;
use async_trait::async_trait;
use batch::{Effect, Work};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use sync::{Move, Shape};

/// Changes, deletes or sets aside rows in batches, or moves columns while old and new code run side by side.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cleanup {
    /// The database.
    pub on: String,
    /// The table.
    pub table: TableName,
    /// What to do with its rows.
    pub action: Action,
    /// Which rows, as an SQL condition over the table; it may have subqueries. `delete` and `quarantine` need it.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// The columns of a unique key to walk the table by; the primary key unless given.
    pub key: Option<Vec<String>>,
    /// For `update` and `backfill`: columns and the SQL expressions they are set to. Rows that have those values
    /// already are left alone.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// For `backfill`: the new table that columns move to.
    pub to: Option<MoveTo>,
    /// For `backfill`: old columns and how to derive them from the new ones, so that new code may write too.
    /// Without it the new columns only mirror the old until the triggers end.
    #[serde(default)]
    pub back: BTreeMap<String, String>,
    /// For `end_sync`: the `backfill` step whose triggers end here, at the hard cutover of the service.
    pub of: Option<StepId>,
    /// Rows changed in one transaction, at most; fewer when a batch takes more than a second.
    #[serde(default = "default_batch")]
    #[schemars(range(min = 1, max = 100_000))]
    pub batch: u32,
    /// Rest between batches.
    #[serde(default = "default_pause")]
    pub pause: Duration,
    /// How long a batch waits for a lock before it lets others go first and tries again.
    #[serde(default = "default_lock_timeout")]
    pub lock_timeout: Duration,
    /// When to wait between batches.
    #[serde(default)]
    pub throttle: Throttle,
    /// How many rows there should be; the step refuses before it touches another number of them.
    pub expect: Option<Expect>,
    /// What to do with rows that refer to a deleted row.
    #[serde(default)]
    pub children: Children,
}

/// Memory for the conditions of a plan: `not in (select …)` is only looked up in a hash table while that fits, and
/// beyond it reads the whole list once a row.
const WORK_MEM: &str = "128MB";

fn default_batch() -> u32 {
    5000
}

fn default_pause() -> Duration {
    Duration::millis(10)
}

fn default_lock_timeout() -> Duration {
    Duration::secs(2)
}

/// What a cleanup does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Sets columns of the rows (`set`).
    Update,
    /// Deletes the rows; they are kept for undo until `handover finish`.
    Delete,
    /// Deletes the rows and keeps them in `handover.archive`, also after `handover finish`.
    Quarantine,
    /// Fills new columns (`set`) or a new table (`to`) from old columns, and keeps them in step by triggers
    /// until an `end_sync` step or `handover finish`.
    Backfill,
    /// Ends the triggers of an earlier backfill (`of`).
    EndSync,
}

/// What becomes of rows that refer to a deleted row by a foreign key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Children {
    /// The step stops before it touches a row that others refer to, even where ON DELETE CASCADE would hide it.
    #[default]
    Refuse,
    /// They are deleted and archived too, and theirs before them; undo brings all of them back.
    Archive,
}

/// Where a backfill moves columns to.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveTo {
    /// The new table; it is empty, and has a unique key over the columns of `key`.
    pub table: TableName,
    /// Its key columns, each with its expression over the old table.
    #[schemars(length(min = 1))]
    pub key: BTreeMap<String, String>,
    /// Its other columns, each with its expression over the old table.
    #[serde(default)]
    pub columns: BTreeMap<String, String>,
}

#[async_trait]
impl StepKind for Cleanup {
    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        cx.database(problems, "on", &self.on);
        describe::check(self, cx, problems);
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        vec![(&self.on, Access::Write)]
    }

    fn reversibility(&self) -> Undo {
        match self.action {
            Action::Update => Undo::Exact { how: "sets the old values again, from the archive".into() },
            Action::Delete | Action::Quarantine => {
                Undo::Exact { how: "inserts the archived rows again".into() }
            }
            Action::Backfill => Undo::Exact { how: "drops the triggers and empties what was filled".into() },
            Action::EndSync => Undo::Lossy {
                how: "creates the triggers again".into(),
                loses:
                    "what new code wrote to the new columns since the triggers ended: the old columns lack it"
                        .into(),
            },
        }
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        describe::describe(self, cx).await
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let mut session = self.session(cx).await?;
        if self.action == Action::EndSync {
            let (of, step) = self.synced(cx)?;
            let moved = of.moved(&session).await?;
            moved.settled(cx, &session, step).await?;
            moved.remove(cx, &mut session, step).await?;
            return Ok(json!({ "ended": step }));
        }
        let table = Table::load(Catalog::Session(&session), &self.table, self.key.as_deref()).await?;
        self.validate(&session, &table).await?;
        let moved = self.maybe_moved(&session).await?;
        let work = self.work(&session, &table, moved.as_ref())?;
        expected::assert(self, cx, &mut session, &work).await?;
        if let Some(moved) = &moved {
            moved.install(cx, &mut session, &cx.step).await?;
        }
        let progress = work.run(cx, &mut session).await?;
        Ok(json!({ "rows": progress.total, "walks": progress.pass + 1 }))
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        let session = cx.operator_reader(&self.on).await?;
        // Else `not in (select …)` over a long list is gone through once for each row.
        session.set("work_mem", WORK_MEM).await?;
        if self.action == Action::EndSync {
            let (of, step) = self.synced(cx)?;
            let n: i64 = session
                .query_one(
                    &format!("select count(*) from {OURS}.checkpoint where run = $1 and step = $2 and unit = 'sync'"),
                    &[&cx.run.0, &step.as_str()],
                )
                .await?
                .get(0);
            if n > 0 || of.moved(&session).await?.installed(cx, &session, step).await? {
                return Err(Error::data(format!("the triggers of {step} are still there"))
                    .on_database(&self.on)
                    .hint("`handover resume` drops them again"));
            }
            return Ok(());
        }
        let table = Table::load(Catalog::Session(&session), &self.table, self.key.as_deref()).await?;
        let moved = self.maybe_moved(&session).await?;
        let work = self.work(&session, &table, moved.as_ref())?;
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
            && !moved.installed(cx, &session, &cx.step).await?
        {
            return Err(Error::data("the triggers of the backfill are not there or not enabled")
                .on_database(&self.on)
                .hint("see who dropped or disabled them; `handover rollback` and run again to fill what they missed"));
        }
        Ok(())
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        let mut session = self.session(cx).await?;
        let summary = match self.action {
            Action::EndSync => {
                let (of, step) = self.synced(cx)?;
                of.moved(&session).await?.install(cx, &mut session, step).await?;
                json!({ "triggers of": step })
            }
            Action::Backfill => self.undo_backfill(cx, &mut session).await?,
            Action::Update => {
                let columns: Vec<String> = self.set.keys().cloned().collect();
                put_back(cx, &mut session, Guard::Columns(&columns)).await?
            }
            Action::Delete | Action::Quarantine => put_back(cx, &mut session, Guard::Columns(&[])).await?,
        };
        let tx = session.transaction().await?;
        tx.forget_checkpoints(cx.run, &cx.step).await?;
        tx.commit().await?;
        Ok(summary)
    }

    async fn finish(&self, cx: &Context) -> Result<()> {
        let mut session = self.session(cx).await?;
        if self.action == Action::Backfill {
            sync::remove(cx, &mut session, &cx.step).await?;
        }
        forget(cx, &mut session).await
    }
}

impl Action {
    fn word(self) -> &'static str {
        match self {
            Action::Update => "update",
            Action::Delete => "delete",
            Action::Quarantine => "quarantine",
            Action::Backfill => "backfill",
            Action::EndSync => "end_sync",
        }
    }
}

impl Cleanup {
    async fn session(&self, cx: &Context) -> Result<Session> {
        let session = cx.operator_writer(&self.on).await?;
        // A runner that is stopped or cut off in a batch must not sit on locked rows.
        session.set("idle_in_transaction_session_timeout", "30s").await?;
        session.set("work_mem", WORK_MEM).await?;
        Ok(session)
    }

    /// The backfill whose triggers this step ends.
    fn synced<'a>(&self, cx: &'a Context) -> Result<(&'a Cleanup, &'a StepId)> {
        super::of_kind::<Cleanup>(&cx.steps)
            .find(|(id, kind)| Some(*id) == self.of.as_ref() && kind.action == Action::Backfill)
            .map(|(id, kind)| (kind, id))
            .ok_or_else(|| {
                Error::usage("`of` names no backfill")
                    .hint("name the id of a `backfill` step before this one")
            })
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
        Ok(Move { source, condition: batch::condition(self.condition.as_deref()), shape, back })
    }

    fn work<'a>(&'a self, session: &Session, table: &'a Table, moved: Option<&Move>) -> Result<Work<'a>> {
        let condition = batch::condition(self.condition.as_deref());
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

    async fn undo_backfill(&self, cx: &Context, session: &mut Session) -> Result<Value> {
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
            return put_back(cx, session, Guard::Always).await;
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

/// Prepares a SELECT, and sees that each sub-select's columns are its own; returns its number of columns.
pub(super) async fn prepare(session: &Session, sql: &str, place: &str) -> Result<usize> {
    let statement = session.prepare(sql).await.map_err(|e| {
        e.context(format!("the SQL under `{place}` is not accepted")).or_hint("correct it in the plan")
    })?;
    if !statement.params().is_empty() {
        return Err(Error::data(format!("the SQL under `{place}` has a parameter"))
            .on_database(session.database())
            .hint("write the value itself instead of $1"));
    }
    assert_bound(session, sql, place).await?;
    Ok(statement.columns().len())
}
