//! What an attempt that fails leads to: another one, or the end of the step.

use super::options::Cutover;
use crate::error::{Class, Error, Result};
use crate::postgres::Session;
use crate::steps::Context;

/// What no waiting mends, as an error.
pub fn refusal(session: &Session, text: String) -> Error {
    Error::new(Class::Data, text)
        .on_database(session.database())
        .hint("nothing was paused and who serves serves on; mend it, then `handover resume`")
}

/// Whether what an attempt was called off for may be gone at the next.
pub fn passes(error: &Error) -> bool {
    let class = error.class();
    class.is_transient() || matches!(class, Class::Timeout | Class::External)
}

/// The error of the last attempt.
pub fn spent(error: Error, number: u32, cutover: &Cutover) -> Error {
    // Its own attempts are spent: another five times as many pauses would help nobody.
    error.context(format!("attempt {number} of {} was called off", cutover.attempts)).exhausted()
}

/// Waits for the next attempt, if there is one.
///
/// # Errors
/// That of the last attempt, or a run that is asked to stop.
pub async fn again(cutover: &Cutover, cx: &Context, number: u32, error: Error, serves: &str) -> Result<()> {
    if number >= cutover.attempts {
        return Err(spent(error, number, cutover));
    }
    cx.warn(format!("attempt {number} was called off, {serves}: {error}; next in {}", cutover.backoff));
    cx.sleep(cutover.backoff.0).await
}

/// What an attempt whose pause takes too long ends with.
pub fn over_budget(cutover: &Cutover) -> Error {
    Error::new(
        Class::Timeout,
        format!("the pause would have been longer than its budget of {}", cutover.write_pause),
    )
    .hint("raise `write_pause`, or look at what was slow: replay's backlog, or a lock")
}
