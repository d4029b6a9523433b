//! The end of a replication: in good order after a cutover, or before its time.

use crate::link::Link;
use crate::origin::{self, Leave};
use handover_core::error::{Class, Error, Result};
use handover_core::failpoint;
use handover_port::Port;

/// Why replication was ended before its time, in the journal.
pub const ENDED: &str = "ended";

/// Ends it after the decision of a cutover. Whoever watches it must have stopped.
///
/// # Errors
/// The lease or the journal. What a server says is only told, `finish` takes away what is left; but where it is to begin
/// again, what goes the other way must not begin before it has ended, so there it is an error.
pub async fn end(port: &Port, link: &Link, leave: Leave) -> Result<()> {
    match origin::take_away(port, link, leave).await {
        Ok(()) => {}
        Err(e) if matches!(e.class(), Class::LeaseLost | Class::Journal) => return Err(e),
        Err(e) if leave == Leave::Publication => {
            return Err(e.context("the decision stands, but the stream to the new side could not be ended"));
        }
        Err(e) => port.warn(format!(
            "the decision stands, but the replication could not be taken away ({e}); `handover finish` does it"
        )),
    }
    failpoint::at(failpoint::REPLICATE_ENDED)?;
    Ok(())
}

/// Ends it before its time, and remembers why.
pub async fn give_up(port: &Port, link: &Link, reason: String) -> Result<Error> {
    port.memory.remember(&link.step, ENDED, reason.clone().into()).await?;
    origin::discard(port, link).await?;
    Ok(link.over(&reason))
}
