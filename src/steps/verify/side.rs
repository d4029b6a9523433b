//! One side of a verification: every question to it is answered from one snapshot.

use crate::error::Result;
use crate::postgres::{Databases, Session, quote_literal};
use std::time::Duration;

/// A read-only transaction on one database, whose snapshot others can join.
#[derive(Debug)]
pub struct Side {
    databases: Databases,
    database: String,
    timeout: Duration,
    session: Session,
    exported: String,
}

impl Side {
    /// Takes a snapshot.
    ///
    /// # Errors
    /// No connection, or what the server says.
    pub async fn open(databases: &Databases, database: &str, timeout: Duration) -> Result<Self> {
        let session = prepare(databases, database, timeout).await?;
        let exported = session.query_one("select pg_export_snapshot()", &[]).await?.get(0);
        Ok(Side { databases: databases.clone(), database: database.to_owned(), timeout, session, exported })
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
        session.query(&format!("set transaction snapshot {}", quote_literal(&self.exported)), &[]).await?;
        Ok(session)
    }
}

async fn prepare(databases: &Databases, database: &str, timeout: Duration) -> Result<Session> {
    let session = databases.read_only(database).await?;
    // Row security off: rows that a policy would hide are an error, not a difference.
    for (name, value) in [
        ("row_security", "off"),
        ("statement_timeout", &format!("{}ms", timeout.as_millis())),
        ("idle_in_transaction_session_timeout", "0"),
        ("timezone", "UTC"),
        ("datestyle", "ISO, YMD"),
        ("intervalstyle", "postgres"),
        ("extra_float_digits", "1"),
        ("bytea_output", "hex"),
        ("lc_monetary", "C"),
    ] {
        session.set(name, value).await?;
    }
    session.query("begin isolation level repeatable read, read only", &[]).await?;
    Ok(session)
}
