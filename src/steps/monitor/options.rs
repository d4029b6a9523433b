//! What a plan says of a watch.

use super::probe::Probe;
use crate::value::Duration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Watches probes for a while.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Monitor {
    /// How long.
    #[serde(rename = "for")]
    pub time: Duration,
    /// How often each probe is asked; every five seconds unless given.
    #[serde(default = "five_seconds")]
    pub every: Duration,
    /// What is asked, all of them at once each time.
    #[schemars(length(min = 1))]
    pub probes: Vec<Probe>,
    /// Keeps medians and percentiles as the baseline for a later monitor.
    #[serde(default)]
    pub record: bool,
    /// The id of an earlier monitor with `record: true`, for probes with `within:`.
    pub baseline: Option<String>,
    /// What a breach leads to; without it, the step's `on_failure`.
    pub on_breach: Option<OnBreach>,
    /// How many bad samples of a probe in a row are a breach; three unless given. A sample that cannot be
    /// taken is a bad one.
    #[schemars(range(min = 1))]
    pub breaches: Option<u32>,
    /// How long after the start bad samples do not count yet.
    pub grace: Option<Duration>,
}

fn five_seconds() -> Duration {
    Duration::secs(5)
}

/// What a breach leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBreach {
    /// The run stops; the operator decides.
    Halt,
    /// The run is rolled back; the step must say `on_failure: rollback`.
    Rollback,
    /// It is told and counted, and the watch goes on.
    Warn,
}
