//! What a step is given to work with.

use super::Critical;
use super::links::Links;
use crate::error::Result;
use crate::event::StepId;
use async_trait::async_trait;
use handover_port::{Memory, Port};
use serde::Serialize;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

/// A human's word on a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Request {
    /// Who asked.
    pub by: String,
    /// In their words.
    pub note: Option<String>,
    /// When, by the control database's clock.
    pub at: jiff::Timestamp,
}

/// The journal, as far as a step may use it. Implemented by the engine.
#[async_trait]
pub trait Ledger: Memory {
    /// The approval of a step, if somebody gave it.
    async fn approval(&self, step: &StepId) -> Result<Option<Request>>;

    /// Ends the standing task that an earlier step left, and waits until it has stopped. Should the step `by`
    /// which it is ended be undone, the task stands again when the run goes forward.
    async fn end_standing(&self, step: &StepId, by: &StepId) -> Result<()>;

    /// Records that what follows cannot be undone without loss.
    async fn point_of_no_return(&self, step: &StepId) -> Result<()>;
}

/// Everything a step may use: what its engine gets, and what only a step may know. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// What the engines beneath get.
    pub port: Port,
    /// The steps of the plan that others build on.
    pub links: Arc<Links>,
    /// What must not be cut short.
    pub critical: Critical,
    /// The journal.
    pub ledger: Arc<dyn Ledger>,
    /// Whether the operator accepted that this undo loses what `reversibility` says it loses.
    pub accept_loss: bool,
    /// The folder into which an undo is to write what it loses, before it undoes anything.
    pub export: Option<PathBuf>,
    /// Whether somebody is there to wait for: false lets `approve` halt the run instead of waiting.
    pub may_wait: bool,
}

impl Deref for Context {
    type Target = Port;
    fn deref(&self) -> &Port {
        &self.port
    }
}

impl Context {
    /// This step's place in the plan.
    #[must_use]
    pub fn place(&self) -> usize {
        self.links.place(&self.step)
    }
}
