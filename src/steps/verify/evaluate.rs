//! Evaluating a verification: everything on both sides once, against each other or against a baseline.

use super::rows::{self, Row};
use super::side::Side;
use super::tables::{self, Shape};
use super::{Before, COMPLETE, Invariant, PIECE, Recorded, Tables, Verify};
use crate::error::{Error, Result};
use crate::event::{Measure, StepId};
use crate::failpoint;
use crate::postgres::TableName;
use crate::steps::Context;
use futures_util::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A baseline's record of what it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Baseline {
    /// Rows per table, when they were counted.
    pub(super) counts: Option<BTreeMap<String, i64>>,
    /// Rows per invariant.
    pub(super) invariants: BTreeMap<String, u64>,
}

/// What one evaluation of everything found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Things that were compared: tables, rows.
    pub(super) compared: u64,
    /// Differences, a line each.
    pub(super) differences: Vec<String>,
}

impl Verify {
    /// Everything once, each side in one snapshot.
    pub(super) async fn evaluate(&self, cx: &Context) -> Result<Findings> {
        let Some(after_name) = &self.after else {
            return Err(Error::internal("a verification without a side after"));
        };
        let after = self.open(cx, after_name).await?;
        match &self.before {
            Before::Database(name) => {
                let before = self.open(cx, name).await?;
                self.compare_databases(cx, (&before, name), (&after, after_name)).await
            }
            Before::Recorded(recorded) => self.compare_recorded(cx, recorded, &after, after_name).await,
        }
    }

    pub(super) async fn compare_databases(
        &self,
        cx: &Context,
        (before, before_name): (&Side, &str),
        (after, after_name): (&Side, &str),
    ) -> Result<Findings> {
        let mut found = Findings::default();
        if self.counts_tables() || self.checksums.is_some() {
            let there = tables::shapes(before.session()).await?;
            let now = tables::shapes(after.session()).await?;
            let mut work: Vec<(TableName, Option<u32>)> = Vec::new();
            if self.counts_tables() {
                let Tables { tables, exclude } = self.counted();
                let chosen = tables::chosen(&there, &tables, &exclude, before_name)?;
                work.extend(chosen.into_iter().map(|name| (name, None)));
            }
            if let Some(sums) = &self.checksums {
                let chosen = tables::chosen(&there, &sums.tables, &sums.exclude, before_name)?;
                work.extend(chosen.into_iter().map(|name| (name, Some(sums.chunk_rows.unwrap_or(50_000)))));
            }
            let total = work.len() as u64;
            let one = |(name, chunk_rows): (TableName, Option<u32>)| {
                let shapes = (there.get(&name).cloned(), now.get(&name).cloned());
                async move {
                    cx.proceed()?;
                    compare_table((before, after), &name, shapes, chunk_rows).await
                }
            };
            let mut results = futures_util::stream::iter(work.into_iter().map(one))
                .buffer_unordered(self.jobs.unwrap_or(2).max(1));
            while let Some(differences) = results.try_next().await? {
                found.compared += 1;
                found.differences.extend(differences);
                cx.progress("tables", found.compared, Some(total), Measure::Items);
            }
            found.differences.sort();
            found.differences.dedup();
            failpoint::hit(failpoint::VERIFY_COMPARED);
        }
        for invariant in &self.invariants {
            cx.proceed()?;
            let (Some(one), Some(two)) = (invariant.before_sql(), invariant.after_sql()) else { continue };
            let result = async {
                let (one, two) = tokio::try_join!(
                    rows::fetch(before.session(), &one),
                    rows::fetch(after.session(), &two)
                )?;
                rows::compare(one, two, invariant.matching(), invariant.tolerance).await
            }
            .await
            .map_err(|e| broken(e, invariant))?;
            judge(invariant, &result, &mut found, after_name)?;
            cx.unit_done(&invariant.name);
            failpoint::hit(failpoint::VERIFY_COMPARED);
        }
        Ok(found)
    }

    pub(super) async fn compare_recorded(
        &self,
        cx: &Context,
        recorded: &Recorded,
        after: &Side,
        after_name: &str,
    ) -> Result<Findings> {
        let mut found = Findings::default();
        let step = crate::steps::of_kind::<Verify>(&cx.steps)
            .find(|(id, _)| **id == recorded.from_step)
            .map(|(_, step)| step);
        let Some(Verify { before: Before::Database(database), .. }) = step else {
            return Err(Error::internal(format!("there is no baseline step `{}`", recorded.from_step)));
        };
        let mut kept = cx.writer(database).await?;
        let tx = kept.transaction().await?;
        let baseline: Option<Baseline> = tx.checkpoint(cx.run, &recorded.from_step, COMPLETE).await?;
        tx.rollback().await?;
        let baseline = baseline.ok_or_else(|| {
            Error::data(format!("the baseline of step `{}` is gone", recorded.from_step))
                .on_database(database)
                .hint(
                    "it lives in handover.checkpoint; `handover rollback` to before that step and run again",
                )
        })?;
        if self.counts_tables() {
            let Tables { tables: wanted, exclude } = self.counted();
            let now = tables::shapes(after.session()).await?;
            let counts = baseline.counts.unwrap_or_default();
            let mut compared = 0;
            for (name, rows_before) in &counts {
                let name = TableName::try_from(name.clone()).map_err(Error::internal)?;
                if exclude.contains(&name) || !(wanted.is_empty() || wanted.contains(&name)) {
                    continue;
                }
                compared += 1;
                match now.get(&name) {
                    None => found.differences.push(format!("table {name} is gone")),
                    Some(shape) => {
                        let rows = tables::count(after.session(), &name, shape).await?;
                        if rows != *rows_before {
                            found
                                .differences
                                .push(format!("table {name} had {rows_before} rows and has {rows}"));
                        }
                    }
                }
            }
            if compared == 0 {
                return Err(nothing_to_compare(after_name));
            }
            found.compared += compared;
            failpoint::hit(failpoint::VERIFY_COMPARED);
        }
        for invariant in &self.invariants {
            cx.proceed()?;
            let Some(now) = invariant.after_sql() else { continue };
            let kept_sql = recorded_sql(cx, &recorded.from_step, &invariant.name);
            let result = async {
                let (one, two) =
                    tokio::try_join!(rows::recorded(&kept, &kept_sql), rows::fetch(after.session(), &now))?;
                rows::compare(one, two, invariant.matching(), invariant.tolerance).await
            }
            .await
            .map_err(|e| broken(e, invariant))?;
            if Some(&result.before) != baseline.invariants.get(&invariant.name) {
                return Err(Error::data(format!("the baseline of `{}` is not complete", invariant.name))
                    .on_database(database)
                    .hint("somebody changed handover.checkpoint; `handover rollback` to before that step and run again"));
            }
            judge(invariant, &result, &mut found, after_name)?;
            cx.unit_done(&invariant.name);
            failpoint::hit(failpoint::VERIFY_COMPARED);
        }
        Ok(found)
    }

    /// Keeps the results of "before" in its database: everything in one transaction, or nothing.
    pub(super) async fn record_baseline(&self, cx: &Context) -> Result<Value> {
        let Before::Database(database) = &self.before else {
            return Err(Error::internal("a baseline is recorded from a database"));
        };
        let mut session = cx.writer(database).await?;
        let tx = session.transaction().await?;
        let done: Option<Baseline> = tx.checkpoint(cx.run, &cx.step, COMPLETE).await?;
        if let Some(done) = done {
            return Ok(json!({ "recorded": done }));
        }
        let side = self.open(cx, database).await?;
        let mut baseline = Baseline::default();
        if self.counts_tables() {
            let Tables { tables, exclude } = self.counted();
            let there = tables::shapes(side.session()).await?;
            let mut counts = BTreeMap::new();
            for name in tables::chosen(&there, &tables, &exclude, database)? {
                cx.proceed()?;
                if let Some(shape) = there.get(&name) {
                    counts.insert(name.to_string(), tables::count(side.session(), &name, shape).await?);
                }
            }
            baseline.counts = Some(counts);
        }
        for invariant in &self.invariants {
            cx.proceed()?;
            let Some(wrapped) = invariant.before_sql() else { continue };
            let rows = async {
                let mut pieces = rows::fetch(side.session(), &wrapped).await?.try_chunks(PIECE);
                let (mut n, mut total) = (0_u32, 0_u64);
                while let Some(piece) = pieces.try_next().await.map_err(|e| e.1)? {
                    total += piece.len() as u64;
                    let unit = format!("{}{n:08}", prefix(&invariant.name));
                    tx.save_checkpoint::<Vec<Row>>(cx.run, &cx.step, &unit, &piece).await?;
                    n += 1;
                }
                Ok::<u64, Error>(total)
            }
            .await
            .map_err(|e| broken(e, invariant))?;
            if rows == 0 && !invariant.allow_empty {
                return Err(empty(invariant, database));
            }
            baseline.invariants.insert(invariant.name.clone(), rows);
            cx.unit_done(&invariant.name);
        }
        tx.save_checkpoint(cx.run, &cx.step, COMPLETE, &baseline).await?;
        tx.commit().await?;
        failpoint::hit(failpoint::VERIFY_RECORDED);
        Ok(json!({ "recorded": baseline }))
    }
}

/// Checkpoints of a baseline's invariant begin with this.
pub(super) fn prefix(invariant: &str) -> String {
    format!("rows of {invariant} #")
}

pub(super) fn recorded_sql(cx: &Context, step: &StepId, invariant: &str) -> String {
    use crate::postgres::quote_literal;
    format!(
        "select state from handover.checkpoint where run = '{}' and step = {} and starts_with(unit, {})
         and length(unit) = {} order by unit collate \"C\"",
        cx.run,
        quote_literal(step.as_str()),
        quote_literal(&prefix(invariant)),
        prefix(invariant).chars().count() + 8
    )
}

pub(super) async fn compare_table(
    sides: (&Side, &Side),
    name: &TableName,
    shapes: (Option<Shape>, Option<Shape>),
    chunk_rows: Option<u32>,
) -> Result<Vec<String>> {
    let (Some(there), Some(now)) = &shapes else { return Ok(vec![format!("table {name} is gone")]) };
    let shapes = (there, now);
    match chunk_rows {
        None => {
            let (left, right) = tokio::try_join!(sides.0.join(), sides.1.join())?;
            let (before, after): (i64, i64) = tokio::try_join!(
                tables::count(&left, name, shapes.0),
                tables::count(&right, name, shapes.1)
            )?;
            if before == after {
                return Ok(Vec::new());
            }
            Ok(vec![format!("table {name} has {before} rows before and {after} after")])
        }
        Some(chunk_rows) => {
            let found = tables::checksum(sides, name, shapes, chunk_rows).await?;
            Ok(if found.is_empty() { found } else { vec![format!("table {name}: {}", found.join(", "))] })
        }
    }
}

pub(super) fn judge(
    invariant: &Invariant,
    result: &rows::Outcome,
    found: &mut Findings,
    database: &str,
) -> Result<()> {
    if result.before == 0 && result.after == 0 && !invariant.allow_empty {
        return Err(empty(invariant, database));
    }
    found.compared += result.before.max(result.after).max(1);
    if result.differing > 0 {
        found.differences.push(format!(
            "`{}`: {} of {} rows before and {} after differ: {}",
            invariant.name,
            result.differing,
            result.before,
            result.after,
            result.shown.join(", ")
        ));
    }
    Ok(())
}

pub(super) fn broken(error: Error, invariant: &Invariant) -> Error {
    error
        .context(format!("invariant `{}`", invariant.name))
        .hint("correct the query (it runs read-only, and its columns are those named in `key`), then `handover resume`")
}

pub(super) fn empty(invariant: &Invariant, database: &str) -> Error {
    Error::data(format!("invariant `{}` gives no rows, so it could not fail", invariant.name))
        .on_database(database)
        .hint("correct the query, or say `allow_empty: true` if no rows is a fine answer")
}

pub(super) fn nothing_to_compare(database: &str) -> Error {
    Error::data("no table is left to compare, so the check could not fail")
        .on_database(database)
        .hint("exclude fewer tables, or remove the check")
}
