//! `handover runs`: the runs of a plan, newest first.

use super::load::load;
use super::select;
use crate::error::Result;
use crate::journal::{RunRow, RunState};
use crate::postgres::ours::OURS;
use crate::ui::words::{duration, time};
use crate::ui::{Format, out};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Shown under `--help`.
pub const EXAMPLES: &str = "Examples:
  handover runs plan.yaml
  handover runs plan.yaml --all --limit 5";

/// Arguments of `runs`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The plan.
    pub(super) plan: PathBuf,
    /// Those of every plan of this control database.
    #[arg(long)]
    all: bool,
    /// At most this many.
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
}

/// Lists. As JSON, one object on standard output: `runs`, each with `run`, `plan`, `started`, `updated`, `seconds`
/// and its phase.
pub async fn run(format: Format, args: &Args) -> Result<ExitCode> {
    let Some(plan) = load(format, &args.plan)? else { return Ok(ExitCode::from(2)) };
    let mut found: Vec<(RunRow, RunState)> = Vec::new();
    if let Some(journal) = select::journal(&plan).await? {
        let rows = journal.runs((!args.all).then_some(plan.name.as_str())).await?;
        for row in rows.into_iter().take(args.limit) {
            let state = RunState::fold(&journal.entries(row.run).await?)?;
            found.push((row, state));
        }
    }
    let seconds = |row: &RunRow, state: &RunState| {
        state.updated.map_or(0.0, |updated| updated.duration_since(row.started).as_secs_f64().max(0.0))
    };
    match format {
        Format::Json => {
            let runs: Vec<_> = found
                .iter()
                .map(|(row, state)| {
                    let mut object = json!(row);
                    object["updated"] = json!(state.updated);
                    object["seconds"] = json!(seconds(row, state));
                    if let (Some(object), Ok(serde_json::Value::Object(phase))) =
                        (object.as_object_mut(), serde_json::to_value(&state.phase))
                    {
                        object.extend(phase);
                    }
                    object
                })
                .collect();
            out(json!({ "plan": plan.name, "runs": runs }));
        }
        Format::Text if found.is_empty() => out(format_args!(
            "plan `{}` was never run from this control database (in schema {OURS})",
            plan.name
        )),
        Format::Text => {
            for (row, state) in &found {
                let name = if args.all { format!("  {}", row.plan) } else { String::new() };
                let took = duration(seconds(row, state));
                out(format_args!(
                    "{}  {}  {:18}  {took:>12}{name}",
                    row.run,
                    time(row.started),
                    state.phase.word()
                ));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
