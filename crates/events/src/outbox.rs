//! The outbox on the old side: numbering, what was published, trimming.
//!
//! Each writing call is one fenced transaction that locks the capture's row first, so that an older relay whose
//! last transaction is still under way and a newer one take turns.

use crate::stream::{MARKER, Stream};
use handover_core::error::{Error, Result};
use handover_core::failpoint;
use handover_postgres::ours::OURS;
use handover_postgres::{Session, TableName, Tx};
use handover_queue::Message;

/// What to do when one of the two sides is not the one that it was.
pub(crate) const WHICH_WAY: &str = "was it restored from a backup, swapped, or taken over by a standby that lacked the end? Before a cutover: \
     `handover rollback` to before the copy, and copy again. After it, the side that serves has what it was told: stay there, and \
     end the way back with `handover finish`";

/// How one partition stands on the old side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Partition {
    /// The partition.
    pub partition: u32,
    /// The highest number given.
    pub last: i64,
    /// The highest number known to the queue.
    pub published: i64,
    /// The highest number that was trimmed.
    pub trimmed: i64,
    /// How many fence markers are among the trimmed.
    pub trimmed_markers: i64,
}

impl Partition {
    /// Proves that the captured side has not forgotten events that are applied. It would give their numbers to other events, which
    /// would be taken for applied and be lost.
    ///
    /// # Errors
    /// That it has.
    pub fn assert_remembers(&self, done: i64) -> Result<()> {
        if done <= self.last {
            return Ok(());
        }
        Err(Error::data(format!(
            "event {done} of partition {} is applied, and the database that it was captured on knows no event after {}: it lost what \
             was written at its end",
            self.partition, self.last
        ))
        .hint(WHICH_WAY))
    }
}

/// How all partitions stand, in order.
pub(crate) async fn read(blue: &Session, stream: &Stream) -> Result<Vec<Partition>> {
    let rows = blue
        .query(
            &format!(
                "select partition, last_number, published, trimmed, trimmed_markers
             from {OURS}.outbox_partition where capture = $1 order by partition"
            ),
            &[&stream.id],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| Partition {
            partition: row.get::<_, i32>(0).unsigned_abs(),
            last: row.get(1),
            published: row.get(2),
            trimmed: row.get(3),
            trimmed_markers: row.get(4),
        })
        .collect())
}

/// Below which id nothing can turn up any more, as far as the relay knows.
///
/// A pass that began at id 0 each time would walk over the index entries of all rows that were moved away since
/// the last vacuum, and a long snapshot elsewhere (a copy's) keeps vacuum from removing them. Skipping rows of
/// `id <= last seen` would be wrong, since ids commit out of order. What is right: note the sequence's value,
/// then a transaction id of our own; each writer that drew an id up to that value has a transaction id below
/// ours (an AFTER trigger runs in a transaction that has written). Once all transactions below ours have ended
/// and a later look has found nothing left, ids up to the noted value are done with.
#[derive(Debug, Default)]
pub(crate) struct Floor {
    id: i64,
    candidate: Option<(i64, i64)>,
}

async fn lock(tx: &Tx<'_>, stream: &Stream) -> Result<()> {
    let row = tx
        .query_opt(&format!("select 1 from {OURS}.capture where id = $1 for update"), &[&stream.id])
        .await?;
    row.map(drop).ok_or_else(|| {
        Error::data("the capture's records are gone from the outbox")
            .hint("the capture was undone by somebody else; see `handover status`")
    })
}

/// Whether an event waits for its number.
pub(crate) async fn has_arrivals(blue: &Session, stream: &Stream, floor: &Floor) -> Result<bool> {
    Ok(blue
        .query_one(
            &format!("select exists (select from {OURS}.outbox where capture = $1 and id > $2)"),
            &[&stream.id, &floor.id],
        )
        .await?
        .get(0))
}

/// Gives the next visible events, at most `limit` in the order of their ids, their numbers. Returns how many.
///
/// Per key, order of ids is order of change: the id is drawn while the row's lock is held, and the next change
/// of the key draws its id only after it got that lock, which is after our commit. So whenever a later event of
/// a key is visible, the earlier ones are too, and have lower ids.
///
/// # Errors
/// Lease lost, or what the server says.
pub(crate) async fn number(
    blue: &mut Session,
    stream: &Stream,
    floor: &mut Floor,
    limit: i64,
) -> Result<i64> {
    let last_value: i64 =
        blue.query_one(&format!("select last_value from {OURS}.outbox_id"), &[]).await?.get(0);
    let tx = blue.transaction().await?;
    lock(&tx, stream).await?;
    let ids = tx
        .query_one(
            "select pg_current_xact_id()::text::bigint, pg_snapshot_xmin(pg_current_snapshot())::text::bigint",
            &[],
        )
        .await?;
    let (ours, oldest): (i64, i64) = (ids.get(0), ids.get(1));
    let row = tx
        .query_one(
            &format!("with moved as (
                 delete from {OURS}.outbox o
                 using (select id from {OURS}.outbox where capture = $1 and id > $2 order by id limit $3) b
                 where o.capture = $1 and o.id = b.id
                 returning o.*
             ), numbered as (
                 insert into {OURS}.outbox_numbered
                     (capture, partition, number, id, tbl, op, key, old, new, forms, via, bytes, at, txid)
                 select $1, m.partition, p.last_number + row_number() over (partition by m.partition order by m.id),
                        m.id, m.tbl, m.op, m.key, m.old, m.new, m.forms, m.via,
                        octet_length(concat(m.key, m.old, m.new, m.forms)), m.at, m.txid
                 from moved m join {OURS}.outbox_partition p on p.capture = $1 and p.partition = m.partition
                 returning partition, number, tbl, op, coalesce(via, op) as via
             ), written as (
                 -- An update that changes the key is two events.
                 insert into {OURS}.outbox_written as w (capture, tbl, via, events)
                 select $1, tbl, via, count(*) from numbered
                 where op <> $4 and not (via = 'update' and op = 'delete') group by tbl, via
                 on conflict (capture, tbl, via) do update set events = w.events + excluded.events
             ), counted as (
                 update {OURS}.outbox_partition p
                 set last_number = n.last, markers = p.markers + n.markers
                 from (select partition, max(number) as last, count(*) filter (where op = $4) markers
                       from numbered group by partition) n
                 where p.capture = $1 and p.partition = n.partition
             )
             select (select count(*) from moved), (select count(*) from numbered)"),
            &[&stream.id, &floor.id, &limit, &MARKER],
        )
        .await?;
    let (moved, numbered): (i64, i64) = (row.get(0), row.get(1));
    if moved != numbered {
        return Err(Error::internal(format!("{moved} events were to be numbered, and {numbered} were")));
    }
    tx.commit().await?;
    if moved < limit {
        match floor.candidate {
            // `oldest` was read before the statement above took its own, later snapshot.
            Some((id, xid)) if oldest >= xid => {
                floor.id = id;
                floor.candidate = Some((last_value, ours));
            }
            Some(_) => {}
            None => floor.candidate = Some((last_value, ours)),
        }
    }
    Ok(moved)
}

/// An event that the queue does not have yet.
#[derive(Debug)]
pub(crate) struct Unpublished {
    /// What is put into the queue: the event, or a note of it if it is large.
    pub message: Message,
    /// Its table.
    pub table: String,
    /// Its key, as JSON.
    pub key: String,
    /// The length of all of it.
    pub bytes: i64,
}

/// How much may be read at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// How many events.
    pub events: i64,
    /// How many bytes, all together; the first event passes whatever its size.
    pub bytes: usize,
    /// Above how many bytes an event stays here, and only a note of it goes into the queue.
    pub inline: usize,
}

/// The length of an event; what an older version numbered does not say.
const BYTES: &str = "coalesce(e.bytes, octet_length(concat(e.key, e.old, e.new)))";

/// Events of a partition that the queue does not have yet.
pub(crate) async fn unpublished(
    blue: &Session,
    stream: &Stream,
    books: &Partition,
    limits: Limits,
) -> Result<Vec<Unpublished>> {
    let partition = i32::try_from(books.partition).unwrap_or(i32::MAX);
    let bound = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    // Sizes first: values are fetched only of what is taken and small.
    let rows = blue
        .query(
            &format!(
                "select e.number, case when e.size > $6::bigint then {NOTE} else {EVENT} end::text, e.tbl, e.key::text, e.size
                 from (
                     select s.*, sum(least(s.size, $6) + 300) over (order by s.number) - least(s.size, $6) - 300 as before
                     from (select e.*, {BYTES}::bigint as size from {OURS}.outbox_numbered e
                           where e.capture = $1 and e.partition = $2 and e.number > $4 order by e.number limit $5) s
                 ) e where before < $7::bigint order by e.number"
            ),
            &[
                &stream.id,
                &partition,
                &stream.name,
                &books.published.max(books.trimmed),
                &limits.events,
                &bound(limits.inline),
                &bound(limits.bytes),
            ],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| Unpublished {
            message: Message {
                partition: books.partition,
                number: row.get(0),
                payload: row.get::<_, String>(1).into_bytes(),
            },
            table: row.get(2),
            key: row.get(3),
            bytes: row.get(4),
        })
        .collect())
}

/// A row `e` of the outbox as the event that travels; `$3` is the stream's name.
const EVENT: &str = "json_build_object('stream', $3::text, 'partition', e.partition, 'number', e.number, 'table', e.tbl,
    'op', e.op, 'key', e.key, 'old', e.old, 'new', e.new, 'forms', e.forms, 'at', e.at, 'txid', e.txid::text)";

/// A note of an event that stays in the outbox.
const NOTE: &str =
    "json_build_object('stream', $3::text, 'partition', e.partition, 'number', e.number, 'table', e.tbl,
    'op', e.op, 'key', e.key, 'bytes', e.size, 'at', e.at, 'txid', e.txid::text)";

/// Events that are too large for the queue, by their numbers: the outbox has each until green holds its mark.
pub(crate) async fn stored(
    blue: &Session,
    stream: &Stream,
    partition: i32,
    numbers: &[i64],
) -> Result<Vec<(i64, String)>> {
    let rows = blue
        .query(
            &format!(
                "select e.number, {EVENT}::text from {OURS}.outbox_numbered e
                 where e.capture = $1 and e.partition = $2 and e.number = any($4)"
            ),
            &[&stream.id, &partition, &stream.name, &numbers],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Records what the queue has confirmed: for each partition, from what was read to what it has now. A value that
/// was changed meanwhile (lowered by [`publish_again`]) stays.
///
/// # Errors
/// Lease lost, or what the server says.
pub(crate) async fn mark_published(
    blue: &mut Session,
    stream: &Stream,
    marks: &[(Partition, i64)],
) -> Result<()> {
    let partitions: Vec<i32> =
        marks.iter().map(|(b, _)| i32::try_from(b.partition).unwrap_or(i32::MAX)).collect();
    let from: Vec<i64> = marks.iter().map(|(b, _)| b.published).collect();
    let to: Vec<i64> = marks.iter().map(|(_, to)| *to).collect();
    let tx = blue.transaction().await?;
    lock(&tx, stream).await?;
    tx.execute(
        &format!(
            "update {OURS}.outbox_partition p set published = m.new
         from unnest($2::int[], $3::bigint[], $4::bigint[]) m(partition, old, new)
         where p.capture = $1 and p.partition = m.partition and p.published = m.old"
        ),
        &[&stream.id, &partitions, &from, &to],
    )
    .await?;
    tx.commit().await
}

/// Has the relay publish again what lies above a number: the queue lost it.
///
/// # Errors
/// Lease lost, or what the server says.
pub(crate) async fn publish_again(
    blue: &mut Session,
    stream: &Stream,
    partition: u32,
    above: i64,
) -> Result<()> {
    let partition = i32::try_from(partition).unwrap_or(i32::MAX);
    let tx = blue.transaction().await?;
    lock(&tx, stream).await?;
    tx.execute(
        &format!(
            "update {OURS}.outbox_partition set published = greatest(trimmed, least(published, $3))
         where capture = $1 and partition = $2"
        ),
        &[&stream.id, &partition, &above],
    )
    .await?;
    tx.commit().await
}

/// Has the relay publish everything again that was not trimmed: the queue lost the stream.
///
/// # Errors
/// Lease lost, or what the server says.
pub(crate) async fn publish_all_again(blue: &mut Session, stream: &Stream) -> Result<()> {
    let tx = blue.transaction().await?;
    lock(&tx, stream).await?;
    tx.execute(
        &format!("update {OURS}.outbox_partition set published = trimmed where capture = $1"),
        &[&stream.id],
    )
    .await?;
    tx.commit().await
}

/// Deletes events that the new side holds the mark of, in pieces. Returns how many went.
///
/// # Errors
/// Lease lost, or what the server says.
pub(crate) async fn trim(blue: &mut Session, stream: &Stream, books: &Partition, done: i64) -> Result<i64> {
    const PIECE: i64 = 10_000;
    let partition = i32::try_from(books.partition).unwrap_or(i32::MAX);
    let done = done.min(books.last);
    let mut trimmed = books.trimmed;
    while trimmed < done {
        let to = done.min(trimmed + PIECE);
        let tx = blue.transaction().await?;
        lock(&tx, stream).await?;
        let moved = tx
            .execute(
                &format!(
                    "with gone as (
                 delete from {OURS}.outbox_numbered n using {OURS}.outbox_partition p
                 where p.capture = $1 and p.partition = $2 and p.trimmed = $3
                   and n.capture = $1 and n.partition = $2 and n.number > $3 and n.number <= $4
                 returning n.op
             )
             update {OURS}.outbox_partition
             set trimmed = $4, published = greatest(published, $4),
                 trimmed_markers = trimmed_markers + (select count(*) from gone where op = $5)
             where capture = $1 and partition = $2 and trimmed = $3"
                ),
                &[&stream.id, &partition, &trimmed, &to, &MARKER],
            )
            .await?;
        tx.commit().await?;
        if moved == 0 {
            // Somebody else trims too; the next look finds how far that went.
            break;
        }
        failpoint::at(failpoint::REPLAY_TRIMMED)?;
        trimmed = to;
    }
    Ok(trimmed - books.trimmed)
}

/// How many rows of a table were captured and numbered, by the kind of write: insert, update, delete.
pub async fn written(blue: &Session, stream: &Stream, table: &TableName) -> Result<[i64; 3]> {
    let rows = blue
        .query(
            &format!("select via, events from {OURS}.outbox_written where capture = $1 and tbl = $2"),
            &[&stream.id, &table.to_string()],
        )
        .await?;
    let of = |operation: &str| {
        rows.iter().find(|row| row.get::<_, &str>(0) == operation).map_or(0, |row| row.get::<_, i64>(1))
    };
    Ok([of("insert"), of("update"), of("delete")])
}

/// Bytes that the outbox takes on disk, of all captures together.
pub(crate) async fn size(blue: &Session) -> Result<i64> {
    Ok(blue
        .query_one(
            &format!("select pg_total_relation_size('{OURS}.outbox') + pg_total_relation_size('{OURS}.outbox_numbered')"),
            &[],
        )
        .await?
        .get(0))
}
