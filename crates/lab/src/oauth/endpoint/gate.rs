//! Which backend serves, and the door that is closed between a cutover's prepare and its commit or abort.

use super::backend::Backend;
use super::release::Release;
use handover_core::error::Result;
use serde::Serialize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// How long the door stays closed when nobody says what next.
const HOLD_AT_MOST: Duration = Duration::from_secs(5);

/// Where the two databases are, as the service's role.
#[derive(Clone)]
pub struct Sides {
    /// The URL of blue.
    pub blue: String,
    /// The URL of green.
    pub green: String,
}

/// From when to when writes were held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// Prepare was asked for.
    pub from: Instant,
    /// Commit or abort let them go.
    pub to: Instant,
}

/// What the service tells of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct State {
    /// The database it serves from.
    pub database: &'static str,
    /// The release that serves.
    pub release: Release,
    /// Whether writes are held.
    pub held: bool,
}

/// The service's one decision: who serves. Writes pass the door; looking at tokens goes on while it is closed.
pub struct Gate {
    sides: Sides,
    serving: Mutex<Arc<Backend>>,
    door: Arc<RwLock<()>>,
    closed: Mutex<Option<(Instant, OwnedRwLockWriteGuard<()>)>>,
    /// Built by check or prepare, so that commit only has to point at it.
    next: Mutex<Option<Arc<Backend>>>,
    /// The one before, so that a way back only has to point at it.
    before: Mutex<Option<Arc<Backend>>>,
    /// Those that are over.
    holds: Mutex<Vec<Hold>>,
    /// One admin request at a time.
    turn: tokio::sync::Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gate {
    /// Serves from blue with the oldest release.
    ///
    /// # Errors
    /// When blue cannot be reached.
    pub async fn new(sides: Sides) -> Result<Self> {
        let backend = Backend::connect("blue", &sides.blue, Release::V1_10).await?;
        Ok(Gate {
            sides,
            serving: Mutex::new(Arc::new(backend)),
            door: Arc::default(),
            closed: Mutex::default(),
            next: Mutex::default(),
            before: Mutex::default(),
            holds: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        })
    }

    /// The backend for a request that only looks.
    pub fn serving(&self) -> Arc<Backend> {
        lock(&self.serving).clone()
    }

    /// The backend for a request that writes, once the door is open; the pass keeps prepare waiting.
    pub async fn enter(&self) -> (OwnedRwLockReadGuard<()>, Arc<Backend>) {
        let pass = self.door.clone().read_owned().await;
        (pass, self.serving())
    }

    /// What the service tells of itself.
    pub fn state(&self) -> State {
        let serving = self.serving();
        State { database: serving.database, release: serving.release, held: lock(&self.closed).is_some() }
    }

    /// From when to when writes were held, so far: for each cutover that was tried.
    pub fn holds(&self) -> Vec<Hold> {
        lock(&self.holds).clone()
    }

    /// Whether the service could go over to `release`: its database is there and has its schema.
    ///
    /// # Errors
    /// Why not.
    pub async fn check(&self, release: Release) -> Result<State> {
        let _turn = self.turn.lock().await;
        self.ready(release).await?;
        Ok(self.state())
    }

    async fn ready(&self, release: Release) -> Result<()> {
        let is = |backend: &Arc<Backend>| backend.release == release;
        if !is(&self.serving()) && !lock(&self.next).as_ref().is_some_and(is) {
            let backend = self.connect(release).await?;
            *lock(&self.next) = Some(backend);
        }
        Ok(())
    }

    async fn connect(&self, release: Release) -> Result<Arc<Backend>> {
        let (database, url) = match release {
            Release::V2 => ("green", &self.sides.green),
            Release::V1_10 | Release::V1_11 => ("blue", &self.sides.blue),
        };
        Backend::connect(database, url, release).await.map(Arc::new)
    }

    /// Closes the door: waits for the writes under way, and holds those that come. If nobody says commit or abort
    /// for long, the door opens by itself: a runner that died must not end the service. A way back begins with the same
    /// words: then `release` serves already, and is to be left.
    ///
    /// # Errors
    /// When `release` could not serve; the door is open then.
    pub async fn prepare(self: &Arc<Self>, release: Release) -> Result<State> {
        let _turn = self.turn.lock().await;
        if lock(&self.closed).is_some() {
            return Ok(self.state());
        }
        self.ready(release).await?;
        let from = Instant::now();
        let guard = self.door.clone().write_owned().await;
        *lock(&self.closed) = Some((from, guard));
        let gate = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(HOLD_AT_MOST).await;
            if let Some(gate) = gate.upgrade() {
                gate.open(Some(from));
            }
        });
        Ok(self.state())
    }

    /// Serves with `release` from its database, and opens the door.
    ///
    /// # Errors
    /// When it was never prepared and could not serve.
    pub async fn commit(&self, release: Release) -> Result<State> {
        let _turn = self.turn.lock().await;
        if self.serving().release != release {
            let is = |backend: &Arc<Backend>| backend.release == release;
            let ready = lock(&self.next).take().filter(is).or_else(|| lock(&self.before).take().filter(is));
            let next = match ready {
                Some(ready) => ready,
                None => self.connect(release).await?,
            };
            let left = std::mem::replace(&mut *lock(&self.serving), next);
            *lock(&self.before) = Some(left);
        }
        self.open(None);
        Ok(self.state())
    }

    /// Goes on as before, and opens the door.
    pub async fn abort(&self) -> State {
        let _turn = self.turn.lock().await;
        // The schema may be another at the next attempt.
        lock(&self.next).take();
        self.open(None);
        self.state()
    }

    fn open(&self, of: Option<Instant>) {
        let mut closed = lock(&self.closed);
        // The time limit of an earlier hold does not end a later one.
        if of.is_some_and(|of| closed.as_ref().is_none_or(|(from, _)| *from != of)) {
            return;
        }
        if let Some((from, guard)) = closed.take() {
            drop(guard);
            lock(&self.holds).push(Hold { from, to: Instant::now() });
        }
    }
}
