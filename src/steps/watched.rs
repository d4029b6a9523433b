//! What steps relied on, kept when it was proven, for a cutover to compare with what is.

use super::Context;
use crate::error::{Error, Result};
use crate::event::StepId;
use crate::postgres::fingerprint::{self, CAPTURE, Facts, IDENTITY, Row, Subject};
use crate::postgres::{Session, TableName};
use handover_events::capture::Capture;
use std::collections::BTreeSet;

/// Where a capture keeps its facts in the journal.
pub(super) const UNIT: &str = "fingerprint";

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
    with_those_below(blue, &capture.tables.keys().collect()).await
}

/// Tables, and those that inherit from them or are their partitions.
pub(super) async fn with_those_below(
    session: &Session,
    tables: &BTreeSet<&TableName>,
) -> Result<BTreeSet<TableName>> {
    let names: Vec<String> = tables.iter().map(|table| table.sql()).collect();
    let rows = session
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
    Ok(tables.iter().map(|table| (*table).clone()).chain(below).collect())
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
