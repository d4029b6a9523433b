//! What a plan says of an approval.

use schemars::JsonSchema;
use serde::Deserialize;

/// Waits for a human's word.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Approve {
    /// What is to be approved, in words for whoever does it.
    #[schemars(length(min = 1))]
    pub message: String,
    /// Whose approval counts; anybody's unless given. Names are what `handover approve` was called as: a
    /// guard against mistakes, not proof of who it was. Who may write to the control database may approve.
    #[serde(default)]
    pub by: Vec<String>,
}

impl Approve {
    /// Whether the word of `name` counts.
    #[must_use]
    pub fn may(&self, name: &str) -> bool {
        self.by.is_empty() || self.by.iter().any(|allowed| allowed == name)
    }

    /// Whose word counts, in words.
    #[must_use]
    pub fn whose(&self) -> String {
        if self.by.is_empty() { "anybody".to_owned() } else { self.by.join(" or ") }
    }
}
