//! The state of a run, folded from its records. A record that cannot follow what came before is an error:
//! the journal was damaged or two runners wrote it, and acting on a guess would be worse than stopping.

use crate::error::{Class, Error, Result};
use crate::event::{Entry, Failure, Record, Reviewed, StepId};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Which way the run is going, or how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// Steps are being run.
    Forward,
    /// Steps are being undone, back to but not including `to`.
    Back {
        /// The last step that stays done.
        to: Option<StepId>,
        /// Whether the operator accepted losses.
        accept_loss: bool,
    },
    /// Every step is done. Rollback is possible until `finish`.
    Done,
    /// Undone as far as was asked.
    RolledBack {
        /// The last step that stayed done.
        to: Option<StepId>,
    },
    /// Given up where it stood; it can be rolled back or finished.
    Aborted,
    /// Over for good.
    Finished,
}

impl Phase {
    /// Whether a new run of the same plan may begin.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self, Phase::RolledBack { to: None } | Phase::Finished)
    }

    /// One word for people.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Phase::Forward => "unfinished",
            Phase::Back { .. } => "rolling back",
            Phase::Done => "done",
            Phase::RolledBack { to: None } => "rolled back",
            Phase::RolledBack { to: Some(_) } => "partly rolled back",
            Phase::Aborted => "aborted",
            Phase::Finished => "finished",
        }
    }
}

/// Where a step stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Status {
    /// Not begun.
    #[default]
    Pending,
    /// Begun; whether it goes on or was interrupted is a question of the lease.
    Running,
    /// The last attempt failed.
    Failed {
        /// Why.
        failure: Failure,
    },
    /// Complete.
    Done,
    /// Being taken back.
    Undoing,
    /// The last attempt to take it back failed.
    UndoFailed {
        /// Why.
        failure: Failure,
    },
    /// Taken back.
    Undone,
}

/// What is known of a step.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct StepState {
    /// Where it stands.
    #[serde(flatten)]
    pub status: Status,
    /// Attempts since it was last pending or done: to run it, or, once it is being taken back, to undo it.
    pub attempts: u32,
    /// Failures since the present runner attached; retries count these.
    pub failures: u32,
    /// When the first attempt began.
    pub started: Option<Timestamp>,
    /// When it was last done or undone.
    pub ended: Option<Timestamp>,
    /// What it said of itself when done or undone.
    pub summary: Value,
}

/// Why a run stopped before its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Halt {
    /// In words.
    pub reason: String,
    /// What sort of failure.
    pub class: Class,
}

/// The state of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunState {
    /// The plan's name.
    pub plan: String,
    /// The digest it was begun with, or the last one that the operator accepted.
    pub digest: String,
    /// What that digest was made of, unless an older version began the run.
    #[serde(skip)]
    pub reviewed: Option<Box<Reviewed>>,
    /// Which way it is going.
    #[serde(flatten)]
    pub phase: Phase,
    /// The steps that were ever begun.
    pub steps: BTreeMap<StepId, StepState>,
    /// Facts by step and key.
    #[serde(skip)]
    pub facts: BTreeMap<StepId, BTreeMap<String, Value>>,
    /// Steps whose standing task was ended, and the step that ended it.
    pub standing_ended: BTreeMap<StepId, StepId>,
    /// Set once `finish` has begun to drop what a rollback needs.
    #[serde(skip)]
    pub finishing: bool,
    /// Into which folder the rollback that was begun last writes what it loses.
    #[serde(skip)]
    pub export: Option<PathBuf>,
    /// Set while it is stopped.
    pub halted: Option<Halt>,
    /// The step after which nothing before it can be undone without loss.
    pub no_return: Option<StepId>,
    /// The last record's number.
    pub seq: i64,
    /// When the run began.
    pub started: Option<Timestamp>,
    /// When the last record was written.
    pub updated: Option<Timestamp>,
}

impl RunState {
    /// The state before the first record.
    #[must_use]
    pub fn new() -> Self {
        RunState {
            plan: String::new(),
            digest: String::new(),
            reviewed: None,
            phase: Phase::Forward,
            steps: BTreeMap::new(),
            facts: BTreeMap::new(),
            standing_ended: BTreeMap::new(),
            finishing: false,
            export: None,
            halted: None,
            no_return: None,
            seq: 0,
            started: None,
            updated: None,
        }
    }

    /// Folds a whole journal.
    ///
    /// # Errors
    /// The first record that cannot follow the ones before it.
    pub fn fold<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Result<Self> {
        let mut state = RunState::new();
        for entry in entries {
            state.apply(entry)?;
        }
        Ok(state)
    }

    /// Where a step stands.
    #[must_use]
    pub fn status(&self, step: &StepId) -> &Status {
        static PENDING: Status = Status::Pending;
        self.steps.get(step).map_or(&PENDING, |s| &s.status)
    }

    /// A fact of a step.
    #[must_use]
    pub fn fact(&self, step: &StepId, key: &str) -> Option<&Value> {
        self.facts.get(step)?.get(key)
    }

    /// Adds one record.
    ///
    /// # Errors
    /// A record that cannot follow; the state is unchanged then.
    pub fn apply(&mut self, entry: &Entry) -> Result<()> {
        let impossible = |why: &str| {
            Err(Error::new(Class::Journal, format!("the journal's record {} cannot be: {why}", entry.seq))
                .hint("the journal was damaged or edited; keep it and report this with `handover events`"))
        };
        if entry.seq != self.seq + 1 {
            return impossible(&format!("it follows record {}", self.seq));
        }
        if let Some(why) = self.objection(&entry.record) {
            return impossible(why);
        }
        self.take(entry);
        Ok(())
    }

    /// Why a record cannot come next; none when it can. Asked before a record is written: one that cannot be
    /// folded would make the whole journal unreadable.
    #[must_use]
    pub fn objection(&self, record: &Record) -> Option<&'static str> {
        if (self.seq == 0) != matches!(record, Record::RunStarted { .. }) {
            return Some("a run begins with exactly one `run_started`");
        }
        if self.phase == Phase::Finished {
            return Some("the run is finished");
        }
        let forward = self.phase == Phase::Forward;
        let back = matches!(self.phase, Phase::Back { .. });
        let incomplete = |s: &StepState| {
            matches!(
                s.status,
                Status::Running | Status::Failed { .. } | Status::Undoing | Status::UndoFailed { .. }
            )
        };
        let refused = match record {
            Record::StepStarted { .. } if !forward => "a step began although the run does not go forward",
            Record::StepStarted { step, .. }
                if matches!(
                    self.status(step),
                    Status::Done | Status::Undoing | Status::UndoFailed { .. }
                ) =>
            {
                "a step began that is done or being undone"
            }
            Record::StepStarted { step, .. }
                if self.steps.iter().any(|(id, s)| id != step && incomplete(s)) =>
            {
                "a step began while another is not complete"
            }
            Record::StepDone { step, .. } if *self.status(step) != Status::Running => {
                "a step is done that was not running"
            }
            Record::StepFailed { step, .. } if *self.status(step) != Status::Running => {
                "a step failed that was not running"
            }
            Record::RollbackStarted { .. } if self.finishing => {
                "a rollback began although what it needs is being dropped"
            }
            Record::UndoStarted { .. } if !back => "an undo began although the run does not go back",
            Record::UndoStarted { step, .. }
                if matches!(self.status(step), Status::Pending | Status::Undone) =>
            {
                "an undo began of a step that has no effect"
            }
            Record::UndoDone { step, .. } if *self.status(step) != Status::Undoing => {
                "an undo is done that was not running"
            }
            Record::UndoFailed { step, .. } if *self.status(step) != Status::Undoing => {
                "an undo failed that was not running"
            }
            Record::RunDone if !forward || self.steps.values().any(incomplete) => {
                "the run is done although a step is not"
            }
            Record::RunRolledBack { .. } if !back => "the run is rolled back although it was not going back",
            Record::FinishStarted if forward || back => "the run is to be finished although it is not over",
            _ => return None,
        };
        Some(refused)
    }

    fn take(&mut self, entry: &Entry) {
        match &entry.record {
            Record::RunStarted { plan, digest, reviewed, .. } => {
                self.reviewed.clone_from(reviewed);
                self.plan.clone_from(plan);
                self.digest.clone_from(digest);
                self.started = Some(entry.at);
            }
            Record::Attached { accepted_digest, accepted, .. } => {
                if let Some(digest) = accepted_digest {
                    self.reviewed.clone_from(accepted);
                    self.digest.clone_from(digest);
                }
                self.halted = None;
                for step in self.steps.values_mut() {
                    step.failures = 0;
                }
                // Resuming what was rolled back in part goes forward again from there.
                if matches!(self.phase, Phase::RolledBack { to: Some(_) }) {
                    self.phase = Phase::Forward;
                }
            }
            Record::StepStarted { step, attempt } => {
                let state = self.steps.entry(step.clone()).or_default();
                if matches!(state.status, Status::Pending | Status::Undone) {
                    state.started = Some(entry.at);
                }
                state.status = Status::Running;
                state.attempts = *attempt;
            }
            Record::StepFact { step, key, value } => {
                let facts = self.facts.entry(step.clone()).or_default();
                if value.is_null() {
                    facts.remove(key);
                } else {
                    facts.insert(key.clone(), value.clone());
                }
            }
            Record::StepDone { step, summary } => {
                let state = self.steps.entry(step.clone()).or_default();
                state.status = Status::Done;
                state.ended = Some(entry.at);
                state.summary = summary.clone();
                state.failures = 0;
            }
            Record::StepFailed { step, failure } => {
                let state = self.steps.entry(step.clone()).or_default();
                state.status = Status::Failed { failure: failure.clone() };
                state.failures += 1;
            }
            Record::StandingEnded { step, by } => {
                self.standing_ended.insert(step.clone(), by.clone().unwrap_or_else(|| step.clone()));
            }
            Record::PointOfNoReturn { step } => self.no_return = Some(step.clone()),
            Record::RollbackStarted { to, accept_loss, export, .. } => {
                self.halted = None;
                self.export.clone_from(export);
                self.phase = Phase::Back { to: to.clone(), accept_loss: *accept_loss };
                for step in self.steps.values_mut() {
                    step.failures = 0;
                }
            }
            Record::UndoStarted { step, attempt } => {
                let state = self.steps.entry(step.clone()).or_default();
                state.status = Status::Undoing;
                state.attempts = *attempt;
            }
            Record::UndoDone { step, summary } => {
                let state = self.steps.entry(step.clone()).or_default();
                state.status = Status::Undone;
                state.ended = Some(entry.at);
                state.summary = summary.clone();
                state.attempts = 0;
                state.failures = 0;
                // An undone step starts from nothing if it is run again.
                self.facts.remove(step);
                self.standing_ended.remove(step);
                // What it had ended stands again when the run goes forward.
                self.standing_ended.retain(|_, by| by != step);
                if self.no_return.as_ref() == Some(step) {
                    self.no_return = None;
                }
            }
            Record::UndoFailed { step, failure } => {
                let state = self.steps.entry(step.clone()).or_default();
                state.status = Status::UndoFailed { failure: failure.clone() };
                state.failures += 1;
            }
            Record::Halted { reason, class } => {
                self.halted = Some(Halt { reason: reason.clone(), class: *class });
            }
            Record::Note { .. } => {}
            Record::RunDone => self.phase = Phase::Done,
            Record::RunRolledBack { to } => {
                self.phase = Phase::RolledBack { to: to.clone() };
                // What stays although its undo was begun was left whole, and is gone through again.
                for step in self.steps.values_mut() {
                    if matches!(step.status, Status::Undoing | Status::UndoFailed { .. }) {
                        step.status = Status::Running;
                    }
                }
            }
            Record::RunAborted { .. } => self.phase = Phase::Aborted,
            Record::FinishStarted => self.finishing = true,
            Record::Finished => self.phase = Phase::Finished,
        }
        self.seq = entry.seq;
        self.updated = Some(entry.at);
    }
}

impl Default for RunState {
    fn default() -> Self {
        Self::new()
    }
}
