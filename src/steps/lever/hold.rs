//! What the journal keeps of a lever.

use handover_actions::Original;
use serde::{Deserialize, Serialize};

/// The fact, the checkpoint and the unit of all commands of a lever.
pub(super) const UNIT: &str = "lever";

/// How far a lever is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// It was up before us; we leave it alone.
    Already,
    Applying,
    Held,
    Reverting,
    /// Only of a step that restores another's lever.
    Released,
}

/// The journal's fact of a lever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hold {
    pub(super) phase: Phase,
    /// What `read` gave before, where no transaction could keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) previous: Option<String>,
    /// What the file was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) original: Option<Original>,
}

impl Hold {
    pub(super) fn at(&self, phase: Phase) -> Self {
        Hold { phase, ..self.clone() }
    }
}
