//! The port itself.

use crate::Memory;
use handover_core::event::{Emitter, Event, Level, Measure, RunId, StepId};
use handover_core::value::EnvString;
use handover_core::{Error, Result};
use handover_postgres::{Databases, Session};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Who I am, may I go on, sessions, what I kept, and somebody to tell. Cheap to clone.
#[derive(Clone)]
pub struct Port {
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
    /// Where progress goes.
    pub emitter: Emitter,
    /// Fires when the step should stop at the next safe place: Ctrl-C, a timeout, a lost lease.
    pub stop: CancellationToken,
    /// Who keeps facts.
    pub memory: Arc<dyn Memory>,
}

impl Port {
    /// Names this step of this run, e.g. to mark what it started.
    #[must_use]
    pub fn mark(&self) -> String {
        format!("{}/{}", self.run, self.step)
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

    /// As [`Port::writer`], for SQL that stands in the plan: see [`handover_postgres::profile`].
    ///
    /// # Errors
    /// Lease lost, or no connection.
    pub async fn operator_writer(&self, database: &str) -> Result<Session> {
        self.own_databases().for_operator().writer(database).await
    }

    /// The databases, labelled with this step, which warns of what they tell.
    #[must_use]
    pub fn own_databases(&self) -> Databases {
        let port = self.clone();
        self.databases.labelled(self.step.as_str()).telling(Arc::new(move |text| port.warn(text)))
    }

    /// As [`Port::reader`], for SQL that stands in the plan.
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
    /// [`handover_core::Class::Cancelled`] or [`handover_core::Class::LeaseLost`].
    pub fn proceed(&self) -> Result<()> {
        self.databases.lease()?.assert_held()?;
        if self.stop.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
    }

    /// Sleeps, unless the run is asked to stop.
    ///
    /// # Errors
    /// [`handover_core::Class::Cancelled`].
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
        if self.memory.keep_note(Some(&self.step), Level::Warning, &text) {
            self.emitter.emit(Event::Note { step: Some(self.step.clone()), level: Level::Warning, text });
        }
    }

    /// Tells how a standing task stands.
    pub fn standing(&self, text: impl Into<String>, backlog: Option<u64>) {
        self.emitter.emit(Event::Standing { step: self.step.clone(), text: text.into(), backlog });
    }

    /// Keeps a fact of this step durably; see [`Memory::remember`].
    ///
    /// # Errors
    /// The journal failing, which stops the run.
    pub async fn remember<T: Serialize>(&self, key: &str, value: &T) -> Result<()> {
        let value = serde_json::to_value(value).map_err(|e| Error::internal(e.to_string()))?;
        self.memory.remember(&self.step, key, value).await
    }

    /// A fact of this step, if it was kept.
    ///
    /// # Errors
    /// A fact of another shape, kept by another version.
    pub fn recall<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        self.memory
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
        self.memory.remember(&self.step, key, Value::Null).await
    }
}
