//! What of the new side a way back by capture and replay would not carry: tables that the plan does not name, large objects, and
//! what changed since the triggers were made.

use super::options::Cutover;
use super::{differences, feeds};
use crate::error::Result;
use crate::postgres::fingerprint::{self, Subject};
use crate::postgres::{Session, TableName, catalog};
use crate::problem::few;
use crate::steps::Context;
use crate::steps::watched::{captured, concerns_capture, of_capture, with_those_below};
use handover_events::capture::Capture;
use std::collections::BTreeSet;

/// Tables of the new side that nobody says anything of, in words; large objects.
///
/// # Errors
/// What the server says.
pub async fn look(
    cutover: &Cutover,
    cx: &Context,
    capture: &Capture,
    blue: &Session,
    green: &Session,
) -> Result<Vec<String>> {
    let mut out = Vec::new();
    let loses = cutover.reverse.iter().flat_map(|reverse| &reverse.loses);
    let named: BTreeSet<&TableName> = capture.tables.keys().chain(loses).chain(&cutover.except).collect();
    let known = with_those_below(green, &named).await?;
    let open: Vec<TableName> =
        catalog::tables(green).await?.into_iter().filter(|table| !known.contains(table)).collect();
    if !open.is_empty() {
        out.push(format!(
            "nothing carries back what is written to {}: say under `reverse:` `tables` and `events` what it means on the old side, or name them under its `loses` if a rollback may lose it",
            few(&open.iter().collect::<Vec<_>>())
        ));
    }
    if let Some((_, copy)) = feeds::copies(cutover, cx).last() {
        out.extend(differences::large_objects(copy, [blue, green]).await?);
    }
    Ok(out)
}

/// What of the captured tables is not as it was when the triggers were made, in words: a column that events do not know, a
/// trigger that was off for a while.
///
/// # Errors
/// What the server says, or facts of another shape.
pub async fn drifted(
    cutover: &Cutover,
    cx: &Context,
    capture: &Capture,
    green: &Session,
) -> Result<Option<String>> {
    let Some(before) = of_capture(cx, &cx.step)? else { return Ok(None) };
    let mut now = fingerprint::look(green).await?;
    let mut tables = captured(green, capture).await?;
    tables.extend(before.keys().map(|subject| subject.relation.clone()));
    now.retain(|subject: &Subject, _| concerns_capture(subject, &tables));
    let drift: Vec<String> = fingerprint::drift(&before, &now)
        .into_iter()
        .filter(|drift| !cutover.allow_drift.contains(&drift.subject.to_string()))
        .map(|drift| drift.to_string())
        .collect();
    Ok((!drift.is_empty()).then(|| {
        format!(
            "changed on {} since its writes are captured for the way back: {}; make it as it was, or name it under `allow_drift`",
            green.database(),
            few(&drift)
        )
    }))
}
