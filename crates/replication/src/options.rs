//! What a plan says of a replication.

use handover_core::value::{Duration, EnvString};
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;

/// Replicates what a copy copied, from server to server, until the cutover.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Replicate {
    /// The database that is replicated: the `from` of the copy before.
    pub from: String,
    /// The database that follows: the `to` of the copy before.
    pub to: String,
    /// How the server of `to` reaches the database `from`, when that is not by the URL that the plan has for it.
    pub connection: Option<EnvString>,
    /// How late changes may arrive to count as caught up.
    #[serde(default = "default_max_lag")]
    pub max_lag: Duration,
    /// How many MiB of log the slot may keep on the disk of `from`: a warning at 70 %, and at 100 % replication is
    /// ended before the disk is at risk. Unless given, 80 % of `max_slot_wal_keep_size` there.
    #[schemars(range(min = 1))]
    pub wal_budget_mb: Option<u64>,
    /// Replicates though `max_slot_wal_keep_size` is without limit on `from`: then only this engine, while it runs,
    /// keeps the slot from filling the disk. Needs `wal_budget_mb`.
    #[serde(default)]
    pub waive_slot_limit: bool,
    /// How long to wait, before the copy, for transactions that write on `from`: the slot begins after them.
    #[serde(default = "default_patience")]
    pub patience: Duration,
    /// Folder with psql; searched for unless given.
    pub programs: Option<PathBuf>,
}

fn default_max_lag() -> Duration {
    Duration::secs(2)
}

fn default_patience() -> Duration {
    Duration::secs(600)
}

impl Replicate {
    /// How much log the slot may keep, given what the server allows at most.
    pub(crate) fn budget(&self, limit: Option<u64>) -> u64 {
        match (self.wal_budget_mb, limit) {
            (Some(mb), _) => mb << 20,
            (None, Some(limit)) => limit / 5 * 4,
            (None, None) => u64::MAX,
        }
    }
}
