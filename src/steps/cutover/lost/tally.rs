//! What would be lost, by table, with how it is known: for people in a line and a table, for programs as it is.

use crate::problem::{count, few};
use crate::steps::Counted;
use crate::table::{Column, Table};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How a table's numbers are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Each write was captured in its own transaction: exact.
    Captured,
    /// By who wrote the rows that are there, and by the server's statistics: deletes and what was overwritten since are
    /// not among the rows.
    Rows,
    /// There was no time to look at it; only the server's statistics tell.
    Statistics,
}

/// What is lost of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Its name.
    pub table: String,
    /// How its numbers are known.
    pub how: How,
    /// Rows that are there and were inserted or updated since the cutover; none where that is not known.
    pub rows: Option<i64>,
    /// Whether more of it may be so: it was not searched to its end.
    pub at_least: bool,
    /// Rows inserted, updated and deleted: as captured, else as the server counts them, also of transactions that were
    /// rolled back. None where its statistics began anew.
    pub operations: Option<[i64; 3]>,
    /// Whether it was emptied or rewritten since, so that all of its rows look new, or what was there is gone.
    pub rewritten: bool,
}

/// What is lost of all tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// The database.
    pub database: String,
    /// When it was counted, by the clock of the host that acted.
    pub at: Timestamp,
    /// Why nothing could be counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
    /// Tables of which something is lost, or may be.
    pub tables: Vec<Lost>,
    /// What else is to be known of the numbers.
    pub notes: Vec<String>,
    /// Whether others than the application may have written what is counted.
    pub mixed: bool,
}

impl Tally {
    /// Nothing could be counted.
    #[must_use]
    pub fn unknown(database: &str, why: impl Into<String>) -> Self {
        Tally {
            database: database.to_owned(),
            at: Timestamp::now(),
            unknown: Some(why.into()),
            tables: Vec::new(),
            notes: Vec::new(),
            mixed: false,
        }
    }

    /// Whether each number is exact: everything was captured.
    fn is_exact(&self) -> bool {
        self.unknown.is_none() && !self.mixed && self.tables.iter().all(|lost| lost.how == How::Captured)
    }

    /// In a line.
    #[must_use]
    pub fn words(&self) -> String {
        if let Some(why) = &self.unknown {
            return format!("how much that is cannot be counted: {why}");
        }
        let sum = |of: fn(&Lost) -> i64| self.tables.iter().map(of).sum::<i64>();
        let number = |n: i64, one: &str| count(usize::try_from(n).unwrap_or(0), one);
        let deleted = |how: fn(How) -> bool| {
            let of = self.tables.iter().filter(|lost| how(lost.how));
            of.filter_map(|lost| lost.operations).map(|[_, _, deleted]| deleted).sum::<i64>()
        };
        let mut parts = Vec::new();
        let captured: Vec<&Lost> = self.tables.iter().filter(|lost| lost.how == How::Captured).collect();
        if !captured.is_empty() {
            let all: [i64; 3] = std::array::from_fn(|i| {
                captured.iter().filter_map(|lost| lost.operations).map(|operations| operations[i]).sum()
            });
            parts.push(format!(
                "exactly {}, {} and {} of {}",
                number(all[0], "insert"),
                number(all[1], "update"),
                number(all[2], "delete"),
                few(&captured.iter().map(|lost| &lost.table).collect::<Vec<_>>())
            ));
        }
        let written: Vec<&Lost> = self
            .tables
            .iter()
            .filter(|l| l.how != How::Captured && l.rows.is_some_and(|rows| rows > 0))
            .collect();
        let rows = sum(|lost| if lost.how == How::Captured { 0 } else { lost.rows.unwrap_or(0) });
        if rows > 0 {
            let at_least =
                if self.mixed && !written.iter().any(|lost| lost.at_least) { "" } else { "at least " };
            parts.push(format!(
                "{at_least}{} inserted or updated in {}",
                number(rows, "row"),
                few(&written
                    .iter()
                    .map(|lost| format!("{} ({})", lost.table, lost.rows_words()))
                    .collect::<Vec<_>>())
            ));
        }
        let gone = deleted(|how| how != How::Captured);
        if gone > 0 {
            parts.push(format!("{} as its server counts them", number(gone, "delete")));
        }
        let blind = self.tables.iter().any(|lost| lost.how != How::Captured && lost.operations.is_none());
        if blind {
            parts.push("deletes that nothing counted".to_owned());
        }
        if parts.is_empty() {
            parts.push("no row there shows that it was inserted or updated since".to_owned());
        }
        let mut out = parts.join(", ");
        for note in &self.notes {
            out += "; ";
            out += note;
        }
        out
    }

    /// As a table; none where it would be empty.
    #[must_use]
    pub fn table(&self) -> Option<Table> {
        let mut out = Table::new(
            ["table", "rows written", "inserted", "updated", "deleted", "known by"].map(Column::new),
        );
        for lost in &self.tables {
            let of = |i: usize| lost.operations.map_or(Value::Null, |operations| json!(operations[i]));
            let rows = match (lost.rows, lost.at_least) {
                (Some(rows), false) => json!(rows),
                _ => json!(lost.rows_words()),
            };
            let how = match lost.how {
                How::Captured => "what was captured: exact".to_owned(),
                How::Rows if lost.operations.is_none() => "its rows; the statistics began anew".to_owned(),
                How::Rows => "its rows, and the server's statistics".to_owned(),
                How::Statistics => "the server's statistics".to_owned(),
            };
            let how = if lost.rewritten { format!("{how}; it was emptied or rewritten since") } else { how };
            out.row([json!(lost.table), rows, of(0), of(1), of(2), json!(how)]);
        }
        (!out.rows.is_empty()).then_some(out)
    }

    /// For whoever tells it.
    #[must_use]
    pub fn told(&self) -> Counted {
        Counted { words: self.words(), table: self.table(), detail: self.detail() }
    }

    /// For programs.
    #[must_use]
    pub fn detail(&self) -> Value {
        let mut out = json!(self);
        out["exact"] = json!(self.is_exact());
        out
    }
}

impl Lost {
    fn rows_words(&self) -> String {
        match (self.rows, self.at_least) {
            (None, _) => "not known".to_owned(),
            (Some(rows), true) => format!("at least {rows}"),
            (Some(rows), false) => rows.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(table: &str, how: How, rows: i64, operations: Option<[i64; 3]>) -> Lost {
        Lost { table: table.into(), how, rows: Some(rows), at_least: false, operations, rewritten: false }
    }

    #[test]
    fn words_never_say_more_than_is_known() {
        let mut tally = Tally { unknown: None, ..Tally::unknown("green", "") };
        assert_eq!(tally.words(), "no row there shows that it was inserted or updated since");
        tally.tables.push(lost("token", How::Rows, 7, Some([5, 3, 2])));
        assert_eq!(
            tally.words(),
            "at least 7 rows inserted or updated in token (7), 2 deletes as its server counts them"
        );
        assert!(!tally.is_exact());
        tally.tables.push(Lost { at_least: true, ..lost("log", How::Rows, 1, None) });
        assert_eq!(
            tally.words(),
            "at least 8 rows inserted or updated in token (7), log (at least 1), 2 deletes as its server counts them, deletes \
             that nothing counted"
        );
        tally.tables = vec![lost("token", How::Captured, 7, Some([5, 3, 2]))];
        assert_eq!(tally.words(), "exactly 5 inserts, 3 updates and 2 deletes of token");
        assert!(tally.is_exact());
        tally.tables = vec![lost("token", How::Rows, 7, Some([5, 3, 0]))];
        tally.mixed = true;
        assert_eq!(tally.words(), "7 rows inserted or updated in token (7)");
        let unknown = Tally::unknown("green", "it cannot be reached").words();
        assert_eq!(unknown, "how much that is cannot be counted: it cannot be reached");
    }
}
