//! What a step is given to work with.

use super::{Critical, Step};
use crate::error::{Error, Result};
use crate::event::{Emitter, Event, Level, Measure, RunId, StepId};
use crate::outside::Site;
use crate::postgres::{Databases, Session};
use crate::value::EnvString;
use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A human's word on a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Request {
    /// Who asked.
    pub by: String,
    /// In their words.
    pub note: Option<String>,
    /// When, by the control database's clock.
    pub at: jiff::Timestamp,
}

/// An earlier run of the same plan, as far as it got through a step in one go.
#[derive(Debug, Clone, PartialEq)]
pub struct Precedent {
    /// When the step was done.
    pub at: jiff::Timestamp,
    /// How long it took.
    pub took: Duration,
    /// What it said of itself.
    pub summary: Value,
}

/// The journal, as far as a step may use it. Implemented by the engine.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Keeps a fact of a step durably before returning; `Null` forgets it. For what no database of the plan
    /// can keep in the transaction of its effect: previous settings, decisions outside Postgres.
    async fn remember(&self, step: &StepId, key: &str, value: Value) -> Result<()>;

    /// A fact of a step, its own or another's.
    fn recall(&self, step: &StepId, key: &str) -> Option<Value>;

    /// How this step went in an earlier run. Only a dry run knows.
    fn precedent(&self, _step: &StepId) -> Option<Precedent> {
        None
    }

    /// The approval of a step, if somebody gave it.
    async fn approval(&self, step: &StepId) -> Result<Option<Request>>;

    /// Ends the standing task that an earlier step left, and waits until it has stopped. Should the step `by`
    /// which it is ended be undone, the task stands again when the run goes forward.
    async fn end_standing(&self, step: &StepId, by: &StepId) -> Result<()>;

    /// Keeps what the operator is told, soon and in its place among the records. False when the same was kept
    /// already: then it need not be told again.
    fn keep_note(&self, _step: Option<&StepId>, _level: Level, _text: &str) -> bool {
        true
    }

    /// Records that what follows cannot be undone without loss.
    async fn point_of_no_return(&self, step: &StepId) -> Result<()>;
}

/// Everything a step may use. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// The run.
    pub run: RunId,
    /// The step.
    pub step: StepId,
    /// The plan's name.
    pub plan: Arc<str>,
    /// The plan's folder; relative paths start there.
    pub base: Arc<PathBuf>,
    /// The plan's databases.
    pub databases: Databases,
    /// Where the queue is, when the plan has one.
    pub queue: Option<EnvString>,
    /// All steps of the plan, in order.
    pub steps: Arc<[Step]>,
    /// Where progress goes.
    pub emitter: Emitter,
    /// Fires when the step should stop at the next safe place: Ctrl-C, a timeout, a lost lease.
    pub stop: CancellationToken,
    /// What must not be cut short.
    pub critical: Critical,
    /// The journal.
    pub ledger: Arc<dyn Ledger>,
    /// Whether the operator accepted that this undo loses what `reversibility` says it loses.
    pub accept_loss: bool,
    /// Whether somebody is there to wait for: false lets `approve` halt the run instead of waiting.
    pub may_wait: bool,
}

impl Context {
    /// The steps before another in the plan; none when it is not there.
    #[must_use]
    pub fn before(&self, step: &StepId) -> &[Step] {
        self.steps.iter().position(|s| s.id == *step).map_or(&[], |at| &self.steps[..at])
    }

    /// A session that may write, labelled with this step.
    ///
    /// # Errors
    /// Lease lost, or no connection.
    pub async fn writer(&self, database: &str) -> Result<Session> {
        self.own_databases().writer(database).await
    }

    /// A read-only session.
    ///
    /// # Errors
    /// No connection.
    pub async fn reader(&self, database: &str) -> Result<Session> {
        self.databases.labelled(self.step.as_str()).reader(database).await
    }

    /// As [`Context::writer`], for SQL that stands in the plan: see [`crate::postgres::profile`].
    ///
    /// # Errors
    /// Lease lost, or no connection.
    pub async fn operator_writer(&self, database: &str) -> Result<Session> {
        self.own_databases().for_operator().writer(database).await
    }

    /// The databases, labelled with this step, which warns of what they tell.
    fn own_databases(&self) -> Databases {
        let cx = self.clone();
        self.databases.labelled(self.step.as_str()).telling(Arc::new(move |text| cx.warn(text)))
    }

    /// As [`Context::reader`], for SQL that stands in the plan.
    ///
    /// # Errors
    /// No connection.
    pub async fn operator_reader(&self, database: &str) -> Result<Session> {
        self.databases.labelled(self.step.as_str()).for_operator().reader(database).await
    }

    /// Refuses when the run is asked to stop or the lease is gone. Call it between units of work, and before
    /// every act outside the databases.
    ///
    /// # Errors
    /// [`crate::Class::Cancelled`] or [`crate::Class::LeaseLost`].
    pub fn proceed(&self) -> Result<()> {
        self.databases.lease()?.assert_held()?;
        if self.stop.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
    }

    /// Sleeps, unless the run is asked to stop.
    ///
    /// # Errors
    /// [`crate::Class::Cancelled`].
    pub async fn sleep(&self, time: Duration) -> Result<()> {
        tokio::select! {
            () = self.stop.cancelled() => Err(Error::cancelled()),
            () = tokio::time::sleep(time) => Ok(()),
        }
    }

    /// Moves a unit's bar.
    pub fn progress(&self, unit: &str, done: u64, total: Option<u64>, measure: Measure) {
        self.emitter.emit(Event::Progress {
            step: self.step.clone(),
            unit: unit.to_owned(),
            done,
            total,
            measure,
        });
    }

    /// Ends a unit's bar.
    pub fn unit_done(&self, unit: &str) {
        self.emitter.emit(Event::UnitDone { step: self.step.clone(), unit: unit.to_owned() });
    }

    /// Tells the operator something.
    pub fn note(&self, text: impl Into<String>) {
        self.emitter.emit(Event::Note {
            step: Some(self.step.clone()),
            level: Level::Info,
            text: text.into(),
        });
    }

    /// Tells the operator something worth a second look.
    /// It goes into the journal too; the same words of one step are told once.
    pub fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        if self.ledger.keep_note(Some(&self.step), Level::Warning, &text) {
            self.emitter.emit(Event::Note { step: Some(self.step.clone()), level: Level::Warning, text });
        }
    }

    /// Tells how a standing task stands.
    pub fn standing(&self, text: impl Into<String>, backlog: Option<u64>) {
        self.emitter.emit(Event::Standing { step: self.step.clone(), text: text.into(), backlog });
    }

    /// Keeps a fact of this step durably; see [`Ledger::remember`].
    ///
    /// # Errors
    /// The journal failing, which stops the run.
    pub async fn remember<T: Serialize>(&self, key: &str, value: &T) -> Result<()> {
        let value = serde_json::to_value(value).map_err(|e| Error::internal(e.to_string()))?;
        self.ledger.remember(&self.step, key, value).await
    }

    /// A fact of this step, if it was kept.
    ///
    /// # Errors
    /// A fact of another shape, kept by another version.
    pub fn recall<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        self.ledger
            .recall(&self.step, key)
            .map(|value| {
                serde_json::from_value(value)
                    .map_err(|e| Error::internal(format!("the journal's fact `{key}` cannot be read ({e})")))
            })
            .transpose()
    }

    /// Forgets a fact of this step.
    ///
    /// # Errors
    /// The journal failing.
    pub async fn forget(&self, key: &str) -> Result<()> {
        self.ledger.remember(&self.step, key, Value::Null).await
    }
}

#[async_trait]
impl Site for Context {
    fn base(&self) -> &Path {
        &self.base
    }
    fn mark(&self) -> String {
        format!("{}/{}", self.run, self.step)
    }
    fn databases(&self) -> Databases {
        self.own_databases()
    }
    fn stop(&self) -> &CancellationToken {
        &self.stop
    }
    fn proceed(&self) -> Result<()> {
        Context::proceed(self)
    }
    async fn keep(&self, key: &str, value: Value) -> Result<()> {
        self.ledger.remember(&self.step, key, value).await
    }
    fn kept(&self, key: &str) -> Option<Value> {
        self.ledger.recall(&self.step, key)
    }
    fn note(&self, text: String) {
        Context::note(self, text);
    }
    fn warn(&self, text: String) {
        Context::warn(self, text);
    }
}
