//! A report as one page: no script, no font, no request to anywhere.

use super::shape::{Moment, Outcome, Report, What};
use crate::journal::Status;
use crate::ui::table;
use crate::ui::words::{duration, summary_words, time};
use std::fmt::Write;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --line: #d6dbe1; --page: #fff; --good: #1a7f37; --bad: #b42318; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4af; --line: #343b44; --page: #14171b; --good: #57c27a; --bad: #ff8a80; --warn: #e0b252; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.verdict { font-size: 1.1rem; font-weight: 600; margin: .3rem 0 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0; } dt { color: var(--soft); } dd { margin: 0; }
code, dd.id { font: .9em ui-monospace, monospace; }
.step { border-top: 1px solid var(--line); padding: .6rem 0; display: grid; grid-template-columns: 1fr max-content; gap: 0 1rem; }
.step > .more { grid-column: 1 / -1; color: var(--soft); font-size: .9rem; }
.kind, time, .took { color: var(--soft); font-size: .9rem; font-weight: 400; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.bar { height: .35rem; background: var(--line); border-radius: .2rem; } .bar i { display: block; height: 100%; min-width: 2px; max-width: 100%; background: currentColor; border-radius: .2rem; }
.figures { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; } th { text-align: left; font-weight: 400; } th, td { padding: .1rem .8rem .1rem 0; } .number { text-align: right; }
ul { list-style: none; margin: 0; padding: 0; } li { padding: .2rem 0; }
@media print { body { max-width: none; } .step { break-inside: avoid; } }
";

/// The report as an HTML page.
#[must_use]
pub fn html(report: &Report) -> String {
    let mut out = String::new();
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{title} – Handover report</title>\
         <style>{STYLE}</style></head>\n<body>\n<header><h1>{title}</h1>\n\
         <p class=\"verdict {class}\">{verdict}</p>\n<dl>\n",
        title = escape(&report.plan),
        class = class(report),
        verdict = escape(&report.verdict),
    );
    let mut fact = |name: &str, value: &str, class: &str| {
        let _ = writeln!(out, "<dt>{name}</dt><dd class=\"{class}\">{}</dd>", escape(value));
    };
    fact("run", &report.run.to_string(), "id");
    fact("digest", &report.digest, "id");
    fact("Handover", &report.version, "");
    if let (Some(started), Some(updated)) = (report.started, report.updated) {
        fact("from", &time(started), "");
        fact("to", &time(updated), "");
    }
    fact("took", &duration(report.seconds), "");
    if let Some(ms) = report.write_pause_ms {
        fact("write pause", &duration(ms / 1000.0), "");
    }
    if let Some(step) = &report.no_return {
        fact("point of no return", step.as_str(), "warn");
    }
    out.push_str("</dl></header>\n<main>\n<h2>Steps</h2>\n");
    for step in &report.steps {
        one(&mut out, step);
    }
    out.push_str("<h2>Who acted</h2>\n<ul>\n");
    for actor in &report.actors {
        item(
            &mut out,
            &time(actor.from),
            &format!("{}, token {}, until {}", actor.holder, actor.token, time(actor.until)),
        );
    }
    for request in &report.requests {
        let _ = writeln!(out, "<li>{}</li>", escape(&super::requests::request(request)));
    }
    out.push_str("</ul>\n");
    out.push_str("<h2>What happened</h2>\n<ul class=\"times\">\n");
    for moment in &report.timeline {
        self::moment(&mut out, report, moment);
    }
    out.push_str("</ul>\n");
    out.push_str("</main>\n</body></html>");
    out
}

fn one(out: &mut String, step: &super::shape::StepReport) {
    let class = match step.status {
        Status::Done => "good",
        Status::Failed { .. } | Status::UndoFailed { .. } => "bad",
        _ => "",
    };
    let took = step.took();
    let _ = write!(
        out,
        "<section class=\"step\"><div><strong>{}</strong> <span class=\"kind\">{}</span></div>\
         <div><span class=\"{class}\">{}</span> <span class=\"took\">{took}</span></div>",
        escape(step.id.as_str()),
        escape(step.kind.unwrap_or("")),
        step.word(),
    );
    let mut more = |text: &str, class: &str| {
        if !text.is_empty() {
            let _ = write!(out, "<div class=\"more {class}\">{}</div>", escape(text));
        }
    };
    more(step.title.as_deref().unwrap_or_default(), "");
    more(&summary_words(&step.summary), "");
    if step.attempts.len() > 1 || step.attempts.iter().any(|a| a.failure.is_some()) {
        for attempt in &step.attempts {
            let class = if attempt.outcome == Outcome::Failed { "bad" } else { "" };
            more(&format!("{} {}", time(attempt.started), attempt.words()), class);
        }
    }
    if let Some(table) = &step.table {
        let _ = write!(out, "<div class=\"more figures\">{}</div>", table::html(table, escape));
    }
    out.push_str("</section>\n");
}

/// A line of what happened, with a bar for when and how long within the run.
fn moment(out: &mut String, report: &Report, moment: &Moment) {
    let class = match moment.what {
        _ if moment.failed => "bad",
        What::Refused => "bad",
        What::Warning | What::NoReturn | What::Stopped => "warn",
        _ => "",
    };
    let _ = write!(out, "<li class=\"{class}\"><time>{}</time> {}", time(moment.at), escape(&moment.text));
    if let Some(seconds) = moment.seconds {
        let _ = write!(out, " <span class=\"took\">{}</span>", duration(seconds));
    }
    if let (Some(seconds), Some(started), true) = (moment.seconds, report.started, report.seconds > 0.0) {
        let part = |seconds: f64| (seconds * 100.0 / report.seconds).clamp(0.0, 100.0);
        let left = part(super::shape::between(started, moment.at));
        let _ = write!(
            out,
            "<div class=\"bar\"><i style=\"margin-left:{left:.1}%;width:{:.1}%\"></i></div>",
            part(seconds).min(100.0 - left)
        );
    }
    out.push_str("</li>\n");
}

fn item(out: &mut String, at: &str, text: &str) {
    let _ = writeln!(out, "<li><time>{at}</time> {}</li>", escape(text));
}

fn class(report: &Report) -> &'static str {
    use crate::journal::Phase;
    let failed = report
        .steps
        .iter()
        .any(|step| matches!(step.status, Status::Failed { .. } | Status::UndoFailed { .. }));
    match report.phase {
        _ if failed => "bad",
        Phase::Done | Phase::Finished => "good",
        _ => "warn",
    }
}

/// Text that means nothing but itself, in content and in attributes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_in_a_name_becomes_markup() {
        assert_eq!(super::escape("<a href='x'>&\""), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;");
    }
}
