//! The command line: clap types, one wiring file a command, and the exit codes.

mod act;
mod check;
mod completions;
#[cfg(feature = "lab")]
mod demo;
mod doctor;
mod dry_run;
mod events;
mod exit;
mod guard;
mod load;
mod man;
mod report;
mod runs;
mod schema;
mod select;
mod status;
mod which;

use crate::error::{Error, Result};
use crate::ui::{self, Format};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

/// Zero-downtime database migrations from a declarative plan.
///
/// Handover executes an upgrade plan, a YAML file, against live Postgres databases and a message queue. Every
/// intention is in a journal before it is acted on, so a run that was stopped or killed goes on where it was, and
/// can be rolled back as far as `check` and `dry-run` say.
#[derive(Debug, Parser)]
#[command(
    name = "handover",
    version,
    propagate_version = true,
    max_term_width = 110,
    after_help = exit::HELP,
    after_long_help = exit::LONG_HELP
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// A command's own arguments and `--format`. `report` has formats of its own, so this cannot be a global option.
#[derive(Debug, clap::Args)]
pub struct With<A: clap::Args> {
    #[command(flatten)]
    args: A,
    /// How output is written.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Look for problems in plans without connecting to anything
    #[command(after_help = check::EXAMPLES)]
    Check(With<check::Args>),
    /// Show what a run would do, without changing anything
    #[command(after_help = dry_run::EXAMPLES)]
    DryRun(dry_run::Args),
    /// Execute a plan from its beginning
    #[command(after_help = act::RUN_EXAMPLES)]
    Run(With<act::RunArgs>),
    /// Go on with the last run of a plan, after a failure, a stop or a crash
    #[command(after_help = act::RESUME_EXAMPLES)]
    Resume(With<act::ResumeArgs>),
    /// Undo the last run of a plan, from its last step to its first
    #[command(after_help = act::ROLLBACK_EXAMPLES)]
    Rollback(With<act::RollbackArgs>),
    /// Approve a step that waits for it
    #[command(after_help = act::APPROVE_EXAMPLES)]
    Approve(With<act::ApproveArgs>),
    /// Give the last run of a plan up where it stands
    #[command(after_help = act::ABORT_EXAMPLES)]
    Abort(With<act::AbortArgs>),
    /// End the last run of a plan for good: drop what was kept for rollback
    #[command(after_help = act::FINISH_EXAMPLES)]
    Finish(With<act::FinishArgs>),
    /// Show where a run stands, who acts on it, what it still holds, and what to do next
    #[command(after_help = status::EXAMPLES)]
    Status(With<status::Args>),
    /// List the runs of a plan
    #[command(after_help = runs::EXAMPLES)]
    Runs(With<runs::Args>),
    /// Print the journal of a run
    #[command(after_help = events::EXAMPLES)]
    Events(With<events::Args>),
    /// Write the report of a run
    #[command(after_help = report::EXAMPLES)]
    Report(report::Args),
    /// Print the JSON Schema of plans, for editors
    #[command(after_help = schema::EXAMPLES)]
    Schema,
    /// Look at everything a plan needs: connections, versions, privileges, settings, programs, clocks
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(With<doctor::Args>),
    /// Beside a PgBouncer: let its clients go on when a cutover that holds them is gone
    #[command(after_help = guard::EXAMPLES)]
    Guard(With<guard::Args>),
    /// Upgrade a live OAuth service twice, on servers of its own, and count what went wrong
    #[cfg(feature = "lab")]
    #[command(after_help = demo::EXAMPLES)]
    Demo(With<demo::Args>),
    /// Print a script that completes commands and options in a shell
    #[command(after_help = completions::EXAMPLES)]
    Completions(completions::Args),
    /// Write the manual pages
    #[command(after_help = man::EXAMPLES)]
    Man(man::Args),
}

impl Command {
    /// The command's name and its plan, if it is told one.
    fn asked(&self) -> Option<ui::hint::Asked> {
        let file = |path: &std::path::Path| which::quoted(&path.to_string_lossy());
        let (verb, plan) = match self {
            Command::DryRun(args) => ("dry-run", file(&args.plan)),
            Command::Doctor(with) => ("doctor", file(&with.args.plan)),
            Command::Runs(with) => ("runs", file(&with.args.plan)),
            Command::Approve(with) => ("approve", file(&with.args.plan)),
            Command::Run(with) => ("run", with.args.common.plan.words()?),
            Command::Resume(with) => ("resume", with.args.common.plan.words()?),
            Command::Rollback(with) => ("rollback", with.args.common.plan.words()?),
            Command::Abort(with) => ("abort", with.args.common.plan.words()?),
            Command::Finish(with) => ("finish", with.args.common.plan.words()?),
            Command::Status(with) => ("status", with.args.plan.words()?),
            Command::Events(with) => ("events", with.args.plan.words()?),
            Command::Report(args) => ("report", args.plan.words()?),
            Command::Check(_)
            | Command::Schema
            | Command::Guard(_)
            | Command::Completions(_)
            | Command::Man(_) => return None,
            #[cfg(feature = "lab")]
            Command::Demo(_) => return None,
        };
        let options = match self {
            Command::Approve(with) => with.args.options(),
            Command::Rollback(with) => with.args.options(),
            _ => String::new(),
        };
        let again = format!("{verb} {plan}{options}");
        let file = (!plan.starts_with("--control ")).then(|| plan.clone());
        Some(ui::hint::Asked { plan, file, again })
    }

    /// How errors are written.
    fn format(&self) -> Format {
        match self {
            Command::Check(with) => with.format,
            Command::DryRun(args) => args.error_format(),
            Command::Run(with) => with.format,
            Command::Resume(with) => with.format,
            Command::Rollback(with) => with.format,
            Command::Approve(with) => with.format,
            Command::Abort(with) => with.format,
            Command::Finish(with) => with.format,
            Command::Status(with) => with.format,
            Command::Runs(with) => with.format,
            Command::Events(with) => with.format,
            Command::Doctor(with) => with.format,
            Command::Guard(with) => with.format,
            #[cfg(feature = "lab")]
            Command::Demo(with) => with.format,
            Command::Report(args) => args.error_format(),
            Command::Schema | Command::Completions(_) | Command::Man(_) => Format::Text,
        }
    }
}

/// Parses the arguments, does what they say, and reports how it went.
#[must_use]
pub fn main() -> ExitCode {
    ui::on_panic(asked_format());
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refused(&error),
    };
    let (format, asked) = (cli.command.format(), cli.command.asked());
    ui::about(asked.as_ref());
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            let error = Error::internal(format!("cannot start the runtime ({e})"));
            ui::error(format, &error);
            return exit::code(&error);
        }
    };
    match runtime.block_on(dispatch(cli)) {
        Ok(code) => code,
        Err(error) => {
            ui::error_of(format, &error, asked.as_ref());
            exit::code(&error)
        }
    }
}

/// The format that the arguments ask for, as far as it can be told before they are understood.
fn asked_format() -> Format {
    let mut args = std::env::args_os();
    while let Some(arg) = args.next() {
        if arg == "--format=json" || (arg == "--format" && args.next().is_some_and(|value| value == "json")) {
            return Format::Json;
        }
    }
    Format::Text
}

/// Help and version are answers; anything else is an error of the command line.
fn refused(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A reader that went away is no reason to fail.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if error.kind() == ErrorKind::InvalidSubcommand
        && let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand)
    {
        let hint = match meant(word) {
            Some(command) => format!("did you mean `handover {command}`? `handover help` lists all commands"),
            None => "`handover help` lists all commands".to_owned(),
        };
        ui::error(asked_format(), &Error::usage(format!("there is no command `{word}`")).hint(hint));
        return ExitCode::from(2);
    }
    if asked_format() == Format::Json && !help {
        let text = error.to_string();
        let mut lines = text.trim().lines();
        let message = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        ui::error(Format::Json, &Error::usage(message).hint("`handover help` shows commands and options"));
    } else {
        let _ = error.print();
    }
    ExitCode::from(2)
}

/// The command that a misspelt word meant. One that acts is named only for what is nearly its name: what is pasted
/// without thought must not end every way back.
fn meant(word: &str) -> Option<String> {
    const LOOKS: &[&str] =
        &["check", "dry-run", "status", "runs", "events", "report", "doctor", "schema", "help"];
    let command = Cli::command();
    let names: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
    crate::problem::suggest(word, names.iter().copied())
        .filter(|name| LOOKS.contains(name) || strsim::levenshtein(word, name) <= 2)
        .map(str::to_owned)
}

async fn dispatch(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Check(with) => check::run(with.format, &with.args),
        Command::DryRun(args) => dry_run::run(&args).await,
        Command::Run(with) => act::run(with.format, with.args).await,
        Command::Resume(with) => act::resume(with.format, with.args).await,
        Command::Rollback(with) => act::rollback(with.format, with.args).await,
        Command::Approve(with) => act::approve(with.format, with.args).await,
        Command::Abort(with) => act::abort(with.format, with.args).await,
        Command::Finish(with) => act::finish(with.format, with.args).await,
        Command::Status(with) => status::run(with.format, &with.args).await,
        Command::Runs(with) => runs::run(with.format, &with.args).await,
        Command::Events(with) => events::run(with.format, &with.args).await,
        Command::Report(args) => report::run(&args).await,
        Command::Schema => schema::run(),
        Command::Doctor(with) => doctor::run(with.format, &with.args).await,
        Command::Guard(with) => guard::run(with.format, &with.args).await,
        #[cfg(feature = "lab")]
        Command::Demo(with) => demo::run(with.format, with.args).await,
        Command::Completions(args) => completions::run(<Cli as clap::CommandFactory>::command(), &args),
        Command::Man(args) => man::run(<Cli as clap::CommandFactory>::command(), &args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_typo_leads_to_a_command_that_acts() {
        assert_eq!(meant("init"), None);
        assert_eq!(meant("begin"), None);
        assert_eq!(meant("undo"), None);
        assert_eq!(meant("stats").as_deref(), Some("status"));
        assert_eq!(meant("dryrun").as_deref(), Some("dry-run"));
        assert_eq!(meant("finsh").as_deref(), Some("finish"));
        assert_eq!(meant("rolback").as_deref(), Some("rollback"));
    }

    #[test]
    fn the_command_line_is_consistent_and_every_command_has_an_example() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("handover {}", command.get_name())), "{}", command.get_name());
        }
    }
}
