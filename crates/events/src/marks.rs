//! The new side's book-keeping: which number each partition stands at, and what became of the events up to it.

use super::Stream;
use super::books::PartitionBooks;
use handover_core::error::{Error, Result};
use handover_postgres::ours::OURS;
use handover_postgres::{Session, Tx};
use std::collections::HashSet;

/// What became of a batch of events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Took effect.
    pub applied: i64,
    /// Were so already.
    pub already: i64,
    /// The plan ignores them.
    pub ignored: i64,
    /// Set aside.
    pub quarantined: i64,
    /// Fence markers.
    pub markers: i64,
    /// The newest of those.
    pub marker: i64,
}

impl Tally {
    /// How many events.
    #[must_use]
    pub fn total(&self) -> i64 {
        self.applied + self.already + self.ignored + self.quarantined + self.markers
    }
}

/// Sets up the marks of a stream, unless they are there: replay begins behind what was trimmed, which an earlier
/// replay applied before it was undone. Returns the highest number done, by partition.
///
/// `begun` says that this replay had marks before. Should they be gone, or behind what was trimmed, then the new
/// side is not the one that replay wrote to (it was restored, or is another), and events are missing there.
///
/// # Errors
/// That; lease lost; or what the server says.
pub async fn begin(
    green: &mut Session,
    stream: &Stream,
    books: &[PartitionBooks],
    begun: bool,
) -> Result<Vec<i64>> {
    let tx = green.transaction().await?;
    let there: i64 = tx
        .query_one(&format!("select count(*) from {OURS}.replay where stream = $1"), &[&stream.name])
        .await?
        .get(0);
    let lost = |what: &str| {
        Error::data(format!("{what}: this database lost what replay had applied to it"))
            .on_database(tx.database())
            .hint("was it restored from a backup, or swapped? `handover rollback` to before the copy, and copy again")
    };
    if begun && there == 0 {
        return Err(lost("replay's marks are gone"));
    }
    for partition in books {
        tx.execute(
            &format!("insert into {OURS}.replay (stream, partition, base, base_markers, done) values ($1, $2, $3, $4, $3)
             on conflict do nothing"),
            &[
                &stream.name,
                &i32::try_from(partition.partition).unwrap_or(i32::MAX),
                &partition.trimmed,
                &partition.trimmed_markers,
            ],
        )
        .await?;
    }
    let done: Vec<i64> = tx
        .query(
            &format!("select done from {OURS}.replay where stream = $1 order by partition"),
            &[&stream.name],
        )
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect();
    if books.iter().zip(&done).any(|(partition, done)| *done < partition.trimmed) {
        return Err(lost("replay's marks are behind what was trimmed from the outbox"));
    }
    tx.commit().await?;
    Ok(done)
}

/// The highest number done of every partition, in order; empty before replay began.
///
/// # Errors
/// What the server says.
pub async fn done(green: &Session, stream: &Stream) -> Result<Vec<i64>> {
    let rows = green
        .query(
            &format!("select done from {OURS}.replay where stream = $1 order by partition"),
            &[&stream.name],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Locks a partition's mark and reads it.
///
/// # Errors
/// What the server says.
pub async fn lock(tx: &Tx<'_>, stream: &Stream, partition: i32) -> Result<i64> {
    let row = tx
        .query_opt(
            &format!("select done from {OURS}.replay where stream = $1 and partition = $2 for update"),
            &[&stream.name, &partition],
        )
        .await?;
    row.map(|row| row.get(0)).ok_or_else(|| {
        Error::data("replay's marks are gone")
            .on_database(tx.database())
            .hint("the replay was undone by somebody else; see `handover status`")
    })
}

/// Moves a partition's mark over a batch, in the transaction that holds the batch's effects.
///
/// # Errors
/// What the server says.
pub async fn advance(tx: &Tx<'_>, stream: &Stream, partition: i32, tally: &Tally) -> Result<()> {
    tx.execute(
        &format!(
            "update {OURS}.replay
         set done = done + $3 + $4 + $5 + $6 + $7, applied = applied + $3, already = already + $4,
             ignored = ignored + $5, quarantined = quarantined + $6, markers = markers + $7,
             marker = greatest(marker, $8), problem = null, at = clock_timestamp()
         where stream = $1 and partition = $2"
        ),
        &[
            &stream.name,
            &partition,
            &tally.applied,
            &tally.already,
            &tally.ignored,
            &tally.quarantined,
            &tally.markers,
            &tally.marker,
        ],
    )
    .await
    .map(drop)
}

/// Says why a partition stands still, for `status` and the arithmetic; the next batch clears it.
///
/// # Errors
/// Lease lost, or what the server says.
pub async fn stuck(green: &mut Session, stream: &Stream, partition: i32, problem: &str) -> Result<()> {
    let tx = green.transaction().await?;
    tx.execute(
        &format!("update {OURS}.replay set problem = $3 where stream = $1 and partition = $2"),
        &[&stream.name, &partition, &problem],
    )
    .await?;
    tx.commit().await
}

/// Sets an event aside.
///
/// # Errors
/// What the server says.
pub async fn quarantine(tx: &Tx<'_>, stream: &Stream, partition: i32, event: &Quarantined<'_>) -> Result<()> {
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
pub struct Quarantined<'a> {
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
///
/// # Errors
/// What the server says.
pub async fn blocked(green: &Session, stream: &Stream, partition: i32) -> Result<HashSet<(String, String)>> {
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
///
/// # Errors
/// What the server says.
pub async fn count_aside(green: &Session, streams: &[&str]) -> Result<(i64, i64)> {
    let sql = &format!(
        "select count(*), count(*) filter (where retry) from {OURS}.event_quarantine where stream = any($1)"
    );
    let row = green.query_one(sql, &[&streams]).await?;
    Ok((row.get(0), row.get(1)))
}

/// What is set aside of some streams, in the order in which keys first were.
///
/// # Errors
/// What the server says.
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

/// The keys of a partition that somebody asked to try again.
///
/// # Errors
/// What the server says.
pub async fn asked(green: &Session, stream: &Stream, partition: i32) -> Result<Vec<(String, String)>> {
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
///
/// # Errors
/// What the server says.
pub async fn next_aside(
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
///
/// # Errors
/// What the server says.
pub async fn back(tx: &Tx<'_>, stream: &Stream, partition: i32, number: i64) -> Result<()> {
    tx.execute(
        &format!("delete from {OURS}.event_quarantine where stream = $1 and partition = $2 and number = $3"),
        &[&stream.name, &partition, &number],
    )
    .await
    .map(drop)
}

/// Notes that an event still does not apply, and that nobody asks for its key any more.
///
/// # Errors
/// What the server says.
pub async fn refused_again(
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

/// Counts events that came out of the quarantine by what became of them.
///
/// # Errors
/// What the server says.
pub async fn settle(tx: &Tx<'_>, stream: &Stream, partition: i32, tally: &Tally) -> Result<()> {
    tx.execute(
        &format!("update {OURS}.replay
         set applied = applied + $3, already = already + $4, ignored = ignored + $5, quarantined = quarantined - $6,
             at = clock_timestamp()
         where stream = $1 and partition = $2"),
        &[&stream.name, &partition, &tally.applied, &tally.already, &tally.ignored, &tally.total()],
    )
    .await
    .map(drop)
}

/// Forgets a stream: its marks, and what was set aside.
///
/// # Errors
/// Lease lost, or what the server says.
pub async fn forget(green: &mut Session, stream: &str, quarantine_too: bool) -> Result<()> {
    let tx = green.transaction().await?;
    tx.execute(&format!("delete from {OURS}.replay where stream = $1"), &[&stream]).await?;
    if quarantine_too {
        tx.execute(&format!("delete from {OURS}.event_quarantine where stream = $1"), &[&stream]).await?;
    }
    tx.commit().await
}
