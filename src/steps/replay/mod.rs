//! `replay`: applies what was captured to the new side, in order for each key, exactly once in effect.
//!
//! Before the cutover it catches up to near nothing and leaves a standing task that keeps it there; after the
//! cutover it drains the stream, proves by arithmetic that every captured event has an outcome, and ends the
//! relay. An event is applied, is so already, is ignored because the plan says so, or is set aside; anything else
//! is missing, and halts.

mod apply;
mod copied;
mod event;
mod fault;
mod load;
pub mod mapping;
mod retry;
mod window;
mod worker;

use super::capture::Capture;
use super::{Access, CheckContext, Context, Description, Step, StepKind, Undo, of_kind};
use crate::error::{Class, Error, Result};
use crate::event::StepId;
use crate::failpoint;
use crate::postgres::TableName;
use crate::problem::{Problems, Segment, suggest};
use async_trait::async_trait;
use handover_events::catalog::inspect;
use handover_events::trigger::Operation;
use handover_events::{Counts, Marker, Stream, backlog, marker_passed, marks, write_fence_marker};
use mapping::{Mapping, Part};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use worker::{Pool, Until};

/// Applies captured events to another database.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Replay {
    /// The database that events are applied to.
    pub to: String,
    /// The capture step whose events they are; not needed if there is only one before this step.
    pub from: Option<StepId>,
    /// What events mean, by the table they were captured from. Every captured operation needs a meaning.
    pub events: BTreeMap<TableName, Mapping>,
    /// Whether to leave a task that keeps up (`tail`) or to finish (`drain`): `drain` after a cutover, else `tail`.
    pub mode: Option<Mode>,
    /// Events in one transaction, for each partition.
    #[serde(default = "default_batch")]
    #[schemars(range(min = 1, max = 10_000))]
    pub batch: u32,
    /// How many events may wait for a tailing replay to count as caught up.
    #[serde(default = "default_near")]
    pub caught_up: u32,
    /// What to do about an event that changes nothing, though its effect is not there already.
    #[serde(default)]
    pub on_missing: OnPoison,
    /// What to do about an event that the server refuses, as for a constraint.
    #[serde(default)]
    pub on_error: OnPoison,
}

fn default_batch() -> u32 {
    500
}

fn default_near() -> u32 {
    100
}

/// What a replay is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Catches up, then keeps up until a later step ends it.
    Tail,
    /// Finishes the stream: waits until everything captured has its outcome, and ends relay and tail.
    Drain,
}

/// What to do about an event that cannot be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnPoison {
    /// Stop and say so. The event and all behind it stay in the outbox.
    #[default]
    Halt,
    /// Set it aside in `handover.event_quarantine`, and every later event of its key, which would otherwise overtake it.
    Quarantine,
}

impl Replay {
    /// The capture that it replays.
    #[must_use]
    pub fn capture<'a>(&self, earlier: &'a [Step]) -> Option<(&'a StepId, &'a Capture)> {
        let mut captures =
            of_kind::<Capture>(earlier).filter(|(id, _)| self.from.as_ref().is_none_or(|f| f == *id));
        let first = captures.next();
        if captures.next().is_some() { None } else { first }
    }

    fn mode(&self, earlier: &[Step]) -> Mode {
        let after_cutover = earlier.iter().any(|step| step.kind_name == "cutover");
        self.mode.unwrap_or(if after_cutover { Mode::Drain } else { Mode::Tail })
    }

    fn source<'a>(&self, cx: &'a Context) -> Result<(&'a StepId, &'a Capture)> {
        self.capture(earlier(cx)).ok_or_else(|| {
            Error::usage("it is not clear which capture is to be replayed").hint("name it: `from: <step id>`")
        })
    }

    /// Other replays of the same capture before this one.
    fn predecessors<'a>(&self, cx: &'a Context, capture: &StepId) -> Vec<&'a StepId> {
        of_kind::<Replay>(earlier(cx))
            .filter(|(id, other)| {
                let before: Vec<Step> = cx.steps.iter().take_while(|step| step.id != **id).cloned().collect();
                other.capture(&before).is_some_and(|(found, _)| found == capture)
            })
            .map(|(id, _)| id)
            .collect()
    }

    async fn counts(&self, cx: &Context) -> Result<Counts> {
        let (id, capture) = self.source(cx)?;
        let blue = cx.reader(&capture.from).await?;
        let green = cx.reader(&self.to).await?;
        let stream = Stream::get(&blue, cx.run, id).await?;
        backlog(&blue, &green, &stream).await
    }

    async fn pool<'a>(&'a self, cx: &'a Context) -> Result<Pool<'a>> {
        let (id, capture) = self.source(cx)?;
        let begun = cx.recall::<bool>("begun")?.unwrap_or(false);
        let pool = Pool::open(cx, self, id, &capture.from, begun).await?;
        if !begun {
            cx.remember("begun", &true).await?;
        }
        Ok(pool)
    }

    async fn drain(&self, cx: &Context) -> Result<()> {
        let (id, capture) = self.source(cx)?;
        for tail in self.predecessors(cx, id) {
            cx.ledger.end_standing(tail, &cx.step).await?;
        }
        let pool = self.pool(cx).await?;
        let marker = match cx.recall::<Marker>("marker")? {
            Some(marker) => marker,
            None => {
                let marker = write_fence_marker(&mut cx.writer(&capture.from).await?, &pool.stream).await?;
                cx.remember("marker", &marker).await?;
                marker
            }
        };
        pool.work(Until::Marker(marker)).await?;
        failpoint::at(failpoint::REPLAY_CAUGHT_UP)?;
        cx.ledger.end_standing(id, &cx.step).await
    }
}

fn earlier(cx: &Context) -> &[Step] {
    let index = cx.steps.iter().position(|step| step.id == cx.step).unwrap_or(cx.steps.len());
    cx.steps.get(..index).unwrap_or(&[])
}

#[async_trait]
impl StepKind for Replay {
    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        cx.database(problems, "to", &self.to);
        if !cx.has_queue {
            problems.error(["to"], "the plan has no queue").hint("add `queue: ${QUEUE_URL}`");
        }
        if !(1..=10_000).contains(&self.batch) {
            problems.error(["batch"], "a batch has 1 to 10000 events").hint("500 serves most");
        }
        let Some((capture_id, capture)) = self.capture(cx.earlier()) else {
            let known: Vec<&str> = of_kind::<Capture>(cx.earlier()).map(|(id, _)| id.as_str()).collect();
            let (message, hint) = match (&self.from, known.as_slice()) {
                (_, []) => (
                    "no capture comes before this step".to_owned(),
                    "put a `capture` step before it".to_owned(),
                ),
                (Some(from), _) => (
                    format!("there is no capture step `{from}` before this one"),
                    suggest(from.as_str(), known.iter().copied())
                        .map_or(format!("there are: {}", known.join(", ")), |close| {
                            format!("did you mean `{close}`?")
                        }),
                ),
                (None, _) => (
                    "there are several captures before this step".to_owned(),
                    format!("say which: `from:` one of {}", known.join(", ")),
                ),
            };
            problems.error(["from"], message).hint(hint);
            return;
        };
        if capture.from == self.to {
            problems
                .error(["to"], format!("`{}` is where the events come from", self.to))
                .hint("replay them to the other database");
        }
        let steps = cx.earlier();
        let at = |id: &StepId| steps.iter().position(|step| step.id == *id);
        for (copy_id, copy) in copied::copies(steps, &capture.from, &self.to) {
            let lost = capture.tables.keys().find(|table| copy.takes_rows(table));
            if let Some(table) = lost.filter(|_| at(copy_id) < at(capture_id)) {
                problems
                    .error(["to"], format!("what is written to {table} between the copy `{copy_id}` and the capture `{capture_id}` is lost"))
                    .hint(format!("put `{capture_id}` before `{copy_id}`: what both have is applied once"));
            }
        }
        for (name, mapping) in &self.events {
            let at = [Segment::from("events"), name.to_string().into()];
            let Some(table) = capture.tables.get(name) else {
                let names: Vec<String> = capture.tables.keys().map(ToString::to_string).collect();
                let close = suggest(&name.to_string(), names.iter().map(String::as_str)).map(str::to_owned);
                problems.error(at, format!("nothing is captured of a table {name}")).at_key().hint(
                    close.map_or(format!("captured are: {}", names.join(", ")), |c| {
                        format!("did you mean `{c}`?")
                    }),
                );
                continue;
            };
            let known = |part: Part, column: &str| {
                let (list, what) = match part {
                    Part::Key => (table.key.as_ref(), "key"),
                    Part::Old | Part::New => (table.columns.as_ref(), "captured columns"),
                };
                match list {
                    Some(list) if !list.iter().any(|c| c == column) => {
                        Err(format!("`{column}` is not among the {what} of {name}"))
                    }
                    _ => Ok(()),
                }
            };
            mapping::check(name, mapping, known, problems);
        }
        for (name, table) in &capture.tables {
            for operation in [Operation::Insert, Operation::Update, Operation::Delete] {
                if !table.on.contains(&operation) {
                    continue;
                }
                let effect = self.events.get(name).and_then(|mapping| mapping.effect(operation));
                if effect.is_none_or(|effect| effect.apply.is_none() && !effect.ignore) {
                    problems
                        .error(["events"], format!("the plan captures {operation} of {name}, but does not say what it means here"))
                        .hint(format!("add `{name}: {{ {operation}: {{ apply: \"…\" }} }}`, or `{{ ignore: true }}` if it means nothing"));
                }
            }
        }
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        vec![(&self.to, Access::Write)]
    }

    fn uses_queue(&self) -> bool {
        true
    }

    fn reversibility(&self) -> Undo {
        Undo::Exact { how: "forgets how far it got; what it applied stays until the copy is undone".into() }
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        let mut out = Description::default();
        let (id, capture) = self.source(cx)?;
        let mode = self.mode(earlier(cx));
        let blue = cx.reader(&capture.from).await?;
        let green = cx.operator_reader(&self.to).await?;
        for (name, mapping) in &self.events {
            let facts = inspect(&blue, name).await?;
            for (place, text, already) in mapping.texts() {
                let place: Vec<String> = place
                    .iter()
                    .map(|s| match s {
                        Segment::Key(key) => key.clone(),
                        Segment::Index(i) => i.to_string(),
                    })
                    .collect();
                let place = format!("{name}.{}", place.join("."));
                let rewritten = match mapping::rewrite(text) {
                    Ok(rewritten) => rewritten,
                    Err(message) => {
                        out.blocker(format!("{place}: {message}"));
                        continue;
                    }
                };
                for (_, column) in rewritten.columns() {
                    if facts.as_ref().is_some_and(|facts| !facts.has(column)) {
                        out.blocker(format!(
                            "{place} names the column `{column}`, which {name} on {} does not have",
                            capture.from
                        ));
                    }
                }
                // Only SELECTs: preparing an UPDATE takes its table's lock.
                if already && let Err(error) = green.prepare(&rewritten.sql).await {
                    out.warning(format!("{place} cannot be checked on {} yet: {}", self.to, error.message()));
                }
            }
        }
        match mode {
            Mode::Tail => out.action(format!(
                "apply what step `{id}` captures to {} until at most {} events wait, and keep up from then on",
                self.to, self.caught_up
            )),
            Mode::Drain => out.action(format!(
                "apply all that step `{id}` captured to {}, prove that nothing is missing, and end its relay",
                self.to
            )),
        };
        if capture.partitions > 1 && self.events.len() > 1 {
            out.warning(
                "order is kept for each key; an event that needs another table's row waits for it".to_owned(),
            );
        }
        Ok(out)
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        match self.mode(earlier(cx)) {
            Mode::Tail => {
                self.pool(cx).await?.work(Until::Near(i64::from(self.caught_up))).await?;
                failpoint::at(failpoint::REPLAY_CAUGHT_UP)?;
            }
            Mode::Drain => self.drain(cx).await?,
        }
        serde_json::to_value(self.counts(cx).await?).map_err(|e| Error::internal(e.to_string()))
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        let counts = self.counts(cx).await?;
        match self.mode(earlier(cx)) {
            Mode::Tail if counts.missing > 0 => Err(Error::new(
                Class::Invariant,
                format!("replay stands at an event that does not apply ({counts})"),
            )
            .on_database(&self.to)
            .hint("`handover status` says which")),
            Mode::Drain if !counts.complete() => Err(Error::new(
                Class::Invariant,
                format!("not every captured event has an outcome: {counts}"),
            )
            .on_database(&self.to)
            .hint("is something still writing to the old side? Stop it, then `handover resume`")),
            Mode::Tail | Mode::Drain => {
                let (id, capture) = self.source(cx)?;
                let stream = Stream::get(&cx.reader(&capture.from).await?, cx.run, id).await?;
                let green = cx.reader(&self.to).await?;
                if marks::done(&green, &stream).await?.len() != stream.partitions as usize {
                    return Err(Error::data("replay's marks are not there")
                        .on_database(&self.to)
                        .hint("somebody deleted them: `handover rollback` to before the copy"));
                }
                match cx.recall::<Marker>("marker")? {
                    Some(marker) if !marker_passed(&green, &stream, marker).await? => {
                        Err(Error::new(Class::Invariant, "the fence marker has not been passed")
                            .on_database(&self.to)
                            .hint("`handover resume` goes on until it is"))
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        cx.ledger.end_standing(&cx.step, &cx.step).await?;
        let (id, capture) = self.source(cx)?;
        // The marks belong to the first of several replays.
        if self.predecessors(cx, id).is_empty() {
            let stream = capture.stream_name(cx.run, id);
            marks::forget(&mut cx.writer(&self.to).await?, &stream, true).await?;
        }
        cx.forget("begun").await?;
        cx.forget("marker").await?;
        Ok(json!({}))
    }

    async fn finish(&self, cx: &Context) -> Result<()> {
        let (id, capture) = self.source(cx)?;
        // What was set aside is the operator's to keep or to drop.
        marks::forget(&mut cx.writer(&self.to).await?, &capture.stream_name(cx.run, id), false).await
    }

    fn stands(&self) -> bool {
        true
    }

    async fn stand(&self, cx: &Context) -> Result<()> {
        match self.mode(earlier(cx)) {
            Mode::Tail => self.pool(cx).await?.work(Until::Stopped).await,
            Mode::Drain => Ok(()),
        }
    }
}
