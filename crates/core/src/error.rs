//! The one error type: what happened, where, and what to do next.

use std::fmt;

/// A result whose error can be shown to an operator as it is.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure this is. The engine's policy decides by it whether to retry, ask, or stop, and the
/// command line chooses its exit code by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The plan, a flag or a file it names is wrong. Nothing was touched.
    Usage,
    /// A server could not be reached or a connection broke. Usually passes.
    Connection,
    /// Somebody else held a lock, or a deadlock or serialization failure was reported. Usually passes.
    Contention,
    /// A role lacks a privilege, or authentication failed.
    Privilege,
    /// A server ran out of disk, memory or connections.
    Resources,
    /// The data or schema is not what the step needs: a constraint, a missing table, a broken statement.
    Data,
    /// A check that the plan asked for did not hold.
    Invariant,
    /// A command, HTTP endpoint or file outside the databases failed.
    External,
    /// A time limit set by the plan ran out.
    Timeout,
    /// Another runner holds the lease.
    LeaseHeld,
    /// This runner's lease was lost or taken over; it must not act any more.
    LeaseLost,
    /// What was reviewed is not what would run (see `plan::digest`).
    Changed,
    /// The journal could not be written; the run stops.
    Journal,
    /// The operator or the system asked the engine to stop.
    Cancelled,
    /// The run waits for something that only a human can do.
    Waiting,
    /// A state that should be impossible: a defect of ours.
    Internal,
}

impl Class {
    /// What an error of a Postgres server means to the engine, by its code
    /// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
    #[must_use]
    pub fn of_sqlstate(code: &str) -> Class {
        match code {
            // lock_not_available, object_in_use.
            "55P03" | "55006" => Class::Contention,
            // query_canceled; transaction_timeout (17 and later).
            "57014" | "25P04" => Class::Timeout,
            // The server goes down, crashed, or is not up yet; too_many_connections, for a moment later one may be
            // free and a run should not halt for a rush; idle_in_transaction_session_timeout, idle_session_timeout.
            "57P01" | "57P02" | "57P03" | "53300" | "25P03" | "57P05" => Class::Connection,
            // insufficient_privilege, invalid_password, invalid_authorization_specification.
            "42501" | "28P01" | "28000" => Class::Privilege,
            _ if code.starts_with("08") => Class::Connection,
            _ if code.starts_with("40") => Class::Contention,
            _ if code.starts_with("53") || code.starts_with("58") => Class::Resources,
            _ => Class::Data,
        }
    }

    /// Whether doing the same again later may work without anybody changing anything.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self, Class::Connection | Class::Contention)
    }
}

/// Where an error happened. Empty fields are unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The plan or migration file.
    pub file: Option<String>,
    /// Line in that file, from 1.
    pub line: Option<usize>,
    /// The step's id.
    pub step: Option<String>,
    /// The database's name in the plan, e.g. `green`.
    pub database: Option<String>,
}

/// An error with its class, its place and the next thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(Box<Inner>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Inner {
    class: Class,
    message: String,
    place: Place,
    hint: Option<String>,
    exhausted: bool,
    unanswered: bool,
    sqlstate: Option<String>,
}

impl Error {
    /// A new error. `message` says what happened, in one sentence without a full stop.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            class,
            message: message.into(),
            place: Place::default(),
            hint: None,
            exhausted: false,
            unanswered: false,
            sqlstate: None,
        }))
    }

    /// Sets what the operator can do next. Who comes later knows more of what was being done: its word replaces an
    /// earlier one.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Sets what the operator can do next where nobody has said so: advice that fits any failure of its place.
    #[must_use]
    pub fn or_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Marks that whoever failed has tried again already as often as makes sense: nobody around it does so again.
    #[must_use]
    pub fn exhausted(mut self) -> Self {
        self.0.exhausted = true;
        self
    }

    /// Whether that is marked.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.0.exhausted
    }

    /// Marks that nobody knows whether what was asked for happens, or will.
    #[must_use]
    pub fn unanswered(mut self) -> Self {
        self.0.unanswered = true;
        self
    }

    /// Whether that is marked.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        self.0.unanswered
    }

    /// Puts context before the message: `context: message`.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.0.message = format!("{context}: {}", self.0.message);
        self
    }

    /// Names the file, unless one is named already.
    #[must_use]
    pub fn in_file(mut self, file: impl fmt::Display, line: Option<usize>) -> Self {
        if self.0.place.file.is_none() {
            self.0.place.file = Some(file.to_string());
            self.0.place.line = line;
        }
        self
    }

    /// Names the step, unless one is named already.
    #[must_use]
    pub fn at_step(mut self, step: impl fmt::Display) -> Self {
        self.0.place.step.get_or_insert_with(|| step.to_string());
        self
    }

    /// Names the database, unless one is named already.
    #[must_use]
    pub fn on_database(mut self, database: impl fmt::Display) -> Self {
        self.0.place.database.get_or_insert_with(|| database.to_string());
        self
    }

    /// Replaces the class, when the caller knows better what the failure means.
    #[must_use]
    pub fn with_class(mut self, class: Class) -> Self {
        self.0.class = class;
        self
    }

    /// Keeps the server's code, for callers that need to know more than the class.
    #[must_use]
    pub fn with_sqlstate(mut self, code: &str) -> Self {
        self.0.sqlstate = Some(code.to_owned());
        self
    }

    /// The server's code, if a Postgres server reported this.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        self.0.sqlstate.as_deref()
    }

    /// What sort of failure it is.
    #[must_use]
    pub fn class(&self) -> Class {
        self.0.class
    }

    /// What happened, without place or hint.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Where it happened.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// Words what to do next anew, for a caller that knows what has changed since it was worded.
    #[must_use]
    pub fn with_next(mut self, next: impl Into<String>) -> Self {
        self.0.hint = Some(next.into());
        self
    }

    /// What to do next.
    #[must_use]
    pub fn next_step(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = &self.0.place;
        if let Some(file) = &place.file {
            match place.line {
                Some(line) => write!(f, "{file}:{line}: ")?,
                None => write!(f, "{file}: ")?,
            }
        }
        match (&place.step, &place.database) {
            (Some(step), Some(db)) => write!(f, "step `{step}` on {db}: ")?,
            (Some(step), None) => write!(f, "step `{step}`: ")?,
            (None, Some(db)) => write!(f, "database {db}: ")?,
            (None, None) => {}
        }
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Error {}

/// Shorthands for the commonest classes.
impl Error {
    /// The plan, a flag or a named file is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Class::Usage, message)
    }
    /// The data or schema is not what the step needs.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(Class::Data, message)
    }
    /// Something outside the databases failed.
    pub fn external(message: impl Into<String>) -> Self {
        Self::new(Class::External, message)
    }
    /// A defect of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Class::Internal, message)
            .hint("this is a defect in Handover; please report it with `handover events`")
    }
    /// The engine was asked to stop.
    pub fn cancelled() -> Self {
        Self::new(Class::Cancelled, "stopped on request").hint("continue with `handover resume`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_told_from_what_stays() {
        for (code, class) in [
            ("40001", Class::Contention),
            ("40003", Class::Contention),
            ("53300", Class::Connection),
            ("53100", Class::Resources),
            ("57P05", Class::Connection),
            ("25P04", Class::Timeout),
            ("42501", Class::Privilege),
            ("44000", Class::Data),
        ] {
            assert_eq!(Class::of_sqlstate(code), class, "{code}");
        }
    }
}
