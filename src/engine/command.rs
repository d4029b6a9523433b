//! What can be asked of the engine, and how it can end.

use crate::event::StepId;
use crate::steps::Critical;
use std::path::PathBuf;
use std::time::Duration;

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
        /// The folder, as an absolute path, into which what is lost is written before anything is undone.
        export: Option<PathBuf>,
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
