//! What a plan says of a capture.

use crate::catalog::Form;
use crate::stream::Stream;
use crate::trigger::{Operation, Spec};
use handover_core::event::{RunId, StepId};
use handover_core::value::Duration;
use handover_postgres::TableName;
use handover_postgres::ours::OURS;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Captures every write to some tables into an outbox, and relays it to the queue.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Capture {
    /// The database whose writes are captured.
    pub from: String,
    /// What is captured, by table.
    #[schemars(extend("minProperties" = 1))]
    pub tables: BTreeMap<TableName, Table>,
    /// In how many partitions keys fall: that many are replayed at once. Order is kept for each key, and across
    /// keys only with 1.
    #[serde(default = "default_partitions")]
    #[schemars(range(min = 1, max = 256))]
    pub partitions: u32,
    /// What the stream's name in the queue begins with; the run's id follows. `handover.` and the step unless given.
    pub stream: Option<String>,
    /// How long one attempt to get a table's lock may hold up its writers; it is tried again for two minutes.
    #[serde(default = "default_lock_timeout")]
    pub lock_timeout: Duration,
    /// Above how many MiB of outbox the relay warns, as when the queue is down for long.
    #[serde(default = "default_budget")]
    pub outbox_budget_mb: u64,
}

fn default_partitions() -> u32 {
    4
}

fn default_lock_timeout() -> Duration {
    Duration::millis(500)
}

fn default_budget() -> u64 {
    1024
}

/// What is captured of one table.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Which operations.
    #[schemars(length(min = 1))]
    pub on: Vec<Operation>,
    /// Which of their rows: an SQL condition over `old` and `new`, without subqueries, for all operations or for
    /// each its own.
    pub when: Option<When>,
    /// The columns that identify a row; the primary key unless given. They must be NOT NULL and hold the columns
    /// of a unique index.
    pub key: Option<Vec<String>>,
    /// The columns that events carry besides the key; all of them unless given. What is left out never travels.
    pub columns: Option<Vec<String>>,
    /// What a TRUNCATE meets.
    #[serde(default)]
    pub truncate: Truncate,
    /// What becomes of writes that `on`, `when` and `columns` leave out of a table that is copied.
    #[serde(default)]
    pub rest: Rest,
}

/// A condition on rows.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum When {
    /// The same for every operation.
    All(String),
    /// For each operation its own; those that are not named have none.
    Each(BTreeMap<Operation, String>),
}

/// What to do about TRUNCATE, which names no rows and so cannot be captured in order with the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Truncate {
    /// It fails with a message that says why. An application that truncates is stopped from losing rows silently.
    #[default]
    Refuse,
    /// It goes through, and the new side keeps the rows.
    Ignore,
}

impl Table {
    /// The condition on the rows of an operation.
    pub(crate) fn condition(&self, operation: Operation) -> Option<&str> {
        match &self.when {
            None => None,
            Some(When::All(text)) => Some(text),
            Some(When::Each(each)) => each.get(&operation).map(String::as_str),
        }
    }

    /// Its triggers, as the table at the place `index` of a stream.
    pub(crate) fn spec<'a>(
        &'a self,
        stream: &Stream,
        index: usize,
        name: &'a TableName,
        key: &'a [String],
        forms: &'a [(String, Form)],
        leaves_out: &'a [String],
    ) -> Spec<'a> {
        Spec {
            capture: stream.id,
            partitions: stream.partitions,
            index,
            table: name,
            key,
            columns: self.columns.as_deref(),
            forms,
            operations: self.operations(),
            refuse_truncate: self.truncate == Truncate::Refuse,
            leaves_out,
        }
    }

    /// The operations in their order, each with its condition.
    pub(crate) fn operations(&self) -> Vec<(Operation, Option<&str>)> {
        let distinct: BTreeSet<Operation> = self.on.iter().copied().collect();
        distinct.into_iter().map(|operation| (operation, self.condition(operation))).collect()
    }
}

/// What becomes of writes to a captured table that `on`, `when` and `columns` leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rest {
    /// A cutover that finds some since the copy refuses, before anything is paused.
    #[default]
    Refuse,
    /// They may be lost: nobody asks for them.
    Ignore,
}

impl Capture {
    /// What the stream of this step is called in a run.
    #[must_use]
    pub fn stream_name(&self, run: RunId, step: &StepId) -> String {
        let prefix = self.stream.clone().unwrap_or_else(|| format!("{OURS}.{}", for_queue(step)));
        format!("{prefix}.{}", run.0.simple())
    }
}

/// A step's id as a part of a stream's name.
#[must_use]
pub fn for_queue(step: &StepId) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    step.as_str().chars().map(plain).take(100).collect()
}
