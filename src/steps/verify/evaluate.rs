//! Evaluating a verification: everything on both sides once, against each other or against a baseline.

use super::agreed::{self, Agreed, Evidence};
use super::contents::{self, Wanted};
use super::found::TableFound;
use super::rows::{self, Row};
use super::sessions::Sessions;
use super::shape::{self, Shape};
use super::side::{Moment, Side};
use super::{Before, COMPLETE, Checksums, Invariant, PIECE, Recorded, Tables, Verify};
use crate::error::{Error, Result};
use crate::event::{Measure, StepId};
use crate::failpoint;
use crate::postgres::TableName;
use crate::postgres::ours::OURS;
use crate::steps::Context;
use crate::steps::copy::violation;
use futures_util::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

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
    /// Whether it was only compared which rows there are.
    pub(super) only_counted: bool,
    /// Tables whose content was compared.
    pub(super) tables: Vec<TableFound>,
    /// The points in time that were compared.
    pub(super) moments: Vec<Moment>,
}

impl Findings {
    /// Adds what was found of tables' content.
    pub(super) fn add(&mut self, tables: &[TableFound]) {
        self.compared += tables.len() as u64;
        self.differences.extend(tables.iter().filter_map(TableFound::words));
        self.tables.extend(tables.iter().cloned());
    }

    /// For the journal and the report: totals, and the tables about which there is something to say.
    pub(super) fn summary(&self, evaluations: u32) -> Value {
        let mut out = json!({ "compared": self.compared, "evaluations": evaluations });
        if self.tables.is_empty() {
            return out;
        }
        let sum = |of: fn(&TableFound) -> u64| self.tables.iter().map(of).sum::<u64>();
        let totals = [
            ("tables", self.tables.len() as u64),
            ("rows", sum(|t| t.rows_before)),
            ("pieces", sum(|t| t.chunks)),
            ("differing", sum(TableFound::differing)),
        ];
        let sometimes = [
            ("resumed", sum(|t| t.resumed)),
            ("settled", sum(|t| t.settled)),
            ("unsettled", sum(|t| t.unsettled)),
        ];
        let what = if self.only_counted { "row_counts" } else { "checksums" };
        out[what] = totals.into_iter().map(|(name, n)| (name.to_owned(), json!(n))).collect();
        for (name, n) in sometimes.into_iter().filter(|(_, n)| *n > 0) {
            out[name] = json!(n);
        }
        if !self.moments.is_empty() {
            let words = self
                .moments
                .iter()
                .map(|m| format!("{} at {} (WAL {}, snapshot {})", m.database, m.at, m.lsn, m.snapshot));
            out["at"] = words.collect();
        }
        let noted: Vec<&TableFound> = self.tables.iter().filter(|t| !t.equal() || t.settled > 0).collect();
        if !noted.is_empty() {
            out["tables"] = json!(noted);
        }
        out
    }
}

impl Verify {
    /// Everything once, each side in one snapshot.
    ///
    /// `counts`: whether rows are counted, if the plan says so.
    pub(super) async fn evaluate(
        &self,
        cx: &Context,
        sums: Option<&Checksums>,
        counts: bool,
    ) -> Result<Findings> {
        let Some(after_name) = &self.after else {
            return Err(Error::internal("a verification without a side after"));
        };
        let name = match &self.before {
            Before::Database(name) => name,
            Before::Recorded(recorded) => {
                let after = self.open(cx, after_name).await?;
                return self.compare_recorded(cx, recorded, &after, after_name).await;
            }
        };
        let databases = cx.databases.labelled(cx.step.as_str());
        loop {
            // Before the snapshots: what is written in between counts as written later, and is read again.
            let evidence = match sums {
                Some(_) => agreed::evidence(&databases, (name, after_name), false).await?,
                None => Evidence::new(),
            };
            let looked = Instant::now();
            let after = self.open(cx, after_name).await?;
            let before = self.open(cx, name).await?;
            let (found, agreed) = self
                .compare_databases(
                    cx,
                    (&before, name),
                    (&after, after_name),
                    sums.map(|s| (s, &evidence)),
                    counts,
                )
                .await?;
            let resumed: BTreeSet<String> =
                found.tables.iter().filter(|t| t.resumed > 0).map(|t| t.table.clone()).collect();
            let Some(agreed) = agreed.filter(|_| !resumed.is_empty()) else { return Ok(found) };
            cx.sleep(agreed::COUNTED.saturating_sub(looked.elapsed())).await?;
            if agreed.holds(&resumed, &agreed::evidence(&databases, (name, after_name), false).await?) {
                cx.note(format!(
                    "of {} tables, what had agreed before the interruption was not read again: they were not written since, by the servers' count",
                    resumed.len()
                ));
                return Ok(found);
            }
            cx.note("tables were written since the interruption, so everything is read again");
            Agreed::forget(cx).await?;
        }
    }

    pub(super) async fn compare_databases(
        &self,
        cx: &Context,
        (before, before_name): (&Side, &str),
        (after, after_name): (&Side, &str),
        sums: Option<(&Checksums, &Evidence)>,
        counts: bool,
    ) -> Result<(Findings, Option<Agreed>)> {
        let mut found = Findings::default();
        let mut agreed = None;
        if let Some((sums, evidence)) = sums {
            let sessions = Sessions::Frozen(before, after);
            let wanted = Wanted {
                sums: Some(sums),
                counts: None,
                copy: self.copy(cx, before_name, after_name),
                aside: self.aside(cx, before_name, after_name),
            };
            let (compared, then) =
                contents::frozen(cx, wanted, sessions, self.jobs(), before_name, evidence).await?;
            found.add(&compared);
            agreed = Some(then);
            found.moments = vec![before.moment.clone(), after.moment.clone()];
            failpoint::at(failpoint::VERIFY_COMPARED)?;
        }
        if self.counts_tables() && counts {
            let there = shape::shapes(before.session()).await?;
            let now = shape::shapes(after.session()).await?;
            let Tables { tables, exclude } = self.counted();
            let copy = self.copy(cx, before_name, after_name);
            let work = shape::chosen(&there, &tables, &exclude, copy, before_name)?;
            let aside = match self.aside(cx, before_name, after_name) {
                Some((run, step)) => violation::set_aside(after.session(), run, step).await?,
                None => BTreeMap::new(),
            };
            let aside = &aside;
            let total = work.len() as u64;
            let (there, now) = (&there, &now);
            let one = |name: TableName| async move {
                cx.proceed()?;
                count_table((before, after), &name, (there.get(&name), now.get(&name)), aside).await
            };
            let mut results =
                futures_util::stream::iter(work.into_iter().map(one)).buffer_unordered(self.jobs());
            let mut counted = 0;
            while let Some(difference) = results.try_next().await? {
                counted += 1;
                found.differences.extend(difference);
                cx.progress("tables", counted, Some(total), Measure::Items);
            }
            found.compared += counted;
            cx.unit_done("tables");
            found.differences.sort();
            found.differences.dedup();
            failpoint::at(failpoint::VERIFY_COMPARED)?;
        }
        if self.invariants.is_empty() {
            return Ok((found, agreed));
        }
        let (asking, answering) = tokio::try_join!(before.join_for_operator(), after.join_for_operator())?;
        for invariant in &self.invariants {
            cx.proceed()?;
            let (Some(one), Some(two)) = (invariant.before_sql(), invariant.after_sql()) else { continue };
            let result = async {
                let (one, two) = tokio::try_join!(rows::fetch(&asking, &one), rows::fetch(&answering, &two))?;
                rows::compare(one, two, invariant.matching(), invariant.tolerance).await
            }
            .await
            .map_err(|e| broken(e, invariant))?;
            judge(invariant, &result, &mut found, after_name)?;
            cx.unit_done(&invariant.name);
            failpoint::at(failpoint::VERIFY_COMPARED)?;
        }
        Ok((found, agreed))
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
                .hint(format!(
                    "it lives in {OURS}.checkpoint; `handover rollback` to before that step and run again"
                ))
        })?;
        if self.counts_tables() {
            let Tables { tables: wanted, exclude } = self.counted();
            let now = shape::shapes(after.session()).await?;
            let counts = baseline.counts.unwrap_or_default();
            let copy = self.copy(cx, database, after_name);
            let mut compared = 0;
            for (name, rows_before) in &counts {
                let name = TableName::try_from(name.clone()).map_err(Error::internal)?;
                if exclude.contains(&name) || !(wanted.is_empty() || wanted.contains(&name)) {
                    continue;
                }
                if wanted.is_empty() && copy.is_some_and(|copy| !copy.takes_rows(&name)) {
                    continue;
                }
                compared += 1;
                match now.get(&name) {
                    None => found.differences.push(format!("table {name} is gone")),
                    Some(shape) => {
                        let rows = shape::count(after.session(), &name, shape).await?;
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
            failpoint::at(failpoint::VERIFY_COMPARED)?;
        }
        if self.invariants.is_empty() {
            return Ok(found);
        }
        let answering = after.join_for_operator().await?;
        for invariant in &self.invariants {
            cx.proceed()?;
            let Some(now) = invariant.after_sql() else { continue };
            let kept_sql = recorded_sql(cx, &recorded.from_step, &invariant.name);
            let result = async {
                let (one, two) =
                    tokio::try_join!(rows::recorded(&kept, &kept_sql), rows::fetch(&answering, &now))?;
                rows::compare(one, two, invariant.matching(), invariant.tolerance).await
            }
            .await
            .map_err(|e| broken(e, invariant))?;
            if Some(&result.before) != baseline.invariants.get(&invariant.name) {
                return Err(Error::data(format!("the baseline of `{}` is not complete", invariant.name))
                    .on_database(database)
                    .hint(format!("somebody changed {OURS}.checkpoint; `handover rollback` to before that step and run again")));
            }
            judge(invariant, &result, &mut found, after_name)?;
            cx.unit_done(&invariant.name);
            failpoint::at(failpoint::VERIFY_COMPARED)?;
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
            let there = shape::shapes(side.session()).await?;
            let mut counts = BTreeMap::new();
            for name in shape::chosen(&there, &tables, &exclude, None, database)? {
                cx.proceed()?;
                if let Some(shape) = there.get(&name) {
                    counts.insert(name.to_string(), shape::count(side.session(), &name, shape).await?);
                }
            }
            baseline.counts = Some(counts);
        }
        let asking = side.join_for_operator().await?;
        for invariant in &self.invariants {
            cx.proceed()?;
            let Some(wrapped) = invariant.before_sql() else { continue };
            let rows = async {
                let mut pieces = rows::fetch(&asking, &wrapped).await?.try_chunks(PIECE);
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
        failpoint::at(failpoint::VERIFY_RECORDED)?;
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
        "select state from {OURS}.checkpoint where run = '{}' and step = {} and starts_with(unit, {})
         and length(unit) = {} order by unit collate \"C\"",
        cx.run,
        quote_literal(step.as_str()),
        quote_literal(&prefix(invariant)),
        prefix(invariant).chars().count() + 8
    )
}

pub(super) async fn count_table(
    sides: (&Side, &Side),
    name: &TableName,
    shapes: (Option<&Shape>, Option<&Shape>),
    aside: &BTreeMap<TableName, u64>,
) -> Result<Option<String>> {
    let (Some(there), Some(now)) = shapes else { return Ok(Some(format!("table {name} is gone"))) };
    let (left, right) = tokio::try_join!(sides.0.join(), sides.1.join())?;
    let (before, after): (i64, i64) =
        tokio::try_join!(shape::count(&left, name, there), shape::count(&right, name, now))?;
    // Partitions keep what was set aside under their own names.
    let names = now.heaps.iter().map(|heap| &heap.name).filter(|heap| *heap != name).chain([name]);
    let aside = names.filter_map(|name| aside.get(name)).sum::<u64>();
    let before = before - i64::try_from(aside).unwrap_or(i64::MAX);
    Ok((before != after).then(|| format!("table {name} has {before} rows before and {after} after")))
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
        .or_hint("correct the query (it runs read-only, and its columns are those named in `key`), then `handover resume`")
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
