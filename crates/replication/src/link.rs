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
}

impl Link {
    /// Names are of the run: what another run left is never taken for this one's.
    #[must_use]
    pub fn new(run: RunId, step: &StepId, replicate: &Replicate) -> Self {
        let short = fingerprint(step.as_str(), 4);
        // Slots are named with lower-case letters, digits and underscores, and at most 63 of them.
        let name = format!("handover_{}_{short}", run.0.simple());
        let (from, to) = (replicate.from.clone(), replicate.to.clone());
        Link { step: step.clone(), name, from, to, max_lag: replicate.max_lag.0 }
    }

    /// The error of a replication that cannot go on.
    pub(crate) fn over(&self, reason: &str) -> Error {
        Error::new(Class::Resources, format!("the replication from {} to {} is over: {reason}", self.from, self.to))
            .on_database(&self.from)
            .hint("what was not replicated until then is only on the old side, which serves on: `handover rollback` to before the copy, mend the cause, and run again")
    }
}
