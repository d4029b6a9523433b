//! What happens in a run: records that the journal keeps, and progress that only listeners see.
//!
//! This is a leaf: it imports nothing of ours but the error class and tables, so that every layer may speak it.

use crate::error::{Class, Error};
use crate::redact::clean;
use crate::table::Table;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// The identity of one execution of a plan: time-ordered, unique across hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub uuid::Uuid);

impl RunId {
    /// A new run's id.
    #[must_use]
    pub fn new() -> Self {
        RunId(uuid::Uuid::now_v7())
    }
}

impl Default for RunId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A step's id, unique within its plan.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(transparent)]
pub struct StepId(pub String);

impl StepId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for StepId {
    fn from(text: &str) -> Self {
        StepId(text.to_owned())
    }
}

/// A failure as the journal keeps it: no secrets, no types of other layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What sort of failure it was.
    pub class: Class,
    /// What happened and where.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whether whoever failed has tried again already as often as makes sense.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exhausted: bool,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Failure {
            class: error.class(),
            message: clean(&error.to_string()).into_owned(),
            hint: error.next_step().map(|hint| clean(hint).into_owned()),
            exhausted: error.is_exhausted(),
        }
    }
}

/// Who acts: enough to tell a dead holder on this host from a living one elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Host name.
    pub host: String,
    /// Operating-system user.
    pub user: String,
    /// Process id on that host.
    pub pid: i32,
    /// Boot id and pid namespace of that host: only within the same one does `pid` mean anything to us.
    pub incarnation: String,
    /// The process's start time in clock ticks since boot, so that a reused pid is not taken for it.
    pub started: u64,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{} (pid {})", self.user, self.host, self.pid)
    }
}

/// What a digest was made of, so that a change can be named, and the plan be found when its file cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reviewed {
    /// The plan's file, on the host that ran it.
    pub file: String,
    /// The plan's text. References to the environment stand in it as they are, and passwords are refused there.
    pub text: String,
    /// A fingerprint of each file that the plan names, and what each database said it is, by name.
    pub parts: BTreeMap<String, String>,
}

/// Something that became true of a run. Records are only ever appended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Record {
    /// A run began.
    RunStarted {
        /// The plan's name.
        plan: String,
        /// Digest over the plan, its files and the databases' identities.
        digest: String,
        /// Version of Handover.
        version: String,
        /// What the digest was made of; journals of older versions do not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reviewed: Option<Box<Reviewed>>,
    },
    /// A runner took the lease and acts from here on.
    Attached {
        /// The fencing token of its lease.
        token: i64,
        /// Who it is.
        holder: Holder,
        /// The digest it runs with, when the operator accepted another than the run began with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        accepted_digest: Option<String>,
        /// What that digest was made of.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        accepted: Option<Box<Reviewed>>,
    },
    /// The intention to run a step (written before anything is done).
    StepStarted {
        /// Which step.
        step: StepId,
        /// 1 for the first attempt since the step was last undone.
        attempt: u32,
    },
    /// A fact a step must find again after a crash, where no database of the plan can keep it.
    StepFact {
        /// Which step.
        step: StepId,
        /// Name of the fact, unique within the step.
        key: String,
        /// The fact; null forgets it.
        value: Value,
    },
    /// Something that the operator was told and that must be found again later.
    Note {
        /// The step, if it concerns one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<StepId>,
        /// How loud.
        level: Level,
        /// One sentence.
        text: String,
    },
    /// A step's effect is complete and verified.
    StepDone {
        /// Which step.
        step: StepId,
        /// What it did, in the kind's own words.
        summary: Value,
    },
    /// An attempt failed.
    StepFailed {
        /// Which step.
        step: StepId,
        /// Why.
        failure: Failure,
    },
    /// A standing task (relay, tailing replay) was ended by a later step.
    StandingEnded {
        /// The step that had left it.
        step: StepId,
        /// The step that ended it; journals of older versions do not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<StepId>,
    },
    /// Nothing before this can be undone without losing what happened since.
    PointOfNoReturn {
        /// The step that decided.
        step: StepId,
    },
    /// The run is to be undone back to before `to`, or wholly.
    RollbackStarted {
        /// The last step that stays done; none: everything is undone.
        to: Option<StepId>,
        /// Why: the operator, or the policy after a failure.
        reason: String,
        /// Whether the operator accepted that something is lost.
        accept_loss: bool,
        /// The folder into which what is lost is written before anything is undone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        export: Option<PathBuf>,
    },
    /// The intention to undo a step.
    UndoStarted {
        /// Which step.
        step: StepId,
        /// From 1.
        attempt: u32,
    },
    /// A step's effect is gone.
    UndoDone {
        /// Which step.
        step: StepId,
        /// What was undone.
        summary: Value,
    },
    /// An undo failed.
    UndoFailed {
        /// Which step.
        step: StepId,
        /// Why.
        failure: Failure,
    },
    /// The run stopped before its end; resume goes on.
    Halted {
        /// Why.
        reason: String,
        /// Class of the failure that stopped it.
        class: Class,
    },
    /// All steps are done.
    RunDone,
    /// All steps that were asked for are undone.
    RunRolledBack {
        /// The step rolled back to, none for the whole run.
        to: Option<StepId>,
    },
    /// The run was given up by an operator where it stood.
    RunAborted {
        /// Who and why.
        reason: String,
    },
    /// The intention to drop what was kept for rollback: from here on there is none.
    FinishStarted,
    /// What was kept for rollback is dropped; the run is over for good.
    Finished,
}

/// A record with its place in the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// From 1, without gaps within a run.
    pub seq: i64,
    /// The control database's clock.
    pub at: Timestamp,
    /// The record.
    #[serde(flatten)]
    pub record: Record,
}

/// What a progress number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Bytes of data.
    Bytes,
    /// Table rows.
    Rows,
    /// Heap or index blocks, as the server reports them.
    Blocks,
    /// Captured events.
    Events,
    /// Whole things: files, indexes, tables, probes.
    Items,
    /// Seconds of a wait.
    Seconds,
}

/// How loudly a note wants to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Worth a line.
    Info,
    /// Worth a second look.
    Warning,
}

/// What listeners are told. Only `Recorded` is durable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The journal has a new entry.
    Recorded {
        /// The run.
        run: RunId,
        /// The entry.
        #[serde(flatten)]
        entry: Entry,
    },
    /// A unit of a step's work moved.
    Progress {
        /// The step.
        step: StepId,
        /// Name of the unit: a table, an index, a migration.
        unit: String,
        /// How much is done.
        done: u64,
        /// Of how much, when known.
        total: Option<u64>,
        /// What is counted.
        measure: Measure,
    },
    /// A unit of work is complete; its bar may go.
    UnitDone {
        /// The step.
        step: StepId,
        /// The unit.
        unit: String,
    },
    /// Something to tell the operator.
    Note {
        /// The step, if it concerns one.
        step: Option<StepId>,
        /// How loud.
        level: Level,
        /// One sentence.
        text: String,
    },
    /// What a rollback would lose, counted; nothing was undone.
    Loss {
        /// The step whose undo it is.
        step: StepId,
        /// In a line.
        words: String,
        /// As a table.
        table: Option<Table>,
        /// As the step's kind has it.
        detail: Value,
    },
    /// The operator or the system asked for a stop; the step in work goes on to its next safe place.
    Stopping {
        /// Whether something goes on that must not be cut short, so that asking once more ends nothing.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        bound: bool,
    },
    /// The state of a standing task.
    Standing {
        /// The step that left it.
        step: StepId,
        /// Backlog or lag in words, e.g. `12 events behind`.
        text: String,
        /// The backlog as a number, when it is one.
        backlog: Option<u64>,
    },
}

/// Where events go. Cheap to clone; sending never blocks and never fails, because the screen must not be able
/// to stop a run.
#[derive(Debug, Clone)]
pub struct Emitter(Option<tokio::sync::mpsc::UnboundedSender<Event>>);

impl Emitter {
    /// An emitter and the end that a listener reads.
    #[must_use]
    pub fn channel() -> (Self, tokio::sync::mpsc::UnboundedReceiver<Event>) {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        (Emitter(Some(sender)), receiver)
    }

    /// An emitter nobody listens to.
    #[must_use]
    pub fn silent() -> Self {
        Emitter(None)
    }

    /// Tells the listeners.
    pub fn emit(&self, mut event: Event) {
        if let Some(sender) = &self.0 {
            if let Event::Note { text, .. } | Event::Standing { text, .. } | Event::Loss { words: text, .. } =
                &mut event
                && let Cow::Owned(cleaned) = clean(text)
            {
                *text = cleaned;
            }
            let _ = sender.send(event);
        }
    }
}
