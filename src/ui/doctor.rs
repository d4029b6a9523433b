//! The doctor's findings as text.

use crate::doctor::{Diagnosis, Severity};
use crate::problem::count;
use console::style;
use std::fmt::Write;

/// All findings, and a count.
#[must_use]
pub fn text(diagnosis: &Diagnosis) -> String {
    let mut out = String::new();
    let mut about = "";
    for (i, finding) in diagnosis.findings.iter().enumerate() {
        if finding.about != about {
            about = &finding.about;
            let _ = writeln!(out, "{}", style(about).bold());
        }
        let mark = match finding.severity {
            Severity::Ok => style("ok      ").green(),
            Severity::Warning => style("warning ").yellow(),
            Severity::Error => style("error   ").red().bold(),
        };
        let _ = writeln!(out, "  {mark} {}", finding.what);
        // What is mended in one way is said once, after the last of it.
        let following = diagnosis.findings.get(i + 1).filter(|following| following.about == finding.about);
        if let Some(next) = &finding.next
            && following.is_none_or(|following| following.next.as_ref() != Some(next))
        {
            let _ = writeln!(out, "           next: {next}");
        }
    }
    let of = |severity| diagnosis.findings.iter().filter(|f| f.severity == severity).count();
    let _ =
        write!(out, "\n{}, {}", count(of(Severity::Error), "error"), count(of(Severity::Warning), "warning"));
    out
}
