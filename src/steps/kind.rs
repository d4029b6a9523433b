//! What a step kind is: what the plan layer, the engine and the screens ask of one.

use super::context::Context;
use super::links::Links;
use super::needs::{Locks, Need};
use crate::error::{Error, Result};
use crate::event::{RunId, StepId};
use crate::failpoint;
use crate::problem::Problems;
use crate::table::Table;
use crate::value::Duration;
use async_trait::async_trait;
use handover_port::Description;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What an undo would lose, counted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Counted {
    /// In a line, as far as it is known and no further.
    pub words: String,
    /// As a table.
    pub table: Option<Table>,
    /// As the kind has it, for programs.
    pub detail: Value,
}

/// How the plan layer meets a kind.
#[derive(Debug, Clone)]
pub struct Kind {
    /// Its key in a step.
    pub name: &'static str,
    /// Reads the value under that key.
    pub parse: fn(Value) -> Parsed,
    /// The schema of that value.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
}

impl Kind {
    /// The kind that `T` is, under this key.
    #[must_use]
    pub const fn of<T: StepKind + DeserializeOwned + JsonSchema + 'static>(name: &'static str) -> Self {
        Kind { name, parse: parse::<T>, schema: |generator| generator.subschema_for::<T>() }
    }
}

/// A kind read from its value, or what is wrong with which part of the value.
pub type Parsed = Result<Arc<dyn StepKind>, serde_path_to_error::Error<serde_json::Error>>;

/// Reads a kind from its value.
///
/// # Errors
/// What is wrong with which part of it.
pub fn parse<T: StepKind + DeserializeOwned + 'static>(value: Value) -> Parsed {
    Ok(Arc::new(serde_path_to_error::deserialize::<_, T>(value)?))
}

/// One step of a plan.
#[derive(Debug, Clone)]
pub struct Step {
    /// Unique within the plan.
    pub id: StepId,
    /// A few words for people.
    pub title: Option<String>,
    /// How long it may take in all.
    pub timeout: Option<Duration>,
    /// What to do about failures that pass.
    pub retry: Retry,
    /// What to do about failures that stay.
    pub on_failure: OnFailure,
    /// The kind's key.
    pub kind_name: &'static str,
    /// What it does.
    pub kind: Arc<dyn StepKind>,
}

/// How often and how fast a step that failed in passing is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Attempts in all, the first included.
    #[schemars(range(min = 1))]
    pub attempts: u32,
    /// The wait before the second attempt; it doubles for each further one, up to a minute.
    pub backoff: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Retry { attempts: 5, backoff: Duration::secs(1) }
    }
}

/// What a failure that does not pass leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Stop where it is and say what to do; the operator decides.
    #[default]
    Halt,
    /// Undo everything that can be undone without loss, back to the start.
    Rollback,
}

/// Whether and how a step's effect can be taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "undo", rename_all = "snake_case")]
pub enum Undo {
    /// Taken back without loss; how, in a few words.
    Exact {
        /// E.g. `drops the index`.
        how: String,
    },
    /// There is nothing to take back.
    Nothing,
    /// Can be taken back, but something is lost; what, in a few words.
    Lossy {
        /// What is done.
        how: String,
        /// What is lost, e.g. `writes made on green since the cutover`.
        loses: String,
    },
    /// Taken back without loss for as long as something goes on that carries it; its facts tell ([`StepKind::may_lose`]).
    WhileCarried {
        /// What is done.
        how: String,
        /// What is lost once that has ended.
        loses: String,
    },
    /// Cannot be taken back; why.
    Impossible {
        /// The reason.
        why: String,
    },
}

impl Undo {
    /// What taking it back loses, or that it cannot be taken back, in words: `loses …`, `cannot be undone: …`. None
    /// where it is free. The checker, the dry run, `decide` and every screen say it in these words.
    #[must_use]
    pub fn loss(&self) -> Option<String> {
        match self {
            Undo::Exact { .. } | Undo::Nothing | Undo::WhileCarried { .. } => None,
            Undo::Lossy { loses, .. } => Some(format!("loses {loses}")),
            Undo::Impossible { why } => Some(format!("cannot be undone: {why}")),
        }
    }
}

/// What a step means to do with a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Only reads it.
    Read,
    /// Changes it.
    Write,
}

/// What a plan looks like from one of its steps, before anything is connected.
pub struct CheckContext<'a> {
    /// The plan's folder; relative paths start there.
    pub base: &'a Path,
    /// Names under `databases:`.
    pub databases: &'a BTreeSet<String>,
    /// Whether the plan has a `queue:`.
    pub has_queue: bool,
    /// The steps that could be read, and which builds on which.
    pub links: &'a Links,
    /// This step's place among them.
    pub index: usize,
    /// What a failure of this step that stays leads to.
    pub on_failure: OnFailure,
    /// The name of our own schema.
    pub ours: &'a str,
}

impl CheckContext<'_> {
    /// Reports `name` at `field` unless it is one of the plan's databases.
    pub fn database(&self, problems: &mut Problems, field: &str, name: &str) {
        if self.databases.contains(name) {
            return;
        }
        let known: Vec<&str> = self.databases.iter().map(String::as_str).collect();
        let problem = problems.error([field], format!("there is no database `{name}` in this plan"));
        match crate::problem::suggest(name, known.iter().copied()) {
            Some(close) => problem.hint(format!("did you mean `{close}`?")),
            None => problem.hint(format!("the plan has: {}", known.join(", "))),
        };
    }
}

/// A place between a step's first and its last unit of work, where a rehearsal kills the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Midway {
    /// The failpoint.
    pub failpoint: &'static str,
    /// At which passing, from 1.
    pub passing: u32,
    /// Where that is, in words: `after its first index`.
    pub place: &'static str,
}

impl Default for Midway {
    fn default() -> Self {
        Midway {
            failpoint: failpoint::STEP_UNRECORDED,
            passing: 1,
            place: "with its effect there and not yet in the journal",
        }
    }
}

/// Tells something from a step's facts.
pub type Tells = fn(&BTreeMap<String, Value>) -> bool;

/// The behaviour of a step kind. One value holds what one step of a plan says.
#[async_trait]
pub trait StepKind: std::fmt::Debug + Send + Sync {
    /// Adds itself to what the steps of its plan may build on. `place` is its place among them.
    fn link(self: Arc<Self>, _id: &StepId, _place: usize, _links: &mut Links) {}

    /// Finds what is wrong with it without touching anything. Problems' base is the kind's own mapping.
    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems);

    /// The databases it uses. Those it writes to are fenced before the run begins.
    fn databases(&self) -> Vec<(&str, Access)>;

    /// The databases it writes to.
    fn written(&self) -> BTreeSet<&str> {
        self.databases()
            .into_iter()
            .filter(|(_, access)| *access == Access::Write)
            .map(|(name, _)| name)
            .collect()
    }

    /// Files and folders whose content decides what it does, relative to the plan's folder: part of the digest.
    fn files(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Whether it uses the plan's queue.
    fn uses_queue(&self) -> bool {
        false
    }

    /// What the role that executes it must be able to do in a database that it uses so.
    fn needs(&self, access: Access) -> &'static [Need] {
        match access {
            Access::Read => &[Need::ReadEverything, Need::Monitor],
            Access::Write => &[Need::ActAsOwners, Need::ReadEverything, Need::Monitor],
        }
    }

    /// The locks that it holds at once, where it takes one on every table and sequence of the application.
    fn locks_every_table(&self) -> Option<Locks> {
        None
    }

    /// Whether it waits for a person's word (`handover approve`).
    fn asks_a_person(&self) -> bool {
        false
    }

    /// Whether it waits for that word now, by its facts in the journal, while it runs or is stopped where it does.
    fn asks_now(&self, _facts: Option<&BTreeMap<String, Value>>) -> bool {
        self.asks_a_person()
    }

    /// Whether it may make tables, so that a later step finds what is not there yet.
    fn makes_tables(&self) -> bool {
        false
    }

    /// Whether what it would do on the target of a copy can be asked of the copy's source while there is no target.
    fn can_ask_the_source(&self) -> bool {
        false
    }

    /// What the names of the triggers begin with that it makes on the application's tables, as the step `step` of these
    /// runs of `plan`.
    fn triggers(&self, _plan: &str, _step: &StepId, _runs: &[RunId]) -> Vec<String> {
        Vec::new()
    }

    /// The programs that it starts, in words with their versions, or why one of them will not do. `versions`: the major
    /// versions of the plan's databases that could be reached.
    async fn programs(&self, _versions: &BTreeMap<String, u32>) -> Vec<Result<String>> {
        Vec::new()
    }

    /// A place in the midst of its work. The default is for work that is a single act: its end.
    fn midway(&self, _links: &Links, _place: usize) -> Midway {
        Midway::default()
    }

    /// How its effect can be taken back.
    fn reversibility(&self) -> Undo;

    /// Of a step whose undo is lossy: whether its facts in the journal say that a rollback may lose something.
    /// None: it may from the step's beginning to its undo.
    fn may_lose(&self) -> Option<Tells> {
        None
    }

    /// Whether its facts say that an undo which was begun has taken nothing back, so that the step may stay. None: it may
    /// not.
    fn is_whole(&self) -> Option<Tells> {
        None
    }

    /// What its undo would lose as things stand, counted. None: it counts nothing. It only looks, and within a bound.
    ///
    /// # Errors
    /// The lease, the journal or a stop; what else is in the way is part of the answer.
    async fn count_loss(&self, _cx: &Context) -> Result<Option<Counted>> {
        Ok(None)
    }

    /// Whether its undo writes what it loses to files when it is asked to ([`Context::export`]).
    fn exports_loss(&self) -> bool {
        false
    }

    /// The database that its undo can do without, once it is accepted that what is there is lost: the way back must not
    /// end where that server is gone.
    fn does_without(&self) -> Option<&str> {
        None
    }

    /// The database that it fills from nothing: its undo empties it.
    fn fills(&self) -> Option<&str> {
        None
    }

    /// The database whose content its undo leaves to the undo of the step that filled it.
    fn leaves(&self) -> Option<&str> {
        None
    }

    /// Says what it would do, through read-only sessions.
    async fn describe(&self, cx: &Context) -> Result<Description>;

    /// Does it, beginning with a look at what an earlier attempt left: after a crash it is simply called again.
    /// Returns a summary for the journal and the report.
    async fn run(&self, cx: &Context) -> Result<Value>;

    /// Proves that the effect is there. Called after `run`, and it must be able to fail.
    async fn verify(&self, cx: &Context) -> Result<()>;

    /// Takes the effect back, whether `run` was complete or not; called again after a crash.
    async fn undo(&self, cx: &Context) -> Result<Value>;

    /// Drops what was kept for `undo`; after this there is none.
    async fn finish(&self, _cx: &Context) -> Result<()> {
        Ok(())
    }

    /// Whether it leaves a standing task once it has run.
    fn stands(&self) -> bool {
        false
    }

    /// The standing task: runs until `cx.stop` fires or [`Ledger::end_standing`] ends it; restarted on resume.
    async fn stand(&self, _cx: &Context) -> Result<()> {
        Ok(())
    }
}

/// Reads a text file of the plan.
///
/// # Errors
/// A file that is not there or not UTF-8.
pub fn read_file(base: &Path, file: &Path) -> Result<String> {
    let path = base.join(file);
    std::fs::read_to_string(&path).map_err(|e| {
        Error::usage(format!("cannot read the file ({e})"))
            .in_file(path.display(), None)
            .hint("paths are relative to the plan's folder")
    })
}

/// The links between the steps of a plan.
#[must_use]
pub fn links(steps: &[Step]) -> Links {
    let mut links = Links { ids: steps.iter().map(|step| step.id.clone()).collect(), ..Links::default() };
    for (place, step) in steps.iter().enumerate() {
        step.kind.clone().link(&step.id, place, &mut links);
        links.writers.extend(step.kind.written().into_iter().map(|name| (place, name.to_owned())));
    }
    links
}
