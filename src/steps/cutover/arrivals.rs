//! Whether what a replication carries arrives soon.

use super::feeds;
use super::forecast::Measured;
use crate::error::Result;
use crate::steps::Context;
use handover_replication::Gauge;
use std::time::Instant;

/// Whether changes arrive too late by replication, in words.
pub async fn late(
    cx: &Context,
    gauge: Option<&mut Gauge>,
    measured: &mut Measured,
) -> Result<Option<String>> {
    let Some(gauge) = gauge else { return Ok(None) };
    let (to, patience) = (gauge.link().to.clone(), gauge.link().max_lag);
    let begun = Instant::now();
    if gauge.mark(cx, feeds::MARK, patience).await? {
        measured.arrived(begun.elapsed());
        return Ok(None);
    }
    let behind = handover_replication::bytes(gauge.behind().await?);
    Ok(Some(format!("a change takes longer than {patience:?} to arrive on {to}, which is {behind} behind")))
}
