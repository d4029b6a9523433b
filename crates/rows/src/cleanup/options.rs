//! What a plan says of a cleanup.

use crate::expected::Expect;
use crate::sync::MoveTo;
use crate::throttle::Throttle;
use handover_core::event::StepId;
use handover_core::value::Duration;
use handover_postgres::TableName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Changes, deletes or sets aside rows in batches, or moves columns while old and new code run side by side.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cleanup {
    /// The database.
    pub on: String,
    /// The table.
    pub table: TableName,
    /// What to do with its rows.
    pub action: Action,
    /// Which rows, as an SQL condition over the table; it may have subqueries. `delete` and `quarantine` need it.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// The columns of a unique key to walk the table by; the primary key unless given.
    pub key: Option<Vec<String>>,
    /// For `update` and `backfill`: columns and the SQL expressions they are set to. Rows that have those values
    /// already are left alone.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// For `backfill`: the new table that columns move to.
    pub to: Option<MoveTo>,
    /// For `backfill`: old columns and how to derive them from the new ones, so that new code may write too.
    /// Without it the new columns only mirror the old until the triggers end.
    #[serde(default)]
    pub back: BTreeMap<String, String>,
    /// For `end_sync`: the `backfill` step whose triggers end here, at the hard cutover of the service.
    pub of: Option<StepId>,
    /// Rows changed in one transaction, at most; fewer when a batch takes more than a second.
    #[serde(default = "default_batch")]
    #[schemars(range(min = 1, max = 100_000))]
    pub batch: u32,
    /// Rest between batches.
    #[serde(default = "default_pause")]
    pub pause: Duration,
    /// How long a batch waits for a lock before it lets others go first and tries again.
    #[serde(default = "default_lock_timeout")]
    pub lock_timeout: Duration,
    /// When to wait between batches.
    #[serde(default)]
    pub throttle: Throttle,
    /// How many rows there should be; the step refuses before it touches another number of them.
    pub expect: Option<Expect>,
    /// What to do with rows that refer to a deleted row.
    #[serde(default)]
    pub children: Children,
}

fn default_batch() -> u32 {
    5000
}

fn default_pause() -> Duration {
    Duration::millis(10)
}

fn default_lock_timeout() -> Duration {
    Duration::secs(2)
}

/// What a cleanup does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Sets columns of the rows (`set`).
    Update,
    /// Deletes the rows; they are kept for undo until `handover finish`.
    Delete,
    /// Deletes the rows and keeps them in `handover.archive`, also after `handover finish`.
    Quarantine,
    /// Fills new columns (`set`) or a new table (`to`) from old columns, and keeps them in step by triggers
    /// until an `end_sync` step or `handover finish`.
    Backfill,
    /// Ends the triggers of an earlier backfill (`of`).
    EndSync,
}

/// What becomes of rows that refer to a deleted row by a foreign key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Children {
    /// The step stops before it touches a row that others refer to, even where ON DELETE CASCADE would hide it.
    #[default]
    Refuse,
    /// They are deleted and archived too, and theirs before them; undo brings all of them back.
    Archive,
}

impl Action {
    /// As it stands in a plan.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Action::Update => "update",
            Action::Delete => "delete",
            Action::Quarantine => "quarantine",
            Action::Backfill => "backfill",
            Action::EndSync => "end_sync",
        }
    }
}
