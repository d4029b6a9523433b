//! `verify`: proves that what must survive an upgrade did.
//!
//! Row counts, checksums and the plan's own queries are evaluated before and after – on two databases, or on
//! one at two points in time, when an earlier step recorded a baseline. Each side answers from one snapshot,
//! read-only; only the content of tables that are written and replicated meanwhile is compared row by row until
//! it agrees. A check that compares nothing is an error, because it could not fail.

pub mod agreed;
mod check;
pub mod checksum;
pub mod contents;
pub mod cut;
mod describe;
mod evaluate;
pub mod fence;
pub mod found;
pub mod hash;
pub mod narrow;
pub mod rows;
pub mod settle;
pub mod shape;
pub mod side;
pub mod watched;

use super::replicate::{self, Gauge};
use super::{Access, CheckContext, Context, Description, StepKind, Undo};
use crate::error::{Class, Error, Result};
use crate::event::StepId;
use crate::failpoint;
use crate::postgres::TableName;
use crate::problem::{Problems, Segment};
use crate::value::Duration;
use agreed::Agreed;
use async_trait::async_trait;
use checksum::Sessions;
use evaluate::{Baseline, Findings};
use fence::{Fence, Marks, Pause};
use found::TableFound;
use rows::Matching;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use side::Side;
use std::collections::BTreeSet;
use std::time::Instant;

/// Rows of a baseline that share a checkpoint.
const PIECE: usize = 500;
/// For a query, unless the plan says otherwise.
const TIMEOUT: Duration = Duration::secs(30 * 60);
/// How long rows that are written all the time are looked at again, unless `retries` says.
const SETTLE: Duration = Duration::secs(10 * 60);
/// Unit that says that a baseline is complete.
const COMPLETE: &str = "baseline";
/// The fact with what differed, for `handover events`.
const DIFFERENCES: &str = "differences";
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
    /// Looks again at what differs, for a side that lags behind without a `replicate` step.
    pub retries: Option<Retries>,
    /// For each query; 30 minutes unless given.
    pub statement_timeout: Option<Duration>,
    /// Sessions on each side that count and sum tables; 2 unless given.
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
    /// About as many rows share a checksum; 50000 unless given. Fewer make pieces that differ quicker to search.
    #[schemars(range(min = 1))]
    pub chunk_rows: Option<u32>,
}

impl Checksums {
    fn chunk_rows(&self) -> u32 {
        self.chunk_rows.unwrap_or(50_000)
    }
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
    /// Gives up after this; for the content of tables, counted from when all were summed.
    pub within: Duration,
    /// Waits this long before it looks again; one second unless given.
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
        if let (Some(sums), Before::Database(before), Some(after)) =
            (&self.checksums, &self.before, &self.after)
        {
            out.action(match (replicate::between(cx, before, after), self.retries) {
                (Some(link), _) => format!(
                    "while step `{}` replicates, look at rows that differ again behind marks in its stream, until they agree or are certain to differ",
                    link.step
                ),
                (None, Some(_)) => "look at rows that differ again, as long as `retries` says".to_owned(),
                (None, None) => "hold one point in time of each side until all is read: every difference is one".to_owned(),
            });
            let (before, after) = tokio::try_join!(cx.reader(before), cx.reader(after))?;
            describe::describe(sums, (&before, &after), self.jobs(), &mut out).await?;
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
        let moving = self.moving(cx).await?;
        // What is being written is summed on its own, not at one point in time.
        let sums = self.checksums.as_ref().filter(|_| moving.is_none());
        let contents = match moving {
            Some(fence) => self.moving_contents(cx, fence).await?,
            None => Vec::new(),
        };
        let mut evaluations = 0_u32;
        loop {
            cx.proceed()?;
            evaluations += 1;
            let mut found = self.evaluate(cx, sums).await?;
            found.add(&contents);
            if found.differences.is_empty() {
                if found.compared == 0 {
                    return Err(Error::internal("a verification compared nothing"));
                }
                let summary = found.summary(evaluations);
                cx.remember(PASSED, &summary).await?;
                // It was for an interruption; should this ever be asked again, the answer is of then.
                Agreed::forget(cx).await?;
                return Ok(summary);
            }
            let over = contents.iter().any(|table| !table.equal());
            let Some(retries) = self.retries.filter(|r| !over && started.elapsed() < r.within.0) else {
                cx.remember(DIFFERENCES, &found.summary(evaluations)).await?;
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
        Agreed::forget(cx).await?;
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
    fn counts_tables(&self) -> bool {
        !matches!(self.row_counts, None | Some(RowCounts::All(false)))
    }

    /// How long rows that differ are looked at again.
    fn within(&self) -> std::time::Duration {
        self.retries.map_or(SETTLE, |r| r.within).0
    }

    fn jobs(&self) -> usize {
        self.jobs.unwrap_or(2).max(1)
    }

    fn counted(&self) -> Tables {
        match &self.row_counts {
            Some(RowCounts::Some(tables)) => tables.clone(),
            _ => Tables::default(),
        }
    }

    /// How to wait for changes, if "after" follows "before" while that is written: by a `replicate` step that
    /// was not ended, or as `retries` says.
    async fn moving(&self, cx: &Context) -> Result<Option<Box<dyn Fence>>> {
        let (Before::Database(before), Some(after), true) =
            (&self.before, &self.after, self.checksums.is_some())
        else {
            return Ok(None);
        };
        if let Some(link) = replicate::between(cx, before, after)
            && cx
                .reader(after)
                .await?
                .query_opt("select 1 from pg_subscription where subname = $1", &[&link.name])
                .await?
                .is_some()
        {
            let gauge = Gauge::open(cx, &link).await?;
            let patience = self.within();
            return Ok(Some(Box::new(Marks { gauge, name: cx.step.to_string(), patience, cx: cx.clone() })));
        }
        let every = self.retries.map(|r| r.every.unwrap_or(Duration::secs(1)).0);
        Ok(every.map(|every| Box::new(Pause { cx: cx.clone(), every }) as Box<dyn Fence>))
    }

    async fn moving_contents(&self, cx: &Context, mut fence: Box<dyn Fence>) -> Result<Vec<TableFound>> {
        let (Before::Database(before), Some(after), Some(sums)) =
            (&self.before, &self.after, &self.checksums)
        else {
            return Ok(Vec::new());
        };
        let databases = cx.databases.labelled(cx.step.as_str());
        let timeout = self.statement_timeout.unwrap_or(TIMEOUT).0;
        let sessions = Sessions::Moving { databases: &databases, names: (before, after), timeout };
        let within = self.within();
        let evidence = agreed::evidence(&databases, (before, after), true).await?;
        let found =
            contents::moving(cx, sums, sessions, self.jobs(), before, (fence.as_mut(), within), &evidence)
                .await?;
        if !found.iter().all(TableFound::equal) {
            // What will be done about it may touch anything.
            Agreed::forget(cx).await?;
        }
        Ok(found)
    }

    async fn open(&self, cx: &Context, database: &str) -> Result<Side> {
        let databases = cx.databases.labelled(cx.step.as_str());
        Side::open(&databases, database, self.statement_timeout.unwrap_or(TIMEOUT).0).await
    }

    fn failure(&self, found: &Findings) -> Error {
        let certain = found.tables.iter().any(|table| table.differing() > 0 || table.problem.is_some());
        let hint = if !certain && found.tables.iter().any(|table| table.unsettled > 0) {
            "give it longer with `retries: { within: … }`, verify when less is written, or behind the freeze of the cutover; then `handover resume`"
        } else if self.retries.is_some() {
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
}
