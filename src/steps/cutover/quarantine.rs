//! What was captured and set aside is not on the new side: a token that was revoked would be honoured there. So the
//! cutover refuses while there is any, before the pause and again behind the lock, unless the plan says how many may be.

use super::feeds;
use super::options::Cutover;
use crate::error::{Class, Error, Result};
use crate::postgres::ours::OURS;
use crate::postgres::{Session, quote_literal};
use crate::problem::few;
use crate::steps::Context;
use handover_events::{Stream, quarantine};

/// Refuses while too much is set aside.
///
/// # Errors
/// That, or what the server says.
pub async fn refuse(cutover: &Cutover, green: &Session, streams: &[Stream]) -> Result<()> {
    let limit = cutover.allow_quarantined.limit();
    if limit == i64::MAX || streams.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = streams.iter().map(|stream| stream.name.as_str()).collect();
    // Behind the lock: the keys, of which there may be many, are looked at only to be named.
    let (events, _) = quarantine::count_aside(green, &names).await?;
    if events <= limit {
        return Ok(());
    }
    let keys = quarantine::aside(green, &names).await?;
    let which = format!(
        "stream in ({})",
        names.iter().map(|name| quote_literal(name)).collect::<Vec<_>>().join(", ")
    );
    let (s, are) = if events == 1 { ("", "is") } else { ("s", "are") };
    Err(Error::new(
        Class::Invariant,
        format!("{events} captured event{s} {are} set aside and not on {}: {}", green.database(), few(&keys)),
    )
    .on_database(green.database())
    .hint(format!(
        "who serves serves on. See them there: `select number, tbl, key, reason, event from {OURS}.event_quarantine where \
         {which} order by number;` mend the cause, then `update {OURS}.event_quarantine set retry = true where {which};` \
         and `handover resume`: replay tries them again. If they may stay behind, say `allow_quarantined: true` (or how \
         many) under the cutover, and `handover resume --accept-changes`"
    )))
}

/// Whether events are about to be tried again, in words: then it is too early to refuse.
pub async fn pending(
    cutover: &Cutover,
    cx: &Context,
    blue: &Session,
    green: &Session,
) -> Result<Option<String>> {
    pending_of(cutover, green, &feeds::streams(cutover, cx, blue).await?).await
}

/// As [`pending`], of these streams.
///
/// # Errors
/// That too much is set aside, or what the server says.
pub async fn pending_of(cutover: &Cutover, green: &Session, streams: &[Stream]) -> Result<Option<String>> {
    let names: Vec<&str> = streams.iter().map(|stream| stream.name.as_str()).collect();
    let (_, asked) = quarantine::count_aside(green, &names).await?;
    if asked > 0 {
        return Ok(Some(format!("replay is about to try {asked} events again that were set aside")));
    }
    refuse(cutover, green, streams).await.map(|()| None)
}
