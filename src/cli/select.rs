//! Which plan and which run a command is about.

use crate::error::{Error, Result};
use crate::event::RunId;
use crate::journal::Journal;
use crate::plan::Plan;
use crate::postgres::ours::OURS;
use std::time::Duration;

/// How patient a command that only looks is with the control database.
const PATIENCE: Duration = Duration::from_secs(5);

/// The journal of a plan's control database, for looking; none when nothing was ever run from it.
///
/// # Errors
/// No connection, or a variable that is not set.
pub async fn journal(plan: &Plan) -> Result<Option<Journal>> {
    Journal::look(plan.control.address()?, PATIENCE).await
}

/// The run that `--run` names, or the plan's newest.
///
/// # Errors
/// No such run, several that begin so, or none at all.
pub async fn run(journal: &Journal, plan: &Plan, prefix: Option<&str>) -> Result<RunId> {
    let runs = journal.runs(Some(&plan.name)).await?;
    let list = format!("`handover runs {}` lists them", plan.file.display());
    let Some(prefix) = prefix else {
        return runs.first().map(|row| row.run).ok_or_else(|| never(plan));
    };
    let wanted = prefix.to_ascii_lowercase();
    let mut found = runs.iter().filter(|row| row.run.to_string().starts_with(&wanted));
    match (found.next(), found.next()) {
        (Some(row), None) => Ok(row.run),
        (Some(_), Some(_)) => {
            Err(Error::usage(format!("several runs of plan `{}` begin with `{prefix}`", plan.name))
                .hint(list))
        }
        (None, _) => {
            Err(Error::usage(format!("no run of plan `{}` begins with `{prefix}`", plan.name)).hint(list))
        }
    }
}

/// The error for a plan without a run.
pub fn never(plan: &Plan) -> Error {
    Error::usage(format!("plan `{}` was never run from this control database (in schema {OURS})", plan.name))
        .hint(format!(
            "check `control:` and `schema:` in the plan, or begin with `handover run {}`",
            plan.file.display()
        ))
}
