//! What a plan says of bringing rows back.

use crate::throttle::Throttle;
use handover_core::event::StepId;
use handover_core::value::Duration;
use handover_postgres::TableName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Brings selected rows back.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// Where from: a database, or `{ quarantine: STEP }` for what an earlier cleanup of the target took away.
    pub from: Source,
    /// The database they come to.
    pub to: String,
    /// The table they come to.
    pub table: TableName,
    /// The table they come from, when it has another name.
    pub from_table: Option<TableName>,
    /// Which rows, as an SQL condition over the source.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// The target's columns that tell whether a row is there already; its primary key unless given.
    pub key: Option<Vec<String>>,
    /// The target's columns, each with its SQL expression over the source; unless given, the columns that both
    /// have.
    pub columns: Option<BTreeMap<String, String>>,
    /// What to do with a row that is there already.
    #[serde(default)]
    pub on_conflict: OnConflict,
    /// Rows brought in one transaction.
    #[serde(default = "default_batch")]
    #[schemars(range(min = 1, max = 100_000))]
    pub batch: u32,
    /// Rest between batches.
    #[serde(default = "default_pause")]
    pub pause: Duration,
    /// When to wait between batches.
    #[serde(default)]
    pub throttle: Throttle,
}

fn default_batch() -> u32 {
    2000
}

fn default_pause() -> Duration {
    Duration::millis(10)
}

/// Where rows come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Source {
    /// A database of the plan.
    Database(String),
    /// The rows that a cleanup deleted or quarantined.
    Archive {
        /// The cleanup's step id.
        quarantine: StepId,
    },
}

/// What to do with a row whose key the target has already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnConflict {
    /// Leave it as it is.
    #[default]
    Skip,
    /// Give it the source's values; undo gives it its own again.
    Overwrite,
}
