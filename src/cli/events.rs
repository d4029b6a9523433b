//! `handover events`: the journal of a run as it was written.

use super::select;
use super::which::Which;
use crate::error::Result;
use crate::event::Event;
use crate::journal::{Phase, RunState};
use crate::ui::{self, Format, out};
use std::process::ExitCode;
use std::time::Duration;

/// Shown under `--help`.
pub const EXAMPLES: &str = "Examples:
  handover events plan.yaml
  handover events plan.yaml --follow
  handover events plan.yaml --format json | jq -r 'select(.record == \"step_failed\") | .failure.message'";

/// How often `--follow` asks for news.
const EVERY: Duration = Duration::from_millis(500);

/// Arguments of `events`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) plan: Which,
    /// An older run: its id, or enough of the beginning.
    #[arg(long, value_name = "ID")]
    run: Option<String>,
    /// Go on with new records as they are written, until the run has ended.
    #[arg(long)]
    follow: bool,
}

/// Prints. As JSON, one object a line, the same that `run --format json` prints for records.
pub async fn run(format: Format, args: &Args) -> Result<ExitCode> {
    let Some(plan) = args.plan.load(format, "events").await? else { return Ok(ExitCode::from(2)) };
    let journal = select::journal(&plan).await?.ok_or_else(|| select::never(&plan))?;
    let run = select::run(&journal, &plan, args.run.as_deref()).await?;
    let mut state = RunState::new();
    loop {
        for entry in journal.entries_after(run, state.seq).await? {
            state.apply(&entry)?;
            match format {
                Format::Text => {
                    if let Some(line) = ui::status::entry(&entry) {
                        out(line);
                    }
                }
                Format::Json => ui::object(&Event::Recorded { run, entry })?,
            }
        }
        let over = !matches!(state.phase, Phase::Forward | Phase::Back { .. });
        if !args.follow || over || !ui::heard() {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(EVERY).await;
    }
}
