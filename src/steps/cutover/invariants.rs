//! Queries whose answers must survive the flip: slow ones before the pause, while both sides are written, and quick ones
//! within it, when nothing moves and any difference is one.

use super::feeds;
use super::gates::Survives;
use super::options::Cutover;
use crate::error::Result;
use crate::failpoint;
use crate::steps::Context;
use crate::value::Duration;
use handover_compare::{Before, Given, Invariant, Quick, Retries, Verify};
use std::time::Duration as Time;

/// How long a new side that follows the old one may take to show the same.
const FOLLOWS: Duration = Duration::secs(60);

/// As a `verify` step between both sides would ask them; none where there are none of that sort, or no two sides.
pub fn as_step(cutover: &Cutover, quick: bool) -> Option<Verify> {
    let invariants = chosen(&cutover.invariants, quick);
    let (Some(freeze), Some(to), false) = (&cutover.freeze, &cutover.to, invariants.is_empty()) else {
        return None;
    };
    Some(Verify {
        before: Before::Database(freeze.clone()),
        after: Some(to.clone()),
        record: false,
        row_counts: None,
        checksums: None,
        invariants,
        retries: None,
        statement_timeout: None,
        jobs: None,
    })
}

fn chosen(all: &[Survives], quick: bool) -> Vec<Invariant> {
    all.iter().filter(|one| one.quick == quick).map(Survives::invariant).collect()
}

/// Proves the slow ones. Where changes are carried over, it is looked again until they have arrived.
///
/// # Errors
/// What differs, or what a server says.
pub async fn prove(cutover: &Cutover, cx: &Context) -> Result<()> {
    for quick in [false, true] {
        let Some(mut verify) = as_step(cutover, quick) else { continue };
        verify.bound(cx).await?;
        if quick {
            continue;
        }
        let follows = feeds::link(cutover, cx).is_some() || feeds::captures(cutover, cx).next().is_some();
        verify.retries = follows
            .then(|| Retries { within: FOLLOWS.min(cutover.patience), every: Some(Duration::millis(500)) });
        verify.stoppable(cx, verify.compare(cx, Given::default(), None)).await?;
        failpoint::at(failpoint::GATE_INVARIANTS_HELD)?;
    }
    Ok(())
}

/// Those for the pause, with both sides open; none where there are none.
///
/// # Errors
/// No connection.
pub async fn open(cutover: &Cutover, cx: &Context) -> Result<Option<Quick>> {
    let Some(verify) = as_step(cutover, true) else { return Ok(None) };
    let (Some(freeze), Some(to)) = (&cutover.freeze, &cutover.to) else { return Ok(None) };
    Quick::open(cx, (freeze, to), verify.invariants, cutover.write_pause.0).await.map(Some)
}

/// Proves them. Writers are held off.
///
/// # Errors
/// What differs, or what a server says.
pub async fn prove_in_pause(quick: Option<&Quick>) -> Result<()> {
    let Some(quick) = quick else { return Ok(()) };
    quick.compare().await.map_err(|e| e.context("in the pause"))?;
    failpoint::at(failpoint::GATE_QUICK_HELD)
}

/// How long those for the pause take; none where there are none.
///
/// # Errors
/// What a server says.
pub async fn rehearse(cutover: &Cutover, cx: &Context) -> Result<Option<(usize, Time)>> {
    match open(cutover, cx).await? {
        Some(quick) => Ok(Some((chosen(&cutover.invariants, true).len(), quick.rehearse().await?))),
        None => Ok(None),
    }
}
