//! A migration's name, understood.

use std::cmp::Ordering;

/// Which way a file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Takes the migration back.
    Down,
    /// Applies the migration.
    Up,
}

/// When a migration runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Instead of all versions up to its own, on a database that has none (Flyway's `B`).
    Baseline,
    /// Once, in its place.
    Versioned,
    /// After all others, again whenever its text changed (Flyway's `R`).
    Repeatable,
}

/// A file name, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// The number as written; of a repeatable one its name.
    pub number: String,
    /// The words after it.
    pub title: String,
    /// Which way it goes.
    pub direction: Direction,
    /// When it runs.
    pub kind: Kind,
    /// For which database it is, if it says so.
    pub dialect: Dialect,
    /// Whether the name says that it must not run in a transaction (popx).
    pub autocommit: bool,
    /// Whether it may appear after higher numbers were applied: refinery's `U`, and every file of a tool that
    /// asks of each number whether it was applied.
    pub may_be_late: bool,
}

/// For which database a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Any that has no file of its own.
    Any,
    /// Ours.
    Postgres,
    /// Another; the file is passed over.
    Other,
}

/// Compares two whole numbers of any length.
pub fn compare_numbers(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

pub fn digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

pub fn plain(number: &str, title: &str, direction: Direction) -> Name {
    Name {
        number: number.to_owned(),
        title: title.to_owned(),
        direction,
        kind: Kind::Versioned,
        dialect: Dialect::Any,
        autocommit: false,
        may_be_late: false,
    }
}
