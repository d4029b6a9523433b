//! Whether the decision of a cutover has fallen, and which side refuses writes since. There is one answer, and it comes from
//! the cutover's own facts: whether it can be taken back without loss is another question.

use crate::event::StepId;
use crate::journal::{Phase, RunState, Status};
use crate::plan::Plan;
use crate::steps::cutover::{self, Side};
use jiff::Timestamp;

/// The cutover that is decided and whose step is not done: nothing is aborted any more, only forward or rollback is left.
#[must_use]
pub fn fallen<'a>(plan: &'a Plan, state: &'a RunState) -> Option<&'a StepId> {
    let told = |step: &&StepId| state.facts.get(*step).is_some_and(cutover::is_whole);
    let by_fact =
        plan.links.cutovers.all().map(|(step, _)| step).filter(|step| is_open(state, step)).find(told);
    by_fact.or_else(|| recorded(plan, state)).filter(|_| state.phase == Phase::Forward)
}

/// The cutover that is decided and not complete, which side refuses writes, and since when by the clock of who acted.
pub(super) fn refusing<'a>(
    plan: &'a Plan,
    state: &'a RunState,
) -> Option<(&'a StepId, Side, Option<Timestamp>)> {
    let told =
        plan.links.cutovers.all().filter(|(_, cutover)| cutover.freeze.is_some()).find_map(|(step, _)| {
            let (side, since) = cutover::refusing(state.facts.get(step)?)?;
            is_open(state, step).then_some((step, side, Some(since)))
        });
    told.or_else(|| Some((recorded(plan, state)?, Side::Old, None)))
}

/// That writes are refused while a decided cutover is not complete, for who is told that a run stopped.
#[must_use]
pub fn outage(plan: &Plan, state: &RunState) -> Option<String> {
    let (step, side, _) = refusing(plan, state)?;
    if side != Side::Old || state.phase != Phase::Forward {
        return None;
    }
    let cutover = plan.links.cutovers.get(step)?;
    let frozen = cutover.freeze.as_ref()?.to_uppercase();
    Some(format!("WRITES ARE REFUSED ON {frozen} until step `{step}` is complete"))
}

fn is_open(state: &RunState, step: &StepId) -> bool {
    !matches!(state.status(step), Status::Done | Status::Undone | Status::Pending)
}

/// As journals of older versions tell it.
fn recorded<'a>(plan: &Plan, state: &'a RunState) -> Option<&'a StepId> {
    let step = state.no_return.as_ref().filter(|step| is_open(state, step))?;
    plan.links.cutovers.get(step).map(|_| step)
}
