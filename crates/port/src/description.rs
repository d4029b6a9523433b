//! What a dry run says.

use handover_core::Error;
use serde::Serialize;
use serde_json::Value;

/// What a dry run says of a step.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Description {
    /// What it would do, one line each, in order.
    pub actions: Vec<String>,
    /// What to look at before running it: locks, waits, missing privileges, blockers.
    pub warnings: Vec<String>,
    /// What makes the step impossible as things stand.
    pub blockers: Vec<String>,
    /// How long it may take, and how that was estimated.
    pub estimate: Option<String>,
    /// All of it for machines, where the lines for people leave something out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
}

impl Description {
    /// Adds an action.
    pub fn action(&mut self, text: impl Into<String>) -> &mut Self {
        self.actions.push(text.into());
        self
    }
    /// Adds a warning.
    pub fn warning(&mut self, text: impl Into<String>) -> &mut Self {
        self.warnings.push(text.into());
        self
    }
    /// Adds a blocker.
    pub fn blocker(&mut self, text: impl Into<String>) -> &mut Self {
        self.blockers.push(text.into());
        self
    }
    /// Adds what a run would refuse with, and its way out.
    pub fn refusal(&mut self, error: &Error) -> &mut Self {
        self.blocker(match error.next_step() {
            Some(hint) => format!("{} – {hint}", error.message()),
            None => error.message().to_owned(),
        })
    }
}
