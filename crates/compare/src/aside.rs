//! Rows that a copy with `on_violation: quarantine` set aside on "after": they are not missing.

use crate::hash::at;
use crate::split::Table;
use handover_core::error::Result;
use handover_core::event::{RunId, StepId};
use handover_postgres::ours::OURS;
use handover_postgres::{Session, quote_literal};

/// A condition for those of a table, by its key, over rows `q` of "before"; none where none were. Without a key they
/// cannot be told from others, and are found missing.
pub async fn condition(after: &Session, run: RunId, step: &StepId, table: &Table) -> Result<Option<String>> {
    if table.key.is_empty() {
        return Ok(None);
    }
    // Partitions keep theirs under their own names.
    let mut names: Vec<String> = table.shapes.1.heaps.iter().map(|heap| heap.name.to_string()).collect();
    names.push(table.name.to_string());
    let values: Vec<String> = table
        .key
        .iter()
        .map(|column| format!("old_row ->> {}", quote_literal(column).trim_start()))
        .collect();
    let sql = format!(
        "select array[{}]::text[]::text from {OURS}.archive
         where run = $1 and step = $2 and action = 'quarantine' and table_name = any ($3) order by id",
        values.join(", ")
    );
    let rows = after.query(&sql, &[&run.0, &step.as_str(), &names]).await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let keys: Vec<String> =
        rows.iter().map(|row| quote_literal(row.get(0)).trim_start().to_owned()).collect();
    let key: Vec<String> =
        table.key.iter().map(|column| format!("{}::text", at(column).replacen("t.", "q.", 1))).collect();
    Ok(Some(format!("array[{}]::text[]::text = any (array[{}])", key.join(", "), keys.join(", "))))
}
