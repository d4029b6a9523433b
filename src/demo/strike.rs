//! Where `--kill-at` strikes: in the midst of a step, where its kind says that is.

use crate::plan::Plan;
use crate::steps::Midway;
use std::fmt;

/// A place inside a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strike {
    /// The step.
    pub step: String,
    /// The place.
    pub midway: Midway,
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the engine inside step `{}`, {}", self.step, self.midway.place)
    }
}

impl Strike {
    /// The place in a step of `plan`, if the plan has it.
    #[must_use]
    pub fn find(plan: &Plan, step: &str) -> Option<Self> {
        let place = plan.steps.iter().position(|s| s.id.as_str() == step)?;
        let midway = plan.steps.get(place)?.kind.midway(&plan.links, place);
        Some(Strike { step: step.to_owned(), midway })
    }

    /// The value of the variable that arms it.
    #[must_use]
    pub fn armed(&self) -> String {
        format!("{}:{}:kill:{}", self.midway.failpoint, self.midway.passing, self.step)
    }
}
