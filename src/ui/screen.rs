//! Writing to the terminal, and what is remembered of how that went.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use super::hint;
use crate::error::Error;
use crate::plan::Diagnostic;
use crate::problem::Severity;
use crate::redact;

/// How output is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one object, or one object a line.
    Json,
}

/// Makes what a step says of approvals name the plan as the command was told it: a step does not know that.
pub fn named(text: &mut String) {
    if let Some(plan) = PLAN.get() {
        *text = text.replace("handover approve PLAN ", &format!("handover approve {plan} "));
    }
}

/// Notes that something was recorded.
pub fn recorded() {
    BEGAN.store(true, std::sync::atomic::Ordering::Relaxed);
}

/// Prints a line of a command's result.
pub fn out(text: impl std::fmt::Display) {
    use std::io::Write;
    // A reader that went away (`| head`) is no reason to fail: a run goes on without its listener.
    if writeln!(std::io::stdout(), "{text}").is_err() {
        DEAF.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// The plan as the command was told it, once that is known.
static PLAN: std::sync::OnceLock<String> = std::sync::OnceLock::new();

/// Remembers how the plan was named, for what is to be pasted.
pub fn about(asked: Option<&hint::Asked>) {
    if let Some(asked) = asked {
        let _ = PLAN.set(asked.plan.clone());
    }
}

/// Whether something was recorded since this process began.
static BEGAN: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Whether standard output could not be written to.
static DEAF: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Whether somebody still reads standard output, as far as the last line told.
#[must_use]
pub fn heard() -> bool {
    !DEAF.load(std::sync::atomic::Ordering::Relaxed)
}

/// Prints a line about how things go: where the result is for programs, beside it on standard error.
pub fn aside(format: Format, text: impl std::fmt::Display) {
    use std::io::Write;
    let _ = match format {
        Format::Text => writeln!(std::io::stdout(), "{text}"),
        Format::Json => writeln!(std::io::stderr(), "{text}"),
    };
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

/// Prints an error with what to do next, on standard error: as text, or as one object `{"error": {…}}`.
pub fn error(format: Format, error: &Error) {
    error_of(format, error, None);
}

/// The same, of a command that was told a plan: what to do next names it.
pub fn error_of(format: Format, error: &Error, asked: Option<&hint::Asked>) {
    use std::io::Write;
    let mut stderr = std::io::stderr();
    let mut next = hint::next_step(error);
    if let Some(asked) = asked {
        let began = BEGAN.load(std::sync::atomic::Ordering::Relaxed);
        next = hint::pasteable(&next, error.class(), asked, began);
    }
    let (next, message) = (redact::clean(&next), error.to_string());
    let message = redact::clean(&message);
    let _ = match format {
        Format::Json => {
            let place = error.place();
            let object = serde_json::json!({ "error": {
                "class": error.class(),
                "message": message,
                "next": next,
                "file": place.file,
                "line": place.line,
                "step": place.step,
                "database": place.database,
            } });
            writeln!(stderr, "{object}")
        }
        Format::Text => {
            let label = console::style("error:").red().bold().for_stderr();
            writeln!(stderr, "{label} {message}\n  {} {next}", console::style("next:").bold().for_stderr())
        }
    };
}

/// Prints a remark on standard error, where it does not mix with results.
pub fn remark(text: impl std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints one object on standard output.
pub fn object(value: &impl serde::Serialize) -> crate::Result<()> {
    let text = serde_json::to_string(value)
        .map_err(|e| Error::internal(format!("the answer cannot be written as JSON ({e})")))?;
    out(text);
    Ok(())
}

/// Writes bytes to standard output as they are.
pub fn raw(bytes: &[u8]) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush());
}

/// Prints a defect as an error, in place of Rust's own message. The exit code stays 101.
pub fn on_panic(format: Format) {
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload_as_str().unwrap_or("an unknown panic");
        let place = info.location().map_or_else(String::new, |l| format!(" at {}:{}", l.file(), l.line()));
        error(
            format,
            &Error::new(crate::Class::Internal, format!("a defect in Handover: {text}{place}")).hint(
                "what was done is in the journal: `handover status` shows where the run stands, and `handover \
                 resume` goes on; please report this message",
            ),
        );
    }));
}
