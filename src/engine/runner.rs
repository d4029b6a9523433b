//! The loop: fence the databases, then do what `decide` says until there is nothing left.

use super::advice;
use super::command::{Command, Ended, Options};
use super::compare::{Begun, Compared, compare};
use super::decide::{Next, Outline, decide, plan_fits, rollback_is_accepted};
use super::decided::fallen;
use super::recorder::Recorder;
use crate::error::{Class, Error, Result};
use crate::event::{Emitter, Event, Failure, Level, Record, RunId, StepId};
use crate::failpoint;
use crate::journal::{Phase, Status, this_process};
use crate::plan::Plan;
use crate::postgres::install::{Part, assert_no_strangers, install};
use crate::postgres::{Databases, Lease, Worker, creators, fence};
use crate::steps::{Access, Context, Critical, Port, Step};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How long a step that was asked to stop may take to reach a safe place before its connections are ended.
const GRACE: Duration = Duration::from_secs(10);

/// What acts on one run.
pub(super) struct Runner<'a> {
    pub(super) run: RunId,
    pub(super) plan: &'a Plan,
    pub(super) outline: Vec<Outline>,
    pub(super) databases: Databases,
    pub(super) recorder: Arc<Recorder>,
    pub(super) emitter: Emitter,
    pub(super) options: Options,
    pub(super) stop: CancellationToken,
    pub(super) abort: CancellationToken,
    /// Databases that are done without, and not fenced: see [`super::absent`].
    pub(super) absent: BTreeSet<String>,
    /// The step whose decision had fallen when a request to abort was heard.
    pub(super) overtaken: Option<StepId>,
    pub(super) failed: mpsc::UnboundedSender<(StepId, Error)>,
    pub(super) failures: mpsc::UnboundedReceiver<(StepId, Error)>,
}

/// Which way a step is taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Forward,
    Back,
}

impl Runner<'_> {
    /// Attaches to the run and does what the command says.
    pub(super) async fn attached(&mut self, command: Command) -> Result<Ended> {
        self.attach(&command).await?;
        match command {
            Command::Run | Command::Resume => {}
            Command::Rollback { to, accept_loss, export } => {
                self.start_rollback(to, accept_loss, export).await?;
            }
            Command::Finish => return self.finish().await,
            Command::Abort => {
                let by = this_process().to_string();
                self.recorder.append(Record::RunAborted { reason: format!("aborted by {by}") }).await?;
                return Ok(Ended::Aborted);
            }
        }
        if self.recorder.with(|state| state.phase == Phase::Forward) {
            for step in self.plan.steps.iter() {
                if self.recorder.with(|state| *state.status(&step.id) == Status::Done) {
                    self.stand(step);
                }
            }
        }
        self.drive().await
    }

    /// Becomes the one who acts: fences every database that the plan writes to, and compares what was reviewed.
    async fn attach(&self, command: &Command) -> Result<()> {
        let lease = self.databases.lease()?.clone();
        let begun = self.recorder.with(|state| Begun::of(state));
        if *command == Command::Abort && begun.is_some() {
            return self.attach_to_abort(&lease).await;
        }
        // Before the first write: two names for one database, or a wrong database, must not be touched. And what is
        // not what was reviewed is left alone: no schema is made, no connection ended, no fence moved. It was compared
        // before the lease was asked for; what changed since is found here.
        let Compared { digest, reviewed, accepts } =
            compare(self.plan, &self.databases, begun.as_ref(), self.options.accept_changes, &self.absent)
                .await?;
        self.recorder.with(|state| plan_fits(&self.outline, state))?;
        let mut warnings = Vec::new();
        for name in self.plan.databases.keys().filter(|name| !self.absent.contains(*name)) {
            let mut session = self.databases.read_only(name).await?;
            assert_no_strangers(&mut session, &Worker::Own).await?;
            if matches!(command, Command::Run | Command::Resume) {
                for found in creators::look(&session, self.databases.search_path(name)?, &Worker::Own).await?
                {
                    warnings.push(format!("{name}: {} ({})", found.text(), found.cure()));
                }
            }
        }
        for name in self.written().into_iter().filter(|name| !self.absent.contains(*name)) {
            self.fence(name, &lease).await?;
        }
        for name in &self.absent {
            warnings.push(format!(
                "{name} cannot be reached: the way back does without it, and nobody can say how much is lost there"
            ));
        }
        let (accepted_digest, accepted) = if begun.is_none() {
            // Not before: a run that could not even reach its databases leaves nothing behind.
            self.recorder.create_run().await?;
            self.recorder
                .append(Record::RunStarted {
                    plan: self.plan.name.clone(),
                    digest,
                    version: env!("CARGO_PKG_VERSION").into(),
                    reviewed: Some(reviewed),
                })
                .await?;
            (None, None)
        } else if accepts {
            (Some(digest), Some(reviewed))
        } else {
            (None, None)
        };
        let attached =
            Record::Attached { token: lease.token(), holder: this_process(), accepted_digest, accepted };
        self.recorder.append(attached).await?;
        for text in warnings {
            self.note(Level::Warning, text);
        }
        Ok(())
    }

    /// Giving up must be possible when a database is gone, or the plan is not what it was. Nothing is done to
    /// any database but to keep an earlier runner out of those that can be reached.
    async fn attach_to_abort(&self, lease: &Lease) -> Result<()> {
        for name in self.written() {
            if let Err(error) = self.fence(name, lease).await {
                if error.class() == Class::LeaseLost {
                    return Err(error);
                }
                self.note(
                    Level::Warning,
                    format!("cannot see whether an earlier runner left something: {error}"),
                );
            }
        }
        let holder = this_process();
        self.recorder
            .append(Record::Attached { token: lease.token(), holder, accepted_digest: None, accepted: None })
            .await
    }

    /// The databases that some step writes to.
    fn written(&self) -> BTreeSet<&str> {
        self.plan.steps.iter().flat_map(|step| step.kind.written()).collect()
    }

    /// Makes this runner the only one that can write to a database.
    pub(super) async fn fence(&self, name: &str, lease: &Lease) -> Result<()> {
        let mut session = self.databases.writer(name).await?;
        install(&mut session, Part::Database).await?;
        let ended = fence::take_over(&mut session, lease).await?;
        if ended > 0 {
            self.note(
                Level::Warning,
                format!("ended {ended} connection(s) that an earlier runner left on {name}"),
            );
        }
        Ok(())
    }

    async fn start_rollback(
        &self,
        to: Option<StepId>,
        accept_loss: bool,
        export: Option<PathBuf>,
    ) -> Result<()> {
        self.recorder.with(|state| rollback_is_accepted(&self.outline, state, to.as_ref(), accept_loss))?;
        let reason = format!("asked for by {}", this_process());
        self.recorder.append(Record::RollbackStarted { to, reason, accept_loss, export }).await
    }

    async fn drive(&mut self) -> Result<Ended> {
        let mut because = None;
        loop {
            if self.stop.is_cancelled() || self.abort.is_cancelled() {
                return self.stopped().await;
            }
            // Going forward without one would lose what it was there to carry; `resume` starts it again.
            if let Ok((id, error)) = self.failures.try_recv()
                && self.recorder.with(|state| state.phase == Phase::Forward)
            {
                let error = error.context(format!("the standing task of step `{id}` failed"));
                return Err(self.halt(Failure::from(&error)).await);
            }
            let next = self.recorder.with(|state| decide(&self.outline, state));
            match next {
                Next::Run { step, attempt, after } => self.step(&step, attempt, after, Way::Forward).await?,
                Next::Undo { step, attempt, after } => self.step(&step, attempt, after, Way::Back).await?,
                Next::StartRollback { step, failure } => {
                    self.recorder.standing.end_all().await;
                    let reason = format!("step `{step}` failed: {}", failure.message);
                    because = Some(failure);
                    self.recorder
                        .append(Record::RollbackStarted {
                            to: None,
                            reason,
                            accept_loss: false,
                            export: None,
                        })
                        .await?;
                }
                Next::Complete => {
                    self.recorder.append(Record::RunDone).await?;
                    return Ok(Ended::Done);
                }
                Next::RolledBack { to } => {
                    self.recorder.append(Record::RunRolledBack { to }).await?;
                    // As the plan said, but not what was asked for.
                    return because.map_or(Ok(Ended::RolledBack), |failure| {
                        Err(Error::new(
                            failure.class,
                            format!("{}; everything was rolled back", failure.message),
                        )
                        .hint("mend the cause, then begin anew with `handover run`"))
                    });
                }
                Next::Halt(failure) => return Err(self.halt(failure).await),
                Next::Over => return Err(Error::internal("the run has ended already")),
            }
        }
    }

    /// Runs or undoes one step and records how it went. An error here ends the loop; a step's own failure is
    /// recorded, and `decide` sees it.
    async fn step(&mut self, id: &StepId, attempt: u32, after: Duration, way: Way) -> Result<()> {
        let step = self.plan.steps.iter().find(|s| s.id == *id).cloned();
        let step = step.ok_or_else(|| Error::internal(format!("step `{id}` is not in the plan")))?;
        tokio::select! {
            () = tokio::time::sleep(after) => {}
            // The loop's next turn sees it.
            () = self.stop.cancelled() => return Ok(()),
            () = self.abort.cancelled() => return Ok(()),
        }
        if way == Way::Back {
            self.recorder.standing.end(id).await;
        }
        let begun = self
            .recorder
            .with(|state| !matches!(state.status(id), Status::Pending | Status::Undone | Status::Done));
        self.recorder
            .append(match way {
                Way::Forward => Record::StepStarted { step: id.clone(), attempt },
                Way::Back => Record::UndoStarted { step: id.clone(), attempt },
            })
            .await?;
        failpoint::begin(id.as_str());
        let result = self.tried(&step, begun, way).await.map_err(|e| e.at_step(id));
        let record = match (result, way) {
            (Ok(summary), Way::Forward) => Record::StepDone { step: id.clone(), summary },
            (Ok(summary), Way::Back) => Record::UndoDone { step: id.clone(), summary },
            (Err(error), _) => match error.class() {
                // Interrupted: the loop's next turn says why and stops.
                Class::Cancelled if self.interrupted() => return Ok(()),
                Class::LeaseLost | Class::Journal => return Err(error),
                _ if way == Way::Forward => {
                    Record::StepFailed { step: id.clone(), failure: Failure::from(&error) }
                }
                _ => Record::UndoFailed { step: id.clone(), failure: Failure::from(&error) },
            },
        };
        let complete = matches!(record, Record::StepDone { .. });
        self.recorder.append(record).await?;
        if complete {
            self.stand(&step);
        }
        Ok(())
    }

    /// An attempt, after what an earlier one, of either way, may have left is ended.
    async fn tried(&mut self, step: &Step, begun: bool, way: Way) -> Result<Value> {
        let (started, unrecorded) = match way {
            Way::Forward => (failpoint::STEP_STARTED, failpoint::STEP_UNRECORDED),
            Way::Back => (failpoint::UNDO_STARTED, failpoint::UNDO_UNRECORDED),
        };
        failpoint::at(started)?;
        if let Some(words) = self.left_alone(step, way == Way::Back).await? {
            self.note(Level::Warning, format!("step `{}`: {words}", step.id));
            return Ok(json!({ "left_alone": words }));
        }
        if begun {
            self.end_leftovers(step).await?;
        }
        let summary = self.attempt(step, way).await?;
        failpoint::at(unrecorded)?;
        Ok(summary)
    }

    /// One attempt, ended by its own result, the operator, a timeout, a lost lease or a failed standing task.
    async fn attempt(&mut self, step: &Step, way: Way) -> Result<Value> {
        let cx = self.context(step);
        let work = async {
            match way {
                Way::Forward => {
                    let summary = step.kind.run(&cx).await?;
                    step.kind.verify(&cx).await?;
                    Ok(summary)
                }
                Way::Back => step.kind.undo(&cx).await,
            }
        };
        tokio::pin!(work);
        let limit = step.timeout.map_or(Duration::MAX, |t| t.0);
        let lease = self.databases.lease()?.clone();
        let interruption = tokio::select! {
            result = &mut work => return result,
            () = self.stop.cancelled() => Error::cancelled(),
            () = self.abort.cancelled() => Error::cancelled(),
            // Nothing more may be begun, not even in good order; what must not be cut short ends by itself.
            () = lease.lost().cancelled() => {
                let _ = self.ended(&mut work, &cx.critical, Duration::ZERO).await;
                return Err(crate::postgres::lease::lost());
            }
            () = tokio::time::sleep(limit.min(Duration::from_secs(u64::from(u32::MAX)))) => {
                Error::new(Class::Timeout, format!("not done within its timeout of {}", step.timeout.unwrap_or(crate::value::Duration::secs(0))))
                    .hint("raise the step's `timeout:`, or find what slowed it, then `handover resume`")
            }
            Some(failure) = self.failures.recv(), if way == Way::Forward => {
                // Back to the queue, where the loop finds it: whether this step ends well or not, the run halts.
                let _ = self.failed.send(failure);
                Error::cancelled()
            }
        };
        cx.stop.cancel();
        let whole = cx.critical.is_active();
        let ended = self.ended(&mut work, &cx.critical, GRACE).await;
        if self.abort.is_cancelled() && way == Way::Forward {
            self.overtaken = self.recorder.with(|state| fallen(self.plan, state).cloned());
        }
        match ended {
            // It was quicker than the interruption.
            Some(Ok(summary)) => return Ok(summary),
            Some(Err(error)) if error.class() == Class::LeaseLost => return Err(error),
            // What was not cut short has failed by itself, and says why.
            Some(Err(error)) if whole && error.class() != Class::Cancelled => return Err(error),
            Some(Err(_)) | None => {}
        }
        if lease.assert_held().is_ok()
            && let Err(error) = self.end_leftovers(step).await
        {
            self.note(Level::Warning, format!("step `{}` was interrupted, but {error}", step.id));
        }
        Err(interruption)
    }

    /// Waits for a step that was asked to stop: as long as something goes on that must not be cut short, and `grace`
    /// longer. None when it has to be dropped.
    async fn ended(
        &self,
        work: &mut (impl Future<Output = Result<Value>> + Unpin),
        critical: &Critical,
        grace: Duration,
    ) -> Option<Result<Value>> {
        let mut last = Instant::now();
        if let Some(words) = critical.words() {
            self.note(Level::Info, format!("asked to stop; first this is gone through with: {words}"));
        }
        loop {
            if critical.is_active() {
                last = Instant::now();
            } else if last.elapsed() >= grace {
                return None;
            }
            // Nobody but us drives the work: between this look and the return nothing can begin.
            let tick = Duration::from_millis(100);
            if let Ok(result) = tokio::time::timeout(tick, &mut *work).await {
                return Some(result);
            }
        }
    }

    /// Ends statements that an earlier attempt of this process left running in the servers. Where the step
    /// writes, it must not begin again before that is certain.
    async fn end_leftovers(&self, step: &Step) -> Result<()> {
        let lease = self.databases.lease()?;
        // One that is both read and written counts as written.
        let databases: BTreeMap<&str, Access> =
            step.kind.databases().into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        for (name, access) in databases {
            match self.databases.writer(name).await {
                Ok(session) => drop(fence::end_step(&session, lease, step.id.as_str()).await?),
                Err(error) if error.class() == Class::LeaseLost => return Err(error),
                Err(error) if access == Access::Write && !self.absent.contains(name) => return Err(error),
                // What only reads, and cannot be reached, harms nobody.
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Whether the loop has a reason to stop that a step was told of.
    fn interrupted(&self) -> bool {
        self.stop.is_cancelled() || self.abort.is_cancelled() || !self.failures.is_empty()
    }

    fn stand(&self, step: &Step) {
        if step.kind.stands() && !self.recorder.with(|state| state.standing_ended.contains_key(&step.id)) {
            self.recorder.standing.start(step, self.context(step), self.failed.clone());
        }
    }

    fn context(&self, step: &Step) -> Context {
        let accept_loss =
            self.recorder.with(|state| matches!(state.phase, Phase::Back { accept_loss: true, .. }));
        Context {
            port: Port {
                run: self.run,
                step: step.id.clone(),
                plan: self.plan.name.as_str().into(),
                base: Arc::new(self.plan.base.clone()),
                databases: self.databases.labelled(step.id.as_str()),
                queue: self.plan.queue.clone(),
                emitter: self.emitter.clone(),
                stop: CancellationToken::new(),
                memory: self.recorder.clone(),
            },
            links: self.plan.links.clone(),
            critical: self.options.critical.clone(),
            ledger: self.recorder.clone(),
            accept_loss,
            export: self.recorder.with(|state| state.export.clone()),
            may_wait: self.options.may_wait,
        }
    }

    async fn stopped(&self) -> Result<Ended> {
        if let Some(step) = &self.overtaken {
            // Giving up would leave it to nobody to tell the participants, or to go back.
            return Err(self.halt(Failure::from(&advice::overtaken(step))).await);
        }
        if self.abort.is_cancelled() {
            self.recorder.append(Record::RunAborted { reason: "aborted on request".into() }).await?;
            return Ok(Ended::Aborted);
        }
        Err(self.halt(Failure::from(&Error::cancelled())).await)
    }

    async fn halt(&self, failure: Failure) -> Error {
        let mut error = Error::new(failure.class, failure.message.clone());
        if let Some(hint) = failure.hint {
            error = error.hint(hint);
        }
        match self.recorder.append(Record::Halted { reason: failure.message, class: failure.class }).await {
            Ok(()) => error,
            Err(journal) => journal,
        }
    }

    async fn finish(&self) -> Result<Ended> {
        if !self.recorder.with(|state| state.finishing) {
            self.recorder.append(Record::FinishStarted).await?;
            failpoint::at(failpoint::FINISH_STARTED)?;
        }
        // From the last to the first, as undo goes: what was built on others goes before them.
        for step in self.plan.steps.iter().rev() {
            if !matches!(self.recorder.with(|s| s.status(&step.id).clone()), Status::Pending | Status::Undone)
            {
                step.kind.finish(&self.context(step)).await.map_err(|e| e.at_step(&step.id))?;
            }
        }
        self.recorder.append(Record::Finished).await?;
        Ok(Ended::Finished)
    }

    fn note(&self, level: Level, text: String) {
        if level == Level::Warning && !self.recorder.note(None, level, &text) {
            return;
        }
        self.emitter.emit(Event::Note { step: None, level, text });
    }
}
