//! Whether the queue lost events, or is late.

use std::time::{Duration, Instant};

/// How long a gap may last before the missing events are asked for: a relay that repeats a batch closes it itself.
const GAP: Duration = Duration::from_secs(1);
/// How long nothing may come, though the queue is known to have something, before it is asked for again. Doubles.
const SILENCE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(60));

/// Tells a loss in the queue from a delay.
pub struct Loss {
    gap_since: Option<Instant>,
    last_came: Instant,
    asked_at: Option<Instant>,
    patience: Duration,
}

impl Loss {
    /// Nothing came yet, and nothing was asked for.
    pub fn new() -> Self {
        Loss { gap_since: None, last_came: Instant::now(), asked_at: None, patience: SILENCE.0 }
    }

    /// The next event came.
    pub fn recovered(&mut self) {
        *self = Loss::new();
    }

    /// Whether events were asked for and the next one has not come.
    pub fn asked(&self) -> bool {
        self.asked_at.is_some()
    }

    /// Whether it is time to ask for events again.
    pub fn is_near(&mut self, gap: bool, full: bool, came: bool, expects: impl Fn() -> bool) -> bool {
        let now = Instant::now();
        if came {
            self.last_came = now;
        }
        let since = if gap { Some(*self.gap_since.get_or_insert(now)) } else { None };
        self.gap_since = since;
        let ask = match self.asked_at {
            // Asked before: what was asked for comes last, after all that is in the queue.
            Some(at) => now - at > self.patience && now - self.last_came > SILENCE.0 && expects(),
            None => {
                full && gap
                    || since.is_some_and(|since| now - since > GAP)
                    || !gap && now - self.last_came > self.patience && expects()
            }
        };
        if ask {
            if self.asked_at.is_some() {
                self.patience = (self.patience * 2).min(SILENCE.1);
            }
            self.asked_at = Some(now);
            self.last_came = now;
        }
        ask
    }
}
