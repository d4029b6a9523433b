//! `cutover`: flips all participants from the old side to the new one at one instant.
//!
//! The decision is one commit on the old side: it records the decision and makes writes impossible there in the
//! same transaction that has been holding them off. Before it, everything can be called off and the old side
//! serves on; after it, there is only forward. Where the old side stays (an upgrade in place, without
//! `freeze:`), the decision is the journal's own record.

mod account;
mod approval;
mod arrivals;
mod attempts;
mod back;
mod before;
mod blockers;
mod book;
mod carrier;
mod check;
mod differences;
mod feeds;
mod forecast;
mod freeze;
mod gate;
mod gate_sql;
pub(super) mod gates;
mod hours;
mod invariants;
mod large_objects;
mod lost;
mod native;
mod newer;
pub(super) mod options;
mod partial;
mod participant;
mod passes;
mod preflight;
mod protocol;
mod quarantine;
mod replayed;
mod reverse;
mod sequences;
mod served;
mod state;
mod statements;
mod stillness;
mod stream;
mod subscriptions;
mod switch;
mod together;
mod turn_back;
mod uncaptured;
mod uncarried;
mod watched;
mod window;

use super::{
    Access, CheckContext, Context, Counted, Description, Links, Locks, Midway, Need, StepKind, Tells, Undo,
};
use crate::error::{Error, Result};
use crate::event::{RunId, StepId};
use crate::failpoint;
use crate::problem::Problems;
use async_trait::async_trait;
use handover_actions::Actions;
pub use options::{Allowed, Cutover, Participant, Reverse};
use serde_json::Value;
pub use state::{FACT, Flip, Side, is_whole, refusing};
use std::collections::BTreeMap;
use std::sync::Arc;

#[async_trait]
impl StepKind for Cutover {
    fn link(self: Arc<Self>, id: &StepId, place: usize, links: &mut Links) {
        if let Some(ask) = &self.approve {
            links.approvals.add(id, place, Arc::new(approval::as_step(ask)));
        }
        links.cutovers.add(id, place, self);
    }

    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        if let Some(freeze) = &self.freeze {
            cx.database(problems, "freeze", freeze);
            if self.to.as_ref() == Some(freeze) {
                problems
                    .error(["to"], "a database cannot take over from itself")
                    .hint("name the new side, or leave `freeze:` and `to:` out for an upgrade in place");
            }
            if self.to.is_none() {
                problems
                    .error(["freeze"], "`freeze:` needs `to:`, the database that takes over")
                    .at_key()
                    .hint(
                        "its sequences are set from the frozen side, and replay into it must have caught up",
                    );
            }
        } else if self.to.is_some() {
            problems
                .error(["to"], "`to:` needs `freeze:`, the database that is handed over")
                .at_key()
                .hint("leave both out for an upgrade in place");
        }
        if let Some(to) = &self.to {
            cx.database(problems, "to", to);
        }
        if let Some(freeze) = &self.freeze {
            let captures = cx.links.captures.before(cx.index).filter(|(_, c)| c.from == *freeze);
            for (id, _) in captures {
                if !cx.links.is_replayed(cx.index, id) {
                    problems
                        .warning(["freeze"], format!("what step `{id}` captures is not replayed before the cutover"))
                        .at_key()
                        .hint("put a `replay` step before this one: then nothing that was revoked is honoured by the new side, not even for a moment");
                }
            }
        }
        check::blockers(&self.blockers, problems);
        if let Some(window) = &self.window {
            check::window(window, self.freeze.is_some(), problems);
        }
        if let Some(ask) = &self.approve {
            check::approval(ask, problems);
        }
        check::invariants(&self.invariants, self.freeze.is_some(), problems);
        if self.write_pause.0 < std::time::Duration::from_millis(50) {
            problems.error(["write_pause"], "no pause can be this short").hint("one or two seconds is usual");
        }
        super::capture::coverage::check_uncarried(self, cx, problems);
        reverse::check(self, cx, problems);
        participant::check(&self.participants, cx, problems);
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        let own = self.freeze.iter().chain(&self.to).map(|name| (name.as_str(), Access::Write));
        own.chain(self.participants.iter().flat_map(Participant::databases).map(|d| (d, Access::Write)))
            .collect()
    }

    fn uses_queue(&self) -> bool {
        self.reverse.as_ref().is_some_and(Reverse::is_replayed)
    }

    fn needs(&self, access: Access) -> &'static [Need] {
        match access {
            Access::Read => &[Need::ReadEverything, Need::Monitor],
            Access::Write => {
                &[Need::ActAsOwners, Need::Monitor, Need::SignalAutovacuum, Need::ReadEverything]
            }
        }
    }

    fn locks_every_table(&self) -> Option<Locks> {
        Some(Locks { what: "a cutover", each: 1 })
    }

    fn asks_a_person(&self) -> bool {
        self.approve.is_some()
    }

    fn asks_now(&self, facts: Option<&BTreeMap<String, Value>>) -> bool {
        approval::is_asked(facts)
    }

    fn midway(&self, _links: &Links, _place: usize) -> Midway {
        Midway {
            failpoint: failpoint::CUTOVER_DECIDED,
            passing: 1,
            place: "after the decision, before anybody flipped",
        }
    }

    fn triggers(&self, _plan: &str, step: &StepId, runs: &[RunId]) -> Vec<String> {
        runs.iter().flat_map(|run| gate::triggers(*run, step)).collect()
    }

    fn reversibility(&self) -> Undo {
        if let Some(name) = self.participants.iter().find(|p| !p.can_revert()).map(|p| &p.name) {
            return Undo::Impossible { why: format!("participant `{name}` says nothing under `revert:`") };
        }
        let how = "turns the participants back".to_owned();
        let Some(freeze) = &self.freeze else { return Undo::Exact { how } };
        let to = self.to.as_deref().unwrap_or("the new side");
        let loses = format!("what was written on {to} since the cutover");
        match &self.reverse {
            Some(_) => {
                let but = self.but_for();
                let how =
                    format!("hands over from {to} to {freeze} with all that was written{but}, and {how}");
                Undo::WhileCarried { how, loses }
            }
            None => Undo::Lossy { how: format!("opens {freeze} again and {how}"), loses },
        }
    }

    fn may_lose(&self) -> Option<Tells> {
        Some(state::may_lose)
    }

    fn is_whole(&self) -> Option<Tells> {
        Some(state::is_whole)
    }

    async fn count_loss(&self, cx: &Context) -> Result<Option<Counted>> {
        match (&self.freeze, &self.to) {
            (Some(_), Some(_)) => Ok(Some(lost::count(self, cx).await?.told())),
            _ => Ok(None),
        }
    }

    fn exports_loss(&self) -> bool {
        self.freeze.is_some() && self.to.is_some()
    }

    fn does_without(&self) -> Option<&str> {
        self.freeze.as_ref().and(self.to.as_deref())
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        preflight::describe(self, cx).await
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        protocol::run(self, cx).await
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        if !protocol::is_decided(self, cx).await? {
            return Err(
                Error::data("the cutover has not been decided").hint("continue with `handover resume`")
            );
        }
        if let Some(freeze) = &self.freeze {
            freeze::assert_refusing(&cx.reader(freeze).await?, cx, self).await?;
        }
        let actions = Actions::new(cx);
        for participant in &self.participants {
            participant.verify(cx, &actions).await?;
        }
        match (&self.freeze, stillness::look(self, cx).await?) {
            (Some(freeze), Some(look)) => look.assert_still(freeze),
            _ => Ok(()),
        }
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        turn_back::run(self, cx).await
    }

    async fn finish(&self, cx: &Context) -> Result<()> {
        // The old side stays closed: a late writer must not believe that it still counts.
        reverse::discard_or_tell(self, cx).await?;
        freeze::clear(cx, self.to.as_ref().filter(|_| self.reverse.is_some())).await;
        if let Some(words) = stillness::written(self, cx).await {
            cx.warn(words);
        }
        let actions = Actions::new(cx);
        self.participants.iter().try_for_each(|p| p.forget(cx, &actions))
    }

    fn stands(&self) -> bool {
        self.reverse.is_some()
    }

    async fn stand(&self, cx: &Context) -> Result<()> {
        reverse::stand(self, cx).await
    }
}
