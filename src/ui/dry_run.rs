//! A dry run as text, and as a comment for a pull request.

mod markdown;

pub use markdown::markdown;

use crate::engine::dry_run::{DryRun, Outlook, StepLook};
use crate::event::{Event, StepId};
use crate::problem::count;
use crate::steps::{Description, Undo};
use console::style;
use std::fmt::Write;
use tokio::sync::mpsc::UnboundedReceiver;

/// How many statements of a step are shown.
const STATEMENTS: usize = 20;
/// How much of a statement is shown, in characters: one that names each table may be very long.
const STATEMENT: usize = 1000;
/// How long a step may be looked at in silence.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(2);

/// Says which step is being looked at when that takes a while, on standard error.
pub async fn watch(mut events: UnboundedReceiver<Event>) {
    let mut at = None;
    loop {
        let next = match tokio::time::timeout(SILENCE, events.recv()).await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(_) => {
                if let Some((step, done, total)) = at.take() {
                    super::remark(format_args!("looking at step {done} of {total}, `{step}` …"));
                }
                continue;
            }
        };
        if let Event::Progress { step, done, total: Some(total), .. } = next {
            at = Some((step, done, total));
        }
    }
}

/// The formats of a dry run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For a terminal.
    #[default]
    Text,
    /// Markdown, for a comment on a pull request.
    Md,
    /// One object, for programs.
    Json,
}

/// The whole answer. What can only be looked at later is counted, and statements are left out, unless `verbose`.
#[must_use]
pub fn text(run: &DryRun, verbose: bool) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "Dry run of plan `{}`: nothing is changed.", run.plan);
    let _ = writeln!(out, "{}", verdict(run));
    if let Some(digest) = &run.digest {
        let _ = writeln!(out, "digest {digest}");
    }
    if let Some(unfinished) = &run.unfinished {
        let _ = writeln!(
            out,
            "run {} is {}; this is what is left of it",
            unfinished.run,
            unfinished.phase.word()
        );
    }
    for database in &run.databases {
        let _ = match (&database.version, &database.role) {
            (Some(version), Some(role)) => {
                let unasked = match database.worker_unknown {
                    true => "; what the role that works may do there is not asked, for its URL is not set",
                    false => "",
                };
                writeln!(out, "{}: Postgres {version}, looked at as {role}{unasked}", database.name)
            }
            _ => writeln!(out, "{}: not reached", database.name),
        };
    }
    lines(&mut out, "", &[], &run.warnings, &run.blockers);
    let folded = if verbose { Vec::new() } else { later(run) };
    for later in &folded {
        let _ = writeln!(out, "… {} (--verbose lists them)", later.words());
    }
    for (i, step) in run.steps.iter().enumerate() {
        let _ = writeln!(out);
        one(&mut out, i + 1, step, &folded, verbose);
        if let Some(point) = run.point_of_no_return.as_ref().filter(|point| point.step == step.id) {
            let bar = style("━━ point of no return ".to_owned() + &"━".repeat(40)).yellow().bold();
            let _ = writeln!(out, "   {bar}\n     a rollback from here on {}", point.past_it());
        }
    }
    rollback(&mut out, run);
    // Said again: the end is what stays on the screen.
    let _ = write!(out, "\n{}", verdict(run));
    out
}

/// How much there is, and whether it can run.
fn verdict(run: &DryRun) -> String {
    let blockers = run.blockers.len() + run.steps.iter().map(|s| s.description.blockers.len()).sum::<usize>();
    let warnings = run.warnings.len() + run.steps.iter().map(|s| s.description.warnings.len()).sum::<usize>();
    let of = |kind: &str| run.steps.iter().filter(|s| s.kind == kind).count();
    let mut out = count(run.steps.len(), "step");
    if of("approve") > 0 {
        let _ = write!(out, ", {}", count(of("approve"), "approval"));
    }
    let _ = write!(out, ", {}, {}", count(blockers, "blocker"), count(warnings, "warning"));
    let later = run.steps.iter().filter(|s| s.outlook == Outlook::Later).count();
    if later > 0 {
        let _ = write!(out, ", {} that cannot be looked at yet", count(later, "step"));
    }
    let verdict = if run.ok {
        style("nothing stands in the way").green()
    } else {
        style("this plan cannot run as things stand").red()
    };
    let _ = write!(out, ": {verdict}");
    out
}

/// What can be looked at only once a step has run.
struct Later<'a> {
    maker: &'a StepId,
    things: usize,
    steps: usize,
}

impl Later<'_> {
    fn words(&self) -> String {
        format!(
            "{} of {} can be looked at only once step `{}` has run",
            count(self.things, "thing"),
            count(self.steps, "later step"),
            self.maker
        )
    }
}

/// Several things that wait for one step are said once; a single one is said where it stands.
fn later(run: &DryRun) -> Vec<Later<'_>> {
    let mut out: Vec<Later<'_>> = Vec::new();
    for step in &run.steps {
        let Some(depends) = step.depends.as_ref().filter(|depends| depends.asked_of.is_none()) else {
            continue;
        };
        let things = depends.unseen.len() + usize::from(step.outlook == Outlook::Later);
        match out.iter_mut().find(|later| *later.maker == depends.step) {
            _ if things == 0 => {}
            Some(known) => {
                known.things += things;
                known.steps += 1;
            }
            None => out.push(Later { maker: &depends.step, things, steps: 1 }),
        }
    }
    out.retain(|later| later.things > 1);
    out
}

fn one(out: &mut String, number: usize, step: &StepLook, folded: &[Later<'_>], verbose: bool) {
    let is_folded = step
        .depends
        .as_ref()
        .is_some_and(|d| d.asked_of.is_none() && folded.iter().any(|later| *later.maker == d.step));
    let title = step.title.as_ref().map_or_else(String::new, |title| format!(" – {title}"));
    let _ = writeln!(out, "{number}. {} ({}){title}", style(&step.id).bold(), step.kind);
    match step.outlook {
        Outlook::Done => {
            let _ = writeln!(out, "     done already");
            return;
        }
        Outlook::Later if is_folded => {}
        Outlook::Later => {
            let _ = writeln!(out, "     later: {}", step.why.as_deref().unwrap_or_default());
        }
        Outlook::Described | Outlook::Blocked => {}
    }
    if let Some(depends) = &step.depends {
        let words = match (&depends.asked_of, depends.unseen.as_slice()) {
            (Some(from), _) => format!("asked of {from} instead: `{}` has not run", depends.step),
            (None, []) if step.outlook == Outlook::Later && is_folded => format!("after `{}`", depends.step),
            (None, []) => String::new(),
            (None, _) if is_folded => format!("the rest after `{}`", depends.step),
            (None, unseen) => format!("after `{}`: {}", depends.step, unseen.join("\n  ")),
        };
        if !words.is_empty() {
            let _ = writeln!(out, "     … {}", indented(&words, "     "));
        }
    }
    let description = &step.description;
    lines(out, "     ", &description.actions, &description.warnings, &description.blockers);
    if verbose {
        statements(out, description);
    }
    if let Some(estimate) = &description.estimate {
        let _ = writeln!(out, "     takes: {estimate}");
    }
    if step.stands {
        let _ = writeln!(out, "     leaves a standing task until a later step ends it");
    }
    let _ = writeln!(out, "     undo: {}", undo(&step.undo));
}

fn lines(out: &mut String, indent: &str, actions: &[String], warnings: &[String], blockers: &[String]) {
    for action in actions {
        let _ = writeln!(out, "{indent}{}", indented(action, indent));
    }
    for warning in warnings {
        let _ = writeln!(out, "{indent}{} {}", style("warning:").yellow(), indented(warning, indent));
    }
    for blocker in blockers {
        let _ = writeln!(out, "{indent}{} {}", style("blocker:").red().bold(), indented(blocker, indent));
    }
}

/// What is executed, as much of it as people read.
fn statements(out: &mut String, description: &Description) {
    for (on, sql) in description.statements().take(STATEMENTS) {
        let shown = match sql.char_indices().nth(STATEMENT) {
            Some((end, _)) => format!("{} … ({} characters)", &sql[..end], sql.chars().count()),
            None => sql.to_owned(),
        };
        let _ = writeln!(out, "     SQL on {on}: {}", indented(&shown, "       "));
    }
    let more =
        description.statements().count().saturating_sub(STATEMENTS) as u64 + description.more_statements();
    if more > 0 {
        let _ = writeln!(out, "     and {more} more statements");
    }
}

/// SQL comes in several lines; they stay under the first.
fn indented(text: &str, indent: &str) -> String {
    text.trim_end().replace('\n', &format!("\n{indent}"))
}

/// An undo in words.
#[must_use]
pub fn undo(undo: &Undo) -> String {
    match undo {
        Undo::Exact { how } | Undo::WhileCarried { how, .. } => how.clone(),
        Undo::Nothing => "nothing to take back".into(),
        Undo::Lossy { how, loses } => format!("{how}, but loses {loses}"),
        Undo::Impossible { why } => format!("impossible: {why}"),
    }
}

fn rollback(out: &mut String, run: &DryRun) {
    let _ = writeln!(out, "\nRollback:");
    let Some(point) = &run.point_of_no_return else {
        let _ = writeln!(out, "     free from every place: there is no point of no return");
        return;
    };
    let mut before: Option<&StepLook> = None;
    let mut said: usize = 0;
    for step in &run.steps {
        if step.rollback_loses.len() == said {
            before = Some(step);
            continue;
        }
        if let (0, Some(last)) = (said, before) {
            let _ = writeln!(out, "     free up to and with `{}`", last.id);
        }
        for loss in step.rollback_loses.iter().filter(|loss| loss.step == step.id) {
            let mark = if loss.step == point.step { " (the point of no return)" } else { "" };
            let _ = writeln!(out, "     from `{}` on{mark}: {}", step.id, loss.clause());
        }
        said = step.rollback_loses.len();
    }
}
