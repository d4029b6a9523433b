//! Waiting while the database or its replicas are too busy for another batch.

use handover_core::error::Result;
use handover_core::value::Duration;
use handover_port::Port;
use handover_postgres::Session;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When to wait between batches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Throttle {
    /// Wait while more client sessions than this execute something in the database; ours do not count.
    pub max_active_sessions: Option<u32>,
    /// Wait while a replica (a standby or a logical subscriber) is further behind than this.
    pub max_replica_lag: Option<Duration>,
}

impl Throttle {
    /// Returns once the limits hold; says when it begins and ends to wait.
    pub(crate) async fn wait(&self, cx: &Port, session: &Session) -> Result<()> {
        let mut waited: Option<std::time::Instant> = None;
        while let Some(reason) = self.exceeded(session).await? {
            cx.proceed()?;
            if waited.is_none() {
                cx.note(format!("throttled: {reason}"));
                waited = Some(std::time::Instant::now());
            }
            cx.sleep(std::time::Duration::from_millis(250)).await?;
        }
        if let Some(since) = waited {
            cx.note(format!("going on after {} s of throttling", since.elapsed().as_secs()));
        }
        Ok(())
    }

    /// What is over its limit.
    async fn exceeded(&self, session: &Session) -> Result<Option<String>> {
        if let Some(limit) = self.max_active_sessions {
            let n: i64 = session
                .query_one(
                    "select count(*) from pg_stat_activity
                     where datname = current_database() and backend_type = 'client backend' and state = 'active'
                       and application_name not like 'handover/%'",
                    &[],
                )
                .await?
                .get(0);
            if n > i64::from(limit) {
                return Ok(Some(format!("{n} sessions are active, the limit is {limit}")));
            }
        }
        if let Some(limit) = self.max_replica_lag {
            // replay_lag keeps its last value when a replica falls silent, so the age of its last word counts
            // too while it has something left to replay.
            // (https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-REPLICATION-VIEW)
            let row = session
                .query_opt(
                    "select application_name, lag from (
                         select application_name, extract(epoch from greatest(replay_lag,
                             case when replay_lsn < pg_current_wal_lsn() then clock_timestamp() - reply_time end
                         ))::float8 as lag
                         from pg_stat_replication where state in ('streaming', 'catchup')) r
                     where lag > $1 order by lag desc limit 1",
                    &[&limit.0.as_secs_f64()],
                )
                .await?;
            if let Some(row) = row {
                let (name, lag): (String, f64) = (row.get(0), row.get(1));
                return Ok(Some(format!("replica {name} is {lag:.1} s behind, the limit is {limit}")));
            }
        }
        Ok(None)
    }
}
