//! What listens to events, and what it knows of their plan.

use crate::event::{Event, StepId};

/// Something that shows events.
pub trait Listener: Send {
    /// Shows one.
    fn on(&mut self, event: &Event);

    /// Nothing more comes.
    fn end(&mut self) {}
}

/// The plan's steps in their order, so that a line can say which of how many it is about.
#[derive(Debug, Clone, Default)]
pub struct Places(Vec<StepId>);

impl Places {
    /// Those of a plan.
    #[must_use]
    pub fn of(steps: impl Iterator<Item = StepId>) -> Self {
        Places(steps.collect())
    }

    /// `[2/4] ` for the second of four steps; nothing for one that the plan does not have.
    #[must_use]
    pub fn mark(&self, step: &StepId) -> String {
        match self.0.iter().position(|known| known == step) {
            Some(at) => format!("[{}/{}] ", at + 1, self.0.len()),
            None => String::new(),
        }
    }
}
