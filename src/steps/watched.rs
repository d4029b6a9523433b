//! What steps relied on, kept when it was proven, for a cutover to compare with what is.

use super::Context;
use super::copy::state::states;
use crate::error::{Error, Result};
use crate::event::{RunId, StepId};
use crate::postgres::fingerprint::{self, CAPTURE, Facts, IDENTITY, Row, Subject};
use crate::postgres::ours::OURS;
use crate::postgres::{Session, TableName, Tx};
use handover_events::capture::Capture;
use std::collections::BTreeSet;

/// Where a capture keeps its facts in the journal.
const UNIT: &str = "fingerprint";
/// Where a copy keeps its own, as a unit of its checkpoints. Another name for other words.
const UNIT_OF_COPY: &str = "fingerprint 2";

/// Keeps what a copy saw at its point in time, with the plan of the copy.
///
/// # Errors
/// What a server says.
pub async fn keep_for_copy(cx: &Context, source: &Session, tx: &Tx<'_>) -> Result<()> {
    let facts = fingerprint::look(source).await?;
    tx.save_checkpoint(cx.run, &cx.step, UNIT_OF_COPY, &fingerprint::to_rows(&facts)).await
}

/// Keeps what a capture relies on: its tables, those below them, and its triggers as they are now.
///
/// # Errors
/// What the server says, or the journal.
pub async fn keep_for_capture(cx: &Context, capture: &Capture) -> Result<()> {
    let blue = cx.databases.labelled(cx.step.as_str()).read_only(&capture.from).await?;
    let tables = captured(&blue, capture).await?;
    let mut facts = fingerprint::look(&blue).await?;
    facts.retain(|subject, _| concerns_capture(subject, &tables));
    cx.remember(UNIT, &fingerprint::to_rows(&facts)).await
}

/// Whether a capture of these tables relies on a fact.
pub(super) fn concerns_capture(subject: &Subject, tables: &BTreeSet<TableName>) -> bool {
    ["table", "column", IDENTITY, CAPTURE].contains(&subject.kind.as_str())
        && tables.contains(&subject.relation)
}

/// The tables of a capture, and those below them.
pub(super) async fn captured(blue: &Session, capture: &Capture) -> Result<BTreeSet<TableName>> {
    let names: Vec<String> = capture.tables.keys().map(TableName::sql).collect();
    let rows = blue
        .query(
            "with recursive t (oid) as (
                 select to_regclass(x)::oid from unnest($1::text[]) x
                 union select i.inhrelid from t join pg_inherits i on i.inhparent = t.oid)
             select n.nspname::text, c.relname::text from t join pg_class c on c.oid = t.oid
             join pg_namespace n on n.oid = c.relnamespace",
            &[&names],
        )
        .await?;
    let below = rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)));
    Ok(capture.tables.keys().cloned().chain(below).collect())
}

/// What a copy saw; none of one that an earlier version made.
///
/// # Errors
/// What the server says.
pub(super) async fn of_copy(green: &Session, run: RunId, step: &StepId) -> Result<Option<Facts>> {
    let found: Vec<Vec<Row>> = states(green, run, step, UNIT_OF_COPY).await?;
    Ok(found.into_iter().next().map(fingerprint::from_rows))
}

/// Names the copy that filled a database, and when it did; none where none did. Another copy has another name.
///
/// # Errors
/// What the server says.
pub(super) async fn filled(green: &Session) -> Result<Option<String>> {
    let there = green.query_one(&format!("select to_regclass('{OURS}.checkpoint') is not null"), &[]).await?;
    if !there.get::<_, bool>(0) {
        return Ok(None);
    }
    let sql = &format!(
        "select concat_ws('/', run, step, extract(epoch from at)) from {OURS}.checkpoint
               where unit = $1 order by at desc limit 1"
    );
    Ok(green.query_opt(sql, &[&UNIT_OF_COPY]).await?.map(|row| row.get(0)))
}

/// What a capture relies on; none of one that an earlier version began.
///
/// # Errors
/// Facts of another shape.
pub(super) fn of_capture(cx: &Context, step: &StepId) -> Result<Option<Facts>> {
    let Some(value) = cx.ledger.recall(step, UNIT) else { return Ok(None) };
    let rows: Vec<Row> = serde_json::from_value(value)
        .map_err(|e| Error::internal(format!("what step `{step}` relied on cannot be read ({e})")))?;
    Ok(Some(fingerprint::from_rows(rows)))
}
