//! Trying again for locks that others hold.

use crate::Port;
use handover_core::{Class, Error, Result};
use std::time::{Duration, Instant};

/// How long it is tried for.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest rest between two attempts.
const LONGEST_REST: Duration = Duration::from_secs(5);

/// One act that waits for its turn. Each attempt is short, since all traffic on a table queues behind it; between
/// two of them whoever queued passes.
pub struct Turns {
    what: &'static str,
    begun: Instant,
    rest: Duration,
}

impl Turns {
    /// `what`, as it stands before the error: "creating the triggers".
    #[must_use]
    pub fn new(what: &'static str) -> Self {
        Turns { what, begun: Instant::now(), rest: Duration::from_millis(200) }
    }

    /// Rests after an attempt that found somebody in the way.
    ///
    /// # Errors
    /// The error itself where another attempt cannot help, or a minute has passed; a stop that was asked for.
    pub async fn again(&mut self, port: &Port, error: Error) -> Result<()> {
        if error.class() != Class::Contention || self.begun.elapsed() > PATIENCE {
            return Err(error.context(self.what));
        }
        port.warn(format!("{} waits: {}", self.what, error.message()));
        port.sleep(self.rest).await?;
        self.rest = (self.rest * 2).min(LONGEST_REST);
        port.proceed()
    }
}
