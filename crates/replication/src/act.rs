//! What the step that replicates does, with a link that is its own.

use crate::end::ENDED;
use crate::link::Link;
use crate::options::Replicate;
use crate::subscription::Begin;
use crate::watch::{Gauge, catch_up};
use crate::{origin, preflight, subscription};
use handover_copy::Copy;
use handover_core::error::{Class, Error, Result};
use handover_core::failpoint;
use handover_port::{Description, Port};
use serde::Serialize;
use std::time::{Duration, Instant};

/// What was done, for its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// What slot, publication and subscription are called.
    pub name: String,
    /// After how many seconds changes arrived in time.
    pub caught_up_after_s: u64,
    /// Bytes of log that the subscriber lacked then.
    pub bytes_behind: u64,
    /// Bytes of log that the slot kept then.
    pub bytes_held: u64,
}

/// Says what would be done to what `copy` copies.
///
/// # Errors
/// What a server says.
pub async fn describe(replicate: &Replicate, port: &Port, copy: &Copy) -> Result<Description> {
    let (blue, green) = (port.reader(&replicate.from).await?, port.reader(&replicate.to).await?);
    let mut out = Description::default();
    let tables = preflight::look(replicate, copy, &port.databases, &blue, &green, &mut out).await?;
    let link = Link::new(port.run, &port.step, replicate);
    origin::describe(port, copy, &link, &blue, &mut out).await?;
    out.action(format!(
        "before the copy: publish {} tables of {}, and make a replication slot, which waits up to {} for transactions that write; the copy reads from the slot's snapshot",
        tables.len(),
        replicate.from,
        replicate.patience
    ));
    out.action(format!(
        "subscribe {} to them, and wait until changes arrive within {}; from then on the servers keep in step by themselves",
        replicate.to, replicate.max_lag
    ));
    out.warning(format!(
        "{} keeps in its catalog pg_subscription how it reaches {}, with the password; superusers can read it",
        replicate.to, replicate.from
    ));
    Ok(out)
}

/// Subscribes, and waits until changes arrive in time. The slot must be there: the copy made it.
///
/// # Errors
/// What a server says, a replication that is over, or a run that is asked to stop.
pub async fn run(replicate: &Replicate, port: &Port, link: &Link) -> Result<Summary> {
    if let Some(reason) = port.recall::<String>(ENDED)? {
        return Err(link.over(&reason));
    }
    origin::assert_there(port, link).await?;
    let made = subscription::create(port, replicate, link, Begin::Now).await?;
    if made {
        failpoint::at(failpoint::REPLICATE_SUBSCRIBED)?;
        port.note(format!("{} follows {} as subscription {}", replicate.to, replicate.from, link.name));
    }
    let begun = Instant::now();
    let sample = catch_up(replicate, port, link).await?;
    failpoint::at(failpoint::REPLICATE_CAUGHT_UP)?;
    Ok(Summary {
        name: link.name.clone(),
        caught_up_after_s: begun.elapsed().as_secs(),
        bytes_behind: sample.behind(),
        bytes_held: sample.held,
    })
}

/// Proves that a change arrives.
///
/// # Errors
/// One that does not, or what a server says.
pub async fn verify(replicate: &Replicate, port: &Port, link: &Link) -> Result<()> {
    let mut gauge = Gauge::open(port, link).await?;
    let patience = replicate.max_lag.0.max(Duration::from_secs(5)) * 4;
    if gauge.mark(port, "verify", patience).await? {
        return Ok(());
    }
    Err(Error::new(
        Class::Invariant,
        format!("a change on {} did not arrive on {} within {patience:?}", replicate.from, replicate.to),
    )
    .hint("see the servers' logs; then `handover resume`"))
}

/// Takes the replication back, and forgets why it was ended if it was. Whoever watches it must have stopped.
///
/// # Errors
/// See [`discard`](crate::discard).
pub async fn undo(port: &Port, link: &Link) -> Result<()> {
    origin::discard(port, link).await?;
    if port.recall::<String>(ENDED)?.is_some() {
        port.forget(ENDED).await?;
    }
    Ok(())
}
