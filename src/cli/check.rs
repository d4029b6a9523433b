//! `handover check`: every problem of a plan at once, without a connection.

use super::act::load;
use crate::error::Result;
use crate::ui::{Format, out};
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The plan.
    plan: PathBuf,
}

/// Checks.
pub fn run(format: Format, args: &Args) -> Result<ExitCode> {
    let Some(plan) = load(format, &args.plan) else { return Ok(ExitCode::from(2)) };
    match format {
        Format::Text => out(format_args!(
            "{}: plan `{}` is sound ({} steps)",
            args.plan.display(),
            plan.name,
            plan.steps.len()
        )),
        Format::Json => {
            out(serde_json::json!({ "plan": plan.name, "steps": plan.steps.len(), "problems": [] }))
        }
    }
    Ok(ExitCode::SUCCESS)
}
