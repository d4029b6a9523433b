//! `handover dry-run`: what a run would do, from sessions that only read.

use super::act::load;
use crate::engine::dry_run::dry_run;
use crate::error::Result;
use crate::event::Emitter;
use crate::ui::{self, Format, out};
use std::path::PathBuf;
use std::process::ExitCode;

/// Shown under `--help`.
pub const EXAMPLES: &str = "Examples:
  handover dry-run plan.yaml
  handover dry-run plan.yaml --format json | jq .point_of_no_return

Exits with 8 when something stands in the way. Nothing is written, not even Handover's own schema.";

/// Arguments of `dry-run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The plan.
    pub(super) plan: PathBuf,
}

/// Looks.
pub async fn run(format: Format, args: &Args) -> Result<ExitCode> {
    let Some(plan) = load(format, &args.plan)? else { return Ok(ExitCode::from(2)) };
    let (emitter, events) = Emitter::channel();
    let screen = tokio::spawn(ui::dry_run::watch(events));
    let answer = dry_run(&plan, &emitter).await;
    drop(emitter);
    let _ = screen.await;
    let answer = answer?;
    match format {
        Format::Json => ui::object(&answer)?,
        Format::Text => out(ui::dry_run::text(&answer)),
    }
    Ok(if answer.ok { ExitCode::SUCCESS } else { ExitCode::from(8) })
}
