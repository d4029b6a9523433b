//! A report for a terminal.

use super::shape::Report;
use crate::ui::table;
use crate::ui::words::{duration, summary_words, time};
use std::fmt::Write;

/// The report as text.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}", report.verdict);
    let _ = writeln!(out, "plan {}, run {}", report.plan, report.run);
    let _ = writeln!(out, "digest {}, Handover {}", report.digest, report.version);
    if let (Some(started), Some(updated)) = (report.started, report.updated) {
        let _ = writeln!(out, "{} to {} ({})", time(started), time(updated), duration(report.seconds));
    }
    if let Some(ms) = report.write_pause_ms {
        let _ = writeln!(out, "write pause {}", duration(ms / 1000.0));
    }
    if let Some(step) = &report.no_return {
        let _ = writeln!(out, "point of no return passed in step {step}");
    }
    let _ = writeln!(out, "\nWho acted");
    for actor in &report.actors {
        let _ = writeln!(
            out,
            "  {} to {}  {} (token {})",
            time(actor.from),
            time(actor.until),
            actor.holder,
            actor.token
        );
    }
    for request in &report.requests {
        let _ = writeln!(out, "  {}", super::requests::request(request));
    }
    let _ = writeln!(out, "\nSteps");
    let width = report.steps.iter().map(|s| s.id.as_str().len()).max().unwrap_or(0);
    for step in &report.steps {
        let words = summary_words(&step.summary);
        let line = format!(
            "  {:width$}  {:12}  {:9}  {:>12}  {words}",
            step.id.as_str(),
            step.kind.unwrap_or("-"),
            step.word(),
            step.took(),
        );
        let _ = writeln!(out, "{}", line.trim_end());
        if step.attempts.len() > 1 || step.attempts.iter().any(|a| a.failure.is_some()) {
            for attempt in &step.attempts {
                let words = attempt.words().replace('\n', "\n                               ");
                let _ = writeln!(out, "      {}  {words}", time(attempt.started));
            }
        }
        for line in step.table.iter().flat_map(table::lines) {
            let _ = writeln!(out, "      {line}");
        }
    }
    let _ = writeln!(out, "\nWhat happened");
    for moment in &report.timeline {
        let took = moment.seconds.map_or_else(String::new, duration);
        // What a command wrote comes in several lines; they stay under the first.
        let text = moment.text.trim_end().replace('\n', "\n                                           ");
        let _ = writeln!(out, "  {}  {took:>12}  {text}", time(moment.at));
    }
    out.truncate(out.trim_end().len());
    out
}
