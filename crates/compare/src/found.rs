//! What checksums found, for people and as JSON. Keys are shown and values never are: they may be secrets.

use handover_postgres::TableName;
use serde::Serialize;
use std::fmt::Write;

/// Rows shown of a table.
pub const SHOWN: usize = 10;

/// What is wrong with a table that is not there.
pub const GONE: &str = "is gone";

/// How a row differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It is missing after.
    OnlyBefore,
    /// It is new after.
    OnlyAfter,
    /// Both have it, with other values.
    Changed,
    /// It was written all the time, so that it was never seen equal and never seen different for certain.
    Unsettled,
}

/// A row that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RowFound {
    /// How.
    pub kind: Kind,
    /// Its key, a value for each column; empty without one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<String>,
    /// Which columns differ.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
    /// Of a row without a key: where one like it lies (`ctid`) on the side that has more of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lies_at: Option<String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What was found of one table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TableFound {
    /// Its name.
    pub table: String,
    /// Columns that identify a row.
    pub key: Vec<String>,
    /// Pieces that were summed on both sides.
    pub chunks: u64,
    /// Pieces that an earlier attempt had found equal.
    #[serde(skip_serializing_if = "is_default")]
    pub resumed: u64,
    /// Rows summed before.
    pub rows_before: u64,
    /// Rows summed after.
    pub rows_after: u64,
    /// Pieces that differed when they were first read.
    #[serde(skip_serializing_if = "is_default")]
    pub differed: u64,
    /// Rows that differed when they were first read, and were then seen equal.
    #[serde(skip_serializing_if = "is_default")]
    pub settled: u64,
    /// Rows that are missing after.
    #[serde(skip_serializing_if = "is_default")]
    pub only_before: u64,
    /// Rows that are new after.
    #[serde(skip_serializing_if = "is_default")]
    pub only_after: u64,
    /// Rows with other values.
    #[serde(skip_serializing_if = "is_default")]
    pub changed: u64,
    /// Rows that were written all the time.
    #[serde(skip_serializing_if = "is_default")]
    pub unsettled: u64,
    /// Whether not all differing pieces were searched, so that the numbers of rows are lower bounds.
    #[serde(skip_serializing_if = "is_default")]
    pub at_least: bool,
    /// The first rows that differ.
    #[serde(skip_serializing_if = "is_default")]
    pub shown: Vec<RowFound>,
    /// What makes a comparison of rows impossible: the table or columns are gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl TableFound {
    /// A table that could not be compared.
    #[must_use]
    pub fn broken(table: &TableName, problem: impl Into<String>) -> Self {
        TableFound { table: table.to_string(), problem: Some(problem.into()), ..TableFound::default() }
    }

    /// Rows that differ.
    #[must_use]
    pub fn differing(&self) -> u64 {
        self.only_before + self.only_after + self.changed
    }

    /// Whether both sides were shown to be equal.
    #[must_use]
    pub fn equal(&self) -> bool {
        self.problem.is_none() && self.differing() == 0 && self.unsettled == 0
    }

    /// The differences as one line; None when there are none.
    #[must_use]
    pub fn words(&self) -> Option<String> {
        let name = &self.table;
        match self.problem.as_deref() {
            Some(GONE) => return Some(format!("table {name} {GONE}")),
            Some(problem) => return Some(format!("table {name}: {problem}")),
            None => {}
        }
        if self.equal() {
            return None;
        }
        let mut out = format!("table {name}: ");
        if self.differing() > 0 {
            let bound = if self.at_least { "at least " } else { "" };
            let parts: Vec<String> = [
                (self.only_before, "only before"),
                (self.only_after, "only after"),
                (self.changed, "changed"),
            ]
            .iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, what)| format!("{n} {what}"))
            .collect();
            let _ = write!(out, "{bound}{} rows differ ({})", self.differing(), parts.join(", "));
        }
        if self.unsettled > 0 {
            let and = if self.differing() > 0 { ", and " } else { "" };
            let _ =
                write!(out, "{and}{} rows are being written all the time and never agreed", self.unsettled);
        }
        for row in self.shown.iter().take(SHOWN) {
            out.push_str(", ");
            out.push_str(&row.words());
        }
        Some(out)
    }
}

impl RowFound {
    fn words(&self) -> String {
        let kind = match self.kind {
            Kind::OnlyBefore => "only before",
            Kind::OnlyAfter => "only after",
            Kind::Changed => "changed",
            Kind::Unsettled => "unsettled",
        };
        let mut key: String = self.key.join(", ").chars().take(120).collect();
        if self.key.is_empty() {
            key = "a row without a key".into();
        }
        let mut out = format!("{kind}: ({key})");
        if !self.columns.is_empty() {
            let _ = write!(out, " in {}", self.columns.join(", "));
        }
        if let Some(place) = &self.lies_at {
            let _ = write!(out, " such as at {place}");
        }
        out
    }
}
