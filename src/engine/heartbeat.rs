//! Keeps the lease while the run lasts, and stops the run when it cannot.

use crate::error::{Class, Error};
use crate::event::RunId;
use crate::journal::Journal;
use crate::postgres::Lease;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Renews `lease` three times in its lifetime until `done` fires. Uses a journal connection of its own, so
/// that a long append cannot delay it. Fires `abort` when somebody asked to abort the run. Returns the journal's
/// failure if that is what cost the lease.
pub async fn beat(
    journal: Arc<Journal>,
    lease: Lease,
    run: RunId,
    ttl: Duration,
    done: CancellationToken,
    abort: CancellationToken,
) -> Option<Error> {
    loop {
        tokio::select! {
            () = done.cancelled() => return None,
            () = tokio::time::sleep(ttl / 3) => {}
        }
        let asked_at = Instant::now();
        match journal.renew(lease.plan(), lease.token(), ttl).await {
            Ok(true) => lease.renewed(asked_at, ttl),
            Ok(false) => {
                lease.lose();
                return None;
            }
            // The journal has been patient already; whether the lease still holds is decided by the clock.
            Err(e) if lease.assert_held().is_err() => return Some(e.with_class(Class::Journal)),
            Err(_) => continue,
        }
        if let Ok(requests) = journal.requests(run).await
            && requests.iter().any(|r| r.kind == "abort")
        {
            abort.cancel();
        }
    }
}
