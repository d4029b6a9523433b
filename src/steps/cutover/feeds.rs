//! What brings the old side's rows and writes to the new one: copies, captures that are replayed, a replication.

use super::options::Cutover;
use crate::error::Result;
use crate::event::StepId;
use crate::postgres::{Session, TableName};
use crate::steps::Context;
use crate::steps::replicate;
use handover_copy::Copy;
use handover_events::Stream;
use handover_replication::Link;
use std::collections::BTreeSet;

/// The name of a cutover's marks in a replication's stream.
pub const MARK: &str = "cutover";

/// The copies from the side that is frozen to the one that takes over.
pub fn copies<'a>(cutover: &'a Cutover, cx: &'a Context) -> impl Iterator<Item = (&'a StepId, &'a Copy)> {
    cx.links.copies.before(cx.place()).filter(|(_, copy)| {
        Some(&copy.from) == cutover.freeze.as_ref() && Some(&copy.to) == cutover.to.as_ref()
    })
}

/// The replication from the side that is frozen to the one that takes over.
pub fn link(cutover: &Cutover, cx: &Context) -> Option<Link> {
    replicate::between(cx, cutover.freeze.as_deref()?, cutover.to.as_deref()?)
}

/// The tables that a replication carries to the new side.
pub async fn replicated(cutover: &Cutover, cx: &Context, blue: &Session) -> Result<BTreeSet<TableName>> {
    let (Some(from), Some(to)) = (&cutover.freeze, &cutover.to) else { return Ok(BTreeSet::new()) };
    match replicate::between(cx, from, to) {
        Some(link) => replicate::published(cx, blue, &link).await,
        None => Ok(BTreeSet::new()),
    }
}

/// The captures on the frozen side whose replay tails into the new one.
pub fn replayed<'a>(cutover: &'a Cutover, cx: &'a Context) -> impl Iterator<Item = &'a StepId> {
    let place = cx.place();
    cx.links
        .captures
        .before(place)
        .filter(move |(id, capture)| {
            Some(&capture.from) == cutover.freeze.as_ref() && cx.links.is_replayed(place, id)
        })
        .map(|(id, _)| id)
}

/// Their streams.
pub async fn streams(cutover: &Cutover, cx: &Context, blue: &Session) -> Result<Vec<Stream>> {
    let mut streams = Vec::new();
    for step in replayed(cutover, cx) {
        streams.push(Stream::get(blue, cx.run, step).await?);
    }
    Ok(streams)
}
