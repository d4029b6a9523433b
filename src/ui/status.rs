//! A run's status, the list of runs and the journal as text.

use super::facts;
use super::words::{duration, of_step, sentence, summary_words, time};
use crate::engine::status::{LeaseLook, LeaseStatus, RunStatus, StandingStatus, StepLine};
use crate::error::Class;
use crate::event::{Entry, Record};
use crate::journal::Status;
use crate::postgres::ours::OURS;
use console::style;
use std::fmt::Write;

/// The whole status.
#[must_use]
pub fn text(status: &RunStatus) -> String {
    let mut out = String::new();
    if let Some(refusing) = &status.refusing {
        let what = match &refusing.database {
            Some(name) => format!("WRITES ARE REFUSED ON {}", name.to_uppercase()),
            None => "THE CUTOVER IS DECIDED AND NOT COMPLETE".to_owned(),
        };
        let long = jiff::Timestamp::now().duration_since(refusing.since).as_secs_f64();
        let _ = writeln!(
            out,
            "{} since {} ({}): step `{}` {}",
            style(what).red().bold(),
            time(refusing.since),
            duration(long),
            refusing.step,
            match refusing.back {
                false => "is decided, and not every participant has committed",
                true => "goes back, and not every participant is turned back",
            }
        );
        if let Some(why) = &refusing.why {
            let _ = writeln!(out, "  in the way: {}", why.replace('\n', "\n    "));
        }
    }
    match (&status.run, &status.phase) {
        (Some(run), Some(phase)) => {
            let dead =
                died(status).map_or_else(String::new, |text| format!(", {}", style(text).red().bold()));
            let _ = writeln!(out, "plan `{}`, run {run}: {}{dead}", status.plan, style(phase.word()).bold());
        }
        _ => {
            let _ = writeln!(
                out,
                "plan `{}` was never run from this control database (in schema {OURS})",
                status.plan
            );
        }
    }
    if let (Some(started), Some(updated)) = (status.started, status.updated) {
        let _ = writeln!(out, "started {}, last record {}", time(started), time(updated));
    }
    let _ = writeln!(out, "{}", lease(&status.lease));
    if let Some(halt) = &status.halted {
        let mark = match halt.class {
            Class::Waiting | Class::Cancelled => style("stopped:").yellow(),
            _ => style("halted:").red().bold(),
        };
        let _ = writeln!(out, "{mark} {}", halt.reason);
    }
    if let Some(step) = &status.no_return {
        let _ = writeln!(out, "{} passed in step `{step}`", style("point of no return").yellow());
    }
    if !status.rollback_loses.is_empty() {
        let lost = crate::engine::advice::all(&status.rollback_loses);
        let _ = writeln!(out, "{} is not free: {lost}", style("rolling back now").yellow());
    }
    let width = status.steps.iter().map(|s| s.id.as_str().len()).max().unwrap_or(0);
    if status.run.is_some() {
        let _ = writeln!(out);
        for step in &status.steps {
            let _ = writeln!(out, "{}", line(step, width, status.lease.status));
        }
    }
    if !status.held.is_empty() {
        let _ = writeln!(out, "\nstill held:");
        for held in &status.held {
            let _ = writeln!(out, "  {}: {}", held.place, held.what);
        }
    }
    if !status.changed.is_empty() {
        let what = style("the plan is not what the run began with:").yellow();
        let _ = writeln!(out, "\n{what} {}", status.changed.join("; "));
    }
    for unknown in &status.unknown {
        let _ = writeln!(out, "{} {unknown}", style("not looked at:").yellow());
    }
    let _ = write!(out, "\nnext: {}", status.next);
    out
}

/// That nobody works on what was begun, and at which step: the verdict, and so first.
fn died(status: &RunStatus) -> Option<String> {
    if !matches!(status.lease.status, LeaseStatus::HolderDead | LeaseStatus::Expired) {
        return None;
    }
    let begun = |s: &StepLine| matches!(s.state.status, Status::Running | Status::Undoing);
    let at = status.steps.iter().position(begun)?;
    let step = status.steps.get(at)?;
    Some(format!("RUNNER DIED in step {} of {}, `{}`", at + 1, status.steps.len(), step.id))
}

fn lease(look: &LeaseLook) -> String {
    let Some((row, holder)) = look.row.as_ref().and_then(|row| Some((row, row.holder.as_ref()?))) else {
        return "nobody acts on it".into();
    };
    let since = time(row.since);
    match look.status {
        LeaseStatus::Free => "nobody acts on it".into(),
        LeaseStatus::Held => format!("{holder} acts on it since {since}"),
        LeaseStatus::Expired => {
            format!("{holder} acted on it since {since}, but its lease ran out at {}", time(row.expires))
        }
        LeaseStatus::HolderDead => format!("{holder} acted on it since {since}, but that process is gone"),
    }
}

fn line(step: &StepLine, width: usize, lease: LeaseStatus) -> String {
    let state = &step.state;
    let took = step.seconds.map_or_else(String::new, |s| format!(", {}", duration(s)));
    let began = state.started.map_or_else(String::new, |at| format!("; it began {}", time(at)));
    // Whether the runner died or was asked to stop is said above.
    let interrupted = || match lease {
        LeaseStatus::Expired | LeaseStatus::HolderDead => format!("interrupted, its runner died{began}"),
        LeaseStatus::Free | LeaseStatus::Held => format!("interrupted{began}"),
    };
    let (mark, mut text) = match &state.status {
        Status::Pending => (style("·").dim(), "not begun".to_owned()),
        Status::Running if step.seconds.is_none() => (style("▸").yellow(), interrupted()),
        Status::Undoing if step.seconds.is_none() => (style("◂").yellow(), format!("undo {}", interrupted())),
        Status::Running if step.kind == "approve" => {
            (style("…").yellow(), format!("waiting for an approval{took}"))
        }
        Status::Running => (style("▸").cyan(), format!("at work{took}")),
        Status::Failed { failure } if failure.class == Class::Waiting => {
            (style("…").yellow(), of_step(&step.id, &failure.message).to_owned())
        }
        Status::Failed { failure } => {
            (style("✗").red(), format!("failed: {}", of_step(&step.id, &failure.message)))
        }
        Status::Done => (style("✓").green(), format!("done{took}")),
        Status::Undoing => (style("◂").cyan(), "being undone".into()),
        Status::UndoFailed { failure } => {
            (style("✗").red(), format!("undo failed: {}", of_step(&step.id, &failure.message)))
        }
        Status::Undone => (style("·").dim(), "undone".into()),
    };
    if state.attempts > 1 {
        let _ = write!(text, " (attempt {})", state.attempts);
    }
    if state.status == Status::Done {
        let words = summary_words(&state.summary);
        if !words.is_empty() {
            let _ = write!(text, " – {words}");
        }
    }
    match step.standing {
        Some(StandingStatus::Running) => text.push_str("; its standing task runs"),
        Some(StandingStatus::Stopped) => {
            text.push_str("; its standing task is stopped until `handover resume`")
        }
        Some(StandingStatus::Ended) => text.push_str("; its standing task has ended"),
        Some(StandingStatus::NotYet) | None => {}
    }
    format!("{mark} {:width$}  {:12}  {text}", step.id.as_str(), step.kind)
}

/// A record as a line, also those that a running command leaves out; none for what only says that a fact is no longer
/// needed, or that a command is about to be started.
#[must_use]
pub fn entry(entry: &Entry) -> Option<String> {
    if let Record::StepFact { key, value, .. } = &entry.record
        && (value.is_null() || (key.starts_with("command:") && value.get("pid").is_none()))
    {
        return None;
    }
    let text = sentence(&entry.record).unwrap_or_else(|| match &entry.record {
        Record::StepFact { step, key, value } => format!("{step}: {}", facts::words(key, value)),
        other => serde_json::to_string(other).unwrap_or_else(|_| "a record".into()),
    });
    // What a command wrote comes in several lines; they stay under the first.
    let text = text.trim_end().replace('\n', "\n                                ");
    Some(format!("{:>5}  {}  {text}", entry.seq, time(entry.at)))
}
