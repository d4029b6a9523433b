//! `verify`: proves that what must survive an upgrade did.
//!
//! Row counts, checksums and the plan's own queries are evaluated before and after – on two databases, or on
//! one at two points in time, when an earlier step recorded a baseline. Each side answers from one snapshot,
//! read-only. A check that compares nothing is an error, because it could not fail.

pub mod rows;
pub mod side;
pub mod tables;

use super::{Access, CheckContext, Context, Description, StepKind, Undo};
use crate::error::{Class, Error, Result};
use crate::event::{Measure, StepId};
use crate::failpoint;
use crate::postgres::{TableName, sql};
use crate::problem::{Problems, Segment};
use crate::value::Duration;
use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use rows::{Matching, Row};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use side::Side;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;
use tables::Shape;

/// Rows of a baseline that share a checkpoint.
const PIECE: usize = 500;
/// For a query, unless the plan says otherwise.
const TIMEOUT: Duration = Duration::secs(30 * 60);
/// Unit that says that a baseline is complete.
const COMPLETE: &str = "baseline";
/// The fact that a verification passed.
const PASSED: &str = "passed";

/// Compares before and after.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// Where the queries for "before" run, or the earlier step that recorded their results.
    pub before: Before,
    /// Where the queries for "after" run. Left out when a baseline is recorded.
    pub after: Option<String>,
    /// Keeps the results of "before" in that database, for a later step with `before: { from_step: … }`.
    #[serde(default)]
    pub record: bool,
    /// Compares numbers of rows, counted exactly.
    pub row_counts: Option<RowCounts>,
    /// Compares the content of tables by checksums that the servers compute; shows the keys of rows that differ.
    pub checksums: Option<Checksums>,
    /// Queries whose results must be the same before and after.
    #[serde(default)]
    pub invariants: Vec<Invariant>,
    /// Evaluates again until everything is equal, for a side that lags behind.
    pub retries: Option<Retries>,
    /// For each query; 30 minutes unless given.
    pub statement_timeout: Option<Duration>,
    /// Tables compared at once; 2 unless given.
    #[schemars(range(min = 1, max = 64))]
    pub jobs: Option<usize>,
}

/// Where "before" comes from.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Before {
    /// A database.
    Database(String),
    /// The results that an earlier step recorded.
    Recorded(Recorded),
}

/// A reference to recorded results.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// The id of an earlier `verify` step with `record: true`.
    pub from_step: StepId,
}

/// Which tables' rows are counted.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RowCounts {
    /// All, or none.
    All(bool),
    /// Some.
    Some(Tables),
}

/// Tables by name.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tables {
    /// Only these; all unless given.
    pub tables: Vec<TableName>,
    /// Not these.
    pub exclude: Vec<TableName>,
}

/// Which tables' content is compared.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Checksums {
    /// Only these; all unless given.
    pub tables: Vec<TableName>,
    /// Not these.
    pub exclude: Vec<TableName>,
    /// Rows that share a checksum; 50000 unless given. Fewer rows make differing chunks quicker to search.
    #[schemars(range(min = 1))]
    pub chunk_rows: Option<u32>,
}

/// A query whose answer must survive.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Invariant {
    /// What it says, e.g. `live sessions per subject`.
    #[schemars(length(min = 1))]
    pub name: String,
    /// The query before: one SELECT.
    pub before: Option<String>,
    /// The query after; the one before unless given.
    pub after: Option<String>,
    /// Columns that identify a row, so that a changed row is shown as such.
    #[serde(default)]
    pub key: Vec<String>,
    /// Whether the order of rows matters; else results are compared as multisets.
    #[serde(default)]
    pub ordered: bool,
    /// How far numbers of rows with the same key (or place) may lie apart.
    pub tolerance: Option<f64>,
    /// Whether results without rows on both sides are fine.
    #[serde(default)]
    pub allow_empty: bool,
}

/// How long to wait for equality.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retries {
    /// Gives up after this.
    pub within: Duration,
    /// Waits this long between two evaluations; one second unless given.
    pub every: Option<Duration>,
}

impl Invariant {
    fn matching(&self) -> Matching {
        if !self.key.is_empty() {
            Matching::Key
        } else if self.ordered || self.tolerance.is_some() {
            Matching::Place
        } else {
            Matching::Values
        }
    }

    fn before_sql(&self) -> Option<String> {
        self.before.as_ref().map(|sql| rows::wrap(sql, &self.key, self.matching()))
    }

    fn after_sql(&self) -> Option<String> {
        self.after.as_ref().or(self.before.as_ref()).map(|sql| rows::wrap(sql, &self.key, self.matching()))
    }
}

/// A baseline's record of what it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Baseline {
    /// Rows per table, when they were counted.
    counts: Option<BTreeMap<String, i64>>,
    /// Rows per invariant.
    invariants: BTreeMap<String, u64>,
}

/// What one evaluation of everything found.
#[derive(Debug, Default)]
struct Findings {
    /// Things that were compared: tables, rows.
    compared: u64,
    /// Differences, a line each.
    differences: Vec<String>,
}

#[async_trait]
impl StepKind for Verify {
    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        match &self.before {
            Before::Database(name) => cx.database(problems, "before", name),
            Before::Recorded(recorded) => self.check_recorded(cx, recorded, problems),
        }
        match (&self.after, self.record) {
            (Some(name), false) => cx.database(problems, "after", name),
            (None, true) => {}
            (Some(_), true) => {
                problems
                    .error(["after"], "a step that records a baseline compares nothing yet")
                    .hint("remove `after`; a later step compares, with `before: { from_step: … }`");
            }
            (None, false) => {
                problems
                    .error(["before"], "there is nothing to compare with")
                    .hint("add `after: <database>`, or `record: true` to keep a baseline for a later step");
            }
        }
        let counts = !matches!(self.row_counts, None | Some(RowCounts::All(false)));
        if !counts && self.checksums.is_none() && self.invariants.is_empty() {
            problems
                .error(["before"], "this step checks nothing")
                .hint("add `row_counts`, `checksums` or `invariants`");
        }
        if self.checksums.is_some() && (self.record || matches!(self.before, Before::Recorded(_))) {
            problems
                .error(["checksums"], "checksums compare two databases and cannot be recorded")
                .hint("use an invariant, such as a hash that is aggregated in SQL");
        }
        let mut names = BTreeSet::new();
        for (i, invariant) in self.invariants.iter().enumerate() {
            self.check_invariant(i, invariant, problems);
            if !names.insert(&invariant.name) {
                problems
                    .error(
                        [Segment::from("invariants"), i.into(), "name".into()],
                        format!("there are two invariants `{}`", invariant.name),
                    )
                    .hint("give each its own name");
            }
        }
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        let mut out = Vec::new();
        if let Before::Database(name) = &self.before {
            out.push((name.as_str(), if self.record { Access::Write } else { Access::Read }));
        }
        out.extend(self.after.iter().map(|name| (name.as_str(), Access::Read)));
        out
    }

    fn reversibility(&self) -> Undo {
        Undo::Nothing
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        let mut out = Description::default();
        let verb = if self.record { "record" } else { "compare" };
        if self.counts_tables() {
            out.action(format!(
                "{verb} the exact number of rows of tables, which reads each of them or an index of it"
            ));
        }
        if self.checksums.is_some() {
            out.action("compare checksums of tables, computed by both servers, which reads each table once");
        }
        for invariant in &self.invariants {
            out.action(format!("{verb} {}", invariant.name));
        }
        let mut sides = Vec::new();
        if let Before::Database(name) = &self.before {
            sides.push((name, true));
        }
        sides.extend(self.after.iter().map(|name| (name, false)));
        for (database, before) in sides {
            let session = cx.reader(database).await?;
            for invariant in &self.invariants {
                let wrapped = if before { invariant.before_sql() } else { invariant.after_sql() };
                let Some(wrapped) = wrapped else { continue };
                // Preparing only looks the names up; an earlier step may be what creates them.
                if let Err(e) = session.prepare(&wrapped).await {
                    out.warning(format!(
                        "`{}` cannot run on {database} as it is now: {}",
                        invariant.name,
                        e.message()
                    ));
                }
            }
        }
        Ok(out)
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        if self.record {
            return self.record_baseline(cx).await;
        }
        let started = Instant::now();
        let mut evaluations = 0_u32;
        loop {
            cx.proceed()?;
            evaluations += 1;
            let found = self.evaluate(cx).await?;
            if found.differences.is_empty() {
                if found.compared == 0 {
                    return Err(Error::internal("a verification compared nothing"));
                }
                let summary = json!({ "compared": found.compared, "evaluations": evaluations });
                cx.remember(PASSED, &summary).await?;
                return Ok(summary);
            }
            let Some(retries) = self.retries.filter(|r| started.elapsed() < r.within.0) else {
                return Err(self.failure(&found));
            };
            cx.note(format!("not equal yet: {}", found.differences.join("; ")));
            cx.sleep(retries.every.unwrap_or(Duration::secs(1)).0).await?;
        }
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        let proof = match (&self.before, self.record) {
            (Before::Database(database), true) => {
                let mut session = cx.writer(database).await?;
                let tx = session.transaction().await?;
                let baseline: Option<Baseline> = tx.checkpoint(cx.run, &cx.step, COMPLETE).await?;
                tx.rollback().await?;
                baseline.is_some()
            }
            _ => cx.recall::<Value>(PASSED)?.is_some(),
        };
        if proof {
            return Ok(());
        }
        Err(Error::data("nothing shows that the verification was made").hint("`handover resume` makes it"))
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        cx.forget(PASSED).await?;
        if let (Before::Database(database), true) = (&self.before, self.record) {
            let mut session = cx.writer(database).await?;
            let tx = session.transaction().await?;
            tx.forget_checkpoints(cx.run, &cx.step).await?;
            tx.commit().await?;
        }
        Ok(json!({}))
    }
}

impl Verify {
    fn check_recorded(&self, cx: &CheckContext<'_>, recorded: &Recorded, problems: &mut Problems) {
        let path = ["before", "from_step"];
        if self.record {
            problems
                .error(["record"], "a baseline is recorded from a database")
                .hint("name one with `before`");
        }
        let earlier: Vec<(&StepId, &Verify)> = super::of_kind::<Verify>(cx.earlier()).collect();
        let Some((_, step)) = earlier.iter().find(|(id, step)| **id == recorded.from_step && step.record)
        else {
            let known: Vec<&str> =
                earlier.iter().filter(|(_, s)| s.record).map(|(id, _)| id.as_str()).collect();
            problems
                .error(path, format!("no earlier step `{}` records a baseline", recorded.from_step))
                .hint(match known.as_slice() {
                    [] => "add a `verify` step with `record: true` before this one".to_owned(),
                    known => format!("steps that do: {}", known.join(", ")),
                });
            return;
        };
        if self.counts_tables() && !step.counts_tables() {
            problems
                .error(["row_counts"], format!("step `{}` records no row counts", recorded.from_step))
                .hint("add `row_counts` there as well");
        }
        for (i, invariant) in self.invariants.iter().enumerate() {
            let at = [Segment::from("invariants"), i.into(), "name".into()];
            match step.invariants.iter().find(|o| o.name == invariant.name) {
                None => {
                    problems
                        .error(at, format!("step `{}` records no `{}`", recorded.from_step, invariant.name))
                        .hint("add it there under the same name");
                }
                Some(other) if other.key != invariant.key || other.matching() != invariant.matching() => {
                    problems
                        .error(
                            at,
                            format!(
                                "`{}` has another key or order in step `{}`",
                                invariant.name, recorded.from_step
                            ),
                        )
                        .hint("give `key`, `ordered` and `tolerance` in both steps alike");
                }
                Some(_) => {}
            }
        }
    }

    fn check_invariant(&self, i: usize, invariant: &Invariant, problems: &mut Problems) {
        let at = |field: &str| [Segment::from("invariants"), i.into(), field.into()];
        let recorded = matches!(self.before, Before::Recorded(_));
        if invariant.before.is_none() && (!recorded || invariant.after.is_none()) {
            problems
                .error(at("name"), format!("`{}` has no query", invariant.name))
                .hint("write `before: \"select …\"`; `after` is the same unless given");
        }
        for (field, text) in [("before", &invariant.before), ("after", &invariant.after)] {
            let Some(text) = text else { continue };
            let statements = sql::statements(text);
            let first = statements.first().map(|s| s.trim_start().to_lowercase()).unwrap_or_default();
            if statements.len() != 1
                || !["select", "with", "table", "values", "("].iter().any(|w| first.starts_with(w))
            {
                problems.error(at(field), "an invariant is one query").hint("write one SELECT");
            }
        }
        if invariant.ordered && !invariant.key.is_empty() {
            problems
                .error(at("ordered"), "rows are found either by their key or by their place")
                .hint("remove `key` or `ordered`");
        }
        if invariant.tolerance.is_some_and(|t| !t.is_finite() || t < 0.0) {
            problems.error(at("tolerance"), "a tolerance is 0 or more").hint("write a number such as 0.01");
        }
    }

    fn counts_tables(&self) -> bool {
        !matches!(self.row_counts, None | Some(RowCounts::All(false)))
    }

    fn counted(&self) -> Tables {
        match &self.row_counts {
            Some(RowCounts::Some(tables)) => tables.clone(),
            _ => Tables::default(),
        }
    }

    async fn open(&self, cx: &Context, database: &str) -> Result<Side> {
        let databases = cx.databases.labelled(cx.step.as_str());
        Side::open(&databases, database, self.statement_timeout.unwrap_or(TIMEOUT).0).await
    }

    fn failure(&self, found: &Findings) -> Error {
        let hint = if self.retries.is_some() {
            "look at the rows; mend the migration or the data, then `handover resume`, or `handover rollback`"
        } else {
            "look at the rows, then `handover resume` or `handover rollback`; if one side is still written to while the other lags, verify behind the freeze or give `retries`"
        };
        let shown: Vec<&str> = found.differences.iter().take(12).map(String::as_str).collect();
        let more = found.differences.len().saturating_sub(shown.len());
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        Error::new(Class::Invariant, format!("before and after differ: {}{more}", shown.join("; ")))
            .hint(hint)
    }

    /// Everything once, each side in one snapshot.
    async fn evaluate(&self, cx: &Context) -> Result<Findings> {
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

    async fn compare_databases(
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

    async fn compare_recorded(
        &self,
        cx: &Context,
        recorded: &Recorded,
        after: &Side,
        after_name: &str,
    ) -> Result<Findings> {
        let mut found = Findings::default();
        let step = super::of_kind::<Verify>(&cx.steps)
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
    async fn record_baseline(&self, cx: &Context) -> Result<Value> {
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
fn prefix(invariant: &str) -> String {
    format!("rows of {invariant} #")
}

fn recorded_sql(cx: &Context, step: &StepId, invariant: &str) -> String {
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

async fn compare_table(
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

fn judge(invariant: &Invariant, result: &rows::Outcome, found: &mut Findings, database: &str) -> Result<()> {
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

fn broken(error: Error, invariant: &Invariant) -> Error {
    error
        .context(format!("invariant `{}`", invariant.name))
        .hint("correct the query (it runs read-only, and its columns are those named in `key`), then `handover resume`")
}

fn empty(invariant: &Invariant, database: &str) -> Error {
    Error::data(format!("invariant `{}` gives no rows, so it could not fail", invariant.name))
        .on_database(database)
        .hint("correct the query, or say `allow_empty: true` if no rows is a fine answer")
}

fn nothing_to_compare(database: &str) -> Error {
    Error::data("no table is left to compare, so the check could not fail")
        .on_database(database)
        .hint("exclude fewer tables, or remove the check")
}
