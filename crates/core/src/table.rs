//! A small table that a step gives with its summary: for people on every screen and in every report, and for programs
//! as JSON.
//!
//! ```
//! use handover_core::table::{Column, Table};
//! use serde_json::json;
//!
//! let mut table = Table::new([Column::new("probe"), Column::new("now"), Column::change("change")]);
//! table.row([json!("login, ms"), json!(18.4), json!(52.1)]);
//! let summary = json!({ "table": table });
//! assert_eq!(Table::of(&summary), Some(table));
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The key of a table in a step's summary, and of the fact in which a step that fails leaves one.
pub const KEY: &str = "table";

/// A small table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// What stands in its columns.
    pub columns: Vec<Column>,
    /// Its rows: a cell for each column, which is text, a number, or null where there is nothing to say.
    pub rows: Vec<Vec<Value>>,
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its heading.
    pub name: String,
    /// What numbers in it are.
    #[serde(default)]
    pub numbers: Numbers,
}

/// What the numbers of a column are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Numbers {
    /// Amounts. Their unit, if they have one, is told by the row or the heading.
    #[default]
    Amounts,
    /// By how many per cent something changed; people see the sign.
    PercentChange,
}

impl Column {
    /// A column of text or amounts.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Column { name: name.into(), numbers: Numbers::Amounts }
    }

    /// A column of changes in per cent.
    #[must_use]
    pub fn change(name: impl Into<String>) -> Self {
        Column { name: name.into(), numbers: Numbers::PercentChange }
    }
}

impl Table {
    /// An empty table with these columns.
    #[must_use]
    pub fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Table { columns: columns.into_iter().collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Value>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table of a summary; none where there is none, or one that a newer version wrote in another way.
    #[must_use]
    pub fn of(summary: &Value) -> Option<Self> {
        Self::read(summary.get(KEY)?)
    }

    /// A table from its JSON; none where it has no row, or is written in another way.
    #[must_use]
    pub fn read(value: &Value) -> Option<Self> {
        Self::deserialize(value).ok().filter(|table| !table.rows.is_empty())
    }
}
