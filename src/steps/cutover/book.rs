//! A cutover's state as the journal has it, moved only by what is written there first.

use super::Cutover;
use super::state::{Event, FACT, Flip, Stage, Stand, Way};
use crate::error::{Error, Result};
use crate::steps::Context;
use std::collections::BTreeSet;
use std::sync::PoisonError;
use tokio::sync::Mutex;

/// The state, and the only way to move it.
pub struct Book<'a> {
    cx: &'a Context,
    flip: Mutex<Flip>,
    /// Participants that were asked something and of whose answer nothing is known: it may still be on its way to them.
    unanswered: std::sync::Mutex<BTreeSet<String>>,
}

impl<'a> Book<'a> {
    /// Reads where an earlier attempt left the cutover.
    ///
    /// # Errors
    /// As [`Flip::read`].
    pub fn open(cutover: &Cutover, cx: &'a Context) -> Result<Self> {
        let flip = read(cutover, cx)?;
        let asked = [Stand::Preparing, Stand::Aborting, Stand::Committing, Stand::Reverting];
        let unanswered = asked.iter().flat_map(|stand| flip.those(*stand)).map(str::to_owned).collect();
        Ok(Book { cx, flip: Mutex::new(flip), unanswered: std::sync::Mutex::new(unanswered) })
    }

    /// Says that a participant is about to be asked something, or (`answered`) that it has answered, whatever it said.
    pub fn asks(&self, name: &str, answered: bool) {
        let mut unanswered = self.unanswered.lock().unwrap_or_else(PoisonError::into_inner);
        if answered {
            unanswered.remove(name);
        } else {
            unanswered.insert(name.to_owned());
        }
    }

    /// Whether what a participant was asked last may still be on its way.
    pub fn is_unanswered(&self, name: &str) -> bool {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
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
        next.since = next.since.or_else(|| Some(jiff::Timestamp::now()));
        self.cx.remember(FACT, &next).await?;
        *flip = next;
        Ok(())
    }

    /// What to do next; see [`Flip::way`].
    pub async fn way(&self, decided: Option<bool>) -> Way {
        self.flip.lock().await.way(decided)
    }

    /// Where the whole stands.
    pub async fn stage(&self) -> Stage {
        self.flip.lock().await.stage
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
