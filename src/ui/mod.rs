//! Everything that reaches a screen: listeners to events, and the only place that may print.
#![allow(clippy::print_stdout, clippy::print_stderr)]

pub mod json;
pub mod plain;
pub mod words;

use crate::error::Error;
use crate::event::Event;
use crate::plan::Diagnostic;
use crate::problem::Severity;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

/// How output is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one object, or one object a line.
    Json,
}

/// Something that shows events.
pub trait Listener: Send {
    /// Shows one.
    fn on(&mut self, event: &Event);
}

/// Starts showing events; ends when every emitter is gone.
pub fn listen(format: Format, mut events: UnboundedReceiver<Event>) -> JoinHandle<()> {
    let mut listener: Box<dyn Listener> = match format {
        Format::Json => Box::new(json::Json),
        Format::Text => Box::new(plain::Plain::default()),
    };
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            listener.on(&event);
        }
    })
}

/// Prints a line of a command's result.
pub fn out(text: impl std::fmt::Display) {
    use std::io::Write;
    // A reader that went away (`| head`) is no reason to fail.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints what is wrong with a plan, or worth knowing about it, on standard error: as text with a count below, or
/// one object `{"problems": […]}`. Nothing when there is nothing.
pub fn problems(format: Format, problems: &[Diagnostic]) {
    use std::io::Write;
    if problems.is_empty() {
        return;
    }
    let mut stderr = std::io::stderr();
    if format == Format::Json {
        let _ = writeln!(stderr, "{}", serde_json::json!({ "problems": problems }));
        return;
    }
    for problem in problems {
        let _ = writeln!(stderr, "{problem}\n");
    }
    let errors = problems.iter().filter(|p| p.severity == Severity::Error).count();
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let _ = writeln!(stderr, "{}, {}", count(errors, "error"), count(problems.len() - errors, "warning"));
}

/// Prints an error with what to do next, on standard error.
pub fn error(format: Format, error: &Error) {
    use std::io::Write;
    let mut stderr = std::io::stderr();
    let _ = match format {
        Format::Json => writeln!(
            stderr,
            "{}",
            serde_json::json!({ "error": { "class": error.class(), "message": error.to_string(), "next": error.next_step() } })
        ),
        Format::Text => match error.next_step() {
            Some(next) => writeln!(stderr, "error: {error}\n  next: {next}"),
            None => writeln!(stderr, "error: {error}"),
        },
    };
}
