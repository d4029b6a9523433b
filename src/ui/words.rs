//! Records and amounts in words.

use crate::error::Class;
use crate::event::{Measure, Record, StepId};
use indicatif::{BinaryBytes, HumanCount};
use serde_json::Value;

/// A record as a line for people; none for those only machines need.
#[must_use]
pub fn sentence(record: &Record) -> Option<String> {
    Some(match record {
        Record::RunStarted { plan, digest, .. } => {
            format!("run of plan `{plan}` started (digest {})", short(digest))
        }
        Record::Attached { holder, token, accepted_digest, .. } => match accepted_digest {
            Some(digest) => {
                format!("{holder} acts (token {token}), accepting the changed digest {}", short(digest))
            }
            None => format!("{holder} acts (token {token})"),
        },
        Record::StepStarted { step, attempt: 1 } => format!("{step}: started"),
        Record::StepStarted { step, attempt } => format!("{step}: started again (attempt {attempt})"),
        Record::StepFact { step, key, value } if key == crate::steps::cutover::FACT => {
            let flip: crate::steps::cutover::Flip = serde_json::from_value(value.clone()).ok()?;
            format!("{step}: {}", flip.words()?)
        }
        Record::StepFact { .. } => return None,
        Record::Note { step: Some(step), text, .. } => format!("{step}: {text}"),
        Record::Note { step: None, text, .. } => text.clone(),
        Record::StepDone { step, summary } => match summary_words(summary) {
            words if words.is_empty() => format!("{step}: done"),
            words => format!("{step}: done ({words})"),
        },
        // Waiting for a person is no failure.
        Record::StepFailed { step, failure } if failure.class == Class::Waiting => {
            format!("{step}: {}", of_step(step, &failure.message))
        }
        Record::StepFailed { step, failure } => {
            format!("{step}: failed: {}", of_step(step, &failure.message))
        }
        Record::StandingEnded { step, .. } => format!("{step}: standing task ended"),
        Record::PointOfNoReturn { step } => format!("{step}: point of no return passed"),
        Record::RollbackStarted { to: None, reason, .. } => format!("rolling back everything ({reason})"),
        Record::RollbackStarted { to: Some(to), reason, .. } => format!("rolling back to `{to}` ({reason})"),
        Record::UndoStarted { step, attempt: 1 } => format!("{step}: undoing"),
        Record::UndoStarted { step, attempt } => format!("{step}: undoing again (attempt {attempt})"),
        Record::UndoDone { step, summary } => match summary.get("loses").and_then(Value::as_str) {
            Some(words) => format!("{step}: undone; lost: {words}"),
            None => format!("{step}: undone"),
        },
        Record::UndoFailed { step, failure } => {
            format!("{step}: undo failed: {}", of_step(step, &failure.message))
        }
        Record::Halted { reason, class: Class::Waiting | Class::Cancelled } => format!("stopped: {reason}"),
        Record::Halted { reason, .. } => format!("halted: {reason}"),
        Record::RunDone => "run done".into(),
        Record::RunRolledBack { to: None } => "run rolled back".into(),
        Record::RunRolledBack { to: Some(to) } => format!("run rolled back to `{to}`"),
        Record::RunAborted { reason } => format!("run aborted ({reason})"),
        Record::FinishStarted => "dropping what was kept for rollback".into(),
        Record::Finished => "run finished".into(),
    })
}

/// A message where the step was named before it.
#[must_use]
pub fn of_step<'a>(step: &StepId, message: &'a str) -> &'a str {
    message.strip_prefix(&format!("step `{step}`: ")).unwrap_or(message)
}

/// That a stop was asked for, and what it waits for: the step in work and how long it has been. `bound`: something goes
/// on that must not be cut short, and Ctrl-C does not end it either.
#[must_use]
pub fn stopping(work: Option<(&StepId, std::time::Duration)>, bound: bool) -> String {
    let after = match work {
        Some((step, long)) => {
            format!(
                "step `{step}` (at work for {}) goes on to its next safe place",
                duration(long.as_secs_f64())
            )
        }
        None => "the run ends at its next safe place".to_owned(),
    };
    match bound {
        true => {
            format!("stopping: {after}; what it is at must not be cut short, and Ctrl-C again ends nothing")
        }
        false => {
            format!("stopping: {after}; Ctrl-C again ends it at once, which `handover resume` survives too")
        }
    }
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// An amount with its unit, and of how much.
#[must_use]
pub fn amount(done: u64, total: Option<u64>, measure: Measure) -> String {
    let one = |n: u64| match measure {
        Measure::Bytes => BinaryBytes(n).to_string(),
        Measure::Rows => format!("{} rows", HumanCount(n)),
        Measure::Blocks => format!("{} blocks", HumanCount(n)),
        Measure::Events => format!("{} events", HumanCount(n)),
        Measure::Items => HumanCount(n).to_string(),
        Measure::Seconds => format!("{n} s"),
    };
    match total {
        #[allow(clippy::cast_precision_loss)]
        Some(total) if total > 0 => {
            format!("{} of {} ({:.0} %)", one(done), one(total), done as f64 * 100.0 / total as f64)
        }
        _ => one(done),
    }
}

/// A step's summary as a line: `rows: 1,200, built: a b`. Empty when it says nothing. A table is left out
/// ([`super::table`] shows it).
#[must_use]
pub fn summary_words(summary: &Value) -> String {
    let Value::Object(map) = summary else { return one(summary) };
    let parts: Vec<String> = map
        .iter()
        // It is shown as one.
        .filter(|(key, _)| *key != crate::table::KEY)
        .filter_map(|(key, value)| {
            // Nobody reads 16,810 ms.
            let (key, text) = match (key.strip_suffix("_ms"), value.as_f64()) {
                (Some(key), Some(ms)) => (key, duration(ms / 1000.0)),
                _ => (key.as_str(), one(value)),
            };
            (!text.is_empty()).then(|| format!("{}: {text}", key.replace('_', " ")))
        })
        .collect();
    parts.join(", ")
}

fn one(value: &Value) -> String {
    /// More items than this are counted instead of named.
    const NAMED: usize = 5;
    match value {
        Value::Null => String::new(),
        Value::String(text) => match text.parse::<jiff::Timestamp>() {
            Ok(at) => time(at),
            Err(_) => text.clone(),
        },
        Value::Number(n) => n.as_u64().map_or_else(|| n.to_string(), |n| HumanCount(n).to_string()),
        Value::Bool(b) => if *b { "yes" } else { "no" }.into(),
        Value::Array(items) if items.is_empty() => "none".into(),
        Value::Array(items) if items.len() > NAMED => format!("{} of them", items.len()),
        Value::Array(items) => {
            let sentences = items.iter().any(|item| item.as_str().is_some_and(|text| text.contains(' ')));
            items
                .iter()
                .map(|item| if item.is_object() { format!("({})", summary_words(item)) } else { one(item) })
                .collect::<Vec<_>>()
                .join(if sentences { "; " } else { " " })
        }
        // What is nested deeper is for programs.
        Value::Object(map) if map.len() > NAMED || map.values().any(Value::is_object) => {
            format!("{} of them", map.len())
        }
        Value::Object(_) => format!("({})", summary_words(value)),
    }
}

/// A length of time for people: `320 ms`, `4.2 s`, `3 min 20 s`, `2 h 5 min`.
#[must_use]
pub fn duration(seconds: f64) -> String {
    // The sum of nothing is -0.
    let seconds = seconds.max(0.0) + 0.0;
    let whole = seconds.round();
    match whole {
        _ if seconds < 1.0 => format!("{:.0} ms", seconds * 1000.0),
        w if w < 60.0 => format!("{seconds:.1} s"),
        w if w < 3600.0 => format!("{:.0} min {:.0} s", (w / 60.0).floor(), w % 60.0),
        w => format!("{:.0} h {:.0} min", (w / 3600.0).floor(), (w % 3600.0 / 60.0).floor()),
    }
}

/// A time for people.
#[must_use]
pub fn time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn summaries_and_durations_read_as_people_write() {
        assert_eq!(
            summary_words(&json!({ "rows": 1200, "built": ["a", "b"], "none": null })),
            "rows: 1,200, built: a b"
        );
        assert_eq!(
            summary_words(&json!({ "write_pause_ms": 16810, "at": "2026-11-27T02:52:19.886375Z" })),
            "write pause: 16.8 s, at: 2026-11-27 02:52:19 UTC"
        );
        assert_eq!(summary_words(&json!({})), "");
        assert_eq!(
            summary_words(
                &json!({ "probes": { "a": { "good": 1 }, "b": { "good": 2 } }, "table": { "rows": [] } })
            ),
            "probes: 2 of them"
        );
        assert_eq!(duration(0.32), "320 ms");
        assert_eq!(duration(4.23), "4.2 s");
        assert_eq!(duration(200.0), "3 min 20 s");
        assert_eq!(duration(7500.0), "2 h 5 min");
    }
}
