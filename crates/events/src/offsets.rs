//! The offsets on the new side: which number each partition stands at, and what became of the events up to it.
//! To operators they are called marks.

use crate::applies;
use crate::outbox::{Partition, WHICH_WAY};
use crate::stream::Stream;
use handover_core::error::{Error, Result};
use handover_postgres::ours::OURS;
use handover_postgres::{Session, Tx};

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

/// Sets up the offsets of a stream, unless they are there: replay begins behind what was trimmed, which an earlier
/// replay applied before it was undone. Returns the highest number done, by partition.
///
/// `begun` says that this replay had offsets before. Should they be gone, or behind what was trimmed, then the new
/// side is not the one that replay wrote to (it was restored, or is another), and events are missing there.
///
/// # Errors
/// That; lease lost; or what the server says.
pub async fn begin(
    green: &mut Session,
    stream: &Stream,
    books: &[Partition],
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
            .hint(WHICH_WAY)
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
    for (partition, done) in books.iter().zip(&done) {
        partition.assert_remembers(*done)?;
    }
    tx.commit().await?;
    Ok(done)
}

/// The highest number done of every partition, in order; empty before replay began.
pub async fn done(green: &Session, stream: &Stream) -> Result<Vec<i64>> {
    let rows = green
        .query(
            &format!("select done from {OURS}.replay where stream = $1 order by partition"),
            &[&stream.name],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Locks a partition's offset and reads it. From here on the transaction says that it applies events of the stream.
pub async fn lock(tx: &Tx<'_>, stream: &Stream, partition: i32) -> Result<i64> {
    let row = tx
        .query_opt(
            &format!(
                "select done, {} from {OURS}.replay where stream = $1 and partition = $2 for update",
                applies::saying("$1")
            ),
            &[&stream.name, &partition],
        )
        .await?;
    row.map(|row| row.get(0)).ok_or_else(|| {
        Error::data("replay's marks are gone")
            .on_database(tx.database())
            .hint("the replay was undone by somebody else; see `handover status`")
    })
}

/// Moves a partition's offset over a batch, in the transaction that holds the batch's effects.
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

/// Counts events that came out of the quarantine by what became of them.
pub async fn count_retried(tx: &Tx<'_>, stream: &Stream, partition: i32, tally: &Tally) -> Result<()> {
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

/// Forgets a stream: its offsets, and what was set aside.
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
