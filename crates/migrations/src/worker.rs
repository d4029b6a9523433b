//! The session that executes a step's files.

use crate::folder::Migration;
use crate::history;
use crate::locks::Lock;
use crate::options::Migrate;
use crate::place::role_error;
use crate::script::Script;
use crate::tail::Position;
use crate::vendor::Vendors;
use handover_core::Result;
use handover_core::value;
use handover_port::Port;
use handover_postgres::{Session, quote_ident};
use std::collections::VecDeque;

/// One session that executes the step's files.
pub struct Worker<'a> {
    pub port: &'a Port,
    pub step: &'a Migrate,
    /// The history table.
    pub table: String,
    pub session: Session,
    pub pid: i32,
    /// What refinery is about to apply, in its order.
    pub queue: VecDeque<(i64, &'a Migration)>,
    /// What refinery is about to record without applying it, and whether that is the baseline.
    pub recording: Vec<(i64, &'a Migration)>,
    pub baseline: bool,
    /// Whether a file's row has another checksum than the file, as it may.
    pub diverges: bool,
    /// What statements waited for in vain, to be locked at the beginning of the next attempt.
    pub learned: Vec<Lock>,
    /// The vendors' tables, in which what is applied is recorded too.
    pub vendors: Vendors,
}

impl<'a> Worker<'a> {
    /// Connects.
    ///
    /// # Errors
    /// Lease lost, or no connection.
    pub async fn open(port: &'a Port, step: &'a Migrate) -> Result<Self> {
        let session = port.operator_writer(&step.on).await?;
        session.set("search_path", &step.path(port)?.sql()).await?;
        let pid = session.backend_pid().await?;
        let table = history::table_name(&port.plan, port.step.as_str());
        let (queue, recording) = (VecDeque::new(), Vec::new());
        let vendors = Vendors::default();
        Ok(Worker {
            port,
            step,
            table,
            session,
            pid,
            queue,
            recording,
            baseline: false,
            diverges: false,
            learned: Vec::new(),
            vendors,
        })
    }

    /// Gives the next file a session with the plan's settings, whatever the last one set.
    pub async fn prepare(&mut self) -> Result<()> {
        let millis = |d: Option<value::Duration>| d.map_or(0, |d| d.0.as_millis()).to_string();
        self.session.wait_for_locks(self.step.lock_timeout.0).await?;
        self.session.set("statement_timeout", &millis(self.step.statement_timeout)).await?;
        // The files are written for the tool of their vendor, which leaves policies on.
        self.session.set("row_security", "on").await?;
        self.session.set("search_path", &self.step.path(self.port)?.sql()).await?;
        Ok(())
    }

    /// A new session, after a file that changed settings of its own.
    pub async fn renew(&mut self, after: &Script) -> Result<()> {
        if after.changes_session() {
            self.session = self.port.operator_writer(&self.step.on).await?;
            self.pid = self.session.backend_pid().await?;
        }
        Ok(())
    }

    /// Acts as the role that the files run as, until [`Worker::as_ourselves`].
    pub async fn as_role(&mut self) -> Result<()> {
        let Some(role) = &self.step.role else { return Ok(()) };
        let set = self.session.client().batch_execute(&format!("set role {}", quote_ident(role))).await;
        set.map_err(|e| role_error(&self.session.error(&e), role))
    }

    /// Acts as the plan's user again.
    pub async fn as_ourselves(&mut self) -> Result<()> {
        if self.step.role.is_none() {
            return Ok(());
        }
        let reset = self.session.client().batch_execute("reset role").await;
        reset.map_err(|e| self.session.error(&e))
    }

    /// How far a file has come.
    pub async fn position(&mut self, key: &str) -> Result<Option<Position>> {
        let tx = self.session.transaction().await?;
        let position = tx.checkpoint(self.port.run, &self.port.step, key).await?;
        tx.commit().await?;
        Ok(position)
    }

    /// Keeps how far a file has come.
    pub async fn note_position(&mut self, key: &str, position: &Position) -> Result<()> {
        let tx = self.session.transaction().await?;
        tx.save_checkpoint(self.port.run, &self.port.step, key, position).await?;
        tx.commit().await
    }
}
