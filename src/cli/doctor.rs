//! `handover doctor`: everything a plan needs, before it is run.

use super::load::load;
use crate::doctor::examine;
use crate::error::Result;
use crate::ui::{self, Format, out};
use std::path::PathBuf;
use std::process::ExitCode;

/// Shown under `--help`.
pub const EXAMPLES: &str = "Examples:
  handover doctor plan.yaml
  handover doctor plan.yaml --format json | jq '.findings[] | select(.severity != \"ok\")'

Exits with 8 when the plan cannot run like this. Only reads.";

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The plan.
    pub(super) plan: PathBuf,
}

/// Looks.
pub async fn run(format: Format, args: &Args) -> Result<ExitCode> {
    let Some(plan) = load(format, &args.plan)? else { return Ok(ExitCode::from(2)) };
    let diagnosis = examine(&plan).await?;
    match format {
        Format::Json => ui::object(&diagnosis)?,
        Format::Text => out(ui::doctor::text(&diagnosis)),
    }
    Ok(if diagnosis.ok { ExitCode::SUCCESS } else { ExitCode::from(8) })
}
