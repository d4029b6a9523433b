//! A commit that waits for a synchronous standby while it holds locks.
//!
//! With `synchronous_standby_names`, a commit waits for the standby's word before it lets go of its locks, and has no
//! limit: when the standby goes away in that moment, whoever wants the locks waits until somebody mends it. What is
//! committed is written here by then, and can be taken back no more. So after a while the wait, and only the wait, is
//! cancelled, as the documentation says an administrator may: the locks are free, the commit counts, and the standby may
//! lack it. Who asked is told.
//! (<https://www.postgresql.org/docs/current/warm-standby.html#SYNCHRONOUS-REPLICATION-HA>)

use super::address::Address;
use std::sync::Arc;
use std::time::Duration;

/// How long a commit may hold locks that the application may want.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Whom to tell, in words.
pub type Told = Arc<dyn Fn(String) + Send + Sync>;

/// What ends the wait of a backend.
#[derive(Clone)]
pub(super) struct Watch {
    /// Where to connect to for it.
    pub address: Address,
    /// The database's name in the plan.
    pub database: String,
    /// Whom to tell.
    pub told: Option<Told>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("database", &self.database).finish_non_exhaustive()
    }
}

impl Watch {
    /// Waits for the commit of the backend `pid`; whether the standby, if there is one, has confirmed it.
    pub async fn over<T>(&self, commit: impl Future<Output = T>, pid: i32, limit: Duration) -> (T, bool) {
        let mut commit = std::pin::pin!(commit);
        let mut confirmed = true;
        let mut wait = limit;
        loop {
            match tokio::time::timeout(wait, &mut commit).await {
                Ok(result) => return (result, confirmed),
                Err(_) => wait = Duration::from_millis(500),
            }
            // A slow disk, or constraints that are checked at the end, are none of this.
            // Waited for to its end: it must not reach what the session does next.
            let ended = tokio::time::timeout(PATIENCE, self.end(pid)).await.unwrap_or(false);
            if ended
                && std::mem::take(&mut confirmed)
                && let Some(told) = &self.told
            {
                told(format!(
                    "{} committed, and its synchronous standby had not confirmed that within {limit:?}: should the standby take over now, it may lack it. See that it follows again (`select * from pg_stat_replication`)",
                    self.database
                ));
            }
        }
    }

    /// Ends the wait of a backend if it is one for a standby.
    async fn end(&self, pid: i32) -> bool {
        let Ok((client, wire)) = self.address.dial().await else { return false };
        let wire = tokio::spawn(wire);
        let ended = client
            .query_opt(
                "select pg_catalog.pg_cancel_backend(pid) from pg_catalog.pg_stat_activity
                 where pid operator(pg_catalog.=) $1 and wait_event operator(pg_catalog.=) 'SyncRep'",
                &[&pid],
            )
            .await;
        drop(client);
        wire.abort();
        matches!(ended, Ok(Some(row)) if row.get::<_, bool>(0))
    }
}
