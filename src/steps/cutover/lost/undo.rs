//! What the undo of a cutover does about what it loses: counts it and writes it to files before anything is undone, and
//! looks once more when nobody is led to the new side any longer.

use super::tally::Tally;
use super::{count, export};
use crate::error::{Class, Result};
use crate::failpoint;
use crate::steps::Context;
use crate::steps::cutover::options::Cutover;
use serde_json::{Value, json};

/// The journal's fact: what would be lost, counted before anything was undone.
const FACT: &str = "lost";

/// Before anything is undone. Returns what is lost so far.
///
/// # Errors
/// The lease, the journal or a stop; rows that were to be exported and could not.
pub async fn before(cutover: &Cutover, cx: &Context) -> Result<()> {
    let tally = count::count(cutover, cx).await?;
    cx.remember(FACT, &tally).await?;
    failpoint::at(failpoint::LOST_UNDO_COUNTED)?;
    cx.warn(format!(
        "this loses what was written on {} since the cutover: {}",
        tally.database,
        tally.words()
    ));
    if let Some(folder) = &cx.export {
        let written = export::write(cutover, cx, folder, export::Pass::First).await.map_err(|error| {
            error.context("nothing was undone, for the rows that were to be exported could not be").or_hint(
                "mend that, then `handover resume`; or `handover rollback --accept-loss` without `--export`",
            )
        })?;
        cx.note(format!("{written} are in {}", folder.display()));
        failpoint::at(failpoint::LOST_UNDO_EXPORTED)?;
    }
    Ok(())
}

/// When every participant is turned back: clients went on writing until then. Adds what is lost to the summary.
///
/// # Errors
/// The lease, the journal or a stop.
pub async fn after(cutover: &Cutover, cx: &Context, summary: &mut Value) -> Result<()> {
    let Some(before): Option<Tally> = cx.recall(FACT)? else { return Ok(()) };
    // One that could not be reached is not waited for again.
    let now = if before.unknown.is_some() { before.clone() } else { count::count(cutover, cx).await? };
    let lost = if now.unknown.is_some() { before } else { now };
    summary["loses"] = json!(lost.words());
    summary["lost"] = lost.detail();
    if let Some(table) = lost.table() {
        summary[crate::table::KEY] = json!(table);
    }
    let Some(folder) = &cx.export else { return Ok(()) };
    match export::write(cutover, cx, folder, export::Pass::Late).await {
        Ok(_) => {}
        Err(error) if matches!(error.class(), Class::LeaseLost | Class::Journal | Class::Cancelled) => {
            return Err(error);
        }
        Err(error) => cx.warn(format!(
            "what was written on {} while participants were turned back is not among the exported rows: {error}",
            lost.database
        )),
    }
    summary["exported"] = json!(folder);
    Ok(())
}
