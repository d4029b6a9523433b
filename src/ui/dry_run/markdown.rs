//! A dry run as a comment on a pull request: the verdict, a line a step, what to look at, and the rest folded away.

use super::{later, text};
use crate::engine::dry_run::{DryRun, Outlook, StepLook};
use crate::problem::count;
use crate::steps::Undo;
use crate::ui::report::markdown::escape;
use std::fmt::Write;

/// Longer lines make a table hard to read; the whole text stands below it.
const WIDTH: usize = 120;

/// The whole answer as Markdown (tables and `<details>` as GitHub and GitLab read them).
#[must_use]
pub fn markdown(run: &DryRun) -> String {
    let mut out = String::new();
    let verdict = if run.ok { "✅ can run" } else { "❌ cannot run as things stand" };
    let _ = writeln!(out, "### Handover: `{}` {verdict}\n", run.plan);
    let _ = writeln!(out, "**{}**\n", facts(run).join(" · "));
    let databases: Vec<String> = run
        .databases
        .iter()
        .map(|database| match &database.version {
            Some(version) => format!("{} (Postgres {})", escape(&database.name), escape(version)),
            None => format!("{} (not reached)", escape(&database.name)),
        })
        .collect();
    let _ = writeln!(out, "{}; nothing was changed\n", databases.join(", "));
    if let Some(unfinished) = &run.unfinished {
        let _ = writeln!(
            out,
            "Run `{}` is {}: this is what is left of it.\n",
            unfinished.run,
            unfinished.phase.word()
        );
    }
    let _ = writeln!(out, "| # | step | does | takes | undo |\n| --: | --- | --- | --- | --- |");
    for (i, step) in run.steps.iter().enumerate() {
        let point = run.point_of_no_return.as_ref().is_some_and(|point| point.step == step.id);
        let mark = if point { " ⚠️ **point of no return**" } else { "" };
        let _ = writeln!(
            out,
            "| {} | {}{mark} | {} | {} | {} |",
            i + 1,
            escape(step.id.as_str()),
            does(step),
            escape(&short(takes(step))),
            undo(&step.undo),
        );
    }
    let notes = notes(run);
    if !notes.is_empty() {
        let _ = writeln!(out);
        // A blank line between: else they run together into one paragraph.
        let _ = writeln!(out, "{}", notes.join("\n>\n"));
    }
    let whole = console::strip_ansi_codes(&text(run, true)).into_owned();
    let fence = "`".repeat(longest_fence(&whole).max(2) + 1);
    let _ = write!(
        out,
        "\n<details><summary>Every step, with its SQL</summary>\n\n{fence}text\n{whole}\n{fence}\n\n</details>"
    );
    out
}

fn facts(run: &DryRun) -> Vec<String> {
    let blockers = run.blockers.len() + run.steps.iter().map(|s| s.description.blockers.len()).sum::<usize>();
    let warnings = run.warnings.len() + run.steps.iter().map(|s| s.description.warnings.len()).sum::<usize>();
    let approvals = run.steps.iter().filter(|s| s.kind == "approve").count();
    let mut out = vec![count(run.steps.len(), "step")];
    if approvals > 0 {
        out.push(count(approvals, "approval"));
    }
    out.push(count(blockers, "blocker"));
    out.push(count(warnings, "warning"));
    if let Some(digest) = &run.digest {
        out.push(format!("digest `{}`", digest.get(..12).unwrap_or(digest)));
    }
    out
}

/// How long it may take, without what only the whole text has room for.
fn takes(step: &StepLook) -> &str {
    let estimate = step.description.estimate.as_deref().unwrap_or("–");
    estimate.split(';').next().unwrap_or(estimate)
}

fn does(step: &StepLook) -> String {
    let kind = format!("`{}`", step.kind);
    match step.outlook {
        Outlook::Done => return format!("{kind}: done already"),
        Outlook::Later => {
            let after = step.depends.as_ref().map_or_else(String::new, |d| format!(" after `{}`", d.step));
            return format!("{kind}: looked at{after}");
        }
        Outlook::Described | Outlook::Blocked => {}
    }
    let actions = &step.description.actions;
    let more = actions.len().saturating_sub(1);
    match actions.first() {
        None => kind,
        Some(first) if more > 0 => format!("{kind}: {} (and {more} more)", escape(&short(first))),
        Some(first) => format!("{kind}: {}", escape(&short(first))),
    }
}

fn undo(undo: &Undo) -> String {
    match undo {
        Undo::Exact { .. } => "exact".into(),
        Undo::WhileCarried { .. } => "exact, while the stream back flows".into(),
        Undo::Nothing => "nothing to take back".into(),
        Undo::Lossy { loses, .. } => format!("loses {}", escape(loses)),
        Undo::Impossible { why } => format!("**impossible**: {}", escape(&short(why))),
    }
}

/// What to look at, each as a quotation of its own.
fn notes(run: &DryRun) -> Vec<String> {
    let mut out = Vec::new();
    let mut add = |mark: &str, step: Option<&StepLook>, texts: &[String]| {
        for text in texts {
            let step = step.map_or_else(String::new, |step| format!("step `{}`: ", step.id));
            out.push(format!("> {mark} {step}{}", escape(text)));
        }
    };
    add("❌", None, &run.blockers);
    for step in &run.steps {
        add("❌", Some(step), &step.description.blockers);
    }
    add("⚠️", None, &run.warnings);
    for step in &run.steps {
        add("⚠️", Some(step), &step.description.warnings);
    }
    out.extend(later(run).iter().map(|later| format!("> ℹ️ {}", later.words())));
    if let Some(point) = &run.point_of_no_return {
        out.push(format!("> ⚠️ a rollback from step `{}` on {}", point.step, escape(&point.past_it())));
    }
    out
}

/// The first line of a text, or as much of it as fits.
fn short(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= WIDTH && line.len() == text.trim_end().len() {
        return line.to_owned();
    }
    let kept: String = line.chars().take(WIDTH).collect();
    format!("{} …", kept.trim_end())
}

/// The longest row of backticks in a text.
fn longest_fence(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}
