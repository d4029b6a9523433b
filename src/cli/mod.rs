//! The command line: clap types, one wiring file a command, and the exit codes.

mod act;
mod check;
mod exit;

use crate::error::Result;
use crate::ui::{self, Format};
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Zero-downtime database migrations from a declarative plan.
#[derive(Debug, Parser)]
#[command(name = "handover", version, propagate_version = true, max_term_width = 110, after_help = exit::HELP)]
pub struct Cli {
    /// How output is written.
    #[arg(long, global = true, value_enum, default_value_t)]
    pub format: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Look for problems in a plan without connecting to anything
    Check(check::Args),
    /// Execute a plan from its beginning
    Run(act::RunArgs),
    /// Go on with the last run of a plan, after a failure, a stop or a crash
    Resume(act::ResumeArgs),
    /// Undo the last run of a plan, from its last step to its first
    Rollback(act::RollbackArgs),
    /// Give the last run of a plan up where it stands
    Abort(act::AbortArgs),
    /// End the last run of a plan for good: drop what was kept for rollback
    Finish(act::FinishArgs),
    /// Approve a step that waits for it
    Approve(act::ApproveArgs),
}

/// Parses the arguments, does what they say, and reports how it went.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = cli.format;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            let error = crate::Error::internal(format!("cannot start the runtime ({e})"));
            ui::error(format, &error);
            return exit::code(&error);
        }
    };
    match runtime.block_on(dispatch(cli)) {
        Ok(code) => code,
        Err(error) => {
            ui::error(format, &error);
            exit::code(&error)
        }
    }
}

async fn dispatch(cli: Cli) -> Result<ExitCode> {
    let format = cli.format;
    match cli.command {
        Command::Check(args) => check::run(format, &args),
        Command::Run(args) => act::run(format, args).await,
        Command::Resume(args) => act::resume(format, args).await,
        Command::Rollback(args) => act::rollback(format, args).await,
        Command::Abort(args) => act::abort(format, args).await,
        Command::Finish(args) => act::finish(format, args).await,
        Command::Approve(args) => act::approve(format, args).await,
    }
}
