//! What to do next: a pure function of the plan's outline and the run's state.
//!
//! State is kept by step id; the order of the outline decides which of the undecided steps comes first, and
//! nothing is ever computed from a position.

use super::policy::{Verdict, verdict};
use crate::error::Class;
use crate::event::{Failure, StepId};
use crate::journal::{Phase, RunState, Status};
use crate::steps::{OnFailure, Retry, Step, Undo};
use std::time::Duration;

/// What `decide` needs to know of a step.
#[derive(Debug, Clone)]
pub struct Outline {
    /// Its id.
    pub id: StepId,
    /// How failures that pass are retried.
    pub retry: Retry,
    /// What failures that stay lead to.
    pub on_failure: OnFailure,
    /// How it is taken back.
    pub undo: Undo,
    /// The fact without which a lossy undo loses nothing.
    pub at_stake: Option<&'static str>,
}

impl Outline {
    /// Whether an undo would lose nothing although it is lossy, since the step never came to that.
    fn is_harmless(&self, state: &RunState) -> bool {
        self.at_stake.is_some_and(|key| state.fact(&self.id, key).is_none())
    }
}

impl From<&Step> for Outline {
    fn from(step: &Step) -> Self {
        Outline {
            id: step.id.clone(),
            retry: step.retry,
            on_failure: step.on_failure,
            undo: step.kind.reversibility(),
            at_stake: step.kind.at_stake(),
        }
    }
}

/// The next thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Run a step, after a wait if it failed just before.
    Run {
        /// Which.
        step: StepId,
        /// Which attempt, from 1.
        attempt: u32,
        /// How long to wait first.
        after: Duration,
    },
    /// Undo a step.
    Undo {
        /// Which.
        step: StepId,
        /// Which attempt, from 1.
        attempt: u32,
        /// How long to wait first.
        after: Duration,
    },
    /// Record that the run goes back, because the plan says so.
    StartRollback {
        /// Why.
        reason: String,
    },
    /// Record that every step is done.
    Complete,
    /// Record that everything asked for is undone.
    RolledBack {
        /// The last step that stays done.
        to: Option<StepId>,
    },
    /// Stop; the operator decides.
    Halt(Failure),
    /// The run has ended already.
    Over,
}

/// Decides.
#[must_use]
pub fn decide(plan: &[Outline], state: &RunState) -> Next {
    match &state.phase {
        Phase::Forward => forward(plan, state),
        Phase::Back { to, accept_loss } => back(plan, state, to.as_ref(), *accept_loss),
        Phase::Done | Phase::RolledBack { .. } | Phase::Aborted | Phase::Finished => Next::Over,
    }
}

fn forward(plan: &[Outline], state: &RunState) -> Next {
    let Some(outline) = plan.iter().find(|o| *state.status(&o.id) != Status::Done) else {
        return Next::Complete;
    };
    let run =
        |after| Next::Run { step: outline.id.clone(), attempt: attempts(state, &outline.id) + 1, after };
    match state.status(&outline.id) {
        Status::Failed { failure } => {
            let failures = state.steps.get(&outline.id).map_or(0, |s| s.failures);
            // Failures counted to zero: an operator resumed after the failure, which is a reason to try again.
            if failures == 0 {
                return run(Duration::ZERO);
            }
            match verdict(failure.class, failures, outline.retry, outline.on_failure) {
                Verdict::Retry(after) => run(after),
                Verdict::Halt => Next::Halt(failure.clone()),
                Verdict::Rollback if losses(plan, state, None).is_empty() => Next::StartRollback {
                    reason: format!("step `{}` failed: {}", outline.id, failure.message),
                },
                // Undoing by itself never loses anything; only an operator may decide that.
                Verdict::Rollback => Next::Halt(failure.clone()),
            }
        }
        _ => run(Duration::ZERO),
    }
}

fn back(plan: &[Outline], state: &RunState, to: Option<&StepId>, accept_loss: bool) -> Next {
    let Some(outline) = to_undo(plan, state, to).last() else {
        return Next::RolledBack { to: to.cloned() };
    };
    let undo =
        |after| Next::Undo { step: outline.id.clone(), attempt: attempts(state, &outline.id) + 1, after };
    let refuse = |why: String| {
        Next::Halt(Failure {
            class: Class::Usage,
            message: format!("step `{}` cannot be undone: {why}", outline.id),
            hint: Some(
                "`handover resume` goes forward from here; `handover finish` ends the run as it is".into(),
            ),
        })
    };
    match (&outline.undo, state.status(&outline.id)) {
        (Undo::Impossible { why }, _) => refuse(why.clone()),
        (Undo::Lossy { loses, .. }, _) if !accept_loss && !outline.is_harmless(state) => {
            refuse(format!("it would lose {loses}"))
        }
        (_, Status::UndoFailed { failure }) => {
            let failures = state.steps.get(&outline.id).map_or(0, |s| s.failures);
            if failures == 0 {
                return undo(Duration::ZERO);
            }
            match verdict(failure.class, failures, outline.retry, OnFailure::Halt) {
                Verdict::Retry(after) => undo(after),
                _ => Next::Halt(failure.clone()),
            }
        }
        _ => undo(Duration::ZERO),
    }
}

fn attempts(state: &RunState, step: &StepId) -> u32 {
    state.steps.get(step).map_or(0, |s| match s.status {
        Status::Pending | Status::Undone | Status::Done => 0,
        _ => s.attempts,
    })
}

/// The steps that a rollback to `to` takes back, in plan order; it takes them back from the last to the first.
pub fn to_undo<'a>(
    plan: &'a [Outline],
    state: &'a RunState,
    to: Option<&'a StepId>,
) -> impl DoubleEndedIterator<Item = &'a Outline> + 'a {
    // `to` and everything before it stays.
    let mut kept = to.is_some();
    let mut after = Vec::new();
    for outline in plan {
        if !kept && !matches!(state.status(&outline.id), Status::Pending | Status::Undone) {
            after.push(outline);
        }
        if Some(&outline.id) == to {
            kept = false;
        }
    }
    after.into_iter()
}

/// What a rollback to `to` would lose or could not do, by step, in words.
#[must_use]
pub fn losses(plan: &[Outline], state: &RunState, to: Option<&StepId>) -> Vec<(StepId, String)> {
    to_undo(plan, state, to)
        .filter_map(|o| match &o.undo {
            Undo::Exact { .. } | Undo::Nothing => None,
            Undo::Lossy { .. } if o.is_harmless(state) => None,
            Undo::Lossy { loses, .. } => Some((o.id.clone(), format!("loses {loses}"))),
            Undo::Impossible { why } => Some((o.id.clone(), format!("cannot be undone: {why}"))),
        })
        .collect()
}
