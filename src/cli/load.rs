//! Reading the plan that a command was told.

use crate::error::Result;
use crate::plan::Plan;
use crate::postgres::ours;
use crate::ui::{self, Format};
use std::path::Path;

/// Reads a plan that this process is about; prints its problems and returns none when it is refused.
///
/// # Errors
/// Another plan, with another `schema:`, that this process is about already.
pub fn load(format: Format, path: &Path) -> Result<Option<Plan>> {
    match Plan::load(path) {
        Ok(plan) => {
            ours::choose(&plan.schema)?;
            ui::problems(format, &plan.warnings);
            Ok(Some(plan))
        }
        Err(errors) => {
            ui::problems(format, &errors.problems);
            Ok(None)
        }
    }
}
