//! `handover completions`: for the shell.

use super::Cli;
use crate::error::Result;
use crate::ui;
use clap::CommandFactory;
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
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "handover", &mut script);
    ui::raw(&script);
    Ok(ExitCode::SUCCESS)
}
