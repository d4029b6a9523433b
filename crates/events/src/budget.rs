//! How many bytes of events may be on their way through this process at once.
//!
//! Events carry whole rows, so counting them bounds nothing. Three things do: an event above [`INLINE`] is not put into
//! the queue at all, only a note of it, and replay reads it from the outbox, which keeps it until the new side holds its
//! mark; so a prefetch by count is one by bytes. The relay reads at most [`RELAY`] at once, of all partitions together.
//! And whoever applies events takes permits for their bytes first; an event larger than all permits passes alone.

use tokio::sync::{Semaphore, SemaphorePermit};

/// The largest event that travels through the queue, in bytes. Small enough that a prefetch of hundreds is a few MB.
pub const INLINE: usize = 16 << 10;
/// What the relay reads, publishes and has confirmed at once, in bytes.
pub const RELAY: usize = 8 << 20;
/// What all consumers of the process may hold unapplied, in bytes.
const WINDOWS: usize = 24 << 20;
/// What may be in the hands of all that apply, in bytes.
const APPLY: usize = 12 << 20;
/// What one transaction of replay applies, in bytes, unless a single event is larger.
pub const BATCH: usize = 4 << 20;
/// A permit's worth.
const UNIT: usize = 1 << 10;

static PERMITS: Semaphore = Semaphore::const_new(APPLY / UNIT);

/// Waits until so many bytes may be in our hands; they may until the permit is dropped. Never hold one while waiting
/// for the queue or for another partition.
pub async fn take(bytes: usize) -> Option<SemaphorePermit<'static>> {
    let units = bytes.div_ceil(UNIT).clamp(1, APPLY / UNIT);
    // An error means that the semaphore was closed, which nobody does.
    PERMITS.acquire_many(u32::try_from(units).unwrap_or(u32::MAX)).await.ok()
}

/// How many messages a consumer may hold that would like to have `wanted`, where `partitions` of them share the budget.
#[must_use]
pub fn prefetch(wanted: usize, partitions: usize) -> u16 {
    let fair = WINDOWS / INLINE / partitions.max(1);
    u16::try_from(wanted.min(fair).max(2)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefetch_is_a_bound_on_bytes() {
        for partitions in [1, 4, 7, 64, 256, 512] {
            let held = usize::from(prefetch(20_000, partitions)) * partitions * INLINE;
            assert!(held <= WINDOWS, "{partitions}: {held}");
        }
        assert_eq!(prefetch(100, 1), 100);
    }

    #[tokio::test]
    async fn what_is_larger_than_everything_passes_alone() {
        let all = take(APPLY * 10).await.unwrap();
        assert_eq!(PERMITS.available_permits(), 0);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(20), take(1)).await.is_err());
        drop(all);
        drop(take(1).await.unwrap());
    }
}
