//! One side of a verification: every question to it is answered from one snapshot.

use handover_core::error::Result;
use handover_postgres::{Databases, Session, quote_literal};
use std::time::Duration;

/// A read-only transaction on one database, whose snapshot others can join.
#[derive(Debug)]
pub struct Side {
    databases: Databases,
    database: String,
    timeout: Duration,
    session: Session,
    exported: String,
    /// What it sees.
    pub moment: Moment,
}

/// The point in time that a side answers for.
#[derive(Debug, Clone)]
pub struct Moment {
    /// The database's name in the plan.
    pub database: String,
    /// By its server's clock.
    pub at: jiff::Timestamp,
    /// Which transactions are visible (`pg_current_snapshot`).
    pub snapshot: String,
    /// Where its WAL stood.
    pub lsn: String,
}

impl Side {
    /// Takes a snapshot.
    ///
    /// # Errors
    /// No connection, or what the server says.
    pub async fn open(databases: &Databases, database: &str, timeout: Duration) -> Result<Self> {
        let session = prepare(databases, database, timeout).await?;
        session.query(BEGIN, &[]).await?;
        let row = session
            .query_one(
                "select pg_export_snapshot(), clock_timestamp(), pg_current_snapshot()::text,
                        case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end::text",
                &[],
            )
            .await?;
        let moment =
            Moment { database: database.to_owned(), at: row.get(1), snapshot: row.get(2), lsn: row.get(3) };
        let databases = databases.clone();
        Ok(Side { databases, database: database.to_owned(), timeout, session, exported: row.get(0), moment })
    }

    /// Its first session.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Another session with the same snapshot.
    ///
    /// # Errors
    /// No connection, or what the server says.
    pub async fn join(&self) -> Result<Session> {
        let session = prepare(&self.databases, &self.database, self.timeout).await?;
        self.import(&session).await?;
        Ok(session)
    }

    /// Another session with the same snapshot, for reading tables.
    ///
    /// # Errors
    /// No connection, or what the server says.
    pub async fn join_to_sum(&self) -> Result<Session> {
        let session = summing(&self.databases, &self.database, self.timeout).await?;
        self.import(&session).await?;
        Ok(session)
    }

    /// Another session with the same snapshot, for the plan's own queries. Both sides write times alike.
    ///
    /// # Errors
    /// No connection, or what the server says.
    pub async fn join_for_operator(&self) -> Result<Session> {
        let session = prepare(&self.databases.for_operator(), &self.database, self.timeout).await?;
        for (name, value) in [("timezone", "UTC"), ("datestyle", "ISO, YMD")] {
            session.set(name, value).await?;
        }
        self.import(&session).await?;
        Ok(session)
    }

    async fn import(&self, session: &Session) -> Result<()> {
        session.query(BEGIN, &[]).await?;
        session.query(&format!("set transaction snapshot {}", quote_literal(&self.exported)), &[]).await?;
        Ok(())
    }
}

/// Begins a transaction whose statements all see the same.
pub const BEGIN: &str = "begin isolation level repeatable read, read only";

/// A session for sums over tables, in no transaction. With nothing but the server's own schema in the search
/// path, names within values (`regclass`) are written the same whatever a role's own path is.
///
/// # Errors
/// No connection, or what the server says.
pub async fn summing(databases: &Databases, database: &str, timeout: Duration) -> Result<Session> {
    let session = prepare(databases, database, timeout).await?;
    // The pieces of a table are what runs in parallel.
    session.set("max_parallel_workers_per_gather", "0").await?;
    Ok(session)
}

async fn prepare(databases: &Databases, database: &str, timeout: Duration) -> Result<Session> {
    let session = databases.read_only(database).await?;
    session.set("statement_timeout", &format!("{}ms", timeout.as_millis())).await?;
    Ok(session)
}
