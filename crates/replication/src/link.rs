//! What connects two databases while they replicate.

use crate::options::Replicate;
use handover_core::error::{Class, Error};
use handover_core::event::{RunId, StepId};
use handover_core::value::fingerprint;

/// A replication between two databases of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The step that replicates.
    pub step: StepId,
    /// What slot, publication and subscription are called.
    pub name: String,
    /// The publisher.
    pub from: String,
    /// The subscriber.
    pub to: String,
    /// How late changes may arrive to count as caught up.
    pub max_lag: std::time::Duration,
    /// What to do when it is over.
    pub when_over: &'static str,
    /// What is added to the numbers of its marks. Those of two directions are in one table on either side, each with the
    /// numbers of its publisher's sequence.
    pub marks_from: i64,
}

/// What to do when the stream to the new side is over.
const FORWARD: &str = "what was not replicated until then is only on the old side, which serves on: `handover rollback` to before the copy, mend the cause, and run again";
/// What to do when the stream back is over.
const BACK: &str = "the new side serves on: `handover resume` goes on without a way back. From here on a rollback loses what was written on the new side, and asks for `--accept-loss`";

impl Link {
    /// Names are of the run: what another run left is never taken for this one's.
    #[must_use]
    pub fn new(run: RunId, step: &StepId, replicate: &Replicate) -> Self {
        let short = fingerprint(step.as_str(), 4);
        // Slots are named with lower-case letters, digits and underscores, and at most 63 of them.
        let name = format!("handover_{}_{short}", run.0.simple());
        let (from, to) = (replicate.from.clone(), replicate.to.clone());
        Link {
            step: step.clone(),
            name,
            from,
            to,
            max_lag: replicate.max_lag.0,
            when_over: FORWARD,
            marks_from: 0,
        }
    }

    /// The stream back to the side that was left, of the step that left it.
    #[must_use]
    pub fn back(run: RunId, step: &StepId, replicate: &Replicate) -> Self {
        Link { when_over: BACK, marks_from: 1 << 62, ..Link::new(run, step, replicate) }
    }

    /// What to do when its subscriber cannot apply a change.
    pub(crate) fn when_stuck(&self, look: &str) -> String {
        let (to, name) = (&self.to, &self.name);
        if self.marks_from == 0 {
            return format!(
                "{look} (often a row or column that only one side has). Mend it on {to}, then `handover resume`; if the sides have come apart, `handover rollback` to before the copy"
            );
        }
        format!(
            "{look} (often a column or a constraint that only one side has). Make the schemas alike again, then `handover resume`; or give the way back up: on {to}, `alter subscription {name} disable; alter subscription {name} set (slot_name = none); drop subscription {name}`, then `handover resume`, twice"
        )
    }

    /// The error of a replication that cannot go on.
    pub(crate) fn over(&self, reason: &str) -> Error {
        Error::new(
            Class::Resources,
            format!("the replication from {} to {} is over: {reason}", self.from, self.to),
        )
        .on_database(&self.from)
        .hint(self.when_over)
    }
}
