//! Problems as people and programs read them.

use super::locate::{Locator, Place, lines};
use super::secrets;
use crate::error::Error;
use crate::problem::{Path, Problem, Severity};
use console::measure_text_width;
use serde::Serialize;
use std::fmt;

/// A problem with its place in the file. Serializes as one flat object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Whether the plan is refused for it.
    pub severity: Severity,
    /// The file as it was named.
    pub file: String,
    /// Line, column and length.
    #[serde(flatten)]
    pub place: Place,
    /// The node, e.g. `steps[2].copy.jobs`; empty for the whole file.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// The line it is in, with passwords blotted out.
    #[serde(skip)]
    excerpt: String,
    /// Where the carets stand under `excerpt`: the text before them, and their number.
    #[serde(skip)]
    caret: (String, usize),
}

impl Diagnostic {
    /// A problem of a file whose text is known.
    #[must_use]
    pub fn new(file: &str, text: &str, locator: &Locator, problem: &Problem) -> Self {
        let place = locator.of(problem);
        Self::at(
            file,
            text,
            place,
            problem.severity,
            &problem.path,
            &problem.message,
            problem.hint.as_deref(),
        )
    }

    /// A problem at a place.
    #[must_use]
    pub fn at(
        file: &str,
        text: &str,
        place: Place,
        severity: Severity,
        path: &Path,
        message: &str,
        help: Option<&str>,
    ) -> Self {
        let line = lines(text).get(place.line - 1).copied().unwrap_or_default();
        let (shown, moved) = secrets::masked(line);
        let shift = |column: usize| {
            // Characters from 0; what stood in a replaced range now stands at its end.
            moved.iter().fold(column, |at, &(start, end, now)| {
                if column >= end {
                    at + now - (end - start).min(at + now)
                } else if column > start {
                    start + now
                } else {
                    at
                }
            })
        };
        let start = shift(place.column - 1);
        let end = shift(place.column - 1 + place.length).max(start + 1);
        let (excerpt, caret) = window(&shown, start, end);
        Diagnostic {
            severity,
            file: file.to_owned(),
            place,
            path: path.to_string(),
            message: secrets::masked(message).0,
            help: help.map(|help| secrets::masked(help).0),
            excerpt,
            caret,
        }
    }
}

/// The part of a line to show, and where the carets stand under it: long lines are cut around the place.
fn window(line: &str, start: usize, end: usize) -> (String, (String, usize)) {
    const WIDTH: usize = 110;
    let chars: Vec<char> = line.chars().collect();
    let from = if chars.len() > WIDTH { start.saturating_sub(WIDTH / 3) } else { 0 };
    let to = chars.len().min(from + WIDTH);
    let mut excerpt: String = chars[from.min(to)..to].iter().collect();
    let mut before: String = chars[from.min(to)..start.clamp(from, to)].iter().collect();
    let meant: String = chars[start.min(to)..end.clamp(start.min(to), to)].iter().collect();
    if from > 0 {
        excerpt.insert_str(0, "… ");
        before.insert_str(0, "… ");
    }
    if to < chars.len() {
        excerpt.push_str(" …");
    }
    // Tabs stay tabs, so that the carets line up whatever a terminal's tab width is.
    let pad: String = before
        .chars()
        .flat_map(|c| match c {
            '\t' => vec!['\t'],
            c => vec![' '; measure_text_width(c.encode_utf8(&mut [0; 4]))],
        })
        .collect();
    (excerpt, (pad, measure_text_width(&meant).max(1)))
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { line, column, .. } = self.place;
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let gutter = " ".repeat(line.to_string().len());
        writeln!(f, "{}:{line}:{column}: {severity}: {}", self.file, self.message)?;
        writeln!(f, "{gutter} |")?;
        writeln!(f, "{line} | {}", self.excerpt)?;
        write!(f, "{gutter} | {}{}", self.caret.0, "^".repeat(self.caret.1))?;
        if let Some(help) = &self.help {
            write!(f, "\n{gutter} = help: {help}")?;
        }
        Ok(())
    }
}

/// Everything that is wrong with a plan, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct PlanErrors {
    /// Errors and warnings.
    pub problems: Vec<Diagnostic>,
}

impl PlanErrors {
    /// How many of them refuse the plan.
    #[must_use]
    pub fn errors(&self) -> usize {
        self.problems.iter().filter(|p| p.severity == Severity::Error).count()
    }
}

impl fmt::Display for PlanErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            write!(f, "{}{problem}", if i == 0 { "" } else { "\n\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for PlanErrors {}

impl From<PlanErrors> for Error {
    /// The first error stands for all; whoever can show them all does.
    fn from(errors: PlanErrors) -> Self {
        let count = errors.errors();
        let first = errors.problems.into_iter().find(|p| p.severity == Severity::Error);
        match first {
            Some(first) => {
                let more = if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() };
                let error = Error::usage(format!("{}{more}", first.message))
                    .in_file(&first.file, Some(first.place.line));
                error.hint(match first.help {
                    Some(help) if count == 1 => help,
                    _ => format!("`handover check {}` shows them all", first.file),
                })
            }
            None => Error::internal("a plan was refused without a reason"),
        }
    }
}
