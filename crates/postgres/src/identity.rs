//! Which database a connection leads to, whatever its URL says.

use super::session::Session;
use handover_core::error::Result;
use serde::{Deserialize, Serialize};

/// What tells one database from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseIdentity {
    /// Given to a cluster by initdb; copies of the cluster's files (standbys, restored backups) share it.
    pub system_identifier: i64,
    /// The database's name.
    pub database: String,
    /// The database's oid.
    pub oid: u32,
    /// When the server process started, in microseconds since 1970: differs between copies of a cluster, and
    /// changes with each restart, so it is good only for comparing two answers of one moment.
    pub started_us: i64,
    /// Whether it is a standby: it follows a primary, and shows late what happens there.
    #[serde(default)]
    pub standby: bool,
}

impl DatabaseIdentity {
    /// Whether both, asked at about the same time, are one database of one running server.
    #[must_use]
    pub fn is_same_database(&self, other: &Self) -> bool {
        (self.system_identifier, self.oid, self.started_us)
            == (other.system_identifier, other.oid, other.started_us)
    }

    /// Whether both are one database, or one of them that database on a standby of the other's server.
    #[must_use]
    pub fn is_same_or_standby(&self, other: &Self) -> bool {
        (self.system_identifier, self.oid) == (other.system_identifier, other.oid)
            && (self.started_us == other.started_us || self.standby != other.standby)
    }
}

/// Asks a database who it is. Any role may: `pg_control_system()` is open to all
/// (<https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-CONTROLDATA>).
pub async fn identify(session: &Session) -> Result<DatabaseIdentity> {
    let row = session
        .query_one(
            "select s.system_identifier, d.datname::text, d.oid,
                    (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint, pg_is_in_recovery()
             from pg_control_system() s, pg_database d where d.datname = current_database()",
            &[],
        )
        .await?;
    Ok(DatabaseIdentity {
        system_identifier: row.get(0),
        database: row.get(1),
        oid: row.get(2),
        started_us: row.get(3),
        standby: row.get(4),
    })
}
