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
    /// Keeps what is seen as the baseline of later monitors.
    #[serde(default)]
    pub record: bool,
    /// The id of the earlier monitor with `record: true` that this one is compared with; the last one before it
    /// unless given.
    pub baseline: Option<String>,
    /// What a breach leads to; without it, the step's `on_failure`.
    pub on_breach: Option<OnBreach>,
    /// How many bad samples of a probe in a row are a breach; three unless given. A sample that cannot be
    /// taken is a bad one.
    #[schemars(range(min = 1))]
    pub breaches: Option<u32>,
    /// How many samples of a probe there must be before anything of it is a breach: samples of this watch, without
    /// those in its grace time, and samples of the baseline that it is compared with. As many as `breaches` unless
    /// given. Too few are told, and are never a breach.
    #[schemars(range(min = 1))]
    pub min_samples: Option<u32>,
    /// How long after the start samples do not count yet.
    pub grace: Option<Duration>,
}

/// Bad samples in a row that make a breach, unless the plan says otherwise.
const BREACHES: u32 = 3;

impl Monitor {
    /// Bad samples in a row that make a breach.
    pub(super) fn limit(&self) -> u32 {
        self.breaches.unwrap_or(BREACHES)
    }

    /// The samples that a breach needs.
    pub(super) fn enough(&self) -> usize {
        self.min_samples.unwrap_or_else(|| self.limit()).try_into().unwrap_or(usize::MAX)
    }
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
