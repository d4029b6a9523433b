//! `verify`: proves that what must survive an upgrade did.
//!
//! Row counts, checksums and the plan's own queries are evaluated before and after – on two databases, or on
//! one at two points in time, when an earlier step recorded a baseline. Each side answers from one snapshot,
//! read-only; only the content of tables that are written and replicated meanwhile is compared row by row until
//! it agrees. A check that compares nothing is an error, because it could not fail.

pub mod agreed;
pub mod aside;
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
mod options;
pub mod rows;
pub mod sessions;
pub mod settle;
pub mod shape;
pub mod side;
pub mod watched;

use super::copy::{Copy, OnViolation};
use super::replicate::{self, Gauge};
use super::{Access, CheckContext, Context, Description, StepKind, Undo};
use crate::error::{Class, Error, Result};
use crate::event::{RunId, StepId};
use crate::failpoint;
use crate::postgres::TableName;
use crate::postgres::binding::{assert_bound, has_subselect};
use crate::problem::{Problems, Segment, few};
use crate::value::Duration;
use agreed::Agreed;
use async_trait::async_trait;
use contents::Wanted;
use evaluate::{Baseline, Findings};
use fence::{Fence, Marks, Pause};
use found::TableFound;
pub use options::{Before, Checksums, Invariant, Recorded, Retries, RowCounts, Tables, Verify};
use serde_json::{Value, json};
use sessions::Sessions;
use side::Side;
use std::collections::BTreeSet;
use std::time::Instant;

/// Rows of a baseline that share a checkpoint.
const PIECE: usize = 500;
/// For a query, unless the plan says otherwise.
const TIMEOUT: Duration = Duration::secs(30 * 60);
/// How long rows that are written all the time are looked at again, unless `retries` says.
const SETTLE: Duration = Duration::secs(10 * 60);
/// How long a comparison that is asked to stop may take to end what it began.
const STOPPING: std::time::Duration = std::time::Duration::from_secs(5);
/// Unit that says that a baseline is complete.
const COMPLETE: &str = "baseline";
/// The fact with what differed, for `handover events`.
const DIFFERENCES: &str = "differences";
/// The fact that a verification passed.
const PASSED: &str = "passed";

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
            let copy = self.copy(cx, before.database(), after.database());
            describe::describe(sums, copy, (&before, &after), self.jobs(), &mut out).await?;
        }
        for invariant in &self.invariants {
            out.action(format!("{verb} {}", invariant.name));
        }
        for (database, before) in self.sides() {
            let session = cx.operator_reader(database).await?;
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
                } else if let Err(e) = assert_bound(&session, &wrapped, &invariant.name).await {
                    out.refusal(&e);
                }
            }
        }
        Ok(out)
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let work = self.attempt(cx);
        tokio::pin!(work);
        tokio::select! {
            result = &mut work => return result,
            () = cx.stop.cancelled() => {}
        }
        // A server would go on with a query whose client is gone.
        self.cancel(cx).await;
        match tokio::time::timeout(STOPPING, work).await {
            Ok(Ok(summary)) => Ok(summary),
            Ok(Err(_)) | Err(_) => Err(Error::cancelled()),
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

/// The last copy from one database to the other before this step.
fn copied<'a>(cx: &'a Context, before: &str, after: &str) -> Option<(&'a StepId, &'a Copy)> {
    super::of_kind::<Copy>(cx.before(&cx.step))
        .filter(|(_, copy)| copy.from == before && copy.to == after)
        .last()
}

impl Verify {
    /// The databases that are asked the plan's own queries, and whether each is the side before.
    fn sides(&self) -> Vec<(&str, bool)> {
        let mut sides = Vec::new();
        if let Before::Database(name) = &self.before {
            sides.push((name.as_str(), true));
        }
        sides.extend(self.after.iter().map(|name| (name.as_str(), false)));
        sides
    }

    /// Refuses the plan's own queries whose sub-selects select what they don't have.
    async fn bound(&self, cx: &Context) -> Result<()> {
        for (database, before) in self.sides() {
            let mut session = None;
            for invariant in &self.invariants {
                let wrapped = if before { invariant.before_sql() } else { invariant.after_sql() };
                let Some(wrapped) = wrapped.filter(|sql| has_subselect(sql)) else { continue };
                if session.is_none() {
                    session = Some(cx.operator_reader(database).await?);
                }
                if let Some(session) = &session {
                    assert_bound(session, &wrapped, &invariant.name).await?;
                }
            }
        }
        Ok(())
    }

    /// One attempt, to its end.
    async fn attempt(&self, cx: &Context) -> Result<Value> {
        self.bound(cx).await?;
        if self.record {
            return self.record_baseline(cx).await;
        }
        let started = Instant::now();
        let moving = self.moving(cx).await?;
        // What is being written is summed on its own, not at one point in time.
        let sums = self.checksums.as_ref().filter(|_| moving.is_none());
        self.tell_left_out(cx).await?;
        // Whether a change that has not arrived can be told from one that never will.
        let proves = moving.as_ref().is_some_and(|fence| fence.proves());
        let counts = !proves;
        let contents = match moving {
            Some(fence) => self.moving_contents(cx, fence).await?,
            None => Vec::new(),
        };
        let mut evaluations = 0_u32;
        loop {
            cx.proceed()?;
            evaluations += 1;
            let mut found = self.evaluate(cx, sums, counts).await?;
            found.add(&contents);
            found.only_counted = self.checksums.is_none();
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
                return Err(self.failure(&found, self.retries.filter(|_| !proves)));
            };
            cx.note(format!("not equal yet: {}", found.differences.join("; ")));
            cx.sleep(retries.every.unwrap_or(Duration::secs(1)).0).await?;
        }
    }

    /// Ends what this step's sessions do on either side. A role may end its own.
    async fn cancel(&self, cx: &Context) {
        let Ok(lease) = cx.databases.lease() else { return };
        let name = lease.application_name(cx.step.as_str());
        let databases = self.databases();
        let ends = databases.iter().map(async |(database, _)| {
            let session = cx.databases.labelled(cx.step.as_str()).read_only(database).await?;
            let sql = "select pg_cancel_backend(pid) from pg_stat_activity
                       where application_name = $1 and datname = current_database() and state = 'active' and pid <> pg_backend_pid()";
            session.query(sql, &[&name]).await.map(drop)
        });
        // As far as it goes: what cannot be reached ends by its own timeout.
        let _ = tokio::time::timeout(STOPPING, futures_util::future::join_all(ends)).await;
    }

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

    /// The copy that made "after" from "before", if an earlier step did: what it leaves out is nothing to compare.
    fn copy<'a>(&self, cx: &'a Context, before: &str, after: &str) -> Option<&'a Copy> {
        copied(cx, before, after).map(|(_, copy)| copy)
    }

    /// The run and step of that copy, if it may have set rows aside.
    fn aside<'a>(&self, cx: &'a Context, before: &str, after: &str) -> Option<(RunId, &'a StepId)> {
        copied(cx, before, after)
            .filter(|(_, copy)| copy.on_violation == OnViolation::Quarantine)
            .map(|(step, _)| (cx.run, step))
    }

    /// Says which tables are not compared because they were not copied.
    async fn tell_left_out(&self, cx: &Context) -> Result<()> {
        let (Before::Database(before), Some(after)) = (&self.before, &self.after) else { return Ok(()) };
        let Some(copy) = self.copy(cx, before, after) else { return Ok(()) };
        let there = shape::shapes(&cx.databases.labelled(cx.step.as_str()).read_only(before).await?).await?;
        let left = there.iter().filter(|(name, shape)| shape::left_out(Some(copy), name, shape));
        let left: Vec<&TableName> = left.map(|(name, _)| name).collect();
        if !left.is_empty() {
            cx.note(format!(
                "not compared unless named, as the copy does not carry all of their rows: {}",
                few(&left)
            ));
        }
        Ok(())
    }

    /// How to wait for changes, if "after" follows "before" while that is written: by a `replicate` step that
    /// was not ended, or as `retries` says.
    async fn moving(&self, cx: &Context) -> Result<Option<Box<dyn Fence>>> {
        let (Before::Database(before), Some(after)) = (&self.before, &self.after) else { return Ok(None) };
        if self.checksums.is_none() && !self.counts_tables() {
            return Ok(None);
        }
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
        // What is counted without marks is counted again until it agrees.
        let every =
            self.retries.filter(|_| self.checksums.is_some()).map(|r| r.every.unwrap_or(Duration::secs(1)).0);
        Ok(every.map(|every| Box::new(Pause { cx: cx.clone(), every }) as Box<dyn Fence>))
    }

    async fn moving_contents(&self, cx: &Context, mut fence: Box<dyn Fence>) -> Result<Vec<TableFound>> {
        let (Before::Database(before), Some(after)) = (&self.before, &self.after) else {
            return Ok(Vec::new());
        };
        // Rows that are written are counted behind the same marks: one that is missing is missing there too.
        let counts = (fence.proves() && self.counts_tables()).then(|| self.counted());
        let wanted = Wanted {
            sums: self.checksums.as_ref(),
            counts: counts.as_ref(),
            copy: self.copy(cx, before, after),
            aside: self.aside(cx, before, after),
        };
        let databases = cx.databases.labelled(cx.step.as_str());
        let timeout = self.statement_timeout.unwrap_or(TIMEOUT).0;
        let sessions = Sessions::Moving { databases: &databases, names: (before, after), timeout };
        let within = self.within();
        let evidence = agreed::evidence(&databases, (before, after), true).await?;
        let found =
            contents::moving(cx, wanted, sessions, self.jobs(), before, (fence.as_mut(), within), &evidence)
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

    /// `waited`: what was waited for without being able to tell what is late from what is different.
    fn failure(&self, found: &Findings, waited: Option<Retries>) -> Error {
        let certain = found.tables.iter().any(|table| table.differing() > 0 || table.problem.is_some());
        let hint = if !certain && found.tables.iter().any(|table| table.unsettled > 0) {
            "give it longer with `retries: { within: … }`, verify when less is written, or behind the freeze of the cutover; then `handover resume`"
        } else if waited.is_some() {
            "if one side may still lag, give it longer with `retries: { within: … }`, or verify while a `replicate` step knows what has arrived; else mend the migration or the data; then `handover resume`, or `handover rollback`"
        } else if self.retries.is_some() {
            "look at the rows; mend the migration or the data, then `handover resume`, or `handover rollback`"
        } else {
            "look at the rows, then `handover resume` or `handover rollback`; if one side is still written to while the other lags, verify behind the freeze or give `retries`"
        };
        let shown: Vec<&str> = found.differences.iter().take(12).map(String::as_str).collect();
        let more = found.differences.len().saturating_sub(shown.len());
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        let since = match waited {
            Some(retries) => format!(
                " after {} of `retries` (a change that is later than that looks the same as one that is lost)",
                retries.within
            ),
            None => String::new(),
        };
        Error::new(Class::Invariant, format!("before and after differ{since}: {}{more}", shown.join("; ")))
            .hint(hint)
    }
}
