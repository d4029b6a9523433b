//! `verify`: proves that what must survive an upgrade did.

mod check;

use super::replicate;
use super::{Access, CheckContext, Context, Description, Links, Midway, StepKind, Undo};
use crate::error::{Error, Result};
use crate::event::StepId;
use crate::failpoint;
use crate::postgres::TableName;
use crate::problem::{Problems, Segment};
use crate::value::Duration;
use async_trait::async_trait;
use handover_compare::fence::{Fence, Pause};
use handover_compare::{Before, Carried, Given, RowCounts, Verify};
use handover_copy::{Copy, OnViolation};
use handover_replication::Gauge;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

#[async_trait]
impl StepKind for Verify {
    fn link(self: Arc<Self>, id: &StepId, place: usize, links: &mut Links) {
        links.verifications.add(id, place, self);
    }

    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        match &self.before {
            Before::Database(name) => cx.database(problems, "before", name),
            Before::Recorded(recorded) => check::recorded(self, cx, recorded, problems),
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
            check::invariant(self, i, invariant, problems);
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

    fn midway(&self, _links: &Links, _place: usize) -> Midway {
        Midway { failpoint: failpoint::VERIFY_COMPARED, passing: 1, place: "after its first comparison" }
    }

    fn reversibility(&self) -> Undo {
        Undo::Nothing
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        let (Before::Database(before), Some(after)) = (&self.before, &self.after) else {
            return self.dry_run(cx, None, None).await;
        };
        let takes_rows =
            copied(cx, before, after).map(|(_, copy)| move |table: &TableName| copy.takes_rows(table));
        let carried = takes_rows.as_ref().map(|takes_rows| Carried::new(takes_rows));
        let link = replicate::between(cx, before, after);
        self.dry_run(cx, carried, link.as_ref().map(|link| &link.step)).await
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        self.stoppable(cx, attempt(self, cx)).await
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        if self.is_proven(cx).await? {
            return Ok(());
        }
        Err(Error::data("nothing shows that the verification was made").hint("`handover resume` makes it"))
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        self.forget(cx).await?;
        Ok(json!({}))
    }
}

/// The last copy from one database to the other before this step.
fn copied<'a>(cx: &'a Context, before: &str, after: &str) -> Option<(&'a StepId, &'a Copy)> {
    cx.links.copied(cx.place(), before, after)
}

/// The database on which the baseline is that a step compares with.
fn baseline_on<'a>(step: &Verify, cx: &'a Context) -> Option<&'a str> {
    let Before::Recorded(recorded) = &step.before else { return None };
    let baseline = cx.links.verifications.get(&recorded.from_step)?;
    match &baseline.before {
        Before::Database(database) => Some(database),
        Before::Recorded(_) => None,
    }
}

/// One attempt, to its end.
async fn attempt(step: &Verify, cx: &Context) -> Result<Value> {
    step.bound(cx).await?;
    if step.record {
        return step.record_baseline(cx).await;
    }
    let baseline_on = baseline_on(step, cx);
    let before = match &step.before {
        Before::Database(name) => Some(name.as_str()),
        Before::Recorded(_) => baseline_on,
    };
    let copied = before.zip(step.after.as_deref()).and_then(|(before, after)| copied(cx, before, after));
    let takes_rows = copied.map(|(_, copy)| move |table: &TableName| copy.takes_rows(table));
    let given = Given {
        carried: takes_rows.as_ref().map(|takes_rows| Carried::new(takes_rows)),
        aside: copied
            .filter(|(_, copy)| copy.on_violation == OnViolation::Quarantine)
            .map(|(step, _)| (cx.run, step)),
        baseline_on,
    };
    step.compare(cx, given, moving(step, cx).await?).await
}

/// How to wait for changes, if "after" follows "before" while that is written: by a `replicate` step that was not
/// ended, or as `retries` says.
async fn moving(step: &Verify, cx: &Context) -> Result<Option<Box<dyn Fence>>> {
    let (Before::Database(before), Some(after)) = (&step.before, &step.after) else { return Ok(None) };
    if step.checksums.is_none() && !step.counts_tables() {
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
        let patience = step.within();
        return Ok(Some(Box::new(Marks { gauge, name: cx.step.to_string(), patience, cx: cx.clone() })));
    }
    // What is counted without marks is counted again until it agrees.
    let every =
        step.retries.filter(|_| step.checksums.is_some()).map(|r| r.every.unwrap_or(Duration::secs(1)).0);
    Ok(every.map(|every| Box::new(Pause { cx: cx.port.clone(), every }) as Box<dyn Fence>))
}

/// Marks in the stream of a `replicate` step.
struct Marks {
    /// Where they are written and seen.
    gauge: Gauge,
    /// Under which name.
    name: String,
    /// How long one is waited for.
    patience: std::time::Duration,
    /// For its stop.
    cx: Context,
}

#[async_trait]
impl Fence for Marks {
    async fn pass(&mut self) -> Result<bool> {
        self.gauge.mark(&self.cx, &self.name, self.patience).await
    }

    fn proves(&self) -> bool {
        true
    }
}
