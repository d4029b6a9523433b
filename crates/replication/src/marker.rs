//! Marks in the stream: a row written on the publisher that is seen on the subscriber when everything committed
//! before it has arrived.
//!
//! Comparing log positions instead would be wrong: `pg_current_wal_lsn()` trails commits that were asynchronous,
//! and a position that was confirmed may be confirmed late by seconds.
//! (<https://www.postgresql.org/docs/current/logical-replication-architecture.html>)

use crate::link::Link;
use handover_core::error::Result;
use handover_postgres::Session;
use handover_postgres::ours::OURS;
use serde::{Deserialize, Serialize};

/// A mark that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The [`Link`] whose stream it is in.
    pub link: String,
    /// Whose mark it is: each user of marks has a name of its own.
    pub mark: String,
    /// Marks of one name grow.
    pub number: i64,
}

/// Writes a mark into the stream of `link`, under the name `mark`. What any session had committed on the publisher
/// when this was called comes before it.
///
/// # Errors
/// Lease lost, or what the server says.
pub async fn write(blue: &mut Session, link: &Link, mark: &str) -> Result<Token> {
    let tx = blue.transaction().await?;
    // Only what is on the publisher's disk is sent; a standby of its own need not be waited for.
    tx.batch("set local synchronous_commit = local").await?;
    let number: i64 = tx
        .query_one(
            &format!(
                "insert into {OURS}.replication_marker (number, link, mark) overriding system value
                 values ($3 + nextval(pg_get_serial_sequence('{OURS}.replication_marker', 'number')), $1, $2) returning number"
            ),
            &[&link.name, &mark, &link.marks_from],
        )
        .await?
        .get(0);
    tx.execute(
        &format!("delete from {OURS}.replication_marker where link = $1 and mark = $2 and number < $3"),
        &[&link.name, &mark, &number],
    )
    .await?;
    tx.commit().await?;
    Ok(Token { link: link.name.clone(), mark: mark.to_owned(), number })
}

/// Whether everything that was committed on the publisher before the mark is on the subscriber. A later mark of
/// the same name says so too, as it replaces the earlier one.
pub async fn passed(green: &Session, token: &Token) -> Result<bool> {
    Ok(latest(green, &token.link, &token.mark).await? >= Some(token.number))
}

/// The latest mark of a name that a side has.
pub async fn latest(session: &Session, link: &str, mark: &str) -> Result<Option<i64>> {
    let row = session
        .query_one(
            &format!("select max(number) from {OURS}.replication_marker where link = $1 and mark = $2"),
            &[&link, &mark],
        )
        .await?;
    Ok(row.get(0))
}
