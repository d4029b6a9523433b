//! What can be done with a plan's runs, and the lease that it takes.

use super::command::{Command, Ended, Options};
use super::compare::{Begun, compare};
use super::decide::{Loss, Outline, known_step, losses, plan_fits, rollback_fits};
use super::decided::{fallen, outage};
use super::heartbeat::{self, beat};
use super::recorder::Recorder;
use super::runner::Runner;
use super::status::{LeaseLook, LeaseStatus};
use super::{absent, advice, foretell};
use crate::error::{Class, Error, Result};
use crate::event::{Emitter, Event, Level, RunId};
use crate::journal::{Held, Journal, Phase, RunState, this_process};
use crate::plan::Plan;
use crate::postgres::clock::Moment;
use crate::postgres::install::{assert_no_strangers, assert_one_name};
use crate::postgres::ours::OURS;
use crate::postgres::{Databases, Lease, Worker, ours};
use crate::value::Secret;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A run and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Outcome {
    /// The run.
    pub run: RunId,
    /// How it ended.
    pub ended: Ended,
    /// What rolling it back would lose now.
    pub rollback_loses: Vec<Loss>,
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
    ours::choose(&plan.schema)?;
    let databases = Databases::new(plan.targets()?);
    let control = plan.control.address()?;
    let outline: Vec<Outline> = plan.steps.iter().map(Outline::from).collect();
    let known = admit(plan, &outline, &command, &options, &databases, control.clone(), &emitter).await?;
    if command == Command::Run {
        refuse_other_names(plan, &databases).await?;
    }
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
        let state = begin(&journal, run, plan, &outline, &command, &databases, &emitter).await?;
        let absent = match known {
            Some(absent) => absent,
            None => {
                foretell::export_fits(plan, &outline, &state, run, &command)?;
                absent::find(plan, &outline, &state, &command, &databases).await
            }
        };
        let recorder = Recorder::new(journal.clone(), run, lease.clone(), emitter.clone(), state);
        let scribe = tokio::spawn(recorder.clone().write_notes());
        let (failed, failures) = mpsc::unbounded_channel();
        let mut runner = Runner {
            run,
            plan,
            outline: outline.clone(),
            databases: databases.under(lease.clone()),
            recorder,
            emitter,
            options,
            stop,
            abort,
            absent,
            overtaken: None,
            failed,
            failures,
        };
        let result = runner.attached(command).await;
        runner.recorder.standing.end_all().await;
        scribe.abort();
        runner.recorder.flush_notes().await;
        let rollback_loses = runner.recorder.with(|state| losses(&outline, state, None));
        match result {
            Ok(ended) => Ok(Outcome { run, ended, rollback_loses }),
            Err(error) => {
                let error = honest(error, &rollback_loses);
                // An invariant that does not hold may be that very refusal: then only its own words are true.
                let known = error.class() != Class::Invariant;
                let outage = runner.recorder.with(|state| outage(plan, state)).filter(|_| known);
                Err(match (outage, error.next_step()) {
                    (Some(outage), Some(next)) if next.starts_with("only forward is safe") => {
                        let next = format!("{outage}; {next}");
                        error.with_next(next)
                    }
                    (Some(outage), next) => {
                        let next = next.unwrap_or("`handover resume` goes on");
                        let next = format!("{outage}; only forward is safe: {next}");
                        error.with_next(next)
                    }
                    (None, _) => error,
                })
            }
        }
    }
    .await;

    done.cancel();
    let silence = heart.await.ok().flatten();
    // One that is lost is not ours to give back; if this fails it runs out by itself.
    if lease.assert_held().is_ok() {
        let _ = journal.release(&plan.name, lease.token()).await;
    }
    // A lease that ran out because the journal was silent is a lost journal: that is what can be mended.
    match (result, silence) {
        (Err(error), Some(journal)) if error.class() == Class::LeaseLost => Err(journal),
        (result, _) => result,
    }
}

/// An error that halted a run: what it says to do next knows how far the run has come.
fn honest(error: Error, losses: &[Loss]) -> Error {
    if losses.is_empty() {
        return error;
    }
    match error.next_step() {
        Some(next) => {
            let next = advice::honest(next, losses);
            error.with_next(next)
        }
        // The general advice for these would offer a rollback.
        None if matches!(error.class(), Class::Data | Class::Invariant) => error.with_next(format!(
            "mend it, then `handover resume`; rolling back now is not free: {}",
            advice::all(losses)
        )),
        None => error,
    }
}

/// Refuses what cannot be done before the lease is asked for and before anything is made or written: a command that
/// is refused leaves no trace. What is decided here is decided again under the lease. Returns the databases that a
/// rollback does without ([`absent`]), where it was asked.
async fn admit(
    plan: &Plan,
    outline: &[Outline],
    command: &Command,
    options: &Options,
    databases: &Databases,
    control: Secret,
    emitter: &Emitter,
) -> Result<Option<BTreeSet<String>>> {
    if let Command::Rollback { to: Some(to), .. } = command {
        known_step(outline.iter().map(|o| &o.id), to)?;
    }
    let newest = async {
        let Some(journal) = Journal::look(control, Duration::from_secs(5)).await? else { return Ok(None) };
        let newest = journal.runs(Some(&plan.name)).await?.into_iter().next();
        Ok::<_, Error>(newest.map(|row| (journal, row.run)))
    };
    let Some((journal, run)) = newest.await? else {
        return if *command == Command::Run {
            known_by(plan, &databases.without_readers(), &BTreeSet::new()).await.map(|()| None)
        } else {
            Err(never_run(plan))
        };
    };
    // While somebody acts, where the run stands is theirs to say: the lease is refused, or waited for.
    if LeaseLook::new(journal.lease(&plan.name).await?).status == LeaseStatus::Held {
        return Ok(None);
    }
    let state = begin(&journal, run, plan, outline, command, databases, emitter).await?;
    let databases = databases.without_readers();
    if *command == Command::Abort {
        return Ok(None);
    }
    foretell::export_fits(plan, outline, &state, run, command)?;
    let absent = absent::find(plan, outline, &state, command, &databases).await;
    if let Some(begun) = Begun::of(&state) {
        compare(plan, &databases, Some(&begun), options.accept_changes, &absent).await?;
        plan_fits(outline, &state)?;
    }
    known_by(plan, &databases, &absent).await?;
    Ok(Some(absent))
}

/// No database of the plan has a schema of our name that is somebody else's.
async fn known_by(plan: &Plan, databases: &Databases, absent: &BTreeSet<String>) -> Result<()> {
    for name in plan.databases.keys().filter(|name| !absent.contains(*name)) {
        assert_no_strangers(&mut databases.read_only(name).await?, &Worker::Own).await?;
    }
    Ok(())
}

/// Before the journal is made, which may lie in one of the plan's databases. One that cannot be reached is told of later.
async fn refuse_other_names(plan: &Plan, databases: &Databases) -> Result<()> {
    for name in plan.databases.keys() {
        if let Ok(mut session) = databases.read_only(name).await {
            assert_one_name(&mut session).await?;
        }
    }
    Ok(())
}

fn never_run(plan: &Plan) -> Error {
    Error::usage(format!("plan `{}` was never run from this control database (in schema {OURS})", plan.name))
        .hint(format!(
            "check `control:` and `schema:` in the plan, or begin with `handover run {}`",
            plan.file.display()
        ))
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
        (_, None) => return Err(never_run(plan)),
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

/// Folds the run's journal and refuses a command that does not fit where it stands.
async fn begin(
    journal: &Journal,
    run: RunId,
    plan: &Plan,
    outline: &[Outline],
    command: &Command,
    databases: &Databases,
    emitter: &Emitter,
) -> Result<RunState> {
    let (called, file) = (plan.called(), plan.file.display().to_string());
    let way_back = |state: &RunState| advice::way_back(&called, "it", &losses(outline, state, None));
    if *command == Command::Run {
        if let Some(last) = journal.runs(Some(&plan.name)).await?.first() {
            let state = RunState::fold(&journal.entries(last.run).await?)?;
            if state.seq > 0 && !state.phase.is_over() {
                let way_back = way_back(&state);
                return Err(Error::usage(format!("run {} of this plan is {}", last.run, state.phase.word()))
                    .hint(match state.phase {
                        Phase::Done => format!("{way_back}; `handover finish {called}` ends it for good"),
                        Phase::Aborted => {
                            format!("{way_back}; `handover finish {called}` leaves it as it is")
                        }
                        _ => format!("`handover resume {called}` goes on with it; {way_back}"),
                    }));
            }
        }
        return Ok(RunState::new());
    }
    let state = RunState::fold(&journal.entries(run).await?)?;
    let refuse = |hint: String| Err(Error::usage(format!("run {run} is {}", state.phase.word())).hint(hint));
    match (command, &state.phase) {
        (_, Phase::Finished | Phase::RolledBack { to: None }) => {
            refuse(format!("begin anew with `handover run {file}`"))
        }
        (Command::Resume, Phase::Done) => {
            refuse(format!("nothing is left to do; `handover finish {called}` ends it for good"))
        }
        (Command::Resume, Phase::Aborted) => {
            refuse(format!("{}; `handover finish {called}` leaves it as it is", way_back(&state)))
        }
        (Command::Rollback { .. }, _) if state.finishing => {
            refuse("`handover finish` has begun to drop what a rollback needs: let it go on".into())
        }
        (Command::Abort, Phase::Forward) if let Some(step) = fallen(plan, &state) => {
            Err(advice::overtaken(step).with_class(Class::Usage))
        }
        (Command::Abort, Phase::Done | Phase::Aborted) => {
            refuse(format!("{}; `handover finish {called}` leaves it as it is", way_back(&state)))
        }
        (Command::Finish, Phase::Forward | Phase::Back { .. } | Phase::RolledBack { .. }) => refuse(
            "only a run that is done or aborted can be finished; see `handover resume`, `rollback` and `abort`"
                .into(),
        ),
        (Command::Rollback { to, accept_loss, .. }, _) => {
            rollback_fits(outline, &state, to.as_ref())?;
            match losses(outline, &state, to.as_ref()) {
                lost if lost.is_empty() || *accept_loss => Ok(state),
                lost => Err(foretell::refused(plan, &lost, (run, state), to.as_ref(), databases, emitter).await),
            }
        }
        _ => Ok(state),
    }
}
