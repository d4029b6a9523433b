//! `replay`: applies what was captured to the new side. How is said in [`handover_events`].
//!
//! Before the cutover it catches up to near nothing and leaves a standing task that keeps it there; after the
//! cutover it drains the stream, proves by arithmetic that every captured event has an outcome, and ends the
//! relay.

mod copied;

use super::{Access, CheckContext, Context, Description, Links, Midway, StepKind, Undo};
use crate::error::{Error, Result};
use crate::event::StepId;
use crate::failpoint;
use crate::postgres::Session;
use crate::problem::{Problems, suggest};
use async_trait::async_trait;
use handover_events::capture::Capture;
use handover_events::replay::{self, Mode, Replay, Source};
use serde_json::{Value, json};
use std::sync::Arc;

fn mode(replay: &Replay, links: &Links, place: usize) -> Mode {
    let after_cutover = links.cutovers.before(place).next().is_some();
    replay.mode.unwrap_or(if after_cutover { Mode::Drain } else { Mode::Tail })
}

fn capture<'a>(replay: &Replay, cx: &'a Context) -> Result<(&'a StepId, &'a Capture)> {
    cx.links.replays(replay, cx.place()).ok_or_else(|| {
        Error::usage("it is not clear which capture is to be replayed").hint("name it: `from: <step id>`")
    })
}

/// What is replayed, and a session that writes to the new side.
async fn source<'a>(replay: &Replay, cx: &'a Context) -> Result<(Source<'a>, Session)> {
    let (step, capture) = capture(replay, cx)?;
    let green = cx.writer(&replay.to).await?;
    let copied = copied::find(cx, &green, &capture.from, &replay.to).await?;
    let captures = cx.links.captures.all().count();
    Ok((Source { step, database: &capture.from, captures, copied }, green))
}

#[async_trait]
impl StepKind for Replay {
    fn link(self: Arc<Self>, id: &StepId, place: usize, links: &mut Links) {
        links.replays.add(id, place, self);
    }

    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        cx.database(problems, "to", &self.to);
        if !cx.has_queue {
            problems.error(["to"], "the plan has no queue").hint("add `queue: ${QUEUE_URL}`");
        }
        if !(1..=10_000).contains(&self.batch) {
            problems.error(["batch"], "a batch has 1 to 10000 events").hint("500 serves most");
        }
        let Some((capture_id, capture)) = cx.links.replays(self, cx.index) else {
            let known: Vec<&str> = cx.links.captures.before(cx.index).map(|(id, _)| id.as_str()).collect();
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
        let at = |id: &StepId| cx.links.place(id);
        for (copy_id, copy) in cx.links.copies_of(cx.index, &capture.from, &self.to) {
            let lost = capture.tables.keys().find(|table| copy.takes_rows(table));
            if let Some(table) = lost.filter(|_| at(copy_id) < at(capture_id)) {
                problems
                    .error(["to"], format!("what is written to {table} between the copy `{copy_id}` and the capture `{capture_id}` is lost"))
                    .hint(format!("put `{capture_id}` before `{copy_id}`: what both have is applied once"));
            }
        }
        replay::check(self, capture, problems);
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        vec![(&self.to, Access::Write)]
    }

    fn uses_queue(&self) -> bool {
        true
    }

    fn midway(&self, links: &Links, place: usize) -> Midway {
        let (failpoint, place) = match mode(self, links, place) {
            Mode::Tail => {
                (failpoint::REPLAY_APPLIED, "with its first events applied and not yet acknowledged")
            }
            Mode::Drain => (failpoint::REPLAY_CAUGHT_UP, "with the last event applied"),
        };
        Midway { failpoint, passing: 1, place }
    }

    fn reversibility(&self) -> Undo {
        Undo::Exact { how: "forgets how far it got; what it applied stays until the copy is undone".into() }
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        let (step, capture) = capture(self, cx)?;
        replay::describe(self, cx, step, capture, mode(self, &cx.links, cx.place())).await
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let (step, capture) = capture(self, cx)?;
        match mode(self, &cx.links, cx.place()) {
            Mode::Tail => {
                let (source, green) = source(self, cx).await?;
                replay::catch_up(self, cx, source, green).await?;
            }
            Mode::Drain => {
                for tail in cx.links.replays_of(step, cx.place()) {
                    cx.ledger.end_standing(tail, &cx.step).await?;
                }
                let (source, green) = source(self, cx).await?;
                replay::drain(self, cx, source, green).await?;
                cx.ledger.end_standing(step, &cx.step).await?;
            }
        }
        let counts = replay::counts(self, cx, step, &capture.from).await?;
        serde_json::to_value(counts).map_err(|e| Error::internal(e.to_string()))
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        let (step, capture) = capture(self, cx)?;
        replay::verify(self, cx, step, &capture.from, mode(self, &cx.links, cx.place())).await
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        cx.ledger.end_standing(&cx.step, &cx.step).await?;
        let (step, capture) = capture(self, cx)?;
        // How far it got belongs to the first of several replays.
        let stream =
            cx.links.replays_of(step, cx.place()).next().is_none().then(|| capture.stream_name(cx.run, step));
        replay::undo(self, cx, stream.as_deref()).await?;
        Ok(json!({}))
    }

    async fn finish(&self, cx: &Context) -> Result<()> {
        let (step, capture) = capture(self, cx)?;
        replay::finish(self, cx, &capture.stream_name(cx.run, step)).await
    }

    fn stands(&self) -> bool {
        true
    }

    async fn stand(&self, cx: &Context) -> Result<()> {
        match mode(self, &cx.links, cx.place()) {
            Mode::Tail => {
                let (source, green) = source(self, cx).await?;
                replay::keep_up(self, cx, source, green).await
            }
            Mode::Drain => Ok(()),
        }
    }
}
