//! `handover dry-run`: what a run would do, from sessions that only read.

use super::load::load;
use crate::engine::dry_run::dry_run;
use crate::error::Result;
use crate::event::Emitter;
use crate::ui::dry_run::{self as show, Format};
use crate::ui::{self, out};
use std::path::PathBuf;
use std::process::ExitCode;

/// Shown under `--help`.
pub const EXAMPLES: &str = "Examples:
  handover dry-run plan.yaml
  handover dry-run plan.yaml --format json | jq .point_of_no_return
  handover dry-run plan.yaml --format md | gh pr comment --body-file -

Exits with 8 when something stands in the way. Nothing is written, not even Handover's own schema.";

/// Arguments of `dry-run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The plan.
    pub(super) plan: PathBuf,
    /// How output is written.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
    /// List also what can be looked at only once an earlier step has run, instead of counting it.
    #[arg(long, short)]
    verbose: bool,
}

impl Args {
    /// Errors are objects only where the answer is one.
    pub fn error_format(&self) -> ui::Format {
        if self.format == Format::Json { ui::Format::Json } else { ui::Format::Text }
    }
}

/// Looks.
pub async fn run(args: &Args) -> Result<ExitCode> {
    let Some(plan) = load(args.error_format(), &args.plan)? else { return Ok(ExitCode::from(2)) };
    let (emitter, events) = Emitter::channel();
    let screen = tokio::spawn(show::watch(events));
    let answer = dry_run(&plan, &emitter).await;
    drop(emitter);
    let _ = screen.await;
    let answer = answer?;
    match args.format {
        Format::Json => ui::object(&answer)?,
        Format::Md => out(show::markdown(&answer)),
        Format::Text => out(show::text(&answer, args.verbose)),
    }
    Ok(if answer.ok { ExitCode::SUCCESS } else { ExitCode::from(8) })
}
