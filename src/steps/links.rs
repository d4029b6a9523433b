//! Which steps of a plan build on which. Found once, when the plan is read, and typed: no step looks for another at run
//! time by what it is.

use super::approve::options::Approve;
use super::cutover::options::Cutover;
use super::lever::shape::Lever;
use super::monitor::options::Monitor;
use crate::event::StepId;
use handover_compare::Verify;
use handover_copy::Copy;
use handover_events::capture::Capture;
use handover_events::replay::Replay;
use handover_migrations::Migrate;
use handover_replication::Replicate;
use handover_rows::Cleanup;
use std::sync::Arc;

/// A step of a known kind.
#[derive(Debug, Clone)]
struct Known<T> {
    id: StepId,
    place: usize,
    kind: Arc<T>,
}

/// The steps of one kind, in the plan's order.
#[derive(Debug, Clone)]
pub struct Of<T>(Vec<Known<T>>);

impl<T> Default for Of<T> {
    fn default() -> Self {
        Of(Vec::new())
    }
}

impl<T> Of<T> {
    /// Adds a step that stands behind all others of its kind.
    pub fn add(&mut self, id: &StepId, place: usize, kind: Arc<T>) {
        self.0.push(Known { id: id.clone(), place, kind });
    }

    /// All of them.
    pub fn all(&self) -> impl DoubleEndedIterator<Item = (&StepId, &T)> + Clone {
        self.0.iter().map(|known| (&known.id, &*known.kind))
    }

    /// Those that stand before a place in the plan.
    pub fn before(&self, place: usize) -> impl DoubleEndedIterator<Item = (&StepId, &T)> + Clone {
        self.0.iter().filter(move |known| known.place < place).map(|known| (&known.id, &*known.kind))
    }

    /// Those that stand behind a place in the plan.
    pub fn behind(&self, place: usize) -> impl DoubleEndedIterator<Item = (&StepId, &T)> + Clone {
        self.0.iter().filter(move |known| known.place > place).map(|known| (&known.id, &*known.kind))
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, id: &StepId) -> Option<&T> {
        self.all().find(|(known, _)| *known == id).map(|(_, kind)| kind)
    }
}

/// The steps of a plan that others build on. A kind adds itself ([`super::StepKind::link`]).
#[derive(Debug, Clone, Default)]
pub struct Links {
    /// Every step's id, in order.
    pub ids: Vec<StepId>,
    /// `approve` steps.
    pub approvals: Of<Approve>,
    /// `capture` steps.
    pub captures: Of<Capture>,
    /// `cleanup` steps.
    pub cleanups: Of<Cleanup>,
    /// `copy` steps.
    pub copies: Of<Copy>,
    /// `cutover` steps.
    pub cutovers: Of<Cutover>,
    /// `lever` steps.
    pub levers: Of<Lever>,
    /// `migrate` steps.
    pub migrations: Of<Migrate>,
    /// `monitor` steps.
    pub monitors: Of<Monitor>,
    /// `replay` steps.
    pub replays: Of<Replay>,
    /// `replicate` steps.
    pub replications: Of<Replicate>,
    /// `verify` steps.
    pub verifications: Of<Verify>,
    /// Who writes where: places of steps and databases.
    pub writers: Vec<(usize, String)>,
}

impl Links {
    /// Where a step stands; before all others when it is not in the plan.
    #[must_use]
    pub fn place(&self, step: &StepId) -> usize {
        self.ids.iter().position(|id| id == step).unwrap_or(0)
    }

    /// The step before another.
    #[must_use]
    pub fn before(&self, step: &StepId) -> Option<&StepId> {
        self.ids.get(self.place(step).checked_sub(1)?)
    }

    /// The steps behind a place that write to a database.
    pub fn writers_behind(&self, place: usize, database: &str) -> impl Iterator<Item = &StepId> {
        let those = self.writers.iter().filter(move |(at, name)| *at > place && name == database);
        those.filter_map(|(at, _)| self.ids.get(*at))
    }

    /// The copies from one database to the other before a place.
    pub fn copies_of<'a>(
        &'a self,
        place: usize,
        from: &'a str,
        to: &'a str,
    ) -> impl DoubleEndedIterator<Item = (&'a StepId, &'a Copy)> {
        self.copies.before(place).filter(move |(_, copy)| copy.from == from && copy.to == to)
    }

    /// The last of them.
    #[must_use]
    pub fn copied(&self, place: usize, from: &str, to: &str) -> Option<(&StepId, &Copy)> {
        self.copies.before(place).rfind(|(_, copy)| copy.from == from && copy.to == to)
    }

    /// The replication from one database to the other before a place.
    #[must_use]
    pub fn replicated(&self, place: usize, from: &str, to: &str) -> Option<(&StepId, &Replicate)> {
        self.replications.before(place).rfind(|(_, r)| r.from == from && r.to == to)
    }

    /// The replication that follows a copy.
    #[must_use]
    pub fn following(&self, copy: &StepId) -> Option<(&StepId, &Replicate)> {
        self.replications.all().find(|(id, replicate)| {
            self.copied(self.place(id), &replicate.from, &replicate.to)
                .is_some_and(|(found, _)| found == copy)
        })
    }

    /// The capture that a replay at a place replays; none where that is not clear.
    #[must_use]
    pub fn replays(&self, replay: &Replay, place: usize) -> Option<(&StepId, &Capture)> {
        let mut captures =
            self.captures.before(place).filter(|(id, _)| replay.from.as_ref().is_none_or(|from| from == *id));
        let first = captures.next();
        if captures.next().is_some() { None } else { first }
    }

    /// Whether a step before a place replays what a capture step captures.
    #[must_use]
    pub fn is_replayed(&self, place: usize, capture: &StepId) -> bool {
        let mut replays = self.replays.before(place);
        replays.any(|(_, replay)| self.replays(replay, place).is_some_and(|(id, _)| id == capture))
    }

    /// The replays of a capture before a place.
    pub fn replays_of<'a>(&'a self, capture: &'a StepId, place: usize) -> impl Iterator<Item = &'a StepId> {
        let of_it = move |(id, replay): &(&StepId, &Replay)| {
            self.replays(replay, self.place(id)).is_some_and(|(found, _)| found == capture)
        };
        self.replays.before(place).filter(of_it).map(|(id, _)| id)
    }

    /// The step that restores a lever.
    #[must_use]
    pub fn restores(&self, lever: &StepId) -> Option<&StepId> {
        self.levers.all().find(|(_, other)| other.revert.as_deref() == Some(lever.as_str())).map(|(id, _)| id)
    }

    /// Whether the application uses the database while migrations run on it: not if a copy fills it before, or a
    /// cutover is yet to leave another for it.
    #[must_use]
    pub fn serves(&self, database: &str) -> bool {
        !self.copies.all().any(|(_, copy)| copy.to == database)
            && !self
                .cutovers
                .all()
                .any(|(_, cutover)| cutover.freeze.as_ref().is_some_and(|frozen| frozen != database))
    }
}
