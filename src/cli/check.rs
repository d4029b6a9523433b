//! `handover check`: every problem of a plan at once, without a connection.

use crate::error::Result;
use crate::plan::Plan;
use crate::steps::Undo;
use crate::ui::{self, Format, out};
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The plan.
    plan: PathBuf,
}

/// Checks. As JSON, one object on standard output: `ok`, `plan`, `steps`, `point_of_no_return` and `problems`.
pub fn run(format: Format, args: &Args) -> Result<ExitCode> {
    let loaded = Plan::load(&args.plan);
    let problems = match &loaded {
        Ok(plan) => &plan.warnings,
        Err(errors) => &errors.problems,
    };
    let plan = loaded.as_ref().ok();
    let barrier = plan.and_then(Plan::point_of_no_return);
    match format {
        Format::Json => out(serde_json::json!({
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
                    "{}: plan `{}` is sound ({} steps)",
                    args.plan.display(),
                    plan.name,
                    plan.steps.len()
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
    Ok(if plan.is_some() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}
