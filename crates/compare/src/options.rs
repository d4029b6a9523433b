//! What a plan says of a verification.

use crate::rows::{self, Matching};
use handover_core::event::StepId;
use handover_core::problem::{Problems, Segment};
use handover_core::value::Duration;
use handover_postgres::{TableName, sql};
use schemars::JsonSchema;
use serde::Deserialize;

/// For a query, unless the plan says otherwise.
const TIMEOUT: Duration = Duration::secs(30 * 60);
/// How long rows that are written all the time are looked at again, unless `retries` says.
const SETTLE: Duration = Duration::secs(10 * 60);

/// Compares before and after.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// Where the queries for "before" run, or the earlier step that recorded their results.
    pub before: Before,
    /// Where the queries for "after" run. Left out when a baseline is recorded.
    pub after: Option<String>,
    /// Keeps the results of "before" in that database, for a later step with `before: { from_step: … }`.
    #[serde(default)]
    pub record: bool,
    /// Compares numbers of rows, counted exactly.
    pub row_counts: Option<RowCounts>,
    /// Compares the content of tables by checksums that the servers compute; shows the keys of rows that differ.
    pub checksums: Option<Checksums>,
    /// Queries whose results must be the same before and after.
    #[serde(default)]
    pub invariants: Vec<Invariant>,
    /// Looks again at what differs, for a side that lags behind without a `replicate` step.
    pub retries: Option<Retries>,
    /// For each query; 30 minutes unless given.
    pub statement_timeout: Option<Duration>,
    /// Sessions on each side that count and sum tables; 2 unless given.
    #[schemars(range(min = 1, max = 64))]
    pub jobs: Option<usize>,
}

impl Verify {
    /// Whether numbers of rows are compared.
    #[must_use]
    pub fn counts_tables(&self) -> bool {
        !matches!(self.row_counts, None | Some(RowCounts::All(false)))
    }

    /// How long rows that differ are looked at again.
    #[must_use]
    pub fn within(&self) -> std::time::Duration {
        self.retries.map_or(SETTLE, |r| r.within).0
    }

    /// The databases that are asked the plan's own queries, and whether each is the side before.
    pub(crate) fn sides(&self) -> Vec<(&str, bool)> {
        let mut sides = Vec::new();
        if let Before::Database(name) = &self.before {
            sides.push((name.as_str(), true));
        }
        sides.extend(self.after.iter().map(|name| (name.as_str(), false)));
        sides
    }

    pub(crate) fn jobs(&self) -> usize {
        self.jobs.unwrap_or(2).max(1)
    }

    pub(crate) fn timeout(&self) -> std::time::Duration {
        self.statement_timeout.unwrap_or(TIMEOUT).0
    }

    pub(crate) fn counted(&self) -> Tables {
        match &self.row_counts {
            Some(RowCounts::Some(tables)) => tables.clone(),
            _ => Tables::default(),
        }
    }
}

/// Where "before" comes from.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Before {
    /// A database.
    Database(String),
    /// The results that an earlier step recorded.
    Recorded(Recorded),
}

/// A reference to recorded results.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// The id of an earlier `verify` step with `record: true`.
    pub from_step: StepId,
}

/// Which tables' rows are counted.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RowCounts {
    /// All, or none.
    All(bool),
    /// Some.
    Some(Tables),
}

/// Tables by name.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tables {
    /// Only these; all unless given.
    pub tables: Vec<TableName>,
    /// Not these.
    pub exclude: Vec<TableName>,
}

/// Which tables' content is compared.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Checksums {
    /// Only these; all unless given.
    pub tables: Vec<TableName>,
    /// Not these.
    pub exclude: Vec<TableName>,
    /// About as many rows share a checksum; 50000 unless given. Fewer make pieces that differ quicker to search.
    #[schemars(range(min = 1))]
    pub chunk_rows: Option<u32>,
}

impl Checksums {
    pub(crate) fn chunk_rows(&self) -> u32 {
        self.chunk_rows.unwrap_or(50_000)
    }
}

/// A query whose answer must survive.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Invariant {
    /// What it says, e.g. `live sessions per subject`.
    #[schemars(length(min = 1))]
    pub name: String,
    /// The query before: one SELECT.
    pub before: Option<String>,
    /// The query after; the one before unless given.
    pub after: Option<String>,
    /// Columns that identify a row, so that a changed row is shown as such.
    #[serde(default)]
    pub key: Vec<String>,
    /// Whether the order of rows matters; else results are compared as multisets.
    #[serde(default)]
    pub ordered: bool,
    /// How far numbers of rows with the same key (or place) may lie apart.
    pub tolerance: Option<f64>,
    /// Whether results without rows on both sides are fine.
    #[serde(default)]
    pub allow_empty: bool,
}

/// How long to wait for equality.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retries {
    /// Gives up after this; for the content of tables, counted from when all were summed.
    pub within: Duration,
    /// Waits this long before it looks again; one second unless given.
    pub every: Option<Duration>,
}

impl Invariant {
    /// Finds what is wrong with its queries and with how rows find each other; `path` leads to it.
    pub fn check(&self, path: &[Segment], problems: &mut Problems) {
        let at = |field: &str| -> Vec<Segment> { path.iter().cloned().chain([field.into()]).collect() };
        for (field, text) in [("before", &self.before), ("after", &self.after)] {
            let Some(text) = text else { continue };
            let statements = sql::statements(text);
            let first = statements.first().map(|s| s.trim_start().to_lowercase()).unwrap_or_default();
            if statements.len() != 1
                || !["select", "with", "table", "values", "("].iter().any(|w| first.starts_with(w))
            {
                problems.error(at(field), "an invariant is one query").hint("write one SELECT");
            }
        }
        if self.ordered && !self.key.is_empty() {
            problems
                .error(at("ordered"), "rows are found either by their key or by their place")
                .hint("remove `key` or `ordered`");
        }
        if self.tolerance.is_some_and(|t| !t.is_finite() || t < 0.0) {
            problems.error(at("tolerance"), "a tolerance is 0 or more").hint("write a number such as 0.01");
        }
    }

    /// How rows of its results find each other.
    #[must_use]
    pub fn matching(&self) -> Matching {
        if !self.key.is_empty() {
            Matching::Key
        } else if self.ordered || self.tolerance.is_some() {
            Matching::Place
        } else {
            Matching::Values
        }
    }

    pub(crate) fn before_sql(&self) -> Option<String> {
        self.before.as_ref().map(|sql| rows::wrap(sql, &self.key, self.matching()))
    }

    pub(crate) fn after_sql(&self) -> Option<String> {
        self.after.as_ref().or(self.before.as_ref()).map(|sql| rows::wrap(sql, &self.key, self.matching()))
    }
}
