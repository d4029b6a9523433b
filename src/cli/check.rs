//! `handover check`: every problem of a plan at once, without a connection.

use crate::error::Result;
use crate::plan::Plan;
use crate::steps::Undo;
use crate::ui::{self, Format, out};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Shown under `--help`.
pub const EXAMPLES: &str = "Examples:
  handover check plan.yaml
  handover check plans/*.yaml
  handover check plan.yaml --format json | jq '.problems[].message'

No connection is opened, and no environment variable needs to be set.";

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The plans.
    #[arg(required = true, value_name = "PLAN")]
    plans: Vec<PathBuf>,
}

/// Checks. As JSON, one object a plan and line on standard output: `file`, `ok`, `plan`, `steps`,
/// `point_of_no_return` and `problems`.
pub fn run(format: Format, args: &Args) -> Result<ExitCode> {
    let mut ok = true;
    for path in &args.plans {
        ok &= one(format, path);
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

fn one(format: Format, path: &Path) -> bool {
    let loaded = Plan::load(path);
    let problems = match &loaded {
        Ok(plan) => &plan.warnings,
        Err(errors) => &errors.problems,
    };
    let plan = loaded.as_ref().ok();
    let barrier = plan.and_then(Plan::point_of_no_return);
    match format {
        Format::Json => out(serde_json::json!({
            "file": path.display().to_string(),
            "ok": plan.is_some(),
            "plan": plan.map(|plan| &plan.name),
            "steps": plan.map(|plan| plan.steps.len()),
            "point_of_no_return": barrier.as_ref().map(|(step, undo)| serde_json::json!({ "step": step.id, "undo": undo })),
            "problems": problems,
        })),
        Format::Text => {
            ui::problems(format, problems);
            if let Some(plan) = plan {
                out(format_args!(
                    "{}: plan `{}` is sound ({})",
                    path.display(),
                    plan.name,
                    crate::problem::count(plan.steps.len(), "step")
                ));
            }
            match barrier {
                Some((step, Undo::Impossible { why })) => {
                    out(format_args!("point of no return: `{}` cannot be undone: {why}", step.id));
                }
                Some((step, Undo::Lossy { loses, .. })) => {
                    out(format_args!("point of no return: undoing `{}` loses {loses}", step.id));
                }
                _ => {}
            }
        }
    }
    plan.is_some()
}
