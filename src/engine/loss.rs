//! What a rollback would lose.

use crate::event::StepId;

/// What a rollback would lose or could not do.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Loss {
    /// The step whose undo it is.
    pub step: StepId,
    /// In words: `loses …` or `cannot be undone: …`.
    pub what: String,
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "step `{}` {}", self.step, self.what)
    }
}
