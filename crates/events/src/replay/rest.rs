//! Resting between attempts.

use handover_core::{Class, Error, Result};
use handover_port::Port;
use std::time::{Duration, Instant};

/// How often a statement may be ended by a timeout or a cancel, one after the other, before replay gives up.
const CUT_SHORT: u32 = 5;
/// The pause after a failure that passes, doubling.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Rests after failures that pass, longer and longer.
pub struct Rest<'a> {
    port: &'a Port,
    begun: Instant,
    next: Duration,
    cut_short: u32,
}

impl<'a> Rest<'a> {
    /// For the step behind `port`.
    pub fn new(port: &'a Port) -> Self {
        Rest { port, begun: Instant::now(), next: BACKOFF.0, cut_short: 0 }
    }

    /// Rests, or gives the error back if resting does not help.
    pub async fn after(&mut self, error: Error) -> Result<()> {
        // What worked for a while earns a fresh backoff.
        if self.begun.elapsed() > BACKOFF.1 {
            self.next = BACKOFF.0;
            self.cut_short = 0;
        }
        // A statement that was ended from outside may work the next time; what always ends it is for people.
        let cut_short = error.class() == Class::Timeout && self.cut_short < CUT_SHORT;
        if !error.class().is_transient() && !cut_short {
            return Err(error);
        }
        self.cut_short += u32::from(cut_short);
        // Somebody else's progress is no news.
        if error.class() != Class::Contention {
            self.port.standing(format!("replay waits: {error}"), None);
        }
        self.port.sleep(self.next).await?;
        self.next = (self.next * 2).min(BACKOFF.1);
        self.begun = Instant::now();
        Ok(())
    }
}
