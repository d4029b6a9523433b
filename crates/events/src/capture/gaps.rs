//! What a capture leaves out of a table's writes.
//!
//! A table is carried over only as far as its operations are: `on: [insert]` misses every later update, a condition
//! misses the writes that it does not hold for, and `columns` misses the values of the others.

use super::options::{Rest, Table, Truncate};
use crate::trigger::Operation;

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
    /// What of its writes may be lost by the plan's own word, in words: what `rest: ignore` lets go, and a TRUNCATE.
    #[must_use]
    pub fn lets_go(&self) -> Option<String> {
        let gaps = if self.rest == Rest::Ignore { self.gaps(None) } else { Vec::new() };
        let truncate = (self.truncate == Truncate::Ignore).then(|| "no truncate".to_owned());
        let all: Vec<String> = gaps.iter().map(ToString::to_string).chain(truncate).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

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
