//! What a plan says of a replay.

use super::mapping::Mapping;
use handover_core::event::StepId;
use handover_postgres::TableName;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Applies captured events to another database.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Replay {
    /// The database that events are applied to.
    pub to: String,
    /// The capture step whose events they are; not needed if there is only one before this step.
    pub from: Option<StepId>,
    /// What events mean, by the table they were captured from. Every captured operation needs a meaning.
    pub events: BTreeMap<TableName, Mapping>,
    /// Whether to leave a task that keeps up (`tail`) or to finish (`drain`): `drain` after a cutover, else `tail`.
    pub mode: Option<Mode>,
    /// Events in one transaction, for each partition.
    #[serde(default = "default_batch")]
    #[schemars(range(min = 1, max = 10_000))]
    pub batch: u32,
    /// How many events may wait for a tailing replay to count as caught up.
    #[serde(default = "default_near")]
    pub caught_up: u32,
    /// What to do about an event that changes nothing, though its effect is not there already.
    #[serde(default)]
    pub on_missing: OnPoison,
    /// What to do about an event that the server refuses, as for a constraint.
    #[serde(default)]
    pub on_error: OnPoison,
}

fn default_batch() -> u32 {
    500
}

fn default_near() -> u32 {
    100
}

/// What a replay is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Catches up, then keeps up until a later step ends it.
    Tail,
    /// Finishes the stream: waits until everything captured has its outcome, and ends relay and tail.
    Drain,
}

/// What to do about an event that cannot be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnPoison {
    /// Stop and say so. The event and all behind it stay in the outbox.
    #[default]
    Halt,
    /// Set it aside in `handover.event_quarantine`, and every later event of its key, which would otherwise overtake it.
    Quarantine,
}
