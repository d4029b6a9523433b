//! Where a cutover stands: one named state, and one for each participant, kept as one fact of the journal.
//!
//! The fact is written before the act that it allows. So a participant that may have been asked to commit is known
//! as [`Stand::Committing`] whatever became of the runner that asked, and only one that certainly was not asked is
//! ever told to abort. Pure: what follows from what is in [`Flip::after`], what is to be done in [`Flip::way`].

use crate::error::{Class, Error, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The journal's fact.
pub const FACT: &str = "flip";
/// The fact by which journals of older versions say that a rollback may lose something.
const OLDER_MAY_LOSE: &str = "at_stake";

/// Where a cutover stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Nobody is asked anything; the old side serves.
    #[default]
    Idle,
    /// Participants are asked to prepare. No decision can have fallen.
    Preparing,
    /// All are prepared. The decision may fall at any moment; the old side knows whether it has.
    Deciding,
    /// It is certain that no decision has fallen, nor can: participants are told to go on with the old side.
    CallingOff,
    /// The decision stands. Participants are told to commit until each of them has.
    Decided,
    /// Every participant has committed.
    Committed,
    /// The way back is asked for, with a stream that carries everything back: participants are asked to prepare. No
    /// decision to go back can have fallen.
    PreparingReturn,
    /// All are prepared. The decision to go back may fall at any moment; the new side knows whether it has.
    DecidingReturn,
    /// It is certain that no decision to go back has fallen, nor can: participants are told to go on with the new side.
    CallingOffReturn,
    /// The undo of a decided cutover has begun; or the decision to go back has fallen.
    TurningBack,
    /// Every participant is turned back.
    TurnedBack,
}

/// Where a participant stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stand {
    /// It was asked nothing.
    #[default]
    Untouched,
    /// It is asked to prepare, and may hold its clients.
    Preparing,
    /// It has answered that it is prepared.
    Prepared,
    /// It is told to go on with the old side; it certainly has not committed.
    Aborting,
    /// It goes on with the old side.
    Aborted,
    /// It is told to commit, and may have.
    Committing,
    /// It has answered that it committed.
    Committed,
    /// It is being turned back.
    Reverting,
    /// It is turned back.
    Reverted,
}

impl Stand {
    /// On the old side, and asked nothing.
    fn is_at_rest(self) -> bool {
        matches!(self, Stand::Untouched | Stand::Aborted | Stand::Reverted)
    }

    /// One word for people.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Stand::Untouched => "not asked",
            Stand::Preparing => "preparing",
            Stand::Prepared => "prepared",
            Stand::Aborting => "being released",
            Stand::Aborted => "released",
            Stand::Committing => "not committed yet",
            Stand::Committed => "committed",
            Stand::Reverting => "being turned back",
            Stand::Reverted => "turned back",
        }
    }
}

/// What happens, or is about to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// An attempt begins: every participant is about to be asked to prepare.
    Prepare,
    /// Every participant is prepared; the decision is about to be made.
    Prepared,
    /// It is certain that no decision has fallen; who was asked to prepare is about to be told to abort.
    NotDecided,
    /// A participant goes on with the old side.
    Aborted(&'a str),
    /// The decision has fallen; every participant is about to be told to commit.
    Decided,
    /// A participant has committed.
    Committed(&'a str),
    /// An attempt to go back without loss begins: every participant is about to be asked to prepare.
    PrepareReturn,
    /// Every participant is prepared; the decision to go back is about to be made.
    PreparedReturn,
    /// It is certain that no decision to go back has fallen; participants are about to be told to commit again.
    NotReturned,
    /// The decision to go back has fallen: the old side has all that was written on the new one.
    Returned,
    /// A decided cutover is about to be taken back, whatever was written on the new side.
    TurnBack,
    /// A participant is about to be turned back.
    Revert(&'a str),
    /// A participant is turned back.
    Reverted(&'a str),
}

/// What is to be done next, going forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Begin an attempt.
    Attempt,
    /// Release whoever was asked to prepare.
    CallOff,
    /// Record that the decision has fallen, then commit.
    Decide,
    /// Commit whoever has not.
    Commit,
    /// Nothing: all have committed.
    Done,
    /// Only back: an undo has begun.
    Back,
    /// A way back was begun; whether it was decided, the new side knows.
    Return,
    /// The journal knows of a decision that the old side does not know any more.
    Lost,
}

/// A cutover and its participants.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Flip {
    /// Where the whole stands.
    pub stage: Stage,
    /// Since when, by the clock of the host that acted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Where each participant stands, by name.
    pub participants: BTreeMap<String, Stand>,
    /// Until when a request that was not answered may still arrive at a participant, by the clock of the host that acted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub late: BTreeMap<String, Timestamp>,
    /// Whether it was decided to go back when the old side had all that was written on the new one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub returned: bool,
}

impl Flip {
    /// Reads a cutover's facts, `look` giving one by its key. Facts of older versions, which were one for each thing
    /// that may have happened, are understood as what they leave possible.
    ///
    /// # Errors
    /// A fact of a newer version; a participant that is not at rest and that the plan no longer has.
    pub fn read(names: &[&str], look: impl Fn(&str) -> Option<Value>) -> Result<Self> {
        let mut flip = match look(FACT) {
            Some(value) => serde_json::from_value(value)
                .map_err(|e| Error::internal(format!("the journal's fact `{FACT}` cannot be read ({e})")))?,
            None => Flip::of_older(names, look),
        };
        if let Some((gone, stand)) = flip
            .participants
            .iter()
            .find(|(name, stand)| !names.contains(&name.as_str()) && !stand.is_at_rest())
        {
            return Err(Error::new(
                Class::Changed,
                format!("the plan no longer has participant `{gone}`, which is {}", stand.word()),
            )
            .hint("put it back into the plan: nobody else can take it forward or back"));
        }
        flip.participants.retain(|name, _| names.contains(&name.as_str()));
        let new = match flip.stage {
            Stage::Idle | Stage::Preparing | Stage::Deciding | Stage::CallingOff => Stand::Untouched,
            Stage::Decided
            | Stage::Committed
            | Stage::PreparingReturn
            | Stage::DecidingReturn
            | Stage::CallingOffReturn => Stand::Committing,
            Stage::TurningBack | Stage::TurnedBack => Stand::Reverted,
        };
        for name in names {
            flip.participants.entry((*name).to_owned()).or_insert(new);
        }
        flip.derive_stage();
        Ok(flip)
    }

    fn of_older(names: &[&str], look: impl Fn(&str) -> Option<Value>) -> Self {
        let is = |key: &str| look(key).and_then(|value| value.as_bool()) == Some(true);
        let committed = |name: &&str| is(&format!("{name}.committed"));
        let (stage, stand) = if is("turning_back") {
            (Stage::TurningBack, Stand::Committing)
        } else if is("decided") || names.iter().any(&committed) {
            (Stage::Decided, Stand::Committing)
        } else if is(OLDER_MAY_LOSE) {
            (Stage::Deciding, Stand::Prepared)
        } else if is("preparing") {
            (Stage::Preparing, Stand::Preparing)
        } else {
            (Stage::Idle, Stand::Untouched)
        };
        let participants = names
            .iter()
            .map(|name| ((*name).to_owned(), if committed(name) { Stand::Committed } else { stand }))
            .collect();
        Flip { stage, participants, ..Flip::default() }
    }

    /// The state after an event; none when it cannot come now.
    #[must_use]
    pub fn after(&self, event: Event<'_>) -> Option<Self> {
        use Stage as S;
        let all = |stage, stand: fn(Stand) -> Stand| {
            let participants =
                self.participants.iter().map(|(name, now)| (name.clone(), stand(*now))).collect();
            Some(Flip { stage, participants, since: None, late: self.late.clone(), returned: self.returned })
        };
        let one = |name: &str, from: &[Stand], to| {
            let mut next = self.clone();
            let stand = next.participants.get_mut(name).filter(|stand| from.contains(&**stand))?;
            *stand = to;
            Some(next)
        };
        let mut next = match (event, self.stage) {
            (Event::Prepare, S::Idle) => all(S::Preparing, |_| Stand::Preparing),
            (Event::Prepared, S::Preparing) => all(S::Deciding, |_| Stand::Prepared),
            (Event::NotDecided, S::Preparing | S::Deciding | S::CallingOff) => {
                all(S::CallingOff, |now| if now.is_at_rest() { now } else { Stand::Aborting })
            }
            (Event::Aborted(name), S::CallingOff) => one(name, &[Stand::Aborting], Stand::Aborted),
            // Also where the journal knows less: the old side's word counts.
            (Event::Decided, S::Idle | S::Preparing | S::Deciding | S::CallingOff) => {
                all(S::Decided, |_| Stand::Committing)
            }
            (Event::Committed(name), S::Decided | S::CallingOffReturn) => {
                one(name, &[Stand::Committing], Stand::Committed)
            }
            (Event::PrepareReturn, S::Decided | S::Committed) => {
                all(S::PreparingReturn, |_| Stand::Preparing)
            }
            (Event::PreparedReturn, S::PreparingReturn) => all(S::DecidingReturn, |_| Stand::Prepared),
            (Event::NotReturned, S::PreparingReturn | S::DecidingReturn | S::CallingOffReturn) => {
                all(S::CallingOffReturn, |_| Stand::Committing)
            }
            // Also where the journal knows less: the new side's word counts.
            (Event::Returned, S::PreparingReturn | S::DecidingReturn | S::CallingOffReturn) => {
                all(S::TurningBack, |now| now).map(|next| Flip { returned: true, ..next })
            }
            (
                Event::TurnBack,
                S::Decided | S::Committed | S::PreparingReturn | S::DecidingReturn | S::CallingOffReturn,
            ) => all(S::TurningBack, |now| now),
            (Event::Revert(name), S::TurningBack) => one(
                name,
                &[Stand::Preparing, Stand::Prepared, Stand::Committing, Stand::Committed, Stand::Reverting],
                Stand::Reverting,
            ),
            (Event::Reverted(name), S::TurningBack) => one(name, &[Stand::Reverting], Stand::Reverted),
            _ => None,
        }?;
        next.derive_stage();
        if next.stage == self.stage {
            next.since = self.since;
        }
        Some(next)
    }

    /// Derives the stage from where the participants stand.
    fn derive_stage(&mut self) {
        let all = |stand| self.participants.values().all(|now| *now == stand);
        self.stage = match self.stage {
            Stage::CallingOff if self.participants.values().all(|now| now.is_at_rest()) => Stage::Idle,
            Stage::Decided if all(Stand::Committed) => Stage::Committed,
            Stage::Committed if !all(Stand::Committed) => Stage::Decided,
            Stage::CallingOffReturn if all(Stand::Committed) => Stage::Committed,
            Stage::TurningBack if all(Stand::Reverted) => Stage::TurnedBack,
            stage => stage,
        };
    }

    /// What to do, going forward. `decided` is the old side's word on the decision, given when nothing could be on its
    /// way there any more; none where there is no old side, and the journal's record is the decision.
    #[must_use]
    pub fn way(&self, decided: Option<bool>) -> Way {
        match (self.stage, decided) {
            (Stage::TurningBack | Stage::TurnedBack, _) => Way::Back,
            (
                Stage::Decided
                | Stage::Committed
                | Stage::PreparingReturn
                | Stage::DecidingReturn
                | Stage::CallingOffReturn,
                Some(false),
            ) => Way::Lost,
            (Stage::PreparingReturn | Stage::DecidingReturn | Stage::CallingOffReturn, _) => Way::Return,
            (Stage::Decided, _) => Way::Commit,
            (Stage::Committed, _) => Way::Done,
            (_, Some(true)) => Way::Decide,
            (Stage::Idle, _) => Way::Attempt,
            (Stage::Preparing | Stage::Deciding | Stage::CallingOff, _) => Way::CallOff,
        }
    }

    /// Whether a rollback may lose something.
    #[must_use]
    pub fn may_lose(&self) -> bool {
        !self.returned && !matches!(self.stage, Stage::Idle | Stage::Preparing | Stage::CallingOff)
    }

    /// The participants that stand so.
    pub fn those(&self, stand: Stand) -> impl Iterator<Item = &str> {
        self.participants.iter().filter(move |(_, now)| **now == stand).map(|(name, _)| name.as_str())
    }

    /// The state as a line for people; none when there is nothing to tell.
    #[must_use]
    pub fn words(&self) -> Option<String> {
        let some = |stand| self.those(stand).collect::<Vec<_>>().join(", ");
        Some(match self.stage {
            Stage::Idle if self.those(Stand::Aborted).next().is_none() => return None,
            Stage::Idle => "called off; the old side serves".into(),
            Stage::Preparing => "participants are asked to prepare".into(),
            Stage::Deciding => "all participants are prepared; the decision is next".into(),
            Stage::CallingOff => format!("calling off; to be released: {}", some(Stand::Aborting)),
            Stage::Decided => {
                format!("decided: only forward from here; not committed yet: {}", some(Stand::Committing))
            }
            Stage::Committed => "all participants have committed".into(),
            Stage::PreparingReturn => "going back: participants are asked to prepare".into(),
            Stage::DecidingReturn => "going back: all participants are prepared; the decision is next".into(),
            Stage::CallingOffReturn => {
                format!("going back was called off; to go on with the new side: {}", some(Stand::Committing))
            }
            Stage::TurningBack if self.those(Stand::Reverting).next().is_some() => {
                format!("turning back: {} is to revert", some(Stand::Reverting))
            }
            Stage::TurningBack if self.those(Stand::Reverted).next().is_some() => {
                format!("turning back: {} is back", some(Stand::Reverted))
            }
            Stage::TurningBack => "turning back".into(),
            Stage::TurnedBack => "all participants are turned back".into(),
        })
    }
}

/// The state that a cutover's facts tell; none when they tell none, or one of a newer version.
fn told(facts: &BTreeMap<String, Value>) -> Option<Flip> {
    serde_json::from_value(facts.get(FACT)?.clone()).ok()
}

/// Whether a cutover's facts say that its decision stands and nobody was turned back.
pub fn is_whole(facts: &BTreeMap<String, Value>) -> bool {
    use Stage as S;
    told(facts).is_some_and(|flip| {
        matches!(
            flip.stage,
            S::Decided | S::Committed | S::PreparingReturn | S::DecidingReturn | S::CallingOffReturn
        )
    })
}

/// A side of a cutover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that is left.
    Old,
    /// The one that takes over.
    New,
}

/// Which side refuses writes while participants are still to follow to the other, and since when.
#[must_use]
pub fn refusing(facts: &BTreeMap<String, Value>) -> Option<(Side, Timestamp)> {
    let flip = told(facts)?;
    let side = match flip.stage {
        Stage::Decided => Side::Old,
        // Whether that is decided, the new side knows; the old one refuses as before.
        Stage::DecidingReturn => Side::New,
        Stage::TurningBack if flip.returned => Side::New,
        _ => return None,
    };
    Some((side, flip.since?))
}

/// The fact that a stream carries what is written on the new side back to the old one.
pub const CARRIED_BACK: &str = "carried_back";

/// Whether a cutover's facts say that a rollback may lose something.
pub fn may_lose(facts: &BTreeMap<String, Value>) -> bool {
    let flows = facts.get(CARRIED_BACK) == Some(&Value::Bool(true))
        && !facts.contains_key(handover_replication::ENDED);
    if flows {
        return false;
    }
    match facts.get(FACT) {
        // One that cannot be read is of a newer version: better to ask for the operator's word.
        Some(value) => serde_json::from_value::<Flip>(value.clone()).map_or(true, |flip| flip.may_lose()),
        None => facts.contains_key(OLDER_MAY_LOSE),
    }
}

#[cfg(test)]
mod tests;
