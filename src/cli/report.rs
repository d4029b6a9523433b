//! `handover report`: what happened in a run, for those who were not there.

use super::select;
use super::which::Which;
use crate::engine::status::LeaseLook;
use crate::error::{Error, Result};
use crate::ui::report::{self, Format};
use crate::ui::{self, out};
use std::path::PathBuf;
use std::process::ExitCode;

/// Shown under `--help`.
pub const EXAMPLES: &str = "Examples:
  handover report plan.yaml
  handover report plan.yaml --format html --output report.html
  handover report plan.yaml --format json | jq .write_pause_ms";

/// Arguments of `report`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) plan: Which,
    /// An older run: its id, or enough of the beginning.
    #[arg(long, value_name = "ID")]
    run: Option<String>,
    /// How the report is written.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
    /// Write it to this file instead of standard output.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Args {
    /// Errors are objects only where the report is one.
    pub fn error_format(&self) -> ui::Format {
        if self.format == Format::Json { ui::Format::Json } else { ui::Format::Text }
    }
}

/// Writes the report.
pub async fn run(args: &Args) -> Result<ExitCode> {
    let Some(plan) = args.plan.load(args.error_format(), "report").await? else {
        return Ok(ExitCode::from(2));
    };
    let journal = select::journal(&plan).await?.ok_or_else(|| select::never(&plan))?;
    let run = select::run(&journal, &plan, args.run.as_deref()).await?;
    let (entries, requests) = (journal.entries(run).await?, journal.requests(run).await?);
    let acts = LeaseLook::new(journal.lease(&plan.name).await?).acts_on(Some(run));
    let report = report::report(&plan, run, &entries, requests, acts)?;
    let text = match args.format {
        Format::Text => report::text(&report),
        Format::Md => report::markdown(&report),
        Format::Html => report::html(&report),
        Format::Json => serde_json::to_string(&report).map_err(|e| Error::internal(e.to_string()))?,
    };
    match &args.output {
        None => out(text),
        Some(file) => std::fs::write(file, text + "\n").map_err(|e| {
            Error::external(format!("cannot write the report ({e})"))
                .in_file(file.display(), None)
                .hint("name a file in a folder that exists and that you may write to")
        })?,
    }
    Ok(ExitCode::SUCCESS)
}
