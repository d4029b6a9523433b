//! The quarantine on the new side: events that were set aside, and the wish to have them tried again.

use crate::stream::Stream;
use handover_core::Result;
use handover_postgres::ours::OURS;
use handover_postgres::{Session, Tx};
use std::collections::HashSet;

/// Sets an event aside.
pub(crate) async fn set_aside(
    tx: &Tx<'_>,
    stream: &Stream,
    partition: i32,
    event: &Quarantined<'_>,
) -> Result<()> {
    tx.execute(
        &format!(
            "insert into {OURS}.event_quarantine (stream, partition, number, tbl, key, event, reason)
         values ($1, $2, $3, $4, $5, $6::text::json, $7)"
        ),
        &[&stream.name, &partition, &event.number, &event.table, &event.key, &event.payload, &event.reason],
    )
    .await
    .map(drop)
}

/// An event that is set aside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quarantined<'a> {
    /// Its number.
    pub number: i64,
    /// Its table.
    pub table: &'a str,
    /// Its key, as text.
    pub key: &'a str,
    /// All of it, as JSON.
    pub payload: &'a str,
    /// Why.
    pub reason: &'a str,
}

/// The keys, each with its table, of which an event was set aside: later ones must follow it.
pub(crate) async fn blocked(
    green: &Session,
    stream: &Stream,
    partition: i32,
) -> Result<HashSet<(String, String)>> {
    let rows = green
        .query(
            &format!(
                "select distinct tbl, key from {OURS}.event_quarantine where stream = $1 and partition = $2"
            ),
            &[&stream.name, &partition],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// A key of which events are set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// Its table.
    pub table: String,
    /// The key, as JSON.
    pub key: String,
    /// How many of its events.
    pub events: i64,
    /// Whether somebody asked to try them again.
    pub retry: bool,
}

impl std::fmt::Display for Aside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key: String = self.key.chars().take(80).collect();
        match self.events {
            1 => write!(f, "{} {key}", self.table),
            n => write!(f, "{} {key} ({n} events)", self.table),
        }
    }
}

/// How many events of some streams are set aside, and how many of those somebody asked to try again.
pub async fn count_aside(green: &Session, streams: &[&str]) -> Result<(i64, i64)> {
    let sql = &format!(
        "select count(*), count(*) filter (where retry) from {OURS}.event_quarantine where stream = any($1)"
    );
    let row = green.query_one(sql, &[&streams]).await?;
    Ok((row.get(0), row.get(1)))
}

/// What is set aside of some streams, in the order in which keys first were.
pub async fn aside(green: &Session, streams: &[&str]) -> Result<Vec<Aside>> {
    let rows = green
        .query(
            &format!("select tbl, key, count(*), bool_or(retry) from {OURS}.event_quarantine where stream = any($1)
             group by stream, partition, tbl, key order by min(at), tbl, key"),
            &[&streams],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| Aside { table: row.get(0), key: row.get(1), events: row.get(2), retry: row.get(3) })
        .collect())
}

/// Gives what was set aside of a stream another name: the stream is over, and one that bears its name begins anew.
///
/// # Errors
/// Lease lost, or what the server says.
pub async fn lay_by(session: &mut Session, stream: &str) -> Result<()> {
    let tx = session.transaction().await?;
    tx.execute(
        &format!(
            "update {OURS}.event_quarantine
             set stream = 'until ' || to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || ': ' || stream, retry = false
             where stream = $1"
        ),
        &[&stream],
    )
    .await?;
    tx.commit().await
}

/// The keys of a partition that somebody asked to try again.
pub(crate) async fn asked(green: &Session, stream: &Stream, partition: i32) -> Result<Vec<(String, String)>> {
    let rows = green
        .query(
            &format!(
                "select distinct tbl, key from {OURS}.event_quarantine
             where stream = $1 and partition = $2 and retry order by 1, 2"
            ),
            &[&stream.name, &partition],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The first event of a key, above a number, that is set aside: its number, and all of it.
pub(crate) async fn next_aside(
    tx: &Tx<'_>,
    stream: &Stream,
    partition: i32,
    key: &(String, String),
    above: i64,
) -> Result<Option<(i64, String)>> {
    let row = tx
        .query_opt(
            &format!("select number, event::text from {OURS}.event_quarantine
             where stream = $1 and partition = $2 and tbl = $3 and key = $4 and number > $5 order by number limit 1"),
            &[&stream.name, &partition, &key.0, &key.1, &above],
        )
        .await?;
    Ok(row.map(|row| (row.get(0), row.get(1))))
}

/// Takes an event out of the quarantine; its effect is in the same transaction.
pub(crate) async fn back(tx: &Tx<'_>, stream: &Stream, partition: i32, number: i64) -> Result<()> {
    tx.execute(
        &format!("delete from {OURS}.event_quarantine where stream = $1 and partition = $2 and number = $3"),
        &[&stream.name, &partition, &number],
    )
    .await
    .map(drop)
}

/// Notes that an event still does not apply, and that nobody asks for its key any more.
pub(crate) async fn refused_again(
    tx: &Tx<'_>,
    stream: &Stream,
    partition: i32,
    key: &(String, String),
    number: i64,
    reason: &str,
) -> Result<()> {
    tx.execute(
        &format!("update {OURS}.event_quarantine set retry = false, reason = case number when $5 then $6 else reason end
         where stream = $1 and partition = $2 and tbl = $3 and key = $4"),
        &[&stream.name, &partition, &key.0, &key.1, &number, &reason],
    )
    .await
    .map(drop)
}
