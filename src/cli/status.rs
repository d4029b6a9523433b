//! `handover status`: where a run stands.

use super::select;
use super::which::Which;
use crate::engine::status::status;
use crate::error::Result;
use crate::ui::{self, Format, out};
use std::process::ExitCode;

/// Shown under `--help`.
pub const EXAMPLES: &str = "Examples:
  handover status plan.yaml
  handover status plan.yaml --format json | jq -r .next
  handover status plan.yaml --run 0199f3";

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) plan: Which,
    /// An older run: its id, or enough of the beginning.
    #[arg(long, value_name = "ID")]
    run: Option<String>,
}

/// Looks.
pub async fn run(format: Format, args: &Args) -> Result<ExitCode> {
    let Some(plan) = args.plan.load(format, "status").await? else { return Ok(ExitCode::from(2)) };
    let run = match (&args.run, select::journal(&plan).await?) {
        (Some(_), None) => return Err(select::never(&plan)),
        (Some(prefix), Some(journal)) => Some(select::run(&journal, &plan, Some(prefix)).await?),
        (None, _) => None,
    };
    let answer = status(&plan, run).await?;
    match format {
        Format::Json => ui::object(&answer)?,
        Format::Text => out(ui::status::text(&answer)),
    }
    Ok(ExitCode::SUCCESS)
}
