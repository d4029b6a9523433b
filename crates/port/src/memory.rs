//! What an engine keeps from one attempt to the next.

use async_trait::async_trait;
use handover_core::Result;
use handover_core::event::{Level, StepId};
use serde_json::Value;
use std::time::Duration;

/// An earlier run of the same plan, as far as it got through a step in one go.
#[derive(Debug, Clone, PartialEq)]
pub struct Precedent {
    /// When the step was done.
    pub at: jiff::Timestamp,
    /// How long it took.
    pub took: Duration,
    /// What it said of itself.
    pub summary: Value,
}

/// Who keeps facts. In a run it is the journal.
#[async_trait]
pub trait Memory: Send + Sync {
    /// Keeps a fact of a step durably before returning; `Null` forgets it. For what no database of the plan
    /// can keep in the transaction of its effect: previous settings, decisions outside Postgres.
    async fn remember(&self, step: &StepId, key: &str, value: Value) -> Result<()>;

    /// A fact of a step, its own or another's.
    fn recall(&self, step: &StepId, key: &str) -> Option<Value>;

    /// How this step went in an earlier run. Only a dry run knows.
    fn precedent(&self, _step: &StepId) -> Option<Precedent> {
        None
    }

    /// Keeps what the operator is told, soon and in its place among the records. False when the same was kept
    /// already: then it need not be told again.
    fn keep_note(&self, _step: Option<&StepId>, _level: Level, _text: &str) -> bool {
        true
    }
}
