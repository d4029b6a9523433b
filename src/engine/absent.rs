//! A rollback whose loss was accepted goes back also where the server is gone on which that is: the side that is to serve
//! again must not stay closed because the other one cannot be asked.

use super::command::Command;
use super::decide::{Outline, to_undo};
use super::runner::Runner;
use crate::error::{Class, Error, Result};
use crate::event::StepId;
use crate::journal::{Phase, RunState, Status};
use crate::plan::Plan;
use crate::postgres::Databases;
use crate::steps::Step;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long a database may take to let us in before it counts as gone.
const LIMIT: Duration = Duration::from_secs(12);

/// The databases that such a rollback does without because they cannot be reached. Without an export: rows can only be
/// read where they are.
pub(super) async fn find(
    plan: &Plan,
    outline: &[Outline],
    state: &RunState,
    command: &Command,
    databases: &Databases,
) -> BTreeSet<String> {
    let mut absent = BTreeSet::new();
    for name in dispensable(plan, outline, state, command) {
        let gone = match tokio::time::timeout(LIMIT, databases.read_only(name)).await {
            Ok(Ok(_)) => false,
            Ok(Err(error)) => is_gone(&error),
            Err(_) => true,
        };
        if gone {
            absent.insert(name.to_owned());
        }
    }
    absent
}

fn is_gone(error: &Error) -> bool {
    matches!(error.class(), Class::Connection | Class::Timeout)
}

fn dispensable<'a>(
    plan: &'a Plan,
    outline: &[Outline],
    state: &RunState,
    command: &Command,
) -> BTreeSet<&'a str> {
    let to: Option<&StepId> = match (command, &state.phase) {
        (Command::Rollback { to, accept_loss: true, export: None }, _) => to.as_ref(),
        (Command::Resume, Phase::Back { to, accept_loss: true }) if state.export.is_none() => to.as_ref(),
        _ => return BTreeSet::new(),
    };
    to_undo(outline, state, to)
        .filter_map(|undone| plan.steps.iter().find(|step| step.id == undone.id)?.kind.does_without())
        .collect()
}

impl Runner<'_> {
    /// Asks once more for databases that are done without, and fences those that are there again. Why a step is left as it
    /// is, in words: all that it wrote to is gone, and one before it in the plan waits to be taken back without that.
    ///
    /// # Errors
    /// The lease; a database that this step cannot do without.
    pub(super) async fn left_alone(&mut self, step: &Step, back: bool) -> Result<Option<String>> {
        if self.absent.is_empty() {
            return Ok(None);
        }
        let written = step.kind.written();
        let lease = self.databases.lease()?.clone();
        let mut gone = None;
        let asked: Vec<&str> = written.iter().copied().filter(|name| self.absent.contains(*name)).collect();
        for name in asked {
            match self.fence(name, &lease).await {
                Ok(()) => drop(self.absent.remove(name)),
                Err(error) if error.class() == Class::LeaseLost => return Err(error),
                Err(error) => gone = Some(error),
            }
        }
        let Some(error) = gone else { return Ok(None) };
        if back && step.kind.does_without().is_some_and(|name| self.absent.contains(name)) {
            return Ok(None);
        }
        let waits = self.plan.steps.iter().take_while(|other| other.id != step.id).any(|other| {
            let undone = self
                .recorder
                .with(|state| matches!(state.status(&other.id), Status::Pending | Status::Undone));
            !undone && other.kind.does_without().is_some_and(|name| self.absent.contains(name))
        });
        if back && waits && written.iter().all(|name| self.absent.contains(*name)) {
            return Ok(Some(format!(
                "what it did stays on {}, which cannot be reached: make that anew before it is used again",
                crate::problem::few(&written.iter().collect::<Vec<_>>())
            )));
        }
        Err(error)
    }
}
