//! What brings the old side's rows and writes to the new one: copies, captures that are replayed, a replication.

use super::options::Cutover;
use crate::error::Result;
use crate::event::StepId;
use crate::postgres::{Session, TableName};
use crate::steps::Context;
use crate::steps::replicate;
use handover_copy::Copy;
use handover_events::Stream;
use handover_events::capture::Capture;
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

/// The captures on the side that is frozen.
pub fn captures<'a>(
    cutover: &'a Cutover,
    cx: &'a Context,
) -> impl Iterator<Item = (&'a StepId, &'a Capture)> {
    captures_on(cutover.freeze.as_ref(), cx)
}

/// The captures on a side.
pub fn captures_on<'a>(
    side: Option<&'a String>,
    cx: &'a Context,
) -> impl Iterator<Item = (&'a StepId, &'a Capture)> {
    cx.links.captures.before(cx.place()).filter(move |(_, capture)| Some(&capture.from) == side)
}

/// The tables of which they capture something.
pub fn captured<'a>(cutover: &'a Cutover, cx: &'a Context) -> BTreeSet<&'a TableName> {
    captures(cutover, cx).flat_map(|(_, capture)| capture.tables.keys()).collect()
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

/// Those captures whose replay tails into the new side.
pub fn replayed<'a>(cutover: &'a Cutover, cx: &'a Context) -> impl Iterator<Item = &'a StepId> {
    let place = cx.place();
    captures(cutover, cx).map(|(id, _)| id).filter(move |id| cx.links.is_replayed(place, id))
}

/// Their streams.
pub async fn streams(cutover: &Cutover, cx: &Context, blue: &Session) -> Result<Vec<Stream>> {
    let mut streams = Vec::new();
    for step in replayed(cutover, cx) {
        streams.push(Stream::get(blue, cx.run, step).await?);
    }
    Ok(streams)
}
