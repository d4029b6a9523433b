//! A cutover's state as the journal has it, moved only by what is written there first.

use super::options::Cutover;
use super::state::{Event, FACT, Flip, Stage, Stand, Way};
use crate::error::{Error, Result};
use crate::steps::Context;
use handover_pooler::{Hold, PgBouncer};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::Mutex;

/// The state, and the only way to move it.
pub struct Book<'a> {
    cx: &'a Context,
    flip: Mutex<Flip>,
    /// Participants that were asked something of which nothing more is heard: the asking was broken off.
    asked: std::sync::Mutex<BTreeSet<String>>,
    /// Poolers that see this process beat, by participant.
    holds: std::sync::Mutex<BTreeMap<String, Arc<Hold>>>,
}

impl<'a> Book<'a> {
    /// Reads where an earlier attempt left the cutover.
    ///
    /// # Errors
    /// As [`Flip::read`].
    pub fn open(cutover: &Cutover, cx: &'a Context) -> Result<Self> {
        let flip = read(cutover, cx)?;
        let asking = [Stand::Preparing, Stand::Aborting, Stand::Committing, Stand::Reverting];
        let asked = asking.iter().flat_map(|stand| flip.those(*stand)).map(str::to_owned).collect();
        Ok(Book {
            cx,
            flip: Mutex::new(flip),
            asked: std::sync::Mutex::new(asked),
            holds: Default::default(),
        })
    }

    /// Writes down that something happened, or is about to, and then holds it for true.
    ///
    /// # Errors
    /// The journal failing; an event that cannot come now.
    pub async fn note(&self, event: Event<'_>) -> Result<()> {
        let mut flip = self.flip.lock().await;
        let mut next = flip.after(event).ok_or_else(|| {
            Error::internal(format!("{event:?} cannot come while the cutover is {:?}", flip.stage))
        })?;
        next.since = next.since.or_else(|| Some(Timestamp::now()));
        self.cx.remember(FACT, &next).await?;
        *flip = next;
        Ok(())
    }

    /// A participant is about to be asked something.
    pub fn asks(&self, name: &str) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
    }

    /// It has answered, whatever it said; or (`late`) it has not, and the request may arrive within that time.
    ///
    /// # Errors
    /// The journal failing.
    pub async fn heard(&self, name: &str, late: Option<Duration>) -> Result<()> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        let Some(until) = late.and_then(|late| Timestamp::now().checked_add(late).ok()) else {
            return Ok(());
        };
        let mut flip = self.flip.lock().await;
        let mut next = flip.clone();
        let there = next.late.entry(name.to_owned()).or_insert(until);
        *there = (*there).max(until);
        self.cx.remember(FACT, &next).await?;
        *flip = next;
        Ok(())
    }

    /// Something else is about to be asked of a participant: what was broken off before may arrive within `limit`.
    ///
    /// # Errors
    /// The journal failing.
    pub async fn breaks_off(&self, name: &str, limit: Option<Duration>) -> Result<()> {
        let broken_off = self.asked.lock().unwrap_or_else(PoisonError::into_inner).contains(name);
        if broken_off { self.heard(name, limit).await } else { Ok(()) }
    }

    /// For how long a request to a participant may still be on its way.
    pub async fn late(&self, name: &str) -> Option<Duration> {
        let until = self.flip.lock().await.late.get(name).copied()?;
        let left = Duration::try_from(until.duration_since(Timestamp::now())).ok()?;
        (!left.is_zero()).then_some(left)
    }

    /// Beats for a participant's pooler, from now on if it did not.
    ///
    /// # Errors
    /// A console that cannot be reached.
    pub async fn hold(&self, name: &str, options: &PgBouncer) -> Result<Arc<Hold>> {
        if let Some(hold) = self.held(name).filter(|hold| hold.is_beating()) {
            return Ok(hold);
        }
        let hold = Arc::new(Hold::open(options).await?);
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        holds.insert(name.to_owned(), Arc::clone(&hold));
        Ok(hold)
    }

    /// The beat for a participant's pooler, if there is one.
    pub fn held(&self, name: &str) -> Option<Arc<Hold>> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Ends it: the pooler holds nobody any more.
    pub fn let_go(&self, name: &str) {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// What to do next; see [`Flip::way`].
    pub async fn way(&self, decided: Option<bool>) -> Way {
        self.flip.lock().await.way(decided)
    }

    /// Where the whole stands.
    pub async fn stage(&self) -> Stage {
        self.flip.lock().await.stage
    }

    /// Whether the undo of a decision has begun, or is through.
    pub async fn is_turning_back(&self) -> bool {
        matches!(self.stage().await, Stage::TurningBack | Stage::TurnedBack)
    }

    /// Whether it was decided to go back when the old side had all that was written on the new one.
    pub async fn returned(&self) -> bool {
        self.flip.lock().await.returned
    }

    /// Where a participant stands.
    pub async fn stand(&self, name: &str) -> Stand {
        self.flip.lock().await.participants.get(name).copied().unwrap_or_default()
    }
}

/// The state without moving it.
///
/// # Errors
/// As [`Flip::read`].
pub fn read(cutover: &Cutover, cx: &Context) -> Result<Flip> {
    let names: Vec<&str> = cutover.participants.iter().map(|p| p.name.as_str()).collect();
    Flip::read(&names, |key| cx.ledger.recall(&cx.step, key))
}
