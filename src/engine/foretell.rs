//! What a rollback would lose, counted before anything is done: whoever is refused is told what it is about.

use super::command::Command;
use super::decide::{Loss, Outline, losses, refusal, to_undo};
use super::dry_run;
use super::frozen::Frozen;
use crate::error::{Error, Result};
use crate::event::{Emitter, Event, RunId, StepId};
use crate::journal::RunState;
use crate::plan::Plan;
use crate::postgres::Databases;
use crate::steps::export;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How long the steps may take to count together.
const LIMIT: Duration = Duration::from_secs(40);

/// The refusal of a rollback that nobody accepted, with what would be lost: counted, as far as that is quick, and told to the
/// listeners.
pub(super) async fn refused(
    plan: &Plan,
    lost: &[Loss],
    (run, state): (RunId, RunState),
    to: Option<&StepId>,
    databases: &Databases,
    emitter: &Emitter,
) -> Error {
    let ledger = Frozen { run, state, precedents: BTreeMap::new() };
    match tokio::time::timeout(LIMIT, counted(plan, lost, ledger, databases, emitter)).await {
        Ok(counted) => refusal(&counted, to),
        Err(_) => refusal(lost, to),
    }
}

/// Has each step count what its undo would lose.
async fn counted(
    plan: &Plan,
    lost: &[Loss],
    ledger: Frozen,
    databases: &Databases,
    emitter: &Emitter,
) -> Vec<Loss> {
    let (ledger, databases) = (Arc::new(ledger), databases.without_readers());
    let mut out = Vec::new();
    for loss in lost {
        let mut loss = loss.clone();
        if let Some(step) = plan.steps.iter().find(|step| step.id == loss.step)
            && let Ok(Some(counted)) =
                step.kind.count_loss(&dry_run::context(plan, step, &databases, &ledger)).await
        {
            loss.what = format!("{}: {}", loss.what, counted.words);
            emitter.emit(Event::Loss {
                step: loss.step.clone(),
                words: counted.words,
                table: counted.table,
                detail: counted.detail,
            });
        }
        out.push(loss);
    }
    out
}

/// Refuses an export that cannot be made: nothing is lost, no step knows how to write it, or the folder is not one to
/// write to.
///
/// # Errors
/// [`crate::Class::Usage`].
pub(super) fn export_fits(
    plan: &Plan,
    outline: &[Outline],
    state: &RunState,
    run: RunId,
    command: &Command,
) -> Result<()> {
    let Command::Rollback { to, export: Some(folder), .. } = command else { return Ok(()) };
    let lost = losses(outline, state, to.as_ref());
    let writes =
        |loss: &&Loss| plan.steps.iter().any(|step| step.id == loss.step && step.kind.exports_loss());
    // One that was begun is gone on with, whatever its facts say by now.
    let begun = state.export.as_ref() == Some(folder);
    if !begun && lost.iter().find(writes).is_none() {
        let undone = to_undo(outline, state, to.as_ref()).count();
        return Err(Error::usage(match (lost.first(), undone) {
            (Some(loss), _) => format!("step `{}` cannot write what its undo loses to files", loss.step),
            (None, _) => "this rollback loses nothing, so there is nothing to export".to_owned(),
        })
        .hint("leave `--export` out"));
    }
    export::fits(folder, run)
}
