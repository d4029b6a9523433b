//! What was found in all, and how the plan's own queries are judged.

use crate::found::TableFound;
use crate::options::Invariant;
use crate::rows::Outcome;
use crate::side::Moment;
use handover_core::error::{Error, Result};
use serde_json::{Value, json};

/// What one evaluation of everything found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Things that were compared: tables, rows.
    pub(crate) compared: u64,
    /// Differences, a line each.
    pub(crate) differences: Vec<String>,
    /// Whether it was only compared which rows there are.
    pub(crate) only_counted: bool,
    /// Tables whose content was compared.
    pub(crate) tables: Vec<TableFound>,
    /// The points in time that were compared.
    pub(crate) moments: Vec<Moment>,
}

impl Findings {
    /// Adds what was found of tables' content.
    pub(crate) fn add(&mut self, tables: &[TableFound]) {
        self.compared += tables.len() as u64;
        self.differences.extend(tables.iter().filter_map(TableFound::words));
        self.tables.extend(tables.iter().cloned());
    }

    /// For the journal and the report: totals, and the tables about which there is something to say.
    pub(crate) fn summary(&self, evaluations: u32) -> Value {
        let mut out = json!({ "compared": self.compared, "evaluations": evaluations });
        if self.tables.is_empty() {
            return out;
        }
        let sum = |of: fn(&TableFound) -> u64| self.tables.iter().map(of).sum::<u64>();
        let totals = [
            ("tables", self.tables.len() as u64),
            ("rows", sum(|t| t.rows_before)),
            ("pieces", sum(|t| t.chunks)),
            ("differing", sum(TableFound::differing)),
        ];
        let sometimes = [
            ("resumed", sum(|t| t.resumed)),
            ("settled", sum(|t| t.settled)),
            ("unsettled", sum(|t| t.unsettled)),
        ];
        let what = if self.only_counted { "row_counts" } else { "checksums" };
        out[what] = totals.into_iter().map(|(name, n)| (name.to_owned(), json!(n))).collect();
        for (name, n) in sometimes.into_iter().filter(|(_, n)| *n > 0) {
            out[name] = json!(n);
        }
        if !self.moments.is_empty() {
            let words = self
                .moments
                .iter()
                .map(|m| format!("{} at {} (WAL {}, snapshot {})", m.database, m.at, m.lsn, m.snapshot));
            out["at"] = words.collect();
        }
        let noted: Vec<&TableFound> = self.tables.iter().filter(|t| !t.equal() || t.settled > 0).collect();
        if !noted.is_empty() {
            out["tables"] = json!(noted);
        }
        out
    }
}

pub(crate) fn judge(
    invariant: &Invariant,
    result: &Outcome,
    found: &mut Findings,
    database: &str,
) -> Result<()> {
    if result.before == 0 && result.after == 0 && !invariant.allow_empty {
        return Err(empty(invariant, database));
    }
    found.compared += result.before.max(result.after).max(1);
    if result.differing > 0 {
        found.differences.push(format!(
            "`{}`: {} of {} rows before and {} after differ: {}",
            invariant.name,
            result.differing,
            result.before,
            result.after,
            result.shown.join(", ")
        ));
    }
    Ok(())
}

pub(crate) fn broken(error: Error, invariant: &Invariant) -> Error {
    error
        .context(format!("invariant `{}`", invariant.name))
        .or_hint("correct the query (it runs read-only, and its columns are those named in `key`), then `handover resume`")
}

pub(crate) fn empty(invariant: &Invariant, database: &str) -> Error {
    Error::data(format!("invariant `{}` gives no rows, so it could not fail", invariant.name))
        .on_database(database)
        .hint("correct the query, or say `allow_empty: true` if no rows is a fine answer")
}

pub(crate) fn nothing_to_compare(database: &str) -> Error {
    Error::data("no table is left to compare, so the check could not fail")
        .on_database(database)
        .hint("exclude fewer tables, or remove the check")
}
