//! A commit that waits for a synchronous standby while it holds locks.
//!
//! With `synchronous_standby_names`, a commit waits for the standby's word before it lets go of its locks, and has no
//! limit: when the standby goes away in that moment, whoever wants the locks waits until somebody mends it. What is
//! committed is written here by then, and can be taken back no more. So after a while the wait, and only the wait, is
//! cancelled, as the documentation says an administrator may: the locks are free, the commit counts, and the standby may
//! lack it. Who asked is told.
//!
//! The cancel is the protocol's own request. It takes no session, of which there may be none left when everybody waits for
//! us, and asks for no rights. What a commit does before it is written, such as deferred constraints, is done before
//! ([`super::session::Tx::commit_within`]): a cancel that meets it would fail the commit.
//! (<https://www.postgresql.org/docs/current/warm-standby.html#SYNCHRONOUS-REPLICATION-HA>,
//! <https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-CANCELING-REQUESTS>)

use super::address::Address;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::CancelToken;

/// How long a commit may hold locks that the application may want.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Whom to tell, in words.
pub type Told = Arc<dyn Fn(String) + Send + Sync>;

/// What ends the wait of a backend.
#[derive(Clone)]
pub(super) struct Watch {
    /// Where the backend is.
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
    /// Waits for the commit of the backend of `token`; whether it came back within `limit`.
    pub async fn over<T>(
        &self,
        commit: impl Future<Output = T>,
        token: &CancelToken,
        limit: Duration,
    ) -> (T, bool) {
        let mut commit = std::pin::pin!(commit);
        if let Ok(result) = tokio::time::timeout(limit, &mut commit).await {
            return (result, true);
        }
        loop {
            // Waited for to its end: it must not reach what the session does next.
            let cancel = token.cancel_query(self.address.connector());
            let _ = tokio::time::timeout(PATIENCE, cancel).await;
            if let Ok(result) = tokio::time::timeout(Duration::from_millis(500), &mut commit).await {
                if let Some(told) = &self.told {
                    told(format!(
                        "a commit on {} took longer than {limit:?}; if a synchronous standby has not confirmed it, that one may lack it, and must not take over before it follows again (`select * from pg_stat_replication`)",
                        self.database
                    ));
                }
                return (result, false);
            }
        }
    }
}
