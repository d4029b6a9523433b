//! `handover schema`: the JSON Schema of plans.

use crate::error::Result;
use crate::ui::out;
use std::process::ExitCode;

/// Shown under `--help`.
pub const EXAMPLES: &str = "Examples:
  handover schema > handover.schema.json

Editors with a YAML language server complete and check plans that begin with
  # yaml-language-server: $schema=handover.schema.json";

/// Prints it.
pub fn run() -> Result<ExitCode> {
    out(format_args!("{:#}", crate::plan::schema()));
    Ok(ExitCode::SUCCESS)
}
