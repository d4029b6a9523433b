//! What a capture leaves out of a table's writes.
//!
//! A table is carried over only as far as its operations are: `on: [insert]` misses every later update, a condition
//! misses the writes that it does not hold for, and `columns` misses the values of the others. The plan can say that
//! the rest may be lost (`rest: ignore`); otherwise the checker and the dry run name it, and the cutover asks the
//! server's counters for it.

use super::{Capture, Table};
use crate::postgres::TableName;
use crate::problem::{Problems, Segment, few};
use crate::steps::copy::Copy;
use crate::steps::cutover::Cutover;
use crate::steps::replicate::Replicate;
use crate::steps::{CheckContext, of_kind};
use handover_events::trigger::Operation;
use schemars::JsonSchema;
use serde::Deserialize;

/// What becomes of writes to a captured table that `on`, `when` and `columns` leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rest {
    /// A cutover that finds some since the copy refuses, before anything is paused.
    #[default]
    Refuse,
    /// They may be lost: nobody asks for them.
    Ignore,
}

/// Every kind of write that the server counts, in the order of its counters.
pub const OPERATIONS: [Operation; 3] = [Operation::Insert, Operation::Update, Operation::Delete];

/// Writes of one operation that are not carried over, or not as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The operation.
    pub operation: Operation,
    /// Why.
    pub why: Why,
}

/// Why writes are not carried over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The operation is not captured.
    Uncaptured,
    /// Only those for which a condition holds are.
    Condition,
    /// Events carry some of the columns.
    Columns,
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let operation = self.operation;
        match self.why {
            Why::Uncaptured => write!(f, "no {operation}"),
            Why::Condition => write!(f, "an {operation} only where its `when` holds"),
            Why::Columns => write!(f, "of an {operation} only some columns"),
        }
    }
}

impl Table {
    /// What it leaves out. `all` are the table's columns, where they are known.
    #[must_use]
    pub fn gaps(&self, all: Option<&[String]>) -> Vec<Gap> {
        let carried =
            |column: &String| self.columns.iter().chain(&self.key).any(|list| list.contains(column));
        let whole = self.columns.is_none() || all.is_some_and(|all| all.iter().all(carried));
        let why = |operation: Operation| {
            if !self.on.contains(&operation) {
                Some(Why::Uncaptured)
            } else if self.condition(operation).is_some() {
                Some(Why::Condition)
            } else if !whole && operation != Operation::Delete {
                Some(Why::Columns)
            } else {
                None
            }
        };
        OPERATIONS.into_iter().filter_map(|operation| Some(Gap { operation, why: why(operation)? })).collect()
    }
}

/// What is not captured of a table, in words.
pub fn words(gaps: &[Gap]) -> String {
    gaps.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Names what the plan would leave behind where it copies a table and then hands over.
pub(super) fn check(capture: &Capture, cx: &CheckContext<'_>, problems: &mut Problems) {
    let to: Vec<&String> = of_kind::<Cutover>(cx.steps)
        .filter(|(_, cutover)| cutover.freeze.as_ref() == Some(&capture.from))
        .filter_map(|(_, cutover)| cutover.to.as_ref())
        .collect();
    for (name, table) in &capture.tables {
        let copied = of_kind::<Copy>(cx.steps)
            .any(|(_, c)| c.from == capture.from && to.contains(&&c.to) && c.takes_rows(name));
        let replicated =
            of_kind::<Replicate>(cx.steps).any(|(_, r)| r.from == capture.from && to.contains(&&r.to));
        let excepted = of_kind::<Cutover>(cx.steps).any(|(_, cutover)| cutover.except.contains(name));
        let gaps = table.gaps(None);
        if !copied || replicated || excepted || table.rest == Rest::Ignore || gaps.is_empty() {
            continue;
        }
        problems
            .warning(
                [Segment::from("tables"), name.to_string().into()],
                format!("{name} is copied, and of what is written to it afterwards is carried over: {}", words(&gaps)),
            )
            .at_key()
            .hint(
                "the cutover refuses if it finds such writes: capture all of `on: [insert, update, delete]` without `when` and \
                 `columns`, or say `rest: ignore` if they may be lost",
            );
    }
}

/// Names tables that a plan copies by name and then carries no writes of.
pub fn check_uncarried(cutover: &Cutover, cx: &CheckContext<'_>, problems: &mut Problems) {
    let (Some(from), Some(to)) = (&cutover.freeze, &cutover.to) else { return };
    if of_kind::<Replicate>(cx.earlier()).any(|(_, r)| r.from == *from && r.to == *to) {
        return;
    }
    let captures: Vec<&Capture> =
        of_kind::<Capture>(cx.earlier()).map(|(_, capture)| capture).filter(|c| c.from == *from).collect();
    for (id, copy) in of_kind::<Copy>(cx.earlier()).filter(|(_, c)| c.from == *from && c.to == *to) {
        let hint = "a write to them after the copy makes the cutover refuse: add them to a `capture` before the copy, put a \
                    `replicate` behind it, or list them under the cutover's `except:` if such writes may be lost";
        if captures.is_empty() {
            problems
                .warning(
                    ["freeze"],
                    format!(
                        "what is written on `{from}` after the copy `{id}` is neither captured nor replicated"
                    ),
                )
                .at_key()
                .hint(hint.replace("them", "its tables"));
            continue;
        }
        let open: Vec<&TableName> = copy
            .include
            .tables
            .iter()
            .filter(|t| copy.takes_rows(t) && !cutover.except.contains(*t))
            .filter(|t| !captures.iter().any(|capture| capture.tables.contains_key(*t)))
            .collect();
        if !open.is_empty() {
            problems
                .warning(
                    ["freeze"],
                    format!("copied by `{id}`, and neither captured nor replicated: {}", few(&open)),
                )
                .at_key()
                .hint(hint);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn gaps(value: serde_json::Value, all: Option<&[&str]>) -> String {
        let table: Table = serde_json::from_value(value).unwrap();
        let all: Option<Vec<String>> = all.map(|all| all.iter().map(ToString::to_string).collect());
        words(&table.gaps(all.as_deref()))
    }

    #[test]
    fn each_operation_is_looked_at_by_itself() {
        let all = json!(["insert", "update", "delete"]);
        assert_eq!(gaps(json!({ "on": all }), None), "");
        assert_eq!(gaps(json!({ "on": ["insert"] }), None), "no update, no delete");
        assert_eq!(
            gaps(json!({ "on": all, "when": { "update": "old.a" } }), None),
            "an update only where its `when` holds"
        );
        assert_eq!(
            gaps(json!({ "on": ["update"], "when": "old.a" }), None),
            "no insert, an update only where its `when` holds, no delete"
        );
        let columns = json!({ "on": all, "key": ["id"], "columns": ["a"] });
        assert_eq!(
            gaps(columns.clone(), None),
            "of an insert only some columns, of an update only some columns"
        );
        assert_eq!(gaps(columns.clone(), Some(&["id", "a"])), "");
        assert_ne!(gaps(columns, Some(&["id", "a", "b"])), "");
    }
}
