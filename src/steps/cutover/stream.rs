//! The streams between the sides of a cutover, and the gates that let them through.

use super::feeds;
use super::gate::Gate;
use super::options::Cutover;
use super::passes::Passes;
use crate::postgres::Lease;
use crate::steps::Context;
use handover_copy::Copy;
use handover_replication::{Leave, Link, Replicate};

/// A stream of a cutover.
pub struct Stream {
    /// As a step of a plan would say it.
    pub replicate: Replicate,
    /// What its parts are called.
    pub link: Link,
    /// Which tables it carries.
    pub copy: Copy,
}

/// The stream back; none where the plan has none that the servers carry.
pub fn stream(cutover: &Cutover, cx: &Context) -> Option<Stream> {
    let (reverse, from, to) = (cutover.reverse.as_ref()?, cutover.to.as_ref()?, cutover.freeze.as_ref()?);
    if reverse.is_replayed() {
        return None;
    }
    let (_, copy) = feeds::copies(cutover, cx).last()?;
    let replicate = Replicate {
        from: from.clone(),
        to: to.clone(),
        connection: reverse.connection.clone(),
        max_lag: reverse.max_lag,
        wal_budget_mb: reverse.wal_budget_mb,
        // Nobody watches it when the run is done: the server's own limit must be there.
        waive_slot_limit: false,
        patience: cutover.patience,
        programs: copy.programs.clone(),
    };
    let mut copy = Copy { from: from.clone(), to: to.clone(), ..copy.clone() };
    copy.without_data.extend(reverse.loses.iter().chain(&cutover.except).cloned());
    Some(Stream { link: Link::back(cx.run, &cx.step, &replicate), replicate, copy })
}

/// The stream forward that the plan's replication is, for when the way back was taken.
pub fn forward(cutover: &Cutover, cx: &Context) -> Option<Stream> {
    let (from, to) = (cutover.freeze.as_deref()?, cutover.to.as_deref()?);
    let (id, replicate) = cx.links.replicated(cx.place(), from, to)?;
    let (_, copy) = feeds::copies(cutover, cx).last()?;
    Some(Stream { replicate: replicate.clone(), link: Link::new(cx.run, id, replicate), copy: copy.clone() })
}

/// The gate of the old side.
pub fn gate(cutover: &Cutover, cx: &Context) -> Gate {
    let subscription = stream(cutover, cx).map(|stream| stream.link.name);
    let replay = cutover.stream_back(cx.run, &cx.step);
    Gate::of(cx).letting(Passes { subscription, replay, sessions: None })
}

/// The gate of the new side, once the way back was taken. The stream forward and our own undo go on there.
pub fn gate_of_successor(cutover: &Cutover, cx: &Context) -> Gate {
    let subscription = forward(cutover, cx).map(|stream| stream.link.name);
    let sessions = Some(Lease::application_prefix(&cx.plan));
    Gate::of(cx).letting(Passes { subscription, replay: None, sessions })
}

/// What is left of the stream forward after the decision: should the way back be taken, it begins again.
pub fn leaves(cutover: &Cutover) -> Leave {
    if cutover.reverse.is_some() { Leave::Publication } else { Leave::Nothing }
}
