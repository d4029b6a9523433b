//! A report as Markdown.

use super::shape::{Report, What};
use crate::ui::table;
use crate::ui::words::{duration, summary_words, time};
use std::fmt::Write;

/// The report as Markdown (tables as GitHub and most wikis read them).
#[must_use]
pub fn markdown(report: &Report) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "# {}\n\n**{}**\n", escape(&report.plan), escape(&report.verdict));
    let _ = writeln!(out, "| | |\n| --- | --- |");
    let _ = writeln!(out, "| run | `{}` |", report.run);
    let _ = writeln!(out, "| digest | `{}` |", escape(&report.digest));
    let _ = writeln!(out, "| Handover | {} |", escape(&report.version));
    if let (Some(started), Some(updated)) = (report.started, report.updated) {
        let _ = writeln!(out, "| from | {} |\n| to | {} |", time(started), time(updated));
    }
    let _ = writeln!(out, "| took | {} |", duration(report.seconds));
    if let Some(ms) = report.write_pause_ms {
        let _ = writeln!(out, "| write pause | {} |", duration(ms / 1000.0));
    }
    if let Some(step) = &report.no_return {
        let _ = writeln!(out, "| point of no return | `{step}` |");
    }
    let _ = writeln!(out, "\n## Steps\n\n| step | kind | state | time | |\n| --- | --- | --- | ---: | --- |");
    for step in &report.steps {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} |",
            escape(step.id.as_str()),
            step.kind.unwrap_or("–"),
            step.word(),
            step.took(),
            escape(&summary_words(&step.summary)),
        );
    }
    let troubled: Vec<_> = report
        .steps
        .iter()
        .filter(|step| step.attempts.len() > 1 || step.attempts.iter().any(|a| a.failure.is_some()))
        .collect();
    if !troubled.is_empty() {
        let _ = writeln!(out, "\n## Attempts\n");
        for step in troubled {
            for attempt in &step.attempts {
                let _ =
                    writeln!(out, "- {} `{}`: {}", time(attempt.started), step.id, escape(&attempt.words()));
            }
        }
    }
    for step in &report.steps {
        if let Some(table) = &step.table {
            let table = table::markdown(table, escape);
            let _ = writeln!(out, "\n## Table of step `{}`\n\n{}", step.id, table.trim_end());
        }
    }
    let _ = writeln!(out, "\n## Who acted\n");
    for actor in &report.actors {
        let _ = writeln!(
            out,
            "- {} to {}: {} (token {})",
            time(actor.from),
            time(actor.until),
            escape(&actor.holder.to_string()),
            actor.token
        );
    }
    for asked in &report.requests {
        let _ = writeln!(out, "- {}", escape(&super::requests::request(asked)));
    }
    let _ = writeln!(out, "\n## What happened\n\n| when | took | |\n| --- | ---: | --- |");
    for moment in &report.timeline {
        let took = moment.seconds.map_or_else(String::new, duration);
        let text = escape(&moment.text);
        let text = if moment.failed || moment.what == What::Refused { format!("**{text}**") } else { text };
        let _ = writeln!(out, "| {} | {took} | {text} |", time(moment.at));
    }
    out.truncate(out.trim_end().len());
    out
}

/// Text that means nothing but itself, on one line.
pub(in crate::ui) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' => out.push(' '),
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_in_a_name_becomes_markup() {
        assert_eq!(super::escape("a|b\n<script> `x`"), "a\\|b \\<script\\> \\`x\\`");
    }
}
