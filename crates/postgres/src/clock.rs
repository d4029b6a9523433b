//! A clock for leases: monotonic, and running on while the machine is suspended.

use std::time::{Duration, Instant};

/// A moment by that clock. The standard library's `Instant` stands still on Linux while a laptop or virtual
/// machine is suspended, so a lease measured with it would look valid on waking although others saw it end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        Moment(since_boot())
    }

    /// The moment `time` later.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        Moment(self.0.saturating_add(time))
    }
}

/// Exact unless the machine was suspended since.
impl From<Instant> for Moment {
    fn from(instant: Instant) -> Self {
        Moment(since_boot().saturating_sub(instant.elapsed()))
    }
}

#[cfg(target_os = "linux")]
fn since_boot() -> Duration {
    use nix::time::{ClockId, clock_gettime};
    // The clock exists since Linux 2.6.39; a failure would read as the distant future, and no lease would hold.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from)
}

#[cfg(not(target_os = "linux"))]
fn since_boot() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    // Far from zero, so that instants before the first call are representable.
    Duration::from_secs(1 << 32) + START.get_or_init(Instant::now).elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes() {
        let before = Instant::now();
        let now = Moment::now();
        assert!(Moment::from(before) <= Moment::now());
        assert!(now.after(Duration::from_secs(60)) > Moment::now());
    }
}
