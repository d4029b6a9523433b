//! What a dry run says.

use handover_core::Error;
use serde::Serialize;
use serde_json::{Value, json};

/// The key under [`Description::details`] for statements.
const SQL: &str = "sql";
/// The key for how many statements there are beyond those.
const MORE_SQL: &str = "more_sql";
/// How many statements of a step are kept: a plan may have thousands of tables.
const KEPT: usize = 200;

/// What a dry run says of a step.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Description {
    /// What it would do, one line each, in order.
    pub actions: Vec<String>,
    /// What to look at before running it: locks, waits, missing privileges, blockers.
    pub warnings: Vec<String>,
    /// What makes the step impossible as things stand.
    pub blockers: Vec<String>,
    /// How long it may take, and how that was estimated.
    pub estimate: Option<String>,
    /// All of it for machines, where the lines for people leave something out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
}

impl Description {
    /// Adds an action.
    pub fn action(&mut self, text: impl Into<String>) -> &mut Self {
        self.actions.push(text.into());
        self
    }
    /// Adds a warning.
    pub fn warning(&mut self, text: impl Into<String>) -> &mut Self {
        self.warnings.push(text.into());
        self
    }
    /// Adds a blocker.
    pub fn blocker(&mut self, text: impl Into<String>) -> &mut Self {
        self.blockers.push(text.into());
        self
    }
    /// Adds what a run would refuse with, and its way out.
    pub fn refusal(&mut self, error: &Error) -> &mut Self {
        self.blocker(match error.next_step() {
            Some(hint) => format!("{} – {hint}", error.message()),
            None => error.message().to_owned(),
        })
    }
    /// Adds a statement, or several for one batch, that a run executes on the database `on`. It is to come from the
    /// function whose result the run executes. The first 200 of a step are kept under `details`, and the others counted.
    pub fn statement(&mut self, on: &str, sql: &str) -> &mut Self {
        let details = self.details.get_or_insert_with(|| json!({}));
        let Value::Object(details) = details else { return self };
        let Value::Array(kept) = details.entry(SQL).or_insert_with(|| json!([])) else { return self };
        if kept.len() < KEPT {
            kept.push(json!({ "on": on, "statement": sql }));
        } else {
            self.more(1);
        }
        self
    }
    /// Counts statements that are not kept: so many like those that were.
    pub fn more(&mut self, count: u64) -> &mut Self {
        let more = self.more_statements() + count;
        if let Value::Object(details) = self.details.get_or_insert_with(|| json!({})) {
            details.insert(MORE_SQL.to_owned(), json!(more));
        }
        self
    }
    /// The statements that were kept, each with the name of its database.
    pub fn statements(&self) -> impl Iterator<Item = (&str, &str)> {
        let kept = self.details.as_ref().and_then(|details| details.get(SQL)?.as_array());
        kept.into_iter()
            .flatten()
            .filter_map(|kept| Some((kept["on"].as_str()?, kept["statement"].as_str()?)))
    }
    /// How many statements there are beyond those that were kept.
    #[must_use]
    pub fn more_statements(&self) -> u64 {
        self.details.as_ref().and_then(|details| details.get(MORE_SQL)?.as_u64()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_stand_beside_other_details_and_are_bounded() {
        let mut out = Description { details: Some(json!({ "tables": [] })), ..Description::default() };
        for n in 0..KEPT + 3 {
            out.statement("blue", &format!("select {n}"));
        }
        assert_eq!(out.statements().next(), Some(("blue", "select 0")));
        assert_eq!((out.statements().count(), out.more_statements()), (KEPT, 3));
        assert!(out.details.is_some_and(|details| details["tables"].is_array()));
    }
}
