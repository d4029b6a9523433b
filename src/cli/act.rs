//! The commands that act on runs: `run`, `resume`, `rollback`, `abort`, `finish`, `approve`.

use super::load::load;
use super::which::{Which, quoted};
use crate::engine::decide::known_step;
use crate::engine::decided::fallen;
use crate::engine::{self, Ended, Options, Outcome, advice};
use crate::error::{Class, Error, Result};
use crate::event::{Emitter, Event, Level, Record, RunId, StepId};
use crate::journal::{Journal, RunState, Status, this_process};
use crate::plan::Plan;
use crate::postgres::ours::OURS;
use crate::steps::Critical;
use crate::ui::{self, Format, out};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Shown under `--help`.
pub const RUN_EXAMPLES: &str = "Examples:
  handover run plan.yaml
  handover run plan.yaml --wait 1m              # for a runner that just died elsewhere
  handover run plan.yaml --format json | jq -c 'select(.event == \"recorded\")'

Ctrl-C stops at the next safe place; `handover resume` goes on from there.";

/// Shown under `--help`.
pub const RESUME_EXAMPLES: &str = "Examples:
  handover resume plan.yaml
  handover resume plan.yaml --accept-changes    # after the plan was mended";

/// Shown under `--help`.
pub const ROLLBACK_EXAMPLES: &str = "Examples:
  handover rollback plan.yaml
  handover rollback plan.yaml --to copy         # `copy` and what is before it stays
  handover rollback plan.yaml --accept-loss     # past the point of no return
  handover rollback plan.yaml --accept-loss --export lost/    # writes what is lost to files first";

/// Shown under `--help`.
pub const APPROVE_EXAMPLES: &str = "Examples:
  handover approve plan.yaml go-live
  handover approve plan.yaml go-live --by alice --note 'support is standing by'";

/// Shown under `--help`.
pub const ABORT_EXAMPLES: &str = "Examples:
  handover abort plan.yaml

A living runner stops at the next safe place; a cutover is called off as long as it is not decided. After that only
forward or rollback is left, which is the answer then. `handover rollback` then undoes the run, `handover finish` leaves it
as it is.";

/// Shown under `--help`.
pub const FINISH_EXAMPLES: &str = "Examples:
  handover finish plan.yaml

After this there is no rollback.";

/// How long `abort` waits for the runner's answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What every command that takes the lease has in common.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    #[command(flatten)]
    pub(super) plan: Which,
    /// Wait this long for a lease that another runner holds.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Lifetime of the lease: how long a runner that died on another host keeps others out.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    lease_ttl: Duration,
    /// Go on although the plan, its files or the databases changed since the run began.
    #[arg(long)]
    accept_changes: bool,
    /// Exit with code 7 where a step waits for a human, instead of waiting.
    #[arg(long)]
    no_wait: bool,
}

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub(super) common: Common,
}

/// Arguments of `resume`.
#[derive(Debug, clap::Args)]
pub struct ResumeArgs {
    #[command(flatten)]
    pub(super) common: Common,
}

/// Arguments of `rollback`.
#[derive(Debug, clap::Args)]
pub struct RollbackArgs {
    #[command(flatten)]
    pub(super) common: Common,
    /// The last step that stays done; without it everything is undone.
    #[arg(long, value_name = "STEP")]
    to: Option<String>,
    /// Roll back although something is lost; without this flag what would be lost is only printed.
    #[arg(long)]
    accept_loss: bool,
    /// Write the rows that are lost to files in this folder, which is empty or not there yet, before anything is undone.
    #[arg(long, value_name = "FOLDER")]
    export: Option<PathBuf>,
}

/// Arguments of `abort`.
#[derive(Debug, clap::Args)]
pub struct AbortArgs {
    #[command(flatten)]
    pub(super) common: Common,
}

/// Arguments of `finish`.
#[derive(Debug, clap::Args)]
pub struct FinishArgs {
    #[command(flatten)]
    pub(super) common: Common,
}

/// Arguments of `approve`.
#[derive(Debug, clap::Args)]
pub struct ApproveArgs {
    /// The plan.
    pub(super) plan: PathBuf,
    /// The step that waits.
    step: String,
    /// Who approves; your user name unless given.
    #[arg(long)]
    by: Option<String>,
    /// In your words; it goes into the journal.
    #[arg(long)]
    note: Option<String>,
}

impl RollbackArgs {
    /// What would have to be said again.
    pub(super) fn options(&self) -> String {
        let to = self.to.as_ref().map_or_else(String::new, |to| format!(" --to {}", quoted(to)));
        let export = self
            .export
            .as_ref()
            .map_or_else(String::new, |folder| format!(" --export {}", quoted(&folder.to_string_lossy())));
        format!("{to}{}{export}", if self.accept_loss { " --accept-loss" } else { "" })
    }
}

impl ApproveArgs {
    /// What would have to be said again.
    pub(super) fn options(&self) -> String {
        let option = |name: &str, value: &Option<String>| {
            value.as_ref().map_or_else(String::new, |value| format!(" --{name} {}", quoted(value)))
        };
        format!(" {}{}{}", quoted(&self.step), option("by", &self.by), option("note", &self.note))
    }
}

/// `handover run`.
pub async fn run(format: Format, args: RunArgs) -> Result<ExitCode> {
    act(format, args.common, engine::Command::Run).await
}

/// `handover resume`.
pub async fn resume(format: Format, args: ResumeArgs) -> Result<ExitCode> {
    act(format, args.common, engine::Command::Resume).await
}

/// `handover rollback`.
pub async fn rollback(format: Format, args: RollbackArgs) -> Result<ExitCode> {
    // Whoever resumes it may stand in another folder.
    let export = match args.export {
        Some(folder) => Some(std::path::absolute(&folder).map_err(|e| {
            Error::usage(format!("`--export {}` is no folder ({e})", folder.display()))
                .hint("name a folder that is empty or not there yet")
        })?),
        None => None,
    };
    let command =
        engine::Command::Rollback { to: args.to.map(StepId), accept_loss: args.accept_loss, export };
    act(format, args.common, command).await
}

/// `handover finish`.
pub async fn finish(format: Format, args: FinishArgs) -> Result<ExitCode> {
    act(format, args.common, engine::Command::Finish).await
}

/// `handover abort`: asks a living runner to stop, or records it when there is none.
pub async fn abort(format: Format, args: AbortArgs) -> Result<ExitCode> {
    let Some(plan) = args.common.plan.load(format, "abort").await? else { return Ok(ExitCode::from(2)) };
    let journal = Journal::open_existing(plan.control.address()?, Duration::from_secs(5)).await?;
    if let Some(lease) = journal.lease(&plan.name).await?
        && let (Some(holder), Some(run)) = (&lease.holder, lease.run)
        && !lease.expired
        && !lease.holder_is_dead()
    {
        let entries = journal.entries(run).await?;
        let state = RunState::fold(&entries)?;
        if let Some(step) = fallen(&plan, &state) {
            return Err(advice::overtaken(step).with_class(Class::Usage));
        }
        journal.request(run, "abort", None, &this_process().to_string(), None).await?;
        let ended = answer(&journal, &plan, run, state).await?;
        out(match (format, ended) {
            (Format::Text, true) => format!("{holder} has aborted run {run}"),
            (Format::Text, false) => {
                format!("asked {holder} to abort run {run}; it stops at its next safe place")
            }
            (Format::Json, _) => {
                let ended = ended.then_some("aborted");
                serde_json::json!({ "run": run, "asked": holder, "ended": ended }).to_string()
            }
        });
        return Ok(ExitCode::SUCCESS);
    }
    act(format, args.common, engine::Command::Abort).await
}

/// Waits for a moment for what the runner makes of a request to abort, from `state` on: true when it aborted.
///
/// # Errors
/// Its refusal, where a decision had fallen before; the control database failing.
async fn answer(journal: &Journal, plan: &Plan, run: RunId, mut state: RunState) -> Result<bool> {
    let begun = std::time::Instant::now();
    while begun.elapsed() < ANSWER {
        for entry in journal.entries_after(run, state.seq).await? {
            state.apply(&entry)?;
            if matches!(entry.record, Record::RunAborted { .. }) {
                return Ok(true);
            }
            if let Some(step) = fallen(plan, &state) {
                return Err(advice::overtaken(step).with_class(Class::Usage));
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(false)
}

/// `handover approve`.
pub async fn approve(format: Format, args: ApproveArgs) -> Result<ExitCode> {
    let Some(plan) = load(format, &args.plan)? else { return Ok(ExitCode::from(2)) };
    let step = StepId(args.step);
    let waits = plan.links.approvals.all();
    known_step(waits.clone().map(|(id, _)| id), &step).map_err(|e| {
        e.context(format!("plan `{}` has no step of that name that waits for one", plan.name))
    })?;
    let by = args.by.unwrap_or_else(|| this_process().user);
    if let Some((_, asked)) = waits.clone().find(|(id, asked)| **id == step && !asked.may(&by)) {
        return Err(Error::usage(format!(
            "the word of {by} does not count for step `{step}`: the plan asks for {}; nothing was approved",
            asked.whose()
        ))
        .hint(format!(
            "ask {} for it; who may approve stands under `by:` of the step in {}",
            asked.whose(),
            args.plan.display()
        )));
    }
    let journal = Journal::open_existing(plan.control.address()?, Duration::from_secs(5)).await?;
    let run = journal.runs(Some(&plan.name)).await?.into_iter().next().ok_or_else(|| {
        Error::usage(format!(
            "plan `{}` was never run from this control database (in schema {OURS})",
            plan.name
        ))
        .hint("begin with `handover run`")
    })?;
    let state = RunState::fold(&journal.entries(run.run).await?)?;
    // A word given before the step began would not count: what it spoke of may look different by then.
    let hint = format!("`handover status {}` shows where the run stands", args.plan.display());
    let asks = plan.step(&step).is_some_and(|known| known.kind.asks_now(state.facts.get(&step)));
    match state.status(&step) {
        Status::Running | Status::Failed { .. } if asks => {}
        Status::Done => return Err(Error::usage(format!("step `{step}` is approved already")).hint(hint)),
        _ => return Err(Error::usage(format!("step `{step}` does not wait for an approval yet")).hint(hint)),
    }
    journal.request(run.run, "approve", Some(step.as_str()), &by, args.note.as_deref()).await?;
    out(match format {
        Format::Text => format!("{by} approved step `{step}` of run {}", run.run),
        Format::Json => serde_json::json!({ "run": run.run, "step": step, "by": by }).to_string(),
    });
    Ok(ExitCode::SUCCESS)
}

async fn act(format: Format, common: Common, command: engine::Command) -> Result<ExitCode> {
    if command == engine::Command::Run && common.plan.file().is_none() {
        return Err(Error::usage("a run begins from a plan's file").hint("`handover run PLAN`"));
    }
    let verb = match &command {
        engine::Command::Run | engine::Command::Resume => "resume",
        engine::Command::Rollback { .. } => "rollback",
        engine::Command::Finish => "finish",
        engine::Command::Abort => "abort",
    };
    let Some(plan) = common.plan.load(format, verb).await? else { return Ok(ExitCode::from(2)) };
    let options = Options {
        lease_ttl: common.lease_ttl.max(Duration::from_secs(1)),
        wait: common.wait,
        accept_changes: common.accept_changes,
        may_wait: !common.no_wait,
        critical: Critical::default(),
    };
    let (emitter, events) = Emitter::channel();
    let places = ui::Places::of(plan.steps.iter().map(|step| step.id.clone()));
    let screen = ui::listen(format, places, events);
    let stop = CancellationToken::new();
    let watcher = tokio::spawn(watch_signals(stop.clone(), options.critical.clone(), emitter.clone()));
    let result = engine::execute(&plan, command, options, emitter, stop).await;
    // It has an end of the channel that the screen waits for.
    watcher.abort();
    let _ = watcher.await;
    let _ = screen.await;
    let outcome = result?;
    out(match format {
        Format::Text => format!("run {}: {}", outcome.run, word(&outcome, &plan)),
        Format::Json => serde_json::json!({ "run": outcome.run, "ended": outcome.ended }).to_string(),
    });
    Ok(ExitCode::SUCCESS)
}

/// How it ended, and what can be done next; the command that ends every way back comes last.
fn word(outcome: &Outcome, plan: &Plan) -> String {
    let file = plan.called();
    let way_back = advice::way_back(&file, "it", &outcome.rollback_loses);
    match outcome.ended {
        Ended::Done => format!(
            "done; {way_back}; `handover finish {file}` later drops what is kept for that and ends every way back"
        ),
        Ended::RolledBack => "rolled back".into(),
        Ended::Aborted => format!("aborted; {way_back}; `handover finish {file}` leaves it as it is"),
        Ended::Finished => "finished".into(),
    }
}

/// Ctrl-C, SIGTERM and a lost terminal ask for a stop at the next safe place. A second Ctrl-C ends the process as a
/// crash would, which is survivable too; but not while something goes on that must not be cut short: then it says
/// what, and for how long already.
pub(super) async fn watch_signals(stop: CancellationToken, critical: Critical, emitter: Emitter) {
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), signal(SignalKind::hangup()))
    else {
        return;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        match critical.words() {
            _ if !stop.is_cancelled() => {
                stop.cancel();
                // At once: the next safe place may be minutes away.
                emitter.emit(Event::Stopping { bound: critical.is_active() });
            }
            None => std::process::exit(130),
            Some(words) => emitter.emit(Event::Note {
                step: None,
                level: Level::Warning,
                text: format!(
                    "not stopped yet, for this must not be cut short: {words}; it stops right after. `kill -9 {}` ends \
                     it at once, as a crash would, and `handover resume` goes on from there",
                    std::process::id()
                ),
            }),
        }
    }
}
