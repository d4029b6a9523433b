//! All gates before the pause, in their order: the window, queries that must survive, the preflight, a person's word, and
//! all of it again where that took its time. What is proven is proven for the moment in which the last of them opened.

use super::approval;
use super::book::Book;
use super::invariants;
use super::options::Cutover;
use super::preflight::{self, Proof};
use super::window::Watch;
use crate::error::Result;
use crate::failpoint;
use crate::steps::Context;

/// The gates of one step, while that runs.
pub struct Gates<'a> {
    /// When the pause may begin.
    pub window: Watch<'a>,
}

impl<'a> Gates<'a> {
    /// Those of a plan.
    #[must_use]
    pub fn new(cutover: &'a Cutover) -> Self {
        Gates { window: Watch::new(cutover.window.as_ref(), cutover.freeze.as_deref()) }
    }
}

/// Waits until all of them are open at once. Nothing is held meanwhile.
///
/// # Errors
/// What no waiting mends, a wait that took too long, or a stop that was asked for.
pub async fn pass(cutover: &Cutover, cx: &Context, book: &Book<'_>, gates: &mut Gates<'_>) -> Result<Proof> {
    loop {
        gates.window.wait(cx).await?;
        invariants::prove(cutover, cx).await?;
        let proof = preflight::ready(cutover, cx, book).await?;
        if approval::obtain(cutover.approve.as_ref(), cx).await? {
            continue;
        }
        if gates.window.is_open(cx).await? {
            failpoint::at(failpoint::GATE_PASSED)?;
            return Ok(proof);
        }
    }
}
