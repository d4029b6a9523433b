//! Records and amounts in words.

use crate::event::{Measure, Record};
use indicatif::{BinaryBytes, HumanCount};

/// A record as a line for people; none for those only machines need.
#[must_use]
pub fn sentence(record: &Record) -> Option<String> {
    Some(match record {
        Record::RunStarted { plan, digest, .. } => {
            format!("run of plan `{plan}` started (digest {})", short(digest))
        }
        Record::Attached { holder, token, accepted_digest } => match accepted_digest {
            Some(digest) => {
                format!("{holder} acts (token {token}), accepting the changed digest {}", short(digest))
            }
            None => format!("{holder} acts (token {token})"),
        },
        Record::StepStarted { step, attempt: 1 } => format!("{step}: started"),
        Record::StepStarted { step, attempt } => format!("{step}: started again (attempt {attempt})"),
        Record::StepFact { .. } => return None,
        Record::StepDone { step, summary } => format!("{step}: done {summary}"),
        Record::StepFailed { step, failure } => format!("{step}: failed: {}", failure.message),
        Record::StandingEnded { step } => format!("{step}: standing task ended"),
        Record::PointOfNoReturn { step } => format!("{step}: point of no return passed"),
        Record::RollbackStarted { to: None, reason, .. } => format!("rolling back everything ({reason})"),
        Record::RollbackStarted { to: Some(to), reason, .. } => format!("rolling back to `{to}` ({reason})"),
        Record::UndoStarted { step, attempt: 1 } => format!("{step}: undoing"),
        Record::UndoStarted { step, attempt } => format!("{step}: undoing again (attempt {attempt})"),
        Record::UndoDone { step, .. } => format!("{step}: undone"),
        Record::UndoFailed { step, failure } => format!("{step}: undo failed: {}", failure.message),
        Record::Halted { reason, .. } => format!("halted: {reason}"),
        Record::RunDone => "run done".into(),
        Record::RunRolledBack { to: None } => "run rolled back".into(),
        Record::RunRolledBack { to: Some(to) } => format!("run rolled back to `{to}`"),
        Record::RunAborted { reason } => format!("run aborted ({reason})"),
        Record::Finished => "run finished".into(),
    })
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
