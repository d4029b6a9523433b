//! A beat on the console of each instance, for as long as a cutover may hold it: it tells a guard beside the pooler that
//! whoever paused the entry is alive.

use crate::console::Console;
use crate::look::{self, Named};
use crate::options::PgBouncer;
use futures_util::future::try_join_all;
use handover_core::error::{Class, Error, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use uuid::Uuid;

/// How often a console is asked something.
pub const BEAT: Duration = Duration::from_millis(500);
/// How long a beat must have been there before the pause: every guard has seen it then.
const SEEN: Duration = Duration::from_millis(1200);

/// What a console's connection is for, as its `application_name` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It beats while the entry may be held.
    Hold,
    /// It waits until the entry is paused.
    Pause,
    /// It acts at once, or only looks.
    Look,
    /// It watches.
    Guard,
}

impl Role {
    /// What such names begin with.
    #[must_use]
    pub fn prefix(self, database: &str) -> String {
        let word = match self {
            Role::Hold => "hold",
            Role::Pause => "pause",
            Role::Look => "look",
            Role::Guard => "guard",
        };
        format!("handover-{word}/{database}/")
    }

    /// A name that no other connection has.
    #[must_use]
    pub fn name(self, database: &str) -> String {
        let unique = Uuid::now_v7().simple().to_string();
        format!("{}{}", self.prefix(database), &unique[unique.len() - 8..])
    }

    /// Whether somebody's name says this.
    #[must_use]
    pub fn is(self, named: &Named, database: &str) -> bool {
        named.name.starts_with(&self.prefix(database))
    }
}

/// The beats of one pooler's instances, in the plan's order. Dropping it ends them.
pub struct Hold {
    beats: Vec<Beat>,
    since: Instant,
}

struct Beat {
    console: Arc<Console>,
    task: JoinHandle<()>,
}

impl Drop for Beat {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hold {
    /// Begins to beat.
    ///
    /// # Errors
    /// A console that cannot be reached or refuses the login.
    pub async fn open(options: &PgBouncer) -> Result<Self> {
        let beats = options.instances.iter().enumerate().map(async |(i, instance)| {
            let key = admin_key(i);
            let console = Console::open(&instance.admin, &key, &Role::Hold.name(&options.database)).await?;
            let console = Arc::new(console);
            let beating = Arc::clone(&console);
            let task = tokio::spawn(async move {
                // A connection that broke ends it; who relies on it asks for itself.
                while beating.ask("SHOW VERSION").await.is_ok() {
                    tokio::time::sleep(BEAT).await;
                }
            });
            Ok::<_, Error>(Beat { console, task })
        });
        Ok(Hold { beats: try_join_all(beats).await?, since: Instant::now() })
    }

    /// Whether all of them beat.
    #[must_use]
    pub fn is_beating(&self) -> bool {
        self.beats.iter().all(|beat| !beat.task.is_finished())
    }

    /// An instance's console.
    #[must_use]
    pub fn console(&self, instance: usize) -> Option<&Console> {
        self.beats.get(instance).map(|beat| beat.console.as_ref())
    }

    /// Lets every guard see the beat, which must know whose pause it is before there is one. Returns the instances that
    /// nobody guards.
    ///
    /// # Errors
    /// A console failing.
    pub async fn introduce(&self, database: &str) -> Result<Vec<&str>> {
        let mut unguarded = Vec::new();
        for beat in &self.beats {
            if !look::consoles(&beat.console).await?.iter().any(|named| Role::Guard.is(named, database)) {
                unguarded.push(beat.console.place.as_str());
            }
        }
        if unguarded.len() < self.beats.len() {
            tokio::time::sleep(SEEN.saturating_sub(self.since.elapsed())).await;
        }
        Ok(unguarded)
    }

    /// Requires that the entry is still paused on every instance.
    ///
    /// # Errors
    /// It is not: a guard, a restart or an operator let clients go on.
    pub async fn still_held(&self, database: &str) -> Result<()> {
        let asked = self.beats.iter().map(async |beat| {
            if look::state(&beat.console, database).await?.paused {
                return Ok(());
            }
            Err(Error::new(
                Class::Timeout,
                format!("PgBouncer at {} no longer holds clients of `{database}`", beat.console.place),
            )
            .hint("a guard has resumed it because this process did not beat, or somebody did by hand; its log says when"))
        });
        try_join_all(asked).await.map(drop)
    }
}

/// Where an instance's console stands in the plan.
#[must_use]
pub fn admin_key(instance: usize) -> String {
    format!("pgbouncer.instances[{instance}].admin")
}
