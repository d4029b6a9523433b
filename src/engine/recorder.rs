//! Writes the journal for a run, keeps its folded state, and tells the listeners.

use super::standing::Supervisor;
use crate::error::{Error, Result};
use crate::event::{Emitter, Event, Level, Record, RunId, StepId};
use crate::journal::{Journal, RunState};
use crate::postgres::Lease;
use crate::steps::context::Request;
use crate::steps::{Ledger, Memory};
use async_trait::async_trait;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The only writer of a run's journal in this process.
pub struct Recorder {
    /// For what must not end with whoever asked for it.
    me: Weak<Self>,
    journal: Arc<Journal>,
    run: RunId,
    lease: Lease,
    emitter: Emitter,
    state: Mutex<RunState>,
    /// One record at a time: the next number is only known when the last one is written.
    turn: tokio::sync::Mutex<()>,
    /// What the operator was told and the journal does not have yet.
    notes: Mutex<Notes>,
    told: tokio::sync::Notify,
    pub(super) standing: Supervisor,
}

#[derive(Default)]
struct Notes {
    waiting: Vec<Record>,
    /// How often something came up, by step and words: it is told once, and how often is told at the end.
    known: BTreeMap<(Option<StepId>, String), u32>,
}

/// So many different notes are told apart; with more, some may be repeated.
const KNOWN: usize = 1000;

impl Recorder {
    /// Continues a run from its folded state.
    pub fn new(
        journal: Arc<Journal>,
        run: RunId,
        lease: Lease,
        emitter: Emitter,
        state: RunState,
    ) -> Arc<Self> {
        let standing = Supervisor::default();
        Arc::new_cyclic(|me| Recorder {
            me: me.clone(),
            journal,
            run,
            lease,
            emitter,
            state: Mutex::new(state),
            turn: tokio::sync::Mutex::new(()),
            notes: Mutex::default(),
            told: tokio::sync::Notify::new(),
            standing,
        })
    }

    /// Creates the run, before its first record.
    pub async fn create_run(&self) -> Result<()> {
        self.journal.create_run(self.run, self.lease.plan()).await
    }

    /// Appends a record durably, then applies and announces it. If this fails, the run must stop.
    ///
    /// In a task of its own: a step that is dropped meanwhile would leave a record that nobody here knows of, and the
    /// next one would be taken for another runner's.
    pub async fn append(&self, record: Record) -> Result<()> {
        let Some(me) = self.me.upgrade() else { return Err(Error::internal("a recorder that is gone")) };
        self.sum_up(&record);
        let written = tokio::spawn(async move {
            let _turn = me.turn.lock().await;
            // What was said before comes before.
            me.write_waiting().await?;
            me.append_in_turn(record).await
        });
        written.await.unwrap_or_else(|e| Err(Error::internal(format!("the recorder broke down ({e})"))))
    }

    async fn write_waiting(&self) -> Result<()> {
        // One after a run's end would make the journal unreadable.
        let may = self.with(|state| state.seq > 0 && state.phase != crate::journal::Phase::Finished);
        let waiting = std::mem::take(&mut self.notes().waiting);
        for note in waiting.into_iter().filter(|_| may) {
            self.append_in_turn(note).await?;
        }
        Ok(())
    }

    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a note for the journal; false when it was told already.
    pub fn note(&self, step: Option<&StepId>, level: Level, text: &str) -> bool {
        let mut notes = self.notes();
        if notes.known.len() >= KNOWN {
            notes.known.clear();
        }
        let times = notes.known.entry((step.cloned(), text.to_owned())).or_default();
        *times += 1;
        if *times > 1 {
            return false;
        }
        notes.waiting.push(Record::Note {
            step: step.cloned(),
            level,
            text: crate::redact::clean(text).into_owned(),
        });
        drop(notes);
        self.told.notify_one();
        true
    }

    /// Where an attempt ends, tells how often came up what was told once.
    fn sum_up(&self, record: &Record) {
        let ends = match record {
            Record::StepDone { step, .. }
            | Record::StepFailed { step, .. }
            | Record::UndoDone { step, .. }
            | Record::UndoFailed { step, .. } => Some(step),
            Record::Halted { .. } => None,
            _ => return,
        };
        let mut notes = self.notes();
        let mut said = Vec::new();
        for ((step, text), times) in &mut notes.known {
            if *times > 1 && (ends.is_none() || ends == step.as_ref()) {
                said.push((step.clone(), format!("came up {times} times: {}", beginning(text))));
                // What comes up from here on is not told again, and counted anew.
                *times = 1;
            }
        }
        for (step, text) in said {
            let level = Level::Info;
            let clean = crate::redact::clean(&text).into_owned();
            notes.waiting.push(Record::Note { step: step.clone(), level, text: clean });
            self.emitter.emit(Event::Note { step, level, text });
        }
    }

    /// Writes what waits, as far as the journal can be written.
    pub async fn flush_notes(&self) {
        let Some(me) = self.me.upgrade() else { return };
        let written = tokio::spawn(async move {
            let _turn = me.turn.lock().await;
            // A failure is met by whoever acts next.
            let _ = me.write_waiting().await;
        });
        let _ = written.await;
    }

    /// Writes notes soon after they were told, also where nothing else is recorded for long. Never ends by itself.
    pub async fn write_notes(self: Arc<Self>) {
        loop {
            self.told.notified().await;
            self.flush_notes().await;
        }
    }

    async fn append_in_turn(&self, record: Record) -> Result<()> {
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

/// Enough of a text to know it again.
fn beginning(text: &str) -> String {
    const ENOUGH: usize = 80;
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= ENOUGH {
        return line.to_owned();
    }
    line.chars().take(ENOUGH).collect::<String>() + "…"
}

#[async_trait]
impl Memory for Recorder {
    async fn remember(&self, step: &StepId, key: &str, value: Value) -> Result<()> {
        self.append(Record::StepFact { step: step.clone(), key: key.to_owned(), value }).await
    }

    fn recall(&self, step: &StepId, key: &str) -> Option<Value> {
        self.with(|state| state.fact(step, key).cloned())
    }

    fn keep_note(&self, step: Option<&StepId>, level: Level, text: &str) -> bool {
        self.note(step, level, text)
    }
}

#[async_trait]
impl Ledger for Recorder {
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
        if self.with(|state| state.no_return.as_ref() == Some(step)) {
            return Ok(());
        }
        self.append(Record::PointOfNoReturn { step: step.clone() }).await
    }
}
