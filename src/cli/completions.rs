//! `handover completions`: for the shell.

use crate::error::Result;
use crate::ui;
use std::process::ExitCode;

/// Shown under `--help`.
pub const EXAMPLES: &str = "Examples:
  handover completions bash > /etc/bash_completion.d/handover
  handover completions zsh > ~/.zfunc/_handover
  handover completions fish > ~/.config/fish/completions/handover.fish";

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell.
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Prints the script.
pub fn run(mut program: clap::Command, args: &Args) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, "handover", &mut script);
    ui::raw(&script);
    Ok(ExitCode::SUCCESS)
}
