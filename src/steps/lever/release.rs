//! A step that restores the lever of an earlier one.

use super::hold::{Hold, Phase, UNIT};
use super::shape::Lever;
use crate::error::{Error, Result};
use crate::event::StepId;
use crate::failpoint;
use crate::steps::Context;
use handover_actions::Actions;
use serde_json::{Value, json};

/// The later step that restores the lever of `step`.
pub(super) fn released_by(cx: &Context, step: &StepId) -> Option<StepId> {
    cx.links.restores(step).cloned()
}

/// The lever that a step names.
pub(super) fn find<'a>(cx: &'a Context, target: &str) -> Result<(StepId, &'a Lever)> {
    cx.links
        .levers
        .all()
        .find(|(id, lever)| id.as_str() == target && lever.revert.is_none())
        .map(|(id, lever)| (id.clone(), lever))
        .ok_or_else(|| Error::usage(format!("there is no lever `{target}`")).hint("see `handover check`"))
}

/// What the journal has of a lever.
pub(super) fn hold_of(cx: &Context, step: &StepId) -> Result<Option<Hold>> {
    cx.ledger
        .recall(step, UNIT)
        .filter(|value| !value.is_null())
        .map(|value| serde_json::from_value(value).map_err(|e| Error::internal(e.to_string())))
        .transpose()
}

/// Restores another step's lever.
pub(super) async fn release(cx: &Context, actions: &Actions<'_>, target: &str) -> Result<Value> {
    let (target, lever) = find(cx, target)?;
    let hold = match hold_of(cx, &target)? {
        Some(hold) if hold.phase != Phase::Already => hold,
        _ => return Ok(json!({ "restored": false, "why": "it was up before the run" })),
    };
    let phase = cx.recall::<Phase>(UNIT)?;
    if phase == Some(Phase::Released) {
        return Ok(json!({ "restored": true }));
    }
    cx.proceed()?;
    let section = cx.critical("the lever is being restored");
    cx.remember(UNIT, &Phase::Reverting).await?;
    let done =
        phase == Some(Phase::Reverting) && lever.file.is_none() && lever.is_up(actions).await? == Some(false);
    if !done {
        lever.restore(&section, &Actions::new(&section), &hold, &target).await?;
    }
    failpoint::at(failpoint::LEVER_REVERTED)?;
    cx.remember(UNIT, &Phase::Released).await?;
    Ok(json!({ "restored": true }))
}

/// Takes the restoring back: raises the other step's lever again.
pub(super) async fn raise_again(cx: &Context, actions: &Actions<'_>, target: &str) -> Result<Value> {
    let (target, lever) = find(cx, target)?;
    let Some(phase) = cx.recall::<Phase>(UNIT)? else { return Ok(json!({ "raised": false })) };
    let hold = hold_of(cx, &target)?.ok_or_else(|| Error::internal("the lever's own fact is missing"))?;
    cx.proceed()?;
    let section = cx.critical("the lever is being raised again");
    cx.remember(UNIT, &Phase::Applying).await?;
    let done = phase == Phase::Applying && lever.is_up(actions).await? == Some(true);
    if !done {
        lever.apply(&section, &Actions::new(&section), &target).await?;
    }
    drop(section);
    failpoint::at(failpoint::LEVER_UNDO_RAISED)?;
    lever.agree(cx, actions, &hold, &target, true).await?;
    cx.forget(UNIT).await?;
    Ok(json!({ "raised": true }))
}
