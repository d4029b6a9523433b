//! That a database was given up in a rollback (`undo: throwaway`): a checkpoint, kept until the undo that empties it.

use handover_core::Result;
use handover_core::event::{RunId, StepId};
use handover_port::Port;
use handover_postgres::Session;
use handover_postgres::ours::OURS;

/// Unit of the checkpoint of a database that was migrated, and is to be emptied rather than migrated back. Who empties it
/// forgets that unit as the last act, whatever step it is of.
pub const UNIT: &str = "thrown-away";

/// Under whose name [`UNIT`] is kept: the step's own checkpoints go with its undo.
fn thrown(step: &StepId) -> StepId {
    format!("{step}/{UNIT}").as_str().into()
}

/// Whether this step gave the database's content up in this run's rollback.
pub async fn is_noted(session: &Session, run: RunId, step: &StepId) -> Result<bool> {
    let there = session
        .query_opt(
            &format!("select 1 from {OURS}.checkpoint where run = $1 and step = $2 and unit = $3"),
            &[&run.0, &thrown(step).as_str(), &UNIT],
        )
        .await?;
    Ok(there.is_some())
}

/// Notes that this step gives the database up.
pub(crate) async fn note(session: &mut Session, port: &Port) -> Result<()> {
    let tx = session.transaction().await?;
    tx.save_checkpoint(port.run, &thrown(&port.step), UNIT, &true).await?;
    tx.commit().await
}

/// Takes that back: the step goes forward again.
pub(crate) async fn take_back(session: &mut Session, port: &Port) -> Result<()> {
    let tx = session.transaction().await?;
    tx.execute(
        &format!("delete from {OURS}.checkpoint where run = $1 and step = $2 and unit = $3"),
        &[&port.run.0, &thrown(&port.step).as_str(), &UNIT],
    )
    .await?;
    tx.commit().await
}
