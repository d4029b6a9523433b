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

impl Loss {
    /// Whether no word of an operator's makes it possible.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.what.starts_with("cannot")
    }

    /// What the undo comes to, as a clause of its own: `its undo loses …`, `it cannot be undone: …`.
    #[must_use]
    pub fn clause(&self) -> String {
        if self.is_final() { format!("it {}", self.what) } else { format!("its undo {}", self.what) }
    }

    /// What a rollback past the step comes to, without its subject: `loses …`, `stops at it, for it cannot be undone: …`.
    #[must_use]
    pub fn past_it(&self) -> String {
        if self.is_final() { format!("stops at it, for it {}", self.what) } else { self.what.clone() }
    }
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "step `{}` {}", self.step, self.what)
    }
}
