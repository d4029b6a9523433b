//! The end of a replication: in good order after a cutover, or before its time.

use super::{ENDED, Link, origin};
use crate::error::{Class, Error, Result};
use crate::failpoint;
use crate::steps::Context;

/// Ends it for good after the decision of a cutover, by the step that `cx` is of.
///
/// # Errors
/// The lease or the journal. What a server says is only told: `finish` takes away what is left.
pub async fn end(cx: &Context, link: &Link) -> Result<()> {
    cx.ledger.end_standing(&link.step, &cx.step).await?;
    match origin::discard(cx, link).await {
        Ok(()) => {}
        Err(e) if matches!(e.class(), Class::LeaseLost | Class::Journal) => return Err(e),
        Err(e) => cx.warn(format!(
            "the decision stands, but the replication could not be taken away ({e}); `handover finish` does it"
        )),
    }
    failpoint::at(failpoint::REPLICATE_ENDED)?;
    Ok(())
}

/// Ends it before its time, and remembers why.
pub(super) async fn give_up(cx: &Context, link: &Link, reason: String) -> Result<Error> {
    cx.ledger.remember(&link.step, ENDED, reason.clone().into()).await?;
    origin::discard(cx, link).await?;
    Ok(over(link, &reason))
}

/// The error of a replication that cannot go on.
pub(super) fn over(link: &Link, reason: &str) -> Error {
    Error::new(Class::Resources, format!("the replication from {} to {} is over: {reason}", link.from, link.to))
        .on_database(&link.from)
        .hint("what was not replicated until then is only on the old side, which serves on: `handover rollback` to before the copy, mend the cause, and run again")
}
