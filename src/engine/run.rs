//! What can be done with a plan's runs, and the lease that it takes.

use super::decide::Outline;
use super::heartbeat::{self, beat};
use super::recorder::Recorder;
use super::runner::Runner;
use crate::error::{Class, Error, Result};
use crate::event::{Emitter, Event, Level, RunId, StepId};
use crate::journal::{Held, Journal, Phase, RunState, this_process};
use crate::plan::Plan;
use crate::postgres::clock::Moment;
use crate::postgres::{Databases, Lease};
use crate::steps::Critical;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What to do with a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Begin a new run.
    Run,
    /// Go on with the last run.
    Resume,
    /// Undo the last run.
    Rollback {
        /// The last step that stays done; none: undo everything.
        to: Option<StepId>,
        /// Whether to go on although something is lost.
        accept_loss: bool,
    },
    /// Drop what was kept for rollback.
    Finish,
    /// Give the last run up where it stands.
    Abort,
}

/// How to do it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Lifetime of the lease; also how long a dead runner on another host keeps others out.
    pub lease_ttl: Duration,
    /// How long to wait for somebody else's lease.
    pub wait: Duration,
    /// Go on although the plan, its files or the databases are not those that the run began with.
    pub accept_changes: bool,
    /// Whether somebody is there to wait for.
    pub may_wait: bool,
    /// What must not be cut short, for whoever asks what is still going on.
    pub critical: Critical,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            lease_ttl: Duration::from_secs(30),
            wait: Duration::ZERO,
            accept_changes: false,
            may_wait: true,
            critical: Critical::default(),
        }
    }
}

/// How it ended, when it ended as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// Every step is done.
    Done,
    /// Undone as far as was asked.
    RolledBack,
    /// Given up where it stood.
    Aborted,
    /// Over for good.
    Finished,
}

/// A run and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Outcome {
    /// The run.
    pub run: RunId,
    /// How it ended.
    pub ended: Ended,
}

/// Does what was asked. `stop` asks it to stop at the next safe place (Ctrl-C, SIGTERM).
///
/// # Errors
/// Whatever halted the run; the journal has it too, unless the journal or the lease was what failed.
pub async fn execute(
    plan: &Plan,
    command: Command,
    options: Options,
    emitter: Emitter,
    stop: CancellationToken,
) -> Result<Outcome> {
    let databases = Databases::new(plan.targets()?);
    let control = plan.control.resolve()?;
    if matches!(command, Command::Run | Command::Resume) {
        for text in plan.compare_readers(&databases).await? {
            emitter.emit(Event::Note { step: None, level: Level::Warning, text });
        }
    }
    // As long as the lease lasts nobody else acts, so that long the journal may be away.
    let journal = Arc::new(Journal::open(control.clone(), options.lease_ttl).await?);
    let pulse = Arc::new(Journal::open_existing(control, heartbeat::patience(options.lease_ttl)).await?);
    let (run, lease) = take_lease(&journal, plan, &command, &options, &stop).await?;

    let done = CancellationToken::new();
    let abort = CancellationToken::new();
    let heart = tokio::spawn(beat(pulse, lease.clone(), run, options.lease_ttl, done.clone(), abort.clone()));

    let result = async {
        let state = begin(&journal, run, plan, &command).await?;
        let recorder = Recorder::new(journal.clone(), run, lease.clone(), emitter.clone(), state);
        let scribe = tokio::spawn(recorder.clone().write_notes());
        let (failed, failures) = mpsc::unbounded_channel();
        let mut runner = Runner {
            run,
            plan,
            outline: plan.steps.iter().map(Outline::from).collect(),
            databases: databases.under(lease.clone()),
            recorder,
            emitter,
            options,
            stop,
            abort,
            failed,
            failures,
        };
        let result = runner.attached(command).await;
        runner.recorder.standing.end_all().await;
        scribe.abort();
        runner.recorder.flush_notes().await;
        result
    }
    .await;

    done.cancel();
    let silence = heart.await.ok().flatten();
    // One that is lost is not ours to give back; if this fails it runs out by itself.
    if lease.assert_held().is_ok() {
        let _ = journal.release(&plan.name, lease.token()).await;
    }
    // A lease that ran out because the journal was silent is a lost journal: that is what can be mended.
    let result = match (result, silence) {
        (Err(error), Some(journal)) if error.class() == Class::LeaseLost => Err(journal),
        (result, _) => result,
    };
    result.map(|ended| Outcome { run, ended })
}

/// Takes the lease for the run that the command is about.
async fn take_lease(
    journal: &Journal,
    plan: &Plan,
    command: &Command,
    options: &Options,
    stop: &CancellationToken,
) -> Result<(RunId, Lease)> {
    let run = match (command, journal.runs(Some(&plan.name)).await?.first()) {
        (Command::Run, _) => RunId::new(),
        (_, Some(row)) => row.run,
        (_, None) => {
            return Err(Error::usage(format!(
                "plan `{}` was never run from this control database",
                plan.name
            ))
            .hint("begin with `handover run`"));
        }
    };
    let holder = this_process();
    let begun = Instant::now();
    loop {
        let asked_at = Moment::now();
        let row = match journal.acquire(&plan.name, run, &holder, options.lease_ttl).await? {
            Held::Ours(token) => {
                return Ok((run, Lease::granted(&plan.name, token, asked_at, options.lease_ttl)));
            }
            Held::Other(row) => row,
        };
        if begun.elapsed() >= options.wait {
            return Err(row.refusal());
        }
        tokio::select! {
            () = stop.cancelled() => return Err(Error::cancelled()),
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
    }
}

/// Folds the run's journal and refuses a command that does not fit where it stands. Called under the lease.
async fn begin(journal: &Journal, run: RunId, plan: &Plan, command: &Command) -> Result<RunState> {
    if *command == Command::Run {
        if let Some(last) = journal.runs(Some(&plan.name)).await?.first() {
            let state = RunState::fold(&journal.entries(last.run).await?)?;
            if state.seq > 0 && !state.phase.is_over() {
                return Err(Error::usage(format!("run {} of this plan is {}", last.run, state.phase.word()))
                    .hint(match state.phase {
                        Phase::Done => "`handover finish` ends it for good, `handover rollback` undoes it",
                        Phase::Aborted => {
                            "`handover rollback` undoes it, `handover finish` leaves it as it is"
                        }
                        _ => "`handover resume` goes on with it, `handover rollback` undoes it",
                    }));
            }
        }
        return Ok(RunState::new());
    }
    let state = RunState::fold(&journal.entries(run).await?)?;
    let refuse =
        |hint: &str| Err(Error::usage(format!("run {run} is {}", state.phase.word())).hint(hint.to_owned()));
    match (command, &state.phase) {
        (_, Phase::Finished | Phase::RolledBack { to: None }) => refuse("begin anew with `handover run`"),
        (Command::Resume, Phase::Done) => refuse("nothing is left to do; `handover finish` ends it for good"),
        (Command::Resume, Phase::Aborted) => {
            refuse("`handover rollback` undoes it, `handover finish` leaves it as it is")
        }
        (Command::Rollback { .. }, _) if state.finishing => {
            refuse("`handover finish` has begun to drop what a rollback needs: let it go on")
        }
        (Command::Abort, Phase::Done | Phase::Aborted) => {
            refuse("use `handover rollback` or `handover finish`")
        }
        (Command::Finish, Phase::Forward | Phase::Back { .. } | Phase::RolledBack { .. }) => refuse(
            "only a run that is done or aborted can be finished; see `handover resume`, `rollback` and `abort`",
        ),
        _ => Ok(state),
    }
}
