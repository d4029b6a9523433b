//! What a look finds, and how it is collected.

use crate::error::Error;
use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth a look before the run.
    Warning,
    /// The plan cannot run like this.
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What it is about: a database's name, `control`, `queue`, `programs`.
    pub about: String,
    /// How bad.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub next: Option<String>,
}

/// Collects findings about one thing.
pub(super) struct Notes {
    about: String,
    pub(super) findings: Vec<Finding>,
}

impl Notes {
    pub(super) fn new(about: impl Into<String>) -> Self {
        Notes { about: about.into(), findings: Vec::new() }
    }

    pub(super) fn add(&mut self, severity: Severity, what: impl Into<String>, next: Option<String>) {
        self.findings.push(Finding { about: self.about.clone(), severity, what: what.into(), next });
    }

    pub(super) fn ok(&mut self, what: impl Into<String>) {
        self.add(Severity::Ok, what, None);
    }

    pub(super) fn warning(&mut self, what: impl Into<String>, next: impl Into<String>) {
        self.add(Severity::Warning, what, Some(next.into()));
    }

    pub(super) fn error(&mut self, what: impl Into<String>, next: impl Into<String>) {
        self.add(Severity::Error, what, Some(next.into()));
    }

    pub(super) fn failure(&mut self, error: &Error) {
        let next = error.next_step().unwrap_or("see what the server's log says");
        let next = crate::engine::advice::look_again(next);
        // What it is about stands above it already.
        let text = error.to_string();
        let what = text.strip_prefix(&format!("database {}: ", self.about)).unwrap_or(&text);
        self.error(what, next);
    }
}
