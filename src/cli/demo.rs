//! `handover demo`: the main job, shown on servers of its own.

use super::act::watch_signals;
use crate::demo::{self, Folders, Options, QueueChoice};
use crate::error::Result;
use crate::ui::{Format, out};
use std::path::PathBuf;
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

/// Shown under `--help`.
pub const EXAMPLES: &str = "Examples:
  handover demo
  handover demo --kill-at migrate
  handover demo --and-back
  handover demo --rows 20000 --rate 50 --keep
  handover demo --format json | tail -n 1 | jq .failed_requests

Exits with 8 when a promise is broken.";

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Access tokens in the old database; at least 1000.
    #[arg(long, default_value_t = 200_000, value_name = "N", value_parser = rows)]
    rows: u64,
    /// Requests a second, on a schedule that does not wait for answers.
    #[arg(long, default_value_t = 200.0, value_name = "N", value_parser = rate)]
    rate: f64,
    /// Kill the engine with SIGKILL inside this step of either plan, and resume.
    #[arg(long, value_name = "STEP")]
    kill_at: Option<String>,
    /// When the second plan is done, roll it back under traffic, and go forward again.
    #[arg(long)]
    and_back: bool,
    /// How many writes the new side takes before that, as fast as the service answers them.
    #[arg(long, default_value_t = 10_000, value_name = "N", requires = "and_back")]
    writes: u64,
    /// Leave the servers up, and print how to look around and how to stop them.
    #[arg(long)]
    keep: bool,
    /// Folder with the programs of the old side's Postgres.
    #[arg(long, value_name = "FOLDER")]
    postgres_bin: Option<PathBuf>,
    /// Folder with the programs of the new side's Postgres.
    #[arg(long, value_name = "FOLDER")]
    postgres_bin_new: Option<PathBuf>,
    /// The queue: the one at `QUEUE_URL` if that is set, else RabbitMQ if it is installed, else the embedded one.
    #[arg(long, value_enum, default_value_t)]
    queue: Queue,
}

/// What `--queue` may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Queue {
    /// What there is.
    #[default]
    Auto,
    /// A RabbitMQ node of the demo's own.
    Rabbitmq,
    /// The queue inside Postgres.
    Embedded,
}

fn rows(text: &str) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(rows) if rows >= 1000 => Ok(rows),
        _ => Err("give a number of at least 1000".into()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && (1.0..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err("give a number between 1 and 100000".into()),
    }
}

/// Shows it, and prints the verdict: a table, or with `--format json` one object as the only line on standard
/// output.
pub async fn run(format: Format, args: Args) -> Result<ExitCode> {
    let stop = CancellationToken::new();
    let watcher =
        tokio::spawn(watch_signals(stop.clone(), Default::default(), crate::event::Emitter::silent()));
    let options = Options {
        rows: args.rows,
        rate: args.rate,
        kill_at: args.kill_at,
        and_back: args.and_back.then_some(args.writes),
        keep: args.keep,
        folders: Folders { blue: args.postgres_bin, green: args.postgres_bin_new },
        queue: match args.queue {
            Queue::Auto => QueueChoice::Auto,
            Queue::Rabbitmq => QueueChoice::RabbitMq,
            Queue::Embedded => QueueChoice::Embedded,
        },
        format,
    };
    let result = demo::run(options, stop).await;
    watcher.abort();
    let verdict = result?;
    out(match format {
        Format::Text => verdict.table(),
        Format::Json => serde_json::json!(verdict).to_string(),
    });
    // The same code as for a check of a plan that did not hold.
    Ok(if verdict.kept() { ExitCode::SUCCESS } else { ExitCode::from(8) })
}
