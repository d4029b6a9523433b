//! What happened in a run, in the order in which it did: attempts with their lengths, pauses, warnings, who acted.

use super::shape::{Attempt, Moment, Outcome, StepReport, Way, What, between};
use crate::error::Class;
use crate::event::{Entry, Level, Record, StepId};
use crate::journal::RequestRow;
use crate::ui::words::{of_step, sentence};
use jiff::SignedDuration;

/// Everything, by when it began.
pub(super) fn timeline(entries: &[Entry], steps: &[StepReport], requests: &[RequestRow]) -> Vec<Moment> {
    let mut out: Vec<Moment> = refused(entries, steps);
    let mut acted = false;
    for (place, entry) in entries.iter().enumerate() {
        let at = entry.at;
        let (what, step) = match &entry.record {
            Record::Attached { .. } => {
                if acted && let Some(before) = place.checked_sub(1).and_then(|before| entries.get(before)) {
                    let mut idle = Moment::new(before.at, What::Idle, None, "nobody acts".into());
                    idle.seconds = Some(between(before.at, at));
                    out.push(idle);
                }
                acted = true;
                (What::Actor, None)
            }
            Record::Note { step, level: Level::Warning, .. } => (What::Warning, step.as_ref()),
            Record::Note { step, level: Level::Info, .. } => (What::Phase, step.as_ref()),
            Record::StepFact { step, key, .. } if key == crate::steps::cutover::FACT => {
                (What::Phase, Some(step))
            }
            Record::PointOfNoReturn { step } => (What::NoReturn, Some(step)),
            Record::StandingEnded { step, .. } => (What::Phase, Some(step)),
            Record::Halted { .. } | Record::RunAborted { .. } => (What::Stopped, None),
            Record::RunStarted { .. }
            | Record::RollbackStarted { .. }
            | Record::RunRolledBack { .. }
            | Record::RunDone
            | Record::FinishStarted
            | Record::Finished => (What::Run, None),
            // Attempts are told as a whole, below; other facts are for those who look closer.
            _ => continue,
        };
        let Some(text) = sentence(&entry.record) else { continue };
        let mut moment = Moment::new(at, what, step, text);
        moment.failed = matches!(&entry.record, Record::Halted { class, .. } if !matches!(class, Class::Waiting | Class::Cancelled));
        if what == What::Warning {
            moment.text = moment.text.replacen(": ", ": warning: ", usize::from(step.is_some()));
        }
        out.push(moment);
    }
    for step in steps {
        for attempt in &step.attempts {
            let mut moment = Moment::new(
                attempt.started,
                What::Attempt,
                Some(&step.id),
                format!("{}: {}", step.id, attempt_words(&step.id, attempt)),
            );
            moment.seconds = attempt.seconds;
            moment.failed = attempt.outcome == Outcome::Failed
                && attempt.failure.as_ref().is_some_and(|f| f.class != Class::Waiting);
            out.push(moment);
        }
    }
    for asked in requests {
        let (_, text) = super::requests::requested(asked);
        out.push(Moment::new(asked.at, What::Request, asked.step.as_ref(), text));
    }
    out.sort_by_key(|moment| moment.at);
    out
}

fn attempt_words(step: &StepId, attempt: &Attempt) -> String {
    let waits = attempt.failure.as_ref().is_some_and(|failure| failure.class == Class::Waiting);
    let text = match (attempt.way, attempt.outcome) {
        (_, Outcome::Failed) if waits => "waits for a person".to_owned(),
        (Way::Run, Outcome::Done) => "done".to_owned(),
        (Way::Undo, Outcome::Done) => "undone".to_owned(),
        (Way::Run, Outcome::Failed) => "failed".to_owned(),
        (Way::Undo, Outcome::Failed) => "undo failed".to_owned(),
        (Way::Run, Outcome::Interrupted) => "interrupted".to_owned(),
        (Way::Undo, Outcome::Interrupted) => "undo interrupted".to_owned(),
        (Way::Run, Outcome::Open) => "begun, and not ended".to_owned(),
        (Way::Undo, Outcome::Open) => "undo begun, and not ended".to_owned(),
    };
    match &attempt.failure {
        Some(failure) if !waits => format!("{text}: {}", of_step(step, &failure.message)),
        _ => text,
    }
}

/// For how long a cutover kept writers from writing. It is measured by whoever flips: from the lock until writers can
/// write.
fn refused(entries: &[Entry], steps: &[StepReport]) -> Vec<Moment> {
    let number = |step: &StepReport, key: &str| step.summary.get(key).and_then(serde_json::Value::as_f64);
    entries
        .iter()
        .filter_map(|entry| match &entry.record {
            Record::PointOfNoReturn { step } => {
                Some((entry.at, steps.iter().find(|known| known.id == *step)?))
            }
            _ => None,
        })
        .filter_map(|(decided, step)| {
            let pause = number(step, "write_pause_ms")? / 1000.0;
            let before = number(step, "decided_after_ms").unwrap_or_default().min(pause * 1000.0) / 1000.0;
            let at = decided.checked_sub(SignedDuration::try_from_secs_f64(before).ok()?).unwrap_or(decided);
            let text = format!("{}: writers wait or are refused", step.id);
            let mut moment = Moment::new(at, What::Refused, Some(&step.id), text);
            moment.seconds = Some(pause);
            Some(moment)
        })
        .collect()
}
