//! From records to a report.

use super::shape::{Actor, Attempt, Change, Outcome, Report, StepReport, Way, between};
use super::timeline::timeline;
use crate::engine::advice;
use crate::engine::decide::{Loss, Outline, losses};
use crate::engine::status::is_interrupted;
use crate::error::{Class, Result};
use crate::event::{Entry, Failure, Record, RunId, StepId};
use crate::journal::{Phase, RequestRow, RunState, Status};
use crate::plan::Plan;
use jiff::Timestamp;
use serde_json::Value;

/// Folds a journal. `plan` gives order, titles and kinds; `acts` says whether somebody acts on the run.
///
/// # Errors
/// A journal that cannot be.
pub fn report(
    plan: &Plan,
    run: RunId,
    entries: &[Entry],
    requests: Vec<RequestRow>,
    acts: bool,
) -> Result<Report> {
    let state = RunState::fold(entries)?;
    let (version, digest) = entries
        .iter()
        .find_map(|entry| match &entry.record {
            Record::RunStarted { version, digest, .. } => Some((version.clone(), digest.clone())),
            _ => None,
        })
        .unwrap_or_default();
    let mut ids: Vec<StepId> = plan.steps.iter().map(|step| step.id.clone()).collect();
    for id in state.steps.keys() {
        if !ids.contains(id) {
            ids.push(id.clone());
        }
    }
    let steps: Vec<StepReport> = ids.into_iter().map(|id| step(plan, &state, entries, id, acts)).collect();
    let write_pause_ms = steps
        .iter()
        .filter(|step| step.status == Status::Done)
        .filter_map(|step| find_number(&step.summary, "write_pause_ms"))
        .fold(None, |most: Option<f64>, ms| Some(most.map_or(ms, |m| m.max(ms))));
    let seconds = match (state.started, state.updated) {
        (Some(from), Some(to)) => between(from, to),
        _ => 0.0,
    };
    let outline: Vec<Outline> = plan.steps.iter().map(Outline::from).collect();
    let rollback_loses = losses(&outline, &state, None);
    Ok(Report {
        plan: state.plan.clone(),
        run,
        version,
        digest,
        verdict: verdict(&state, &rollback_loses),
        phase: state.phase.clone(),
        started: state.started,
        updated: state.updated,
        seconds,
        write_pause_ms,
        no_return: state.no_return.clone(),
        rollback_loses,
        actors: actors(entries),
        timeline: timeline(entries, &steps, &requests),
        requests,
        steps,
        changes: changes(entries),
    })
}

fn verdict(state: &RunState, losses: &[Loss]) -> String {
    let failed = state.steps.iter().find_map(|(id, s)| match &s.status {
        Status::Failed { failure } if failure.class == Class::Waiting => {
            Some(format!("; step `{id}` is {}", failure.message))
        }
        Status::Failed { failure } => Some(format!("; step `{id}` failed: {}", failure.message)),
        Status::UndoFailed { failure } => Some(format!("; the undo of `{id}` failed: {}", failure.message)),
        _ => None,
    });
    let base = match &state.phase {
        Phase::Forward if state.halted.as_ref().is_some_and(|halt| halt.class == Class::Waiting) => {
            "Stopped where it waits for a person".to_owned()
        }
        Phase::Forward if state.halted.is_some() => "Halted before its end".to_owned(),
        Phase::Forward => "Not ended: at work, or its runner died".to_owned(),
        Phase::Back { .. } => "Being rolled back".to_owned(),
        Phase::Done if losses.is_empty() => {
            "Every step is done; it can still be rolled back without loss".to_owned()
        }
        Phase::Done => "Every step is done".to_owned(),
        Phase::RolledBack { to: None } => "Rolled back as a whole".to_owned(),
        Phase::RolledBack { to: Some(to) } => format!("Rolled back to step `{to}`"),
        Phase::Aborted => "Given up where it stood".to_owned(),
        Phase::Finished => "Finished for good".to_owned(),
    };
    let lost = match (&state.phase, losses) {
        (Phase::Finished | Phase::RolledBack { .. }, _) | (_, []) => String::new(),
        _ => format!("; rolling back now is not free: {}", advice::all(losses)),
    };
    format!("{base}{}{lost}", failed.unwrap_or_default())
}

fn actors(entries: &[Entry]) -> Vec<Actor> {
    let mut out: Vec<Actor> = Vec::new();
    for entry in entries {
        if let Record::Attached { token, holder, accepted_digest, .. } = &entry.record {
            out.push(Actor {
                holder: holder.clone(),
                token: *token,
                from: entry.at,
                until: entry.at,
                accepted_digest: accepted_digest.clone(),
            });
        }
        if let Some(actor) = out.last_mut() {
            actor.until = entry.at;
        }
    }
    out
}

fn changes(entries: &[Entry]) -> Vec<Change> {
    let mut out = Vec::new();
    for entry in entries {
        let class = match &entry.record {
            Record::Halted { class, .. } => Some(*class),
            Record::RollbackStarted { .. }
            | Record::RunRolledBack { .. }
            | Record::PointOfNoReturn { .. }
            | Record::StandingEnded { .. }
            | Record::RunDone
            | Record::RunAborted { .. }
            | Record::Finished => None,
            _ => continue,
        };
        if let Some(what) = crate::ui::words::sentence(&entry.record) {
            out.push(Change { at: entry.at, what, class });
        }
    }
    out
}

fn step(plan: &Plan, state: &RunState, entries: &[Entry], id: StepId, acts: bool) -> StepReport {
    let mut attempts: Vec<Attempt> = Vec::new();
    let close = |attempts: &mut Vec<Attempt>, at: Timestamp, outcome: Outcome, failure: Option<&Failure>| {
        if let Some(last) = attempts.last_mut().filter(|last| last.outcome == Outcome::Open) {
            last.outcome = outcome;
            last.ended = Some(at);
            // Of one that was killed before it recorded anything, nobody knows how long it worked.
            let unknown = outcome == Outcome::Interrupted && at <= last.started;
            last.seconds = (!unknown).then(|| between(last.started, at));
            last.failure = failure.cloned().map(|mut failure| {
                // A step does not know by which name its plan is called.
                failure.hint = failure
                    .hint
                    .map(|hint| advice::named(&hint, &plan.called(), Some(&plan.file.display().to_string())));
                failure
            });
        }
    };
    for (place, entry) in entries.iter().enumerate() {
        let at = entry.at;
        match &entry.record {
            Record::StepStarted { step, .. } | Record::UndoStarted { step, .. } if *step == id => {
                let way =
                    if matches!(entry.record, Record::StepStarted { .. }) { Way::Run } else { Way::Undo };
                let before = entries.get(place.saturating_sub(1)).map_or(at, |e| e.at);
                close(&mut attempts, before, Outcome::Interrupted, None);
                attempts.push(Attempt {
                    way,
                    started: at,
                    ended: None,
                    outcome: Outcome::Open,
                    failure: None,
                    seconds: None,
                });
            }
            Record::StepDone { step, .. } | Record::UndoDone { step, .. } if *step == id => {
                close(&mut attempts, at, Outcome::Done, None);
            }
            Record::StepFailed { step, failure } | Record::UndoFailed { step, failure } if *step == id => {
                close(&mut attempts, at, Outcome::Failed, Some(failure));
            }
            // Whoever attaches anew found the old runner gone; a halt says that this one stopped.
            Record::Halted { .. } | Record::RunAborted { .. } | Record::Attached { .. } => {
                let end = if matches!(entry.record, Record::Attached { .. }) {
                    entries.get(place.saturating_sub(1)).map_or(at, |e| e.at)
                } else {
                    at
                };
                close(&mut attempts, end, Outcome::Interrupted, None);
            }
            _ => {}
        }
    }
    if let (true, Some(last)) = (is_interrupted(state.status(&id), acts), entries.last()) {
        close(&mut attempts, last.at, Outcome::Interrupted, None);
    }
    let known = plan.step(&id);
    let table = entries
        .iter()
        .rev()
        .filter_map(|entry| crate::ui::table::of_record(&entry.record))
        .find_map(|(of, table)| (*of == id).then_some(table));
    let seconds = attempts.iter().filter_map(|attempt| attempt.seconds).reduce(|all, one| all + one);
    StepReport {
        title: known.and_then(|step| step.title.clone()),
        kind: known.map(|step| step.kind_name),
        status: state.status(&id).clone(),
        summary: state.steps.get(&id).map_or(Value::Null, |s| s.summary.clone()),
        attempts,
        table,
        seconds,
        id,
    }
}

/// The number under a key, however deep it is.
fn find_number(value: &Value, key: &str) -> Option<f64> {
    match value {
        Value::Object(map) => map
            .get(key)
            .and_then(Value::as_f64)
            .or_else(|| map.values().find_map(|inner| find_number(inner, key))),
        Value::Array(items) => items.iter().find_map(|inner| find_number(inner, key)),
        _ => None,
    }
}

impl StepReport {
    /// Whether its last attempt ended without a word.
    fn was_interrupted(&self) -> bool {
        self.attempts.last().is_some_and(|last| last.outcome == Outcome::Interrupted)
    }

    /// The time of all its attempts in words; empty where it is not known.
    #[must_use]
    pub fn took(&self) -> String {
        self.seconds.map_or_else(String::new, crate::ui::words::duration)
    }

    /// Where it stands, in a word or two.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self.status {
            Status::Pending => "not begun",
            Status::Running if self.was_interrupted() => "interrupted",
            Status::Running => "not ended",
            Status::Failed { ref failure } if failure.class == Class::Waiting => "waiting",
            Status::Failed { .. } => "failed",
            Status::Done => "done",
            Status::Undoing if self.was_interrupted() => "undo interrupted",
            Status::Undoing => "being undone",
            Status::UndoFailed { .. } => "undo failed",
            Status::Undone => "undone",
        }
    }
}

impl Attempt {
    /// The attempt in a line.
    #[must_use]
    pub fn words(&self) -> String {
        let way = if self.way == Way::Run { "run" } else { "undo" };
        let outcome = match self.outcome {
            Outcome::Failed if self.failure.as_ref().is_some_and(|f| f.class == Class::Waiting) => "stopped",
            Outcome::Done => "done",
            Outcome::Failed => "failed",
            Outcome::Interrupted => "interrupted",
            Outcome::Open => "not ended",
        };
        let took =
            self.seconds.map_or_else(String::new, |s| format!(" after {}", crate::ui::words::duration(s)));
        let why = self.failure.as_ref().map_or_else(String::new, |f| match &f.hint {
            Some(hint) => format!(": {} (next: {hint})", f.message),
            None => format!(": {}", f.message),
        });
        format!("{way} {outcome}{took}{why}")
    }
}
