//! `capture`: from this step on, every write to the named tables is also written to an outbox, in the writer's
//! own transaction, and a standing relay carries it to the queue. How is said in [`handover_events`].

pub mod coverage;

use super::{Access, CheckContext, Context, Description, Links, Midway, StepKind, Undo};
use crate::error::Result;
use crate::event::StepId;
use crate::failpoint;
use crate::problem::{Problems, Segment};
use async_trait::async_trait;
use handover_events::capture::{self, Capture};
use handover_events::relay;
use serde_json::{Value, json};
use std::sync::Arc;

/// The streams that bring back what a cutover's new side writes: replayed here, it is not captured once more.
fn comes_back(capture: &Capture, cx: &Context) -> Vec<String> {
    let cutovers =
        cx.links.cutovers.all().filter(|(_, cutover)| cutover.freeze.as_ref() == Some(&capture.from));
    cutovers.filter_map(|(id, cutover)| cutover.stream_back(cx.run, id)).collect()
}

#[async_trait]
impl StepKind for Capture {
    fn link(self: Arc<Self>, id: &StepId, place: usize, links: &mut Links) {
        links.captures.add(id, place, self);
    }

    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        cx.database(problems, "from", &self.from);
        if !cx.has_queue {
            problems
                .error(["from"], "the plan has no queue to carry what is captured")
                .hint("add `queue: ${QUEUE_URL}` (amqp://… for RabbitMQ, postgres://… for the embedded one)");
        }
        capture::check(self, problems);
        coverage::check(self, cx, problems);
        for (id, other) in cx.links.captures.before(cx.index) {
            for name in
                self.tables.keys().filter(|name| other.from == self.from && other.tables.contains_key(name))
            {
                problems
                    .warning(
                        [Segment::from("tables"), name.to_string().into()],
                        format!(
                            "the table {name} is captured by step `{id}` too, and each writer pays twice"
                        ),
                    )
                    .hint("one capture can serve several replays");
            }
        }
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        vec![(&self.from, Access::Write)]
    }

    fn uses_queue(&self) -> bool {
        true
    }

    fn midway(&self, _links: &Links, _place: usize) -> Midway {
        Midway {
            failpoint: failpoint::CAPTURE_TRIGGER,
            passing: 2,
            place: "after the second of its triggers",
        }
    }

    fn reversibility(&self) -> Undo {
        Undo::Exact { how: "drops the triggers, the queue's stream and the outbox's rows".into() }
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        capture::describe(self, cx, &comes_back(self, cx)).await
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let stream = capture::begin(self, cx, &comes_back(self, cx)).await?;
        super::watched::keep_for_capture(cx, self).await?;
        let names: Vec<String> = self.tables.keys().map(ToString::to_string).collect();
        Ok(json!({ "stream": stream.name, "partitions": stream.partitions, "tables": names }))
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        capture::verify(self, cx).await
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        cx.ledger.end_standing(&cx.step, &cx.step).await?;
        Ok(json!({ "dropped": capture::remove(self, cx).await? }))
    }

    async fn finish(&self, cx: &Context) -> Result<()> {
        self.undo(cx).await.map(drop)
    }

    fn stands(&self) -> bool {
        true
    }

    async fn stand(&self, cx: &Context) -> Result<()> {
        relay::relay(self, cx).await
    }
}
