//! Where `--kill-at` strikes: for each kind a place between its first and its last unit of work.

use crate::failpoint;
use crate::plan::Plan;
use crate::steps::Step;
use handover_rows::cleanup::Action;
use std::fmt;

/// A place inside a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strike {
    /// The step.
    pub step: String,
    /// The failpoint.
    pub failpoint: &'static str,
    nth: u32,
    place: &'static str,
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the engine inside step `{}`, {}", self.step, self.place)
    }
}

impl Strike {
    /// The place in a step of `plan`, if the plan has it.
    #[must_use]
    pub fn find(plan: &Plan, step: &str) -> Option<Self> {
        let step = plan.steps.iter().find(|s| s.id.as_str() == step)?;
        let (failpoint, nth, place) = place(plan, step);
        Some(Strike { step: step.id.to_string(), failpoint, nth, place })
    }

    /// The value of the variable that arms it.
    #[must_use]
    pub fn armed(&self) -> String {
        format!("{}:{}:kill:{}", self.failpoint, self.nth, self.step)
    }
}

/// The place in a step: failpoint, at which passing, and what it is in words. A step whose work is a single act is
/// killed when that is done and the journal does not know it yet.
fn place(plan: &Plan, step: &Step) -> (&'static str, u32, &'static str) {
    let single = (failpoint::STEP_UNRECORDED, 1, "with its effect there and not yet in the journal");
    match step.kind_name {
        "create_index" => (failpoint::INDEX_BUILT, 1, "after its first index"),
        "migrate" => (failpoint::MIGRATE_COMMITTED, 1, "after its first migration"),
        "cleanup" if plan.links.cleanups.get(&step.id).is_some_and(|c| c.action != Action::EndSync) => {
            (failpoint::CLEANUP_BATCH, 1, "after its first batch")
        }
        "copy" => (failpoint::COPY_CHUNK_COMMITTED, 3, "after the third of its tables"),
        "verify" => (failpoint::VERIFY_COMPARED, 1, "after its first comparison"),
        "lever" if plan.links.levers.get(&step.id).is_some_and(|l| l.revert.is_none()) => {
            (failpoint::LEVER_APPLIED, 1, "with the lever raised and not yet in the journal")
        }
        "lever" => (failpoint::LEVER_REVERTED, 1, "with the lever restored and not yet in the journal"),
        "capture" => (failpoint::CAPTURE_TRIGGER, 2, "after the second of its triggers"),
        "replay" if step.id.as_str() == "replay" => {
            (failpoint::REPLAY_APPLIED, 1, "with its first events applied and not yet acknowledged")
        }
        "replay" => (failpoint::REPLAY_CAUGHT_UP, 1, "with the last event applied"),
        "cutover" => (failpoint::CUTOVER_DECIDED, 1, "after the decision, before anybody flipped"),
        "monitor" => (failpoint::MONITOR_SAMPLED, 2, "after its second sample"),
        _ => single,
    }
}
