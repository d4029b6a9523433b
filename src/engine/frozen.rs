//! A journal for whoever only looks.

use crate::error::{Class, Error, Result};
use crate::event::{RunId, StepId};
use crate::journal::RunState;
use crate::steps::context::Request;
use crate::steps::{Ledger, Memory, Precedent};
use async_trait::async_trait;
use serde_json::Value;
use std::collections::BTreeMap;

/// A journal as it stands, that cannot be written.
pub(super) struct Frozen {
    /// The unfinished run's, whose checkpoints a step looks for; else one that has none.
    pub(super) run: RunId,
    pub(super) state: RunState,
    pub(super) precedents: BTreeMap<StepId, Precedent>,
}

fn refused() -> Error {
    Error::new(Class::Internal, "a dry run tried to write")
        .hint("this is a defect in Handover; nothing was written. Please report it")
}

#[async_trait]
impl Memory for Frozen {
    async fn remember(&self, _: &StepId, _: &str, _: Value) -> Result<()> {
        Err(refused())
    }

    fn recall(&self, step: &StepId, key: &str) -> Option<Value> {
        self.state.fact(step, key).cloned()
    }

    fn precedent(&self, step: &StepId) -> Option<Precedent> {
        self.precedents.get(step).cloned()
    }
}

#[async_trait]
impl Ledger for Frozen {
    async fn approval(&self, _: &StepId) -> Result<Option<Request>> {
        Ok(None)
    }

    async fn end_standing(&self, _: &StepId, _: &StepId) -> Result<()> {
        Err(refused())
    }

    async fn point_of_no_return(&self, _: &StepId) -> Result<()> {
        Err(refused())
    }
}
