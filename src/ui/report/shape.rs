//! What a report says, as one object.

use crate::engine::decide::Loss;
use crate::error::Class;
use crate::event::{Failure, Holder, RunId, StepId};
use crate::journal::{Phase, RequestRow, Status};
use crate::table::Table;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

/// A run from its beginning to where it stands: one object, which `docs/cli.md` documents.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The plan's name.
    pub plan: String,
    /// The run.
    pub run: RunId,
    /// The Handover that began it.
    pub version: String,
    /// The digest it began with.
    pub digest: String,
    /// How it ended, or that it did not, in a sentence.
    pub verdict: String,
    /// Where it stands.
    #[serde(flatten)]
    pub phase: Phase,
    /// When it began.
    pub started: Option<Timestamp>,
    /// When its last record was written.
    pub updated: Option<Timestamp>,
    /// From the first to the last record.
    pub seconds: f64,
    /// What clients felt, in milliseconds, where a cutover measured it.
    pub write_pause_ms: Option<f64>,
    /// The step that passed the point of no return.
    pub no_return: Option<StepId>,
    /// What rolling the whole run back would lose now.
    pub rollback_loses: Vec<Loss>,
    /// Who acted, when.
    pub actors: Vec<Actor>,
    /// Approvals and requests to abort.
    pub requests: Vec<RequestRow>,
    /// The steps: in the plan's order, then those the plan has no more.
    pub steps: Vec<StepReport>,
    /// Halts, rollbacks and what else changed the run's way.
    pub changes: Vec<Change>,
    /// Everything that happened, by when it began.
    pub timeline: Vec<Moment>,
}

/// A runner's time at work.
#[derive(Debug, Clone, Serialize)]
pub struct Actor {
    /// Who.
    pub holder: Holder,
    /// Its fencing token.
    pub token: i64,
    /// When it took over.
    pub from: Timestamp,
    /// Its last record.
    pub until: Timestamp,
    /// The changed digest it accepted.
    pub accepted_digest: Option<String>,
}

/// Something that changed the run's way.
#[derive(Debug, Clone, Serialize)]
pub struct Change {
    /// When.
    pub at: Timestamp,
    /// In words.
    pub what: String,
    /// The class of the failure behind a halt.
    pub class: Option<Class>,
}

/// One step.
#[derive(Debug, Clone, Serialize)]
pub struct StepReport {
    /// Its id.
    pub id: StepId,
    /// A few words of the plan's.
    pub title: Option<String>,
    /// Its kind, while the plan has it.
    pub kind: Option<&'static str>,
    /// Where it stands.
    #[serde(flatten)]
    pub status: Status,
    /// Every attempt to run or to undo it.
    pub attempts: Vec<Attempt>,
    /// What it said of itself.
    pub summary: Value,
    /// The table of its summary; of a step that is not done, the one that its last attempt left.
    pub table: Option<Table>,
    /// The time of all its attempts; none where it is not known of any.
    pub seconds: Option<f64>,
}

/// Which way an attempt went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// It ran the step.
    Run,
    /// It took the step back.
    Undo,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As wanted.
    Done,
    /// With a failure.
    Failed,
    /// Without a word: stopped on request, or the runner died.
    Interrupted,
    /// Not yet.
    Open,
}

/// One attempt.
#[derive(Debug, Clone, Serialize)]
pub struct Attempt {
    /// Which way.
    pub way: Way,
    /// When it began.
    pub started: Timestamp,
    /// When its end was recorded.
    pub ended: Option<Timestamp>,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// How long it took.
    pub seconds: Option<f64>,
}

/// What sort of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The run began, ended, or changed its way.
    Run,
    /// Somebody began to act.
    Actor,
    /// An attempt to run a step, or to undo it.
    Attempt,
    /// A phase within a step.
    Phase,
    /// Nobody acted.
    Idle,
    /// Writers could not write.
    Refused,
    /// A person approved, or asked for something.
    Request,
    /// A warning.
    Warning,
    /// The point of no return was passed.
    NoReturn,
    /// It stopped.
    Stopped,
}

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
pub struct Moment {
    /// When it began.
    pub at: Timestamp,
    /// How long it took, where it has a length that is known.
    pub seconds: Option<f64>,
    /// What sort of thing it was.
    pub what: What,
    /// The step, if it concerns one.
    pub step: Option<StepId>,
    /// In words.
    pub text: String,
    /// Whether something went wrong.
    pub failed: bool,
}

impl Moment {
    pub(super) fn new(at: Timestamp, what: What, step: Option<&StepId>, text: String) -> Self {
        Moment { at, seconds: None, what, step: step.cloned(), text, failed: false }
    }
}

pub(super) fn between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}
