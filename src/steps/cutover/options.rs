//! What a plan says of a cutover.

use super::gates::{Ask, Blockers, Survives, Window};
use crate::event::{RunId, StepId};
use crate::postgres::TableName;
use crate::postgres::ours::OURS;
use crate::problem::few;
use crate::value::{Duration, EnvString};
use handover_actions::{Action, FileWrite};
use handover_events::capture::{Capture, Table, for_queue};
use handover_events::replay::{Mapping, Mode, OnPoison, Replay};
use handover_pooler::PgBouncer;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Flips participants together, with writes on the old side held off meanwhile and refused afterwards.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cutover {
    /// The database that is handed over; its writes are held off, then refused. Without it only participants flip.
    pub freeze: Option<String>,
    /// The database that takes over; its sequences are set from the old side's.
    pub to: Option<String>,
    /// Tables that are not frozen, such as logs that may be lost. What is written to them after the copy and not
    /// captured is left behind.
    #[serde(default)]
    pub except: BTreeSet<TableName>,
    /// The budget for the time in which writes are held off until the decision. An attempt that does not keep it
    /// is called off, and the old side serves on.
    #[serde(default = "default_pause")]
    pub write_pause: Duration,
    /// How long participants may take to prepare, all together.
    #[serde(default = "default_prepare")]
    pub prepare_timeout: Duration,
    /// How long a participant that cannot commit is tried again before the step fails. The decision stands then, and
    /// `handover resume` goes on.
    #[serde(default = "default_commit")]
    pub commit_timeout: Duration,
    /// How often the whole is tried before the step fails.
    #[serde(default = "default_attempts")]
    #[schemars(range(min = 1))]
    pub attempts: u32,
    /// The wait between two attempts.
    #[serde(default = "default_backoff")]
    pub backoff: Duration,
    /// How long to wait, before anything is paused, for replay to catch up and for long transactions to end.
    #[serde(default = "default_patience")]
    pub patience: Duration,
    /// How many captured events may be waiting for replay when the pause begins.
    #[serde(default = "default_backlog")]
    pub max_backlog: u32,
    /// Whether captured events may be set aside (`handover.event_quarantine`) when the new side takes over: `true`, or
    /// how many at most. Otherwise the cutover refuses while any is.
    #[serde(default)]
    pub allow_quarantined: Allowed,
    /// How old a transaction that wrote to the frozen tables may be when the pause begins.
    #[serde(default = "default_transaction_age")]
    pub max_transaction_age: Duration,
    /// How many steps beyond the old side's position each sequence of the new side begins, for values that are drawn
    /// during the pause without a write to a table. Never more than a hundredth of what a sequence has left.
    #[serde(default = "default_margin")]
    pub sequence_margin: u32,
    /// What may have changed on the old side since earlier steps relied on it, as the refusal names it: `column
    /// public.payment.note`.
    #[serde(default)]
    pub allow_drift: BTreeSet<String>,
    /// Whether the new side may hold what was written on it while an earlier decision stood, which was taken back.
    #[serde(default)]
    pub allow_served: bool,
    /// A stream of what is written on the new side back to the old one, from its first write on: with it, a rollback of
    /// the cutover loses nothing.
    pub reverse: Option<Reverse>,
    /// What becomes of clients' sessions that are in the way of the freeze: `wait` (the default), `cancel`, `terminate`, or
    /// a rule.
    #[serde(default)]
    pub blockers: Blockers,
    /// When the pause may begin: days and times, and how busy the old side may be. Always unless given.
    pub window: Option<Window>,
    /// Waits for `handover approve` when everything is proven, just before the freeze.
    pub approve: Option<Ask>,
    /// Queries whose answers must be the same on both sides: before the pause, or within it if they are `quick`.
    #[serde(default)]
    pub invariants: Vec<Survives>,
    /// The systems that flip.
    #[schemars(length(min = 1))]
    pub participants: Vec<Participant>,
}

fn default_pause() -> Duration {
    Duration::secs(2)
}
fn default_prepare() -> Duration {
    Duration::secs(10)
}
fn default_commit() -> Duration {
    Duration::secs(300)
}
fn default_attempts() -> u32 {
    10
}
fn default_backoff() -> Duration {
    Duration::secs(5)
}
fn default_patience() -> Duration {
    Duration::secs(600)
}
fn default_backlog() -> u32 {
    1000
}
fn default_margin() -> u32 {
    1000
}
fn default_transaction_age() -> Duration {
    Duration::secs(1)
}

impl Cutover {
    /// What a rollback loses by the plan's own word although everything else is carried back: tables, and writes to them.
    #[must_use]
    pub fn loses(&self) -> Vec<String> {
        let Some(reverse) = &self.reverse else { return Vec::new() };
        let parts = reverse
            .tables
            .iter()
            .filter_map(|(name, table)| table.lets_go().map(|what| format!("writes to {name} ({what})")));
        reverse.loses.iter().map(ToString::to_string).chain(parts).collect()
    }

    /// The same, as the end of a sentence.
    #[must_use]
    pub fn but_for(&self) -> String {
        match self.loses() {
            lost if lost.is_empty() => String::new(),
            lost => format!(", but for {}", few(&lost.iter().collect::<Vec<_>>())),
        }
    }

    /// What the stream of events back is called in a run; none where nothing is carried back, or the servers do it.
    #[must_use]
    pub fn stream_back(&self, run: RunId, step: &StepId) -> Option<String> {
        let reverse = self.reverse.as_ref().filter(|reverse| reverse.is_replayed())?;
        Some(reverse.capture(self.to.as_ref()?, step).stream_name(run, step))
    }
}

/// What a plan says of the stream back.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Reverse {
    /// How the server of the old side reaches the new one, when that is not by the URL that the plan has for it.
    pub connection: Option<EnvString>,
    /// How late changes may arrive on the old side when the way back is taken.
    pub max_lag: Duration,
    /// How many MiB of log the slot may keep on the disk of the new side: a warning at 70 %, and at 100 % the stream
    /// is ended before the disk is at risk. Unless given, 80 % of `max_slot_wal_keep_size` there.
    #[schemars(range(min = 1))]
    pub wal_budget_mb: Option<u64>,
    /// Tables of the new side that are not carried back: what is written to them after the cutover is lost by a rollback,
    /// and the next cutover to that side is refused until it is made anew.
    pub loses: BTreeSet<TableName>,
    /// What is captured on the new side, by table, where the two sides have different schemas: as a `capture` step says it.
    /// Unless given, the servers replicate, which takes one schema on both sides.
    pub tables: BTreeMap<TableName, Table>,
    /// What these events mean on the old side, by the table they were captured from: as a `replay` step says it.
    pub events: BTreeMap<TableName, Mapping>,
    /// In how many partitions keys of `tables` fall: that many are replayed at once.
    #[schemars(range(min = 1, max = 256))]
    pub partitions: u32,
    /// What to do about an event that changes nothing on the old side, though its effect is not there already.
    pub on_missing: OnPoison,
    /// What to do about an event that the old side refuses, as for a constraint.
    pub on_error: OnPoison,
}

impl Default for Reverse {
    fn default() -> Self {
        Reverse {
            connection: None,
            max_lag: Duration::secs(2),
            wal_budget_mb: None,
            loses: BTreeSet::new(),
            tables: BTreeMap::new(),
            events: BTreeMap::new(),
            partitions: 4,
            on_missing: OnPoison::Halt,
            on_error: OnPoison::Halt,
        }
    }
}

impl Reverse {
    /// Whether writes are captured on the new side and replayed on the old one, rather than replicated by the servers.
    #[must_use]
    pub fn is_replayed(&self) -> bool {
        !self.tables.is_empty() || !self.events.is_empty()
    }

    /// The capture on the new side `from`, as a step would say it.
    #[must_use]
    pub fn capture(&self, from: &str, step: &StepId) -> Capture {
        Capture {
            from: from.to_owned(),
            tables: self.tables.clone(),
            partitions: self.partitions,
            // Not that of a capture step: both may be in one queue.
            stream: Some(format!("{OURS}.back.{}", for_queue(step))),
            lock_timeout: Duration::millis(500),
            outbox_budget_mb: 1024,
        }
    }

    /// The replay into the old side `to`, as a step would say it.
    #[must_use]
    pub fn replay(&self, to: &str) -> Replay {
        Replay {
            to: to.to_owned(),
            from: None,
            events: self.events.clone(),
            mode: Some(Mode::Tail),
            batch: 500,
            caught_up: 0,
            on_missing: self.on_missing,
            on_error: self.on_error,
        }
    }
}

/// One system of the cutover. `commit`, `file` and `pgbouncer` exclude each other.
///
/// Every action must be safe to repeat: after a crash nobody knows whether it took effect. A `prepare` that makes
/// a system hold its requests needs a time limit of its own there, for a runner that dies cannot release it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Participant {
    /// Its name in messages.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Proves that it is able to flip, before anything is paused.
    pub check: Option<Action>,
    /// Readies it; it may hold its clients from here.
    pub prepare: Option<Action>,
    /// Flips it.
    pub commit: Option<Action>,
    /// Lets it go on with the old side when the cutover is called off. Also sent where `prepare` failed.
    pub abort: Option<Action>,
    /// Turns it back after it was flipped.
    pub revert: Option<Action>,
    /// Proves that it flipped.
    pub verify: Option<Action>,
    /// A file that is its switch: replaced on commit, and what it was comes back when it is turned back.
    pub file: Option<FileWrite>,
    /// A PgBouncer that is its switch: held from prepare on, and its entry turned to the new side on commit.
    pub pgbouncer: Option<PgBouncer>,
}

/// How many captured events may be set aside when the new side takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Allowed {
    /// Any number, or none.
    Any(bool),
    /// So many events, at most.
    AtMost(u32),
}

impl Default for Allowed {
    fn default() -> Self {
        Allowed::Any(false)
    }
}

impl Allowed {
    /// The number.
    pub(super) fn limit(self) -> i64 {
        match self {
            Allowed::Any(true) => i64::MAX,
            Allowed::Any(false) => 0,
            Allowed::AtMost(n) => n.into(),
        }
    }
}
