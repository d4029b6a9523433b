//! An index as a plan describes it.

use crate::postgres::{TableName, quote_ident};
use schemars::JsonSchema;
use serde::Deserialize;

/// One index.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// Its name; it lands in the table's schema.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The table.
    pub table: TableName,
    /// Columns or expressions as in SQL, with their options: `created_at desc`, `lower(email)`.
    #[schemars(length(min = 1))]
    pub columns: Vec<String>,
    /// Whether values must be unique.
    #[serde(default)]
    pub unique: bool,
    /// Access method; `btree` unless given.
    pub using: Option<String>,
    /// Columns stored without being searched.
    #[serde(default)]
    pub include: Vec<String>,
    /// Condition of a partial index.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// Storage parameters, e.g. `fillfactor = 70`.
    pub with: Option<String>,
}

impl Index {
    pub(super) fn qualified(&self) -> String {
        TableName::new(&self.table.schema, &self.name).sql()
    }

    /// The journal's fact that it is ours.
    pub(super) fn fact(&self) -> String {
        TableName::new(&self.table.schema, &self.name).to_string()
    }

    /// What builds it without locking anybody out.
    pub(super) fn statement(&self) -> String {
        self.statement_for("concurrently ", &self.name, &self.table.sql())
    }

    /// What drops it without locking anybody out.
    pub(super) fn drop_statement(&self) -> String {
        format!("drop index concurrently if exists {}", self.qualified())
    }

    /// `table` is ready for SQL.
    pub(super) fn statement_for(&self, concurrently: &str, name: &str, table: &str) -> String {
        use std::fmt::Write;
        let mut sql = format!(
            "create {}index {concurrently}{} on {table}",
            if self.unique { "unique " } else { "" },
            quote_ident(name),
        );
        if let Some(method) = &self.using {
            let _ = write!(sql, " using {}", quote_ident(method));
        }
        let _ = write!(sql, " ({})", self.columns.join(", "));
        if !self.include.is_empty() {
            let columns: Vec<String> = self.include.iter().map(|c| quote_ident(c)).collect();
            let _ = write!(sql, " include ({})", columns.join(", "));
        }
        if let Some(with) = &self.with {
            let _ = write!(sql, " with ({with})");
        }
        if let Some(condition) = &self.condition {
            let _ = write!(sql, " where {condition}");
        }
        sql
    }
}
