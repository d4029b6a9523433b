//! That a database was given up in a rollback (`undo: throwaway`): a checkpoint, kept until the undo that empties it.

use handover_core::Result;
use handover_core::event::{RunId, StepId};
use handover_port::Port;
use handover_postgres::ours::OURS;
use handover_postgres::{Session, Tx};

/// Checkpoint of a database that was migrated, and is to be emptied rather than migrated back.
const THROWN_AWAY: &str = "thrown-away";

/// Under whose name [`THROWN_AWAY`] is kept: the step's own checkpoints go with its undo.
fn thrown(step: &StepId) -> StepId {
    format!("{step}/{THROWN_AWAY}").as_str().into()
}

/// Whether this step gave the database's content up in this run's rollback.
///
/// # Errors
/// What the server says.
pub async fn is_noted(session: &Session, run: RunId, step: &StepId) -> Result<bool> {
    let there = session
        .query_opt(
            &format!("select 1 from {OURS}.checkpoint where run = $1 and step = $2 and unit = $3"),
            &[&run.0, &thrown(step).as_str(), &THROWN_AWAY],
        )
        .await?;
    Ok(there.is_some())
}

/// Forgets it whatever step it was, as the last act of the undo that emptied the database.
///
/// # Errors
/// What the server says.
pub async fn forget(tx: &Tx<'_>, run: RunId) -> Result<()> {
    tx.execute(
        &format!("delete from {OURS}.checkpoint where run = $1 and unit = $2"),
        &[&run.0, &THROWN_AWAY],
    )
    .await
    .map(drop)
}

/// Notes that this step gives the database up.
pub(crate) async fn note(session: &mut Session, port: &Port) -> Result<()> {
    let tx = session.transaction().await?;
    tx.save_checkpoint(port.run, &thrown(&port.step), THROWN_AWAY, &true).await?;
    tx.commit().await
}

/// Takes that back: the step goes forward again.
pub(crate) async fn take_back(session: &mut Session, port: &Port) -> Result<()> {
    let tx = session.transaction().await?;
    tx.execute(
        &format!("delete from {OURS}.checkpoint where run = $1 and step = $2 and unit = $3"),
        &[&port.run.0, &thrown(&port.step).as_str(), &THROWN_AWAY],
    )
    .await?;
    tx.commit().await
}
