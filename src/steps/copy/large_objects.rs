//! Large objects: content, owner, rights and comment, in batches that commit with their checkpoints.
//!
//! Objects that fit into one piece travel many to a transaction; larger ones become units of their own, and
//! their transactions end after a stretch, so that neither memory nor lost work grows with an object.
//! Everything is read through the copy's snapshot: reading a large object follows the transaction's.
//! (<https://www.postgresql.org/docs/current/lo-interfaces.html>)

pub mod carry;
mod changes;
mod content;
mod object;

use super::pool::lock;
use super::source::Source;
use super::{Copy, LargeObjects, state};
use crate::error::{Class, Error, Result};
use crate::event::{Measure, StepId};
use crate::failpoint;
use crate::postgres::{Session, Tx};
use crate::steps::Context;
use futures_util::StreamExt;
use object::{Object, as_ourselves, as_owner, decorate};
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::task::JoinSet;

/// Bytes read at once. An object that is larger is a unit of its own.
const PIECE: i32 = 256 << 10;
/// Objects in a transaction: a comment or a grant locks its object until the end, and the server's table of
/// locks is finite.
const BATCH: i64 = 500;
/// Bytes that wait for the next statement that writes.
const FLUSH: usize = 1 << 20;
/// Bytes of one large object in a transaction.
const STRETCH: u64 = 64 << 20;
/// Units of batches, followed by the first object's number.
const BATCHES: &str = "objects:";
/// Units of objects that are larger than a piece, followed by the object's number.
const SINGLES: &str = "object:";

/// What a batch's checkpoint says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Batch {
    /// Those that were made, as runs of numbers: the first, and how many.
    made: Vec<(u32, u32)>,
    /// Their bytes.
    bytes: u64,
    /// Those that are larger than a piece.
    left: Vec<u32>,
}

/// What a single object's checkpoint says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Single {
    oid: u32,
    /// Bytes that are there.
    bytes: u64,
    /// Whether that is all of it.
    complete: bool,
}

/// Large objects that were copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Total {
    /// How many.
    pub objects: u64,
    /// Bytes in them, holes included.
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy)]
enum Unit {
    /// All from the first to the last of these numbers.
    Batch(u32, u32),
    Single(u32),
}

struct Shared {
    cx: Context,
    copy: Copy,
    jobs: usize,
    exported: String,
    queue: Mutex<VecDeque<Unit>>,
    left: Mutex<Vec<u32>>,
    done: AtomicU64,
    total: u64,
}

/// Copies what has no checkpoint yet, from the snapshot exported under that name; nothing unless the plan
/// wants large objects.
///
/// # Errors
/// What either server says. What is committed stays, to be gone on from or discarded by the caller.
pub async fn copy(cx: &Context, copy: &Copy, exported: &str, jobs: usize) -> Result<()> {
    if copy.large_objects == LargeObjects::Skip {
        return Ok(());
    }
    let databases = cx.databases.labelled(cx.step.as_str());
    let blue = Source::reader(&databases, &copy.from, exported).await?;
    let batches = batches(&blue).await?;
    if batches.is_empty() {
        return Ok(());
    }
    let total: i64 = blue.query_one("select count(*) from pg_largeobject_metadata", &[]).await?.get(0);
    drop(blue);
    let green = super::target_reader(cx, copy).await?;
    let done = state::units(&green, cx.run, &cx.step).await?;
    let (mut known, mut left) = (0, Vec::new());
    for batch in state::states::<Batch>(&green, cx.run, &cx.step, BATCHES).await? {
        known += batch.made.iter().map(|(_, n)| u64::from(*n)).sum::<u64>();
        left.extend(batch.left);
    }
    drop(green);
    let queue = batches
        .into_iter()
        .filter(|(from, _)| !done.contains(&format!("{BATCHES}{from}")))
        .map(|(from, to)| Unit::Batch(from, to));
    let shared = Arc::new(Shared {
        cx: cx.clone(),
        copy: copy.clone(),
        jobs,
        exported: exported.to_owned(),
        queue: Mutex::new(queue.collect()),
        left: Mutex::new(left),
        done: AtomicU64::new(known),
        total: total.unsigned_abs(),
    });
    work_off(&shared).await?;
    let left = std::mem::take(&mut *lock(&shared.left));
    *lock(&shared.queue) = left.into_iter().map(Unit::Single).collect();
    work_off(&shared).await?;
    cx.unit_done("large objects");
    Ok(())
}

/// First and last number of each batch; the same in every session of one snapshot.
async fn batches(blue: &Session) -> Result<Vec<(u32, u32)>> {
    let rows = blue
        .query(
            "select min(oid), max(oid) from (
                 select oid, (row_number() over (order by oid) - 1) / $1 as batch from pg_largeobject_metadata) o
             group by batch order by batch",
            &[&BATCH],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

async fn work_off(shared: &Arc<Shared>) -> Result<()> {
    let units = lock(&shared.queue).len();
    let mut workers = JoinSet::new();
    for _ in 0..shared.jobs.min(units) {
        workers.spawn(work(shared.clone()));
    }
    // Dropped with its workers when we leave early; each of their statements is short.
    loop {
        tokio::select! {
            () = shared.cx.stop.cancelled() => return Err(Error::cancelled()),
            ended = workers.join_next() => match ended {
                None => return Ok(()),
                Some(Ok(result)) => result?,
                Some(Err(e)) => return Err(Error::internal(format!("a task that copies large objects broke off: {e}"))),
            },
        }
    }
}

async fn work(shared: Arc<Shared>) -> Result<()> {
    let cx = &shared.cx;
    let databases = cx.databases.labelled(cx.step.as_str());
    let reader = Source::reader(&databases, &shared.copy.from, &shared.exported).await?;
    let mut writer = cx.writer(&shared.copy.to).await?;
    writer.set("synchronous_commit", "off").await?;
    loop {
        let next = lock(&shared.queue).pop_front();
        let Some(unit) = next else { return Ok(()) };
        cx.proceed()?;
        match unit {
            Unit::Batch(from, to) => batch(&shared, &reader, &mut writer, from, to).await,
            Unit::Single(oid) => single(&shared, &reader, &mut writer, oid).await,
        }
        .map_err(explain)?;
    }
}

fn explain(error: Error) -> Error {
    let error = error.context("copying large objects");
    if error.class() != Class::Privilege {
        return error;
    }
    error.hint("the role must be a member of their owners on both sides (docs/grants.md); mend it, then `handover resume`, or say `large_objects: skip`")
}

/// Copies the objects of a range that fit into one piece, and notes the others.
async fn batch(shared: &Shared, reader: &Session, writer: &mut Session, from: u32, to: u32) -> Result<()> {
    let (cx, copy) = (&shared.cx, &shared.copy);
    let objects =
        object::read(&reader.query(&object::query("m.oid between $1 and $2"), &[&from, &to]).await?)?;
    let tx = writer.transaction().await?;
    let mut state = Batch::default();
    let mut waiting: Vec<(&Object, Vec<u8>)> = Vec::new();
    let mut held = 0;
    {
        // One byte more than fits tells the larger ones apart.
        let sql = format!(
            "select m.oid, pg_catalog.lo_get(m.oid, 0, {}) from pg_largeobject_metadata m
             where m.oid between {from} and {to} order by m.oid",
            PIECE + 1
        );
        let mut rows = pin!(reader.query_stream(&sql).await?);
        while let Some(row) = rows.next().await {
            let row = row.map_err(|e| reader.error(&e))?;
            let (oid, data): (u32, Vec<u8>) = (row.get(0), row.get(1));
            if data.len() > PIECE.unsigned_abs() as usize {
                state.left.push(oid);
                continue;
            }
            let found = objects.binary_search_by_key(&oid, |o| o.oid);
            let object = found
                .map(|i| &objects[i])
                .map_err(|_| Error::internal("a large object that its snapshot does not list"))?;
            state.bytes += data.len() as u64;
            held += data.len();
            match state.made.last_mut() {
                Some((first, count)) if *first + *count == oid => *count += 1,
                _ => state.made.push((oid, 1)),
            }
            waiting.push((object, data));
            if held >= FLUSH {
                flush(&tx, copy, std::mem::take(&mut waiting)).await?;
                held = 0;
            }
        }
    }
    flush(&tx, copy, waiting).await?;
    let made = objects.iter().filter(|o| !state.left.contains(&o.oid));
    decorate(&tx, copy, made).await?;
    tx.save_checkpoint(cx.run, &cx.step, &format!("{BATCHES}{from}"), &state).await?;
    tx.commit().await?;
    count(shared, (objects.len() - state.left.len()) as u64);
    lock(&shared.left).extend(state.left);
    failpoint::at(failpoint::COPY_LARGE_OBJECTS)?;
    Ok(())
}

fn count(shared: &Shared, more: u64) {
    let done = shared.done.fetch_add(more, Ordering::Relaxed) + more;
    shared.cx.progress("large objects", done, Some(shared.total), Measure::Items);
}

/// Makes the objects that wait, each as its owner.
async fn flush(tx: &Tx<'_>, copy: &Copy, mut waiting: Vec<(&Object, Vec<u8>)>) -> Result<()> {
    waiting.sort_by(|a, b| a.0.owner.cmp(&b.0.owner));
    for group in waiting.chunk_by(|a, b| a.0.owner == b.0.owner) {
        let oids: Vec<u32> = group.iter().map(|(object, _)| object.oid).collect();
        let data: Vec<&[u8]> = group.iter().map(|(_, data)| data.as_slice()).collect();
        as_owner(tx, copy, &group[0].0.owner).await?;
        tx.query(
            "select pg_catalog.lo_from_bytea(o.oid, o.data) from unnest($1::oid[], $2::bytea[]) o (oid, data)",
            &[&oids, &data],
        )
        .await?;
    }
    as_ourselves(tx).await
}

/// Copies one object that is larger than a piece, from where its checkpoint says.
async fn single(shared: &Shared, reader: &Session, writer: &mut Session, oid: u32) -> Result<()> {
    let (cx, copy) = (&shared.cx, &shared.copy);
    let unit = format!("{SINGLES}{oid}");
    let object = object::read(&reader.query(&object::query("m.oid = $1"), &[&oid]).await?)?.pop();
    let object = object.ok_or_else(|| Error::internal("a large object that its snapshot does not list"))?;
    let read = reader.prepare("select pg_catalog.lo_get($1, $2, $3)").await?;
    let piece = async |at: u64| -> Result<Vec<u8>> {
        let at = i64::try_from(at).map_err(|_| Error::internal("an offset in a large object"))?;
        Ok(reader.query_one(&read, &[&oid, &at, &PIECE]).await?.get(0))
    };
    let mut ahead: Option<Vec<u8>> = None;
    loop {
        cx.proceed()?;
        let tx = writer.transaction().await?;
        let there: Option<Single> = tx.checkpoint(cx.run, &cx.step, &unit).await?;
        let mut state = there.unwrap_or(Single { oid, ..Single::default() });
        if state.complete {
            return tx.rollback().await;
        }
        as_owner(&tx, copy, &object.owner).await?;
        if there.is_none() {
            tx.query("select pg_catalog.lo_create($1)", &[&oid]).await?;
        }
        let end = state.bytes + STRETCH;
        while state.bytes < end && !state.complete {
            let data = match ahead.take() {
                Some(data) => data,
                None => piece(state.bytes).await?,
            };
            let at =
                i64::try_from(state.bytes).map_err(|_| Error::internal("an offset in a large object"))?;
            state.bytes += data.len() as u64;
            state.complete = data.len() < PIECE.unsigned_abs() as usize;
            let params: crate::postgres::session::Params<'_> = &[&oid, &at, &data];
            let write = tx.query("select pg_catalog.lo_put($1, $2, $3)", params);
            if state.complete {
                write.await?;
            } else {
                // The next piece is read while this one is written.
                let (written, next) = tokio::join!(write, piece(state.bytes));
                written?;
                ahead = Some(next?);
            }
        }
        as_ourselves(&tx).await?;
        if state.complete {
            decorate(&tx, copy, std::iter::once(&object)).await?;
        }
        tx.save_checkpoint(cx.run, &cx.step, &unit, &state).await?;
        tx.commit().await?;
        failpoint::at(failpoint::COPY_LARGE_OBJECT_STRETCH)?;
        if state.complete {
            count(shared, 1);
            return Ok(());
        }
    }
}

/// What was copied, by the checkpoints.
///
/// # Errors
/// What the server says.
pub async fn total(green: &Session, cx: &Context) -> Result<Total> {
    let mut total = Total::default();
    for batch in state::states::<Batch>(green, cx.run, &cx.step, BATCHES).await? {
        total.objects += batch.made.iter().map(|(_, n)| u64::from(*n)).sum::<u64>();
        total.bytes += batch.bytes;
    }
    for single in state::states::<Single>(green, cx.run, &cx.step, SINGLES).await? {
        total.objects += 1;
        total.bytes += single.bytes;
    }
    Ok(total)
}

/// Numbers of the objects that the copy made.
async fn made(green: &Session, cx: &Context, step: &StepId) -> Result<RoaringBitmap> {
    let mut oids = RoaringBitmap::new();
    for batch in state::states::<Batch>(green, cx.run, step, BATCHES).await? {
        batch.made.iter().for_each(|run| insert(&mut oids, *run));
    }
    let singles = state::states::<Single>(green, cx.run, step, SINGLES).await?;
    oids.extend(singles.into_iter().map(|single| single.oid));
    Ok(oids)
}

fn insert(oids: &mut RoaringBitmap, (first, count): (u32, u32)) {
    if count > 0 {
        oids.insert_range(first..=first.saturating_add(count - 1));
    }
}

/// Compares what is on green with what was copied: each object there, and as many bytes in all of them.
///
/// # Errors
/// What is missing, or what the server says.
pub async fn verify(cx: &Context, copy: &Copy) -> Result<()> {
    let green = super::target_reader(cx, copy).await?;
    green.set("statement_timeout", "0").await?;
    let (expected, oids) = (total(&green, cx).await?, made(&green, cx, &cx.step).await?);
    let oids: Vec<u32> = oids.into_iter().collect();
    let mut found = Total::default();
    for oids in oids.chunks(BATCH.unsigned_abs() as usize) {
        cx.proceed()?;
        // Opened for reading (INV_READ), sought to the end; the statement's end closes them.
        let row = green
            .query_one(
                "select count(*), coalesce(sum(pg_catalog.lo_lseek64(pg_catalog.lo_open(oid, 262144), 0, 2)), 0)::bigint
                 from pg_largeobject_metadata where oid = any($1)",
                &[&oids],
            )
            .await?;
        found.objects += row.get::<_, i64>(0).unsigned_abs();
        found.bytes += row.get::<_, i64>(1).unsigned_abs();
    }
    if found == expected {
        return Ok(());
    }
    Err(Error::data(format!(
        "{} large objects with {} bytes are there, and {} with {} were copied",
        found.objects, found.bytes, expected.objects, expected.bytes
    ))
    .on_database(&copy.to)
    .hint("somebody writes to the target already: stop that, `handover rollback` to before the copy, and run again"))
}

/// Unlinks the objects that the copy made, or a cutover behind it, as far as they are still there.
///
/// # Errors
/// What the server says.
pub async fn discard(cx: &Context, green: &mut Session) -> Result<u64> {
    let oids: Vec<u32> = carry::ours(green, cx, &cx.step).await?.into_iter().collect();
    let mut dropped = 0;
    for oids in oids.chunks(BATCH.unsigned_abs() as usize) {
        cx.proceed()?;
        let tx = green.transaction().await?;
        let rows = tx
            .query(
                "select pg_catalog.lo_unlink(oid) from pg_catalog.pg_largeobject_metadata where oid = any($1)",
                &[&oids],
            )
            .await?;
        tx.commit().await?;
        dropped += rows.len() as u64;
        failpoint::at(failpoint::COPY_UNDO_UNLINKED)?;
    }
    Ok(dropped)
}
