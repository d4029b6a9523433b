//! What a monitor has seen of a probe, and what it makes of it. Pure: no clock, no I/O.

use super::probe::{Latency, Probe, Reading};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::VecDeque;

/// How many samples medians and percentiles are taken over, counted from the last.
const WINDOW: usize = 500;
/// Percentiles of fewer samples than this are only judged at the end.
const SETTLED: usize = 20;

/// The last samples of one number, with the extremes of all of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    recent: VecDeque<f64>,
    min: Option<f64>,
    max: Option<f64>,
}

impl Series {
    /// Adds a sample. Kept to six significant decimals, which keeps the journal small.
    pub fn add(&mut self, value: f64) {
        let value = (value * 1e6).round() / 1e6;
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(value);
        self.min = Some(self.min.map_or(value, |min| min.min(value)));
        self.max = Some(self.max.map_or(value, |max| max.max(value)));
    }

    /// The smallest value that at least the share `q` of the samples does not exceed (nearest rank).
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    pub fn percentile(&self, q: f64) -> Option<f64> {
        let mut sorted: Vec<f64> = self.recent.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let rank = (q * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.max(1) - 1).copied()
    }

    /// How many samples percentiles are taken over.
    #[must_use]
    pub fn len(&self) -> usize {
        self.recent.len()
    }

    /// Whether there is no sample.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.recent.is_empty()
    }

    /// The median.
    #[must_use]
    pub fn median(&self) -> Option<f64> {
        self.percentile(0.5)
    }

    /// Minimum, median, 95th and 99th percentile, and maximum.
    #[must_use]
    pub fn summary(&self) -> Option<Value> {
        Some(serde_json::json!({
            "min": self.min?, "median": self.median()?, "p95": self.percentile(0.95)?,
            "p99": self.percentile(0.99)?, "max": self.max?
        }))
    }
}

/// What was seen of one probe.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Samples that were as they should be.
    pub good: u64,
    /// Samples that were not, those that failed included.
    pub bad: u64,
    /// Samples that could not be taken.
    pub failed: u64,
    /// How often so many bad ones came in a row that it was a breach.
    pub breaches: u64,
    /// Those of all these samples that were taken in the grace time.
    #[serde(default)]
    pub grace: u64,
    /// The values of answers, without those in the grace time and those that were wrong whatever their value.
    #[serde(default)]
    pub values: Series,
    /// The times of the same answers, in milliseconds.
    #[serde(default)]
    pub times: Series,
    /// Bad samples in a row up to now; a resumed run starts counting again.
    #[serde(skip)]
    pub streak: u32,
    /// Whether these were told as a breach.
    #[serde(skip)]
    pub told: bool,
    /// The last sample in words.
    #[serde(default)]
    pub last: String,
}

/// What a sample is judged by, besides its probe.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules<'a> {
    /// What the probe showed in the baseline.
    pub baseline: Option<&'a Stats>,
    /// The least number of samples that say anything.
    pub enough: usize,
    /// Whether samples do not count yet.
    pub grace: bool,
}

impl Stats {
    /// Takes a sample in: a reading, or why there is none. Returns what is wrong with it.
    pub fn take(
        &mut self,
        probe: &Probe,
        sample: Result<&Reading, &str>,
        rules: &Rules<'_>,
    ) -> Option<String> {
        let wrong = match sample {
            Err(why) => {
                self.failed += 1;
                why.clone_into(&mut self.last);
                Some(why.to_owned())
            }
            Ok(reading) => {
                if reading.wrong.is_none() && !rules.grace {
                    if let Some(value) = reading.value {
                        self.values.add(value);
                    }
                    self.times.add(reading.ms);
                }
                self.last.clone_from(&reading.text);
                reading
                    .wrong
                    .clone()
                    .or_else(|| judge(probe, reading, rules))
                    .or_else(|| self.slow(probe.latency.as_ref(), rules.enough.max(SETTLED)))
            }
        };
        self.grace += u64::from(rules.grace);
        match &wrong {
            Some(why) => {
                self.last.clone_from(why);
                self.bad += 1;
            }
            None => self.good += 1,
        }
        match &wrong {
            Some(_) if !rules.grace => self.streak += 1,
            _ => (self.streak, self.told) = (0, false),
        }
        wrong
    }

    /// How many samples count.
    #[must_use]
    pub fn counted(&self) -> usize {
        usize::try_from((self.good + self.bad).saturating_sub(self.grace)).unwrap_or(usize::MAX)
    }

    /// Whether its bad samples are a breach now: so many in a row, of enough. Each row of them is one only once.
    pub fn breaks(&mut self, limit: u32, enough: usize) -> bool {
        let breaks = self.streak >= limit && self.counted() >= enough && !self.told;
        if breaks {
            self.told = true;
            self.breaches += 1;
        }
        breaks
    }

    /// What is wrong with the percentiles, once there are enough samples.
    #[must_use]
    pub fn slow(&self, limits: Option<&Latency>, enough: usize) -> Option<String> {
        let limits = limits?;
        if self.times.len() < enough {
            return None;
        }
        [
            ("median", 0.5, limits.p50),
            ("95th percentile", 0.95, limits.p95),
            ("99th percentile", 0.99, limits.p99),
        ]
        .into_iter()
        .find_map(|(name, q, limit)| {
            let (limit, found) = (limit?, self.times.percentile(q)?);
            (found > limit.0.as_secs_f64() * 1000.0)
                .then(|| format!("the {name} of the answers' times is {found:.1} ms, more than {limit}"))
        })
    }
}

/// What is wrong with a reading.
fn judge(probe: &Probe, reading: &Reading, rules: &Rules<'_>) -> Option<String> {
    let needs_number = probe.min.is_some() || probe.max.is_some();
    let shown = &reading.text;
    if needs_number && reading.value.is_none() {
        return Some(format!("`{shown}` is not a number"));
    }
    if let (Some(max), Some(value)) = (probe.max, reading.value)
        && value > max
    {
        return Some(format!("{value} is more than {max}"));
    }
    if let (Some(min), Some(value)) = (probe.min, reading.value)
        && value < min
    {
        return Some(format!("{value} is less than {min}"));
    }
    if let Some(wanted) = &probe.equals {
        let equal = match (wanted, reading.value) {
            (Value::Bool(wanted), _) => shown == if *wanted { "true" } else { "false" },
            (Value::Number(wanted), Some(value)) => {
                wanted.as_f64().is_some_and(|w| (w - value).abs() <= f64::EPSILON * w.abs())
            }
            (Value::String(wanted), _) => shown == wanted,
            _ => false,
        };
        if !equal {
            return Some(format!("`{shown}` is not {wanted}"));
        }
    }
    if let Some(limit) = probe.latency.as_ref().and_then(|latency| latency.max)
        && reading.ms > limit.0.as_secs_f64() * 1000.0
    {
        return Some(format!("it took {:.1} ms, more than {limit}", reading.ms));
    }
    if let Some(within) = probe.within {
        let Some(baseline) = rules.baseline else {
            return Some("there is no baseline to compare with".into());
        };
        // Of an answer's time only more is worse; of a value any change may be.
        let timed = probe.is_timed();
        let (found, series, unit) = if timed {
            (Some(reading.ms), &baseline.times, " ms")
        } else {
            (reading.value, &baseline.values, "")
        };
        let (Some(found), Some(usual)) = (found, series.median()) else {
            return Some(format!("`{shown}` cannot be compared with the baseline"));
        };
        let allowed = usual.abs() * within.0 / 100.0;
        let outside = found - usual > allowed || (!timed && usual - found > allowed);
        // A baseline of a few samples says little of what is usual.
        if outside && series.len() >= rules.enough {
            return Some(format!(
                "{found:.3}{unit} is not within {within} of the baseline's {usual:.3}{unit}"
            ));
        }
    }
    if probe.is_plain_sql() && shown != "true" {
        return Some(format!("the query gives `{shown}`, not true"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ALONE: Rules<'static> = Rules { baseline: None, enough: 1, grace: false };

    fn probe(value: Value) -> Probe {
        serde_json::from_value(value).unwrap()
    }

    fn reading(text: &str, ms: f64) -> Reading {
        Reading { value: text.parse().ok(), text: text.into(), ms, wrong: None }
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let mut series = Series::default();
        assert_eq!(series.median(), None);
        for value in 1..=100 {
            series.add(f64::from(value));
        }
        assert_eq!((series.median(), series.percentile(0.99)), (Some(50.0), Some(99.0)));
        for value in 0..1000 {
            series.add(f64::from(value));
        }
        assert_eq!(series.median(), Some(749.0), "the last 500 count");
        assert_eq!((series.min, series.max), (Some(0.0), Some(999.0)), "of all samples");
    }

    #[test]
    fn thresholds_and_equality() {
        let sql = json!({ "on": "green", "query": "select 1" });
        let limits = probe(json!({ "name": "x", "sql": sql, "min": 2, "max": 3 }));
        assert_eq!(judge(&limits, &reading("2.5", 0.0), &ALONE), None);
        assert_eq!(judge(&limits, &reading("4", 0.0), &ALONE).unwrap(), "4 is more than 3");
        assert_eq!(judge(&limits, &reading("1", 0.0), &ALONE).unwrap(), "1 is less than 2");
        assert_eq!(judge(&limits, &reading("many", 0.0), &ALONE).unwrap(), "`many` is not a number");
        let plain = probe(json!({ "name": "x", "sql": sql }));
        assert_eq!(judge(&plain, &reading("true", 0.0), &ALONE), None);
        assert!(judge(&plain, &reading("17", 0.0), &ALONE).is_some());
        for (equals, good, bad) in
            [(json!(1), "1.0", "2"), (json!("ok"), "ok", "no"), (json!(true), "true", "t")]
        {
            let probe = probe(json!({ "name": "x", "sql": sql, "equals": equals }));
            assert_eq!(judge(&probe, &reading(good, 0.0), &ALONE), None);
            assert!(judge(&probe, &reading(bad, 0.0), &ALONE).is_some(), "{bad}");
        }
    }

    #[test]
    fn a_baseline_bounds_values_on_both_sides_and_times_above() {
        let mut usual = Stats::default();
        let sql = probe(json!({ "name": "x", "sql": { "on": "g", "query": "select 1" }, "within": "20%" }));
        let http = probe(json!({ "name": "x", "http": { "url": "http://x" }, "within": "20%" }));
        for value in [90.0, 100.0, 110.0] {
            usual.values.add(value);
            usual.times.add(value);
        }
        let rules = Rules { baseline: Some(&usual), enough: 3, grace: false };
        for (text, fine) in [("80", true), ("120", true), ("79", false), ("121", false)] {
            assert_eq!(judge(&sql, &reading(text, 0.0), &rules).is_none(), fine, "{text}");
        }
        for (ms, fine) in [(1.0, true), (120.0, true), (121.0, false)] {
            assert_eq!(judge(&http, &reading("200", ms), &rules).is_none(), fine, "{ms}");
        }
        assert!(judge(&sql, &reading("100", 0.0), &ALONE).is_some(), "no baseline is no pass");
        let few = Rules { enough: 4, ..rules };
        assert!(
            judge(&sql, &reading("200", 0.0), &few).is_none(),
            "a baseline of a few samples says nothing"
        );
    }

    #[test]
    fn streaks_count_failures_too() {
        let probe =
            probe(json!({ "name": "x", "http": { "url": "http://x" }, "latency": { "p50": "10ms" } }));
        let mut stats = Stats::default();
        assert!(stats.take(&probe, Err("refused"), &ALONE).is_some());
        assert!(
            stats
                .take(&probe, Ok(&Reading { wrong: Some("500".into()), ..reading("500", 1.0) }), &ALONE)
                .is_some()
        );
        assert_eq!((stats.streak, stats.failed, stats.bad), (2, 1, 2));
        assert!(stats.take(&probe, Ok(&reading("200", 50.0)), &ALONE).is_none(), "too few for a percentile");
        assert_eq!(stats.streak, 0);
        assert!(stats.slow(probe.latency.as_ref(), 1).is_some(), "but at the end it counts");
    }

    #[test]
    fn a_breach_needs_a_row_of_bad_samples_and_enough_of_all() {
        let probe = probe(json!({ "name": "x", "sql": { "on": "g", "query": "select 1" }, "max": 1 }));
        let mut stats = Stats::default();
        let told: Vec<bool> = ["0", "9", "9", "9", "9", "0", "9", "9"]
            .iter()
            .map(|text| {
                stats.take(&probe, Ok(&reading(text, 0.0)), &ALONE);
                stats.breaks(2, 5)
            })
            .collect();
        assert_eq!(told, [false, false, false, false, true, false, false, true], "once for each row");
        assert_eq!(stats.breaches, 2);
    }

    #[test]
    fn samples_of_the_grace_time_count_for_nothing() {
        let probe = probe(json!({ "name": "x", "sql": { "on": "g", "query": "select 1" }, "max": 1 }));
        let mut stats = Stats::default();
        for _ in 0..5 {
            assert!(stats.take(&probe, Ok(&reading("9", 700.0)), &Rules { grace: true, ..ALONE }).is_some());
            assert!(!stats.breaks(1, 1));
        }
        stats.take(&probe, Ok(&reading("1", 5.0)), &ALONE);
        assert_eq!((stats.counted(), stats.bad, stats.streak), (1, 5, 0));
        assert_eq!((stats.values.percentile(0.99), stats.times.percentile(0.99)), (Some(1.0), Some(5.0)));
    }
}
