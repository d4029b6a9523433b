//! How far a watch is and what it saw, as the journal keeps it.

use super::stats::Stats;
use crate::table::Table;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// The journal's fact, also the baseline of a later monitor.
pub(super) const SOAK: &str = "soak";

/// How far a watch is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Soak {
    pub(super) elapsed_ms: u64,
    pub(super) done: bool,
    pub(super) probes: BTreeMap<String, Stats>,
}

impl Soak {
    pub(super) fn elapsed(&self) -> Duration {
        Duration::from_millis(self.elapsed_ms)
    }

    pub(super) fn advance(&mut self, time: Duration) {
        self.elapsed_ms = self.elapsed_ms.saturating_add(u64::try_from(time.as_millis()).unwrap_or(0));
    }

    /// The step's summary.
    pub(super) fn summary(&self, table: &Table) -> Value {
        let probes: Map<String, Value> = self
            .probes
            .iter()
            .map(|(name, stats)| {
                let value = json!({
                    "good": stats.good, "bad": stats.bad, "failed": stats.failed, "breaches": stats.breaches,
                    "value": stats.values.summary(), "ms": stats.times.summary(), "last": stats.last,
                });
                (name.clone(), value)
            })
            .collect();
        json!({ "seconds": self.elapsed().as_secs_f64(), "probes": probes, "table": table })
    }
}
