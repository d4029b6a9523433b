//! Walking a table by its key in batches, each one transaction with its effect, its archive and its checkpoint.

use crate::children;
use crate::pace::Pace;
use crate::table::{Catalog, Column, ForeignKey, Table, key_arrays, object, params};
use crate::throttle::Throttle;
use handover_core::error::{Class, Error, Result};
use handover_core::event::Measure;
use handover_core::failpoint;
use handover_port::Port;
use handover_postgres::ours::OURS;
use handover_postgres::{Session, Tx};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use tokio_postgres::types::ToSql;

/// How often the whole table is walked again because rows matched behind the walk.
const PASSES: u32 = 10;
/// Attempts at one batch whose locks are held by others, before the step's own retry policy decides.
const LOCK_ATTEMPTS: u32 = 8;

/// What a batch does with the rows it picked.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Deletes them.
    Remove { action: &'static str, children: bool },
    /// Sets columns to expressions.
    Update { set: Vec<(Column, String)> },
    /// Writes values derived from them into another table.
    Move { insert: String, remaining: String },
}

/// One walk's task.
#[derive(Debug)]
pub(crate) struct Work<'a> {
    /// Name of the checkpoint: one for the step, one for its undo.
    pub unit: &'static str,
    pub table: &'a Table,
    /// Which rows still need the effect.
    pub matching: String,
    pub effect: Effect,
    pub batch: u64,
    pub pause: Duration,
    pub lock_timeout: Duration,
    pub throttle: &'a Throttle,
    /// Refuse to touch more rows than this.
    pub at_most: Option<u64>,
}

/// How far the walk is; its checkpoint.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Which walk through the table, from 0.
    pub pass: u32,
    /// The last key looked at, as text; none at a walk's beginning.
    pub last: Option<Vec<String>>,
    /// Rows looked at in this walk.
    pub looked: u64,
    /// Rows changed in this walk.
    pub changed: u64,
    /// Rows changed in all.
    pub total: u64,
    /// Whether the walks are over.
    pub done: bool,
}

impl Work<'_> {
    /// Walks until no row matches. Begins where the checkpoint says.
    pub async fn run(&self, cx: &Port, session: &mut Session) -> Result<Progress> {
        let mut progress = read_progress(cx, session, self.unit).await?;
        let mut pace = Pace::new(self.batch);
        while !progress.done {
            cx.proceed()?;
            self.throttle.wait(cx, session).await?;
            let started = Instant::now();
            progress = self.batch_with_retries(cx, session, &pace).await?;
            pace.after(started.elapsed());
            let looked = progress.looked;
            cx.progress(
                &self.table.name.to_string(),
                looked,
                self.table.estimated_rows.map(|n| n.max(looked)),
                Measure::Rows,
            );
            failpoint::at(failpoint::CLEANUP_BATCH)?;
            if !progress.done && !self.pause.is_zero() {
                cx.sleep(self.pause).await?;
            }
        }
        cx.unit_done(&self.table.name.to_string());
        Ok(progress)
    }

    async fn batch_with_retries(&self, cx: &Port, session: &mut Session, pace: &Pace) -> Result<Progress> {
        let mut attempt = 1;
        loop {
            match self.one(cx, session, pace).await {
                Err(e) if e.class() == Class::Contention && attempt < LOCK_ATTEMPTS => {
                    cx.note(format!(
                        "a batch of {} waits for locks of others: {}",
                        self.table.name,
                        e.message()
                    ));
                    cx.sleep(Duration::from_millis(100 << attempt.min(5))).await?;
                    cx.proceed()?;
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    /// One transaction: a stretch of keys that is looked at, and at most a batch of rows in it changed.
    async fn one(&self, cx: &Port, session: &mut Session, pace: &Pace) -> Result<Progress> {
        let tx = session.transaction().await?;
        tx.wait_for_locks(self.lock_timeout).await?;
        // Read under the fence, so that it is this runner's word and nobody else's.
        let mut progress: Progress = tx.checkpoint(cx.run, &cx.step, self.unit).await?.unwrap_or_default();
        if progress.done {
            return Ok(progress);
        }
        match self.window(&tx, progress.last.as_deref(), pace.window).await? {
            None => self.end_of_pass(&tx, &mut progress).await?,
            Some((looked, upper)) => {
                let keys = self.pick(&tx, progress.last.as_deref(), &upper, pace.batch).await?;
                let full = keys.len() as u64 >= pace.batch;
                let changed = if keys.is_empty() { 0 } else { self.apply(cx, &tx, &keys).await? };
                progress.changed += changed;
                progress.total += changed;
                if let Some(limit) = self.at_most.filter(|limit| progress.total > *limit) {
                    return Err(more_than_expected(limit, &self.table.name.to_string()));
                }
                // A full batch may have left rows between its last key and the stretch's end.
                progress.looked += if full { keys.len() as u64 } else { looked };
                progress.last = if full { keys.into_iter().next_back() } else { Some(upper) };
            }
        }
        tx.save_checkpoint(cx.run, &cx.step, self.unit, &progress).await?;
        failpoint::at(failpoint::CLEANUP_UNCOMMITTED)?;
        tx.commit().await?;
        Ok(progress)
    }

    /// Rows that matched behind the walk, or match because of what it did, get another walk.
    async fn end_of_pass(&self, tx: &Tx<'_>, progress: &mut Progress) -> Result<()> {
        let remaining = self.remaining(tx).await?;
        if remaining == 0 {
            progress.done = true;
            return Ok(());
        }
        let what = match self.effect {
            Effect::Move { .. } => "have no up-to-date row in the new table",
            _ => "still match",
        };
        if progress.changed == 0 && progress.pass > 0 {
            return Err(Error::data(format!(
                "{remaining} rows of {} {what}, and a whole walk changed none of them",
                self.table.name
            ))
            .on_database(tx.database())
            .hint("a trigger or rule undoes the change; see the triggers that `handover dry-run` lists"));
        }
        if progress.pass + 1 >= PASSES {
            return Err(Error::data(format!(
                "{remaining} rows of {} {what} after {PASSES} walks: somebody writes them as fast as they are cleaned",
                self.table.name
            ))
            .on_database(tx.database())
            .hint("stop the writer, or keep it from writing such rows with a constraint (NOT VALID), then `handover resume`"));
        }
        *progress = Progress { pass: progress.pass + 1, total: progress.total, ..Progress::default() };
        Ok(())
    }

    /// How many rows need the effect, counted up to a thousand.
    pub async fn remaining(&self, tx: &Tx<'_>) -> Result<u64> {
        let n: i64 = tx.query_one(&self.remaining_sql(1000), &[]).await?.get(0);
        Ok(n.unsigned_abs())
    }

    pub fn remaining_sql(&self, limit: u64) -> String {
        match &self.effect {
            Effect::Move { remaining, .. } => {
                format!("select count(*) from ({remaining} limit {limit}) as handover_r")
            }
            _ => format!(
                "select count(*) from (select 1 from {} where ({}\n) limit {limit}) as handover_r",
                self.table.name.sql(),
                self.matching
            ),
        }
    }

    /// The next stretch of keys: how many rows it has, and its last key. None at the table's end.
    async fn window(
        &self,
        tx: &Tx<'_>,
        last: Option<&[String]>,
        size: u64,
    ) -> Result<Option<(u64, Vec<String>)>> {
        let keys = self.table.key_list();
        let beyond = last.map_or("true".into(), |_| self.table.key_beyond(">", 1));
        let descending: Vec<String> = self.table.key.iter().map(|c| format!("{} desc", c.ident())).collect();
        let sql = format!(
            "with handover_w as materialized
                 (select {keys} from {} where {beyond} order by {keys} limit {size})
             select (select count(*) from handover_w), {} from handover_w order by {} limit 1",
            self.table.name.sql(),
            self.table.key_text(),
            descending.join(", ")
        );
        let row = tx.query_opt(&sql, &params(last.unwrap_or_default())).await?;
        Ok(row.map(|row| {
            let n: i64 = row.get(0);
            (n.unsigned_abs(), (1..=self.table.key.len()).map(|i| row.get(i)).collect())
        }))
    }

    /// Locks the next rows that match, in key order, and returns their keys.
    ///
    /// The effect is a statement of its own: under READ COMMITTED it takes a new snapshot, and so sees the rows
    /// as their last writers left them, which cannot change any more now that they are locked.
    async fn pick(
        &self,
        tx: &Tx<'_>,
        last: Option<&[String]>,
        upper: &[String],
        limit: u64,
    ) -> Result<Vec<Vec<String>>> {
        let mut conditions = vec![self.table.key_beyond("<=", 1)];
        let mut values: Vec<String> = upper.to_vec();
        if let Some(last) = last {
            conditions.push(self.table.key_beyond(">", values.len() + 1));
            values.extend_from_slice(last);
        }
        // NO KEY leaves foreign key checks of others alone; only a delete needs more.
        let lock = match self.effect {
            Effect::Remove { .. } => "for update",
            _ => "for no key update",
        };
        let sql = format!(
            "select {} from {} where ({}\n) and {} order by {} limit {limit} {lock}",
            self.table.key_text(),
            self.table.name.sql(),
            self.matching,
            conditions.join(" and "),
            self.table.key_list()
        );
        let rows = tx.query(&sql, &params(&values)).await?;
        Ok(rows.iter().map(|row| (0..self.table.key.len()).map(|i| row.get(i)).collect()).collect())
    }

    async fn apply(&self, cx: &Port, tx: &Tx<'_>, keys: &[Vec<String>]) -> Result<u64> {
        let arrays = key_arrays(keys, self.table.key.len());
        let mut values = params(&arrays);
        let step = cx.step.as_str();
        let among = self.table.key_among();
        match &self.effect {
            Effect::Remove { action, children } => {
                // The condition may look at other tables, which nobody locks: it is asked once more now that the
                // rows are, and its answer holds for the children and for the delete alike.
                let sure = tx
                    .query(
                        &format!(
                            "select {} from {} where {among} and ({}\n)",
                            self.table.key_text(),
                            self.table.name.sql(),
                            self.matching
                        ),
                        &values,
                    )
                    .await?;
                let width = self.table.key.len();
                let sure: Vec<Vec<String>> =
                    sure.iter().map(|row| (0..width).map(|i| row.get(i)).collect()).collect();
                let arrays = key_arrays(&sure, width);
                let mut values = params(&arrays);
                children::take(cx, tx, self.table, &among, &arrays, children.then_some(*action)).await?;
                let name = self.table.name.to_string();
                values.extend([&cx.run.0 as &(dyn ToSql + Sync), &step, &name]);
                let count: i64 = tx
                    .query_one(&self.change(), &values)
                    .await
                    .map_err(|e| explain_foreign_key(e, &self.table.foreign_keys))?
                    .get(0);
                Ok(count.unsigned_abs())
            }
            Effect::Update { .. } => {
                let name = self.table.name.to_string();
                values.extend([&cx.run.0 as &(dyn ToSql + Sync), &step, &name]);
                // Tells the trigger of a backfill that this is not a client's write.
                tx.batch("set local handover.batch = 'on'").await?;
                let count: i64 = tx.query_one(&self.change(), &values).await?.get(0);
                // A statement of its own, so that conditions with subqueries see the change too.
                let unsettled: i64 = tx
                    .query_one(
                        &format!(
                            "select count(*) from {} where {among} and ({}\n)",
                            self.table.name.sql(),
                            self.matching
                        ),
                        &params(&arrays),
                    )
                    .await?
                    .get(0);
                if unsettled > 0 {
                    return Err(Error::data(format!(
                        "{unsettled} rows of {} match `where` again once they are set, so the step would never end",
                        self.table.name
                    ))
                    .on_database(tx.database())
                    .hint("write `where` and `set` so that a row that was set needs no change any more, e.g. where: \"seen is null\", set: { seen: now() }; a trigger that changes the value back does this too"));
                }
                Ok(count.unsigned_abs())
            }
            Effect::Move { .. } => {
                tx.batch("set local handover.batch = 'on'").await?;
                tx.execute(&self.change(), &values).await?;
                Ok(keys.len() as u64)
            }
        }
    }

    /// The statements of a batch that change rows, those of rows that refer to them first. The rows to change are their
    /// parameters. A run executes no other.
    pub async fn changes(&self, session: &Session) -> Result<Vec<String>> {
        let mut out = match &self.effect {
            Effect::Remove { action, children: true } => {
                children::removals(Catalog::Session(session), self.table, action).await?
            }
            _ => Vec::new(),
        };
        out.push(self.change());
        Ok(out)
    }

    /// What changes the rows that were picked: their keys are its first parameters, an array for each column.
    fn change(&self) -> String {
        let table = self.table;
        let n = table.key.len();
        match &self.effect {
            Effect::Remove { action, .. } => format!(
                "with gone as (delete from {} where {} returning {} as k, {} as r),
                 kept as (insert into {OURS}.archive (run, step, action, table_name, key, old_row)
                          select ${}, ${}, '{action}', ${}, k, r from gone)
                 select count(*) from gone",
                table.name.sql(),
                table.key_among(),
                table.key_json(),
                table.row_json(),
                n + 1,
                n + 2,
                n + 3,
            ),
            Effect::Update { set } => self.update_sql(set, n),
            Effect::Move { insert, .. } => insert.replace("{among}", &table.key_among()),
        }
    }

    fn update_sql(&self, set: &[(Column, String)], n: usize) -> String {
        let table = self.table;
        let assignments: Vec<String> =
            set.iter().map(|(c, expression)| format!("{} = ({expression}\n)", c.ident())).collect();
        let rows = object(table.columns.iter().filter(|c| !c.generated), "");
        // Of a table of any size only what changed is kept, columns that its triggers changed included.
        let difference = |of: &str, other: &str| {
            format!(
                "(select jsonb_object_agg(e.key, e.value) from jsonb_each({of}) e
                  where e.value is distinct from {other} -> e.key)"
            )
        };
        format!(
            "with was as materialized (select {key} as k, {rows} as r from {table} where {among} and ({matching}\n)),
             changed as (update {table} set {sets} where {among} and ({matching}\n)
                         returning {key} as k, {rows} as r),
             kept as (insert into {OURS}.archive (run, step, action, table_name, key, old_row, new_row)
                      select ${run}, ${step}, 'update', ${name}, was.k, {old}, {new}
                      from was join changed on was.k = changed.k where was.r is distinct from changed.r)
             select count(*) from changed",
            key = table.key_json(),
            table = table.name.sql(),
            among = table.key_among(),
            matching = self.matching,
            sets = assignments.join(", "),
            run = n + 1,
            step = n + 2,
            name = n + 3,
            old = difference("was.r", "changed.r"),
            new = difference("changed.r", "was.r"),
        )
    }
}

/// The walk's checkpoint, read in a transaction of its own.
pub(crate) async fn read_progress(cx: &Port, session: &mut Session, unit: &str) -> Result<Progress> {
    let tx = session.transaction().await?;
    let progress = tx.checkpoint(cx.run, &cx.step, unit).await?.unwrap_or_default();
    tx.rollback().await?;
    Ok(progress)
}

fn explain_foreign_key(error: Error, keys: &[ForeignKey]) -> Error {
    if !error.message().contains("SQLSTATE 23503") {
        return error;
    }
    let names: Vec<String> =
        keys.iter().map(|fk| format!("{} ({})", fk.child, fk.child_columns.join(", "))).collect();
    let message = format!("{}; rows are referred to by {}", error.message(), names.join(", "));
    Error::new(Class::Data, message)
        .hint("clean the referring rows first in a step of their own, or say `children: archive` to take them along; undo brings both back")
}

/// The error of an expectation that does not hold.
pub(crate) fn more_than_expected(limit: u64, table: &str) -> Error {
    Error::new(Class::Invariant, format!("more rows of {table} match than the {limit} that were expected"))
        .hint("look at them with the query that `handover dry-run` shows; then correct `where`, or raise `expect`")
}
