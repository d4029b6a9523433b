//! Writes the journal for a run, keeps its folded state, and tells the listeners.

use super::standing::Supervisor;
use crate::error::{Error, Result};
use crate::event::{Emitter, Event, Record, RunId, StepId};
use crate::journal::{Journal, RunState};
use crate::postgres::Lease;
use crate::steps::Ledger;
use crate::steps::context::Request;
use async_trait::async_trait;
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};

/// The only writer of a run's journal in this process.
pub struct Recorder {
    journal: Arc<Journal>,
    run: RunId,
    lease: Lease,
    emitter: Emitter,
    state: Mutex<RunState>,
    /// One record at a time: the next number is only known when the last one is written.
    turn: tokio::sync::Mutex<()>,
    pub(super) standing: Supervisor,
}

impl Recorder {
    /// Continues a run from its folded state.
    pub fn new(journal: Arc<Journal>, run: RunId, lease: Lease, emitter: Emitter, state: RunState) -> Self {
        let standing = Supervisor::default();
        Recorder {
            journal,
            run,
            lease,
            emitter,
            state: Mutex::new(state),
            turn: tokio::sync::Mutex::new(()),
            standing,
        }
    }

    /// Creates the run, before its first record.
    pub async fn create_run(&self) -> Result<()> {
        self.journal.create_run(self.run, self.lease.plan()).await
    }

    /// Appends a record durably, then applies and announces it. If this fails, the run must stop.
    pub async fn append(&self, record: Record) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.lease.assert_held()?;
        // Before it is durable: a record that cannot be folded would lock everybody out of the run.
        if let Some(why) = self.with(|state| state.objection(&record)) {
            return Err(Error::internal(format!("a record was refused before it was written: {why}")));
        }
        let seq = self.with(|state| state.seq) + 1;
        let entry =
            self.journal.append(self.lease.plan(), self.lease.token(), self.run, seq, &record).await?;
        self.with(|state| state.apply(&entry))?;
        self.emitter.emit(Event::Recorded { run: self.run, entry });
        Ok(())
    }

    /// Looks at the state.
    pub fn with<T>(&self, look: impl FnOnce(&mut RunState) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Ledger for Recorder {
    async fn remember(&self, step: &StepId, key: &str, value: Value) -> Result<()> {
        self.append(Record::StepFact { step: step.clone(), key: key.to_owned(), value }).await
    }

    fn recall(&self, step: &StepId, key: &str) -> Option<Value> {
        self.with(|state| state.fact(step, key).cloned())
    }

    async fn approval(&self, step: &StepId) -> Result<Option<Request>> {
        // One given before the step began (before it was undone, say) speaks of another world.
        let since = self.with(|state| state.steps.get(step).and_then(|s| s.started));
        let requests = self.journal.requests(self.run).await?;
        Ok(requests
            .into_iter()
            .filter(|r| {
                r.kind == "approve" && r.step.as_ref() == Some(step) && since.is_none_or(|s| r.at >= s)
            })
            .map(|r| Request { by: r.by, note: r.note, at: r.at })
            .next_back())
    }

    async fn end_standing(&self, step: &StepId, by: &StepId) -> Result<()> {
        self.standing.end(step).await;
        if self.with(|state| state.standing_ended.contains_key(step)) {
            return Ok(());
        }
        self.append(Record::StandingEnded { step: step.clone(), by: Some(by.clone()) }).await
    }

    async fn point_of_no_return(&self, step: &StepId) -> Result<()> {
        self.append(Record::PointOfNoReturn { step: step.clone() }).await
    }
}
