//! What to do next: a pure function of the plan's outline and the run's state.
//!
//! State is kept by step id; the order of the outline decides which of the undecided steps comes first, and
//! nothing is ever computed from a position.

use super::advice;
pub use super::loss::Loss;
use super::policy::{Verdict, verdict};
use crate::error::{Class, Error, Result};
use crate::event::{Failure, StepId};
use crate::journal::{Phase, RunState, Status};
use crate::steps::{OnFailure, Retry, Step, Tells, Undo};
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
    /// Whether its facts say that a lossy undo loses something.
    pub may_lose: Option<Tells>,
    /// Whether its facts say that an undo which was begun has taken nothing back.
    pub is_whole: Option<Tells>,
    /// The database that it fills from nothing, so that its undo empties it.
    pub fills: Option<String>,
    /// The database that its undo leaves to the undo of the step that filled it.
    pub leaves: Option<String>,
}

impl Outline {
    /// What its undo loses, with its id.
    fn loss(&self) -> Option<Loss> {
        Some(Loss { step: self.id.clone(), what: self.undo.loss()? })
    }

    /// Whether an undo would lose nothing although it is lossy, since the step never came to that.
    fn is_harmless(&self, state: &RunState) -> bool {
        self.may_lose.is_some_and(|may_lose| !state.facts.get(&self.id).is_some_and(may_lose))
    }

    /// What its undo loses as things stand in a run.
    fn loss_now(&self, state: &RunState) -> Option<Loss> {
        let what = match &self.undo {
            Undo::Lossy { .. } | Undo::WhileCarried { .. } if self.is_harmless(state) => return None,
            Undo::WhileCarried { loses, .. } => format!("loses {loses}"),
            undo => undo.loss()?,
        };
        Some(Loss { step: self.id.clone(), what })
    }
}

impl From<&Step> for Outline {
    fn from(step: &Step) -> Self {
        Outline {
            id: step.id.clone(),
            retry: step.retry,
            on_failure: step.on_failure,
            undo: step.kind.reversibility(),
            may_lose: step.kind.may_lose(),
            is_whole: step.kind.is_whole(),
            fills: step.kind.fills().map(str::to_owned),
            leaves: step.kind.leaves().map(str::to_owned),
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
        /// The step whose failure it is.
        step: StepId,
        /// Why it failed.
        failure: Failure,
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
            match verdict(failure, failures, outline.retry, outline.on_failure) {
                Verdict::Retry(after) => run(after),
                Verdict::Halt => Next::Halt(failure.clone()),
                Verdict::Rollback if losses(plan, state, None).is_empty() => {
                    Next::StartRollback { step: outline.id.clone(), failure: failure.clone() }
                }
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
    // What was tried on the way forward is no attempt to undo it.
    let tried = match state.status(&outline.id) {
        Status::Undoing | Status::UndoFailed { .. } => attempts(state, &outline.id),
        _ => 0,
    };
    let undo = |after| Next::Undo { step: outline.id.clone(), attempt: tried + 1, after };
    let refuse = |why: String| {
        Next::Halt(Failure {
            class: Class::Usage,
            message: format!("step `{}` cannot be undone: {why}", outline.id),
            hint: Some(format!(
                "`handover rollback --to {0}` leaves it and what came before it done, and `handover resume` then goes \
                 forward again; `handover abort` gives the run up as it is",
                outline.id
            )),
            exhausted: false,
        })
    };
    match (&outline.undo, state.status(&outline.id)) {
        (Undo::Impossible { why }, _) => refuse(why.clone()),
        (Undo::Lossy { loses, .. } | Undo::WhileCarried { loses, .. }, _)
            if !accept_loss && !outline.is_harmless(state) =>
        {
            refuse(format!("it would lose {loses}"))
        }
        (_, Status::UndoFailed { failure }) => {
            let failures = state.steps.get(&outline.id).map_or(0, |s| s.failures);
            if failures == 0 {
                return undo(Duration::ZERO);
            }
            match verdict(failure, failures, outline.retry, OnFailure::Halt) {
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
pub fn losses(plan: &[Outline], state: &RunState, to: Option<&StepId>) -> Vec<Loss> {
    to_undo(plan, state, to).filter_map(|outline| outline.loss_now(state)).collect()
}

/// What rolling everything back will lose once the step `last` is done, as far as the plan tells. Whether a step came
/// to where it may lose something is a question of a run; a plan says what it is there to do.
#[must_use]
pub fn losses_ahead(plan: &[Outline], last: &StepId) -> Vec<Loss> {
    let upto = plan.iter().position(|o| o.id == *last).map_or(0, |at| at + 1);
    plan.iter().take(upto).filter_map(Outline::loss).collect()
}

/// Refuses a rollback that cannot be begun as it was asked for: see [`rollback_fits`]; or one that loses what nobody
/// accepted.
///
/// # Errors
/// [`Class::Usage`], with what would be lost.
pub fn rollback_is_accepted(
    plan: &[Outline],
    state: &RunState,
    to: Option<&StepId>,
    accept_loss: bool,
) -> Result<()> {
    rollback_fits(plan, state, to)?;
    let lost = losses(plan, state, to);
    if lost.is_empty() || accept_loss { Ok(()) } else { Err(refusal(&lost, to)) }
}

/// The refusal of a rollback that would lose this.
#[must_use]
pub fn refusal(lost: &[Loss], to: Option<&StepId>) -> Error {
    Error::usage(format!("this rollback is not free: {}", advice::all(lost))).hint(match to {
        Some(to) => {
            format!(
                "`handover rollback --to {to} --accept-loss` accepts that; `--to` a later step undoes less"
            )
        }
        None => "`handover rollback --accept-loss` accepts that; `--to` a later step undoes less".to_owned(),
    })
}

/// Refuses a step's id that the plan does not have, naming the one that was probably meant.
///
/// # Errors
/// [`Class::Usage`].
pub fn known_step<'a>(ids: impl Iterator<Item = &'a StepId> + Clone, asked: &StepId) -> Result<()> {
    if ids.clone().any(|id| id == asked) {
        return Ok(());
    }
    let error = Error::usage(format!("the plan has no step `{asked}`"));
    Err(match crate::problem::suggest(asked.as_str(), ids.clone().map(StepId::as_str)) {
        Some(close) => error.hint(format!("did you mean `{close}`?")),
        None => {
            let all: Vec<&str> = ids.map(StepId::as_str).collect();
            error.hint(format!("its steps are {}", crate::problem::few(&all)))
        }
    })
}

/// Why a rollback to `to` cannot be begun, with a hint; none when it can. What it would lose is another
/// question: see [`losses`].
///
/// # Errors
/// A step that is not there, was never begun, or is only half there; a step to undo that has no undo.
pub fn rollback_fits(plan: &[Outline], state: &RunState, to: Option<&StepId>) -> Result<()> {
    if let Some(to) = to {
        known_step(plan.iter().map(|o| &o.id), to)?;
        let at = plan.iter().position(|o| o.id == *to).unwrap_or_default();
        if matches!(state.status(to), Status::Pending | Status::Undone) {
            return Err(Error::usage(format!("step `{to}` is not done, so it cannot be what stays"))
                .hint("name the last step that is to stay done; see `handover status`"));
        }
        // Half undone, a step can only be undone to the end: nothing could be built on it.
        let whole =
            |o: &Outline| o.is_whole.is_some_and(|is_whole| state.facts.get(&o.id).is_some_and(is_whole));
        let half = |o: &&Outline| {
            matches!(state.status(&o.id), Status::Undoing | Status::UndoFailed { .. }) && !whole(o)
        };
        if let Some(half) = plan.iter().take(at + 1).find(half) {
            return Err(Error::usage(format!("step `{}` is being undone already", half.id))
                .hint(
                    "mend what its undo failed with, then `handover resume` goes on; or roll back `--to` a step before \
                     it; `handover abort` leaves everything as it is",
                ));
        }
    }
    for outline in to_undo(plan, state, to) {
        if let Undo::Impossible { why } = &outline.undo {
            return Err(Error::usage(format!("step `{}` cannot be undone: {why}", outline.id))
                .hint(format!("`handover rollback --to {}` undoes what came after it", outline.id)));
        }
        if let Some(database) = &outline.leaves
            && let Some(filler) = filler_that_stays(plan, outline, database, to)
        {
            let before = plan.iter().take_while(|o| o.id != *filler).map(|o| &o.id);
            return Err(Error::usage(format!(
                "step `{}` is taken back only together with `{filler}`, whose undo empties {database}",
                outline.id
            ))
            .hint(match before.last() {
                Some(before) => format!(
                    "`handover rollback --to {before}`, or without `--to`; or keep it with `--to {}`",
                    outline.id
                ),
                None => format!("`handover rollback` without `--to`; or keep it with `--to {}`", outline.id),
            }));
        }
    }
    Ok(())
}

/// The step that filled `database` before `step`, if a rollback to `to` leaves it as it is.
fn filler_that_stays<'a>(
    plan: &'a [Outline],
    step: &Outline,
    database: &str,
    to: Option<&StepId>,
) -> Option<&'a StepId> {
    let to = plan.iter().position(|o| Some(&o.id) == to)?;
    let at = plan.iter().take_while(|o| o.id != step.id);
    let (place, filler) = at.enumerate().filter(|(_, o)| o.fills.as_deref() == Some(database)).last()?;
    (place <= to).then_some(&filler.id)
}

/// Refuses a plan that does not contain, in their order and before all others, the steps that this run has
/// begun: their undo, standing tasks and end would be skipped in silence, or come in the wrong order.
///
/// # Errors
/// [`Class::Changed`], naming the step.
pub fn plan_fits(plan: &[Outline], state: &RunState) -> Result<()> {
    let refuse = |what: String| {
        Err(Error::new(Class::Changed, what)
            .hint("put it back as it was when it ran; steps that have not begun may be changed freely"))
    };
    let mut begun: Vec<_> = state
        .steps
        .iter()
        .filter(|(_, s)| !matches!(s.status, Status::Pending | Status::Undone))
        .map(|(id, s)| (s.started, id))
        .collect();
    begun.sort();
    for (_, id) in &begun {
        if !plan.iter().any(|o| o.id == **id) {
            return refuse(format!("the plan no longer has step `{id}`, which this run has begun"));
        }
    }
    let mut order = plan.iter();
    for (_, id) in &begun {
        match order.next() {
            Some(o) if o.id == **id => {}
            Some(o) => {
                return refuse(format!("the plan has step `{}` where this run began step `{id}`", o.id));
            }
            None => break,
        }
    }
    Ok(())
}
