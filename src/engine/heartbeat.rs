//! Keeps the lease while the run lasts, and stops the run when it cannot.

use crate::error::{Class, Error};
use crate::event::RunId;
use crate::journal::Journal;
use crate::postgres::Lease;
use crate::postgres::clock::Moment;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// The longest time between two looks at the clock. A timer does not run while a machine is suspended; the
/// clock of the lease does.
const LOOK: Duration = Duration::from_millis(250);

/// How long the journal has to say why a lease ended.
const LAST_WORD: Duration = Duration::from_secs(1);

/// How often it is asked whether somebody wants the run aborted: before a cutover's decision every second counts.
const LISTEN: Duration = Duration::from_millis(500);

/// The rest after a renewal that failed.
const AGAIN: Duration = Duration::from_millis(100);

/// How long one renewal may take before it is tried over a new connection: several fit into a lifetime, for a
/// connection that has gone silent is told from a slow one only by waiting.
#[must_use]
pub fn patience(ttl: Duration) -> Duration {
    (ttl / 6).clamp(Duration::from_millis(500), Duration::from_secs(5))
}

/// Renews `lease` until `done` fires, and ends it for this process the moment it is no longer known to be
/// ours, whatever a renewal under way is waiting for. Fires `abort` when somebody asked to abort the run.
/// Returns the journal's failure if that is what cost the lease.
///
/// It uses a journal connection of its own, so that a long append cannot delay it.
pub async fn beat(
    journal: Arc<Journal>,
    lease: Lease,
    run: RunId,
    ttl: Duration,
    done: CancellationToken,
    abort: CancellationToken,
) -> Option<Error> {
    tokio::select! {
        () = done.cancelled() => return None,
        () = watch(&lease) => {}
        () = renew(&journal, &lease, run, ttl, &abort) => return None,
    }
    // It ran out by our clock. Either this process slept, or the journal is silent, which is another matter.
    match tokio::time::timeout(LAST_WORD, journal.lease(lease.plan())).await {
        Ok(Ok(_)) => None,
        _ => Some(
            Error::new(
                Class::Journal,
                "the journal cannot be written or read: no answer for as long as the lease lasted",
            )
            .on_database("control")
            .hint("every database keeps serving; bring the control database back, then `handover resume`"),
        ),
    }
}

/// Returns when the lease has run out by this host's clock, having told everybody.
async fn watch(lease: &Lease) {
    while lease.assert_held().is_ok() {
        tokio::time::sleep(LOOK).await;
    }
}

/// Renews ten times in a lifetime, so that the journal may be away for nearly all of it, and listens more often; returns
/// when somebody else has the lease.
async fn renew(journal: &Journal, lease: &Lease, run: RunId, ttl: Duration, abort: &CancellationToken) {
    let mut due = Instant::now() + ttl / 10;
    loop {
        tokio::time::sleep(due.saturating_duration_since(Instant::now()).min(LISTEN)).await;
        if Instant::now() >= due {
            let asked_at = Moment::now();
            match journal.renew(lease.plan(), lease.token(), ttl).await {
                Ok(true) => lease.renewed(asked_at, ttl),
                Ok(false) => return lease.lose(),
                // Again at once: whether the lease still holds is decided by the clock.
                Err(_) => {
                    due = Instant::now() + AGAIN;
                    continue;
                }
            }
            due = Instant::now() + ttl / 10;
        }
        if abort.is_cancelled() {
            continue;
        }
        // A request made of an earlier runner was answered by it, and must not end what came after.
        if let Ok(Some(row)) = journal.lease(lease.plan()).await
            && let Ok(requests) = journal.requests(run).await
            && requests.iter().any(|r| r.kind == "abort" && r.at >= row.since)
        {
            abort.cancel();
        }
    }
}
