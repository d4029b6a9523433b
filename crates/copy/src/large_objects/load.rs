//! Copying large objects: those that fit into one piece many to a transaction, larger ones as units of their own.

use super::object::{self, Object, as_ourselves, as_owner, decorate};
use super::units::{BATCH, BATCHES, Batch, FLUSH, PIECE, SINGLES, Single, explain};
use crate::lock::lock;
use crate::options::{Copy, LargeObjects};
use crate::source::Source;
use crate::{state, target};
use futures_util::StreamExt;
use handover_core::error::{Error, Result};
use handover_core::event::Measure;
use handover_core::failpoint;
use handover_port::Port;
use handover_postgres::{Session, Tx};
use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::task::JoinSet;

/// Bytes of one large object in a transaction.
const STRETCH: u64 = 64 << 20;

#[derive(Debug, Clone, Copy)]
enum Unit {
    /// All from the first to the last of these numbers.
    Batch(u32, u32),
    Single(u32),
}

struct Shared {
    port: Port,
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
pub async fn copy(port: &Port, copy: &Copy, exported: &str, jobs: usize) -> Result<()> {
    if copy.large_objects == LargeObjects::Skip {
        return Ok(());
    }
    let databases = port.databases.labelled(port.step.as_str());
    let blue = Source::reader(&databases, &copy.from, exported).await?;
    let batches = batches(&blue).await?;
    if batches.is_empty() {
        return Ok(());
    }
    let total: i64 = blue.query_one("select count(*) from pg_largeobject_metadata", &[]).await?.get(0);
    drop(blue);
    let green = target::reader(port, copy).await?;
    let done = state::units(&green, port.run, &port.step).await?;
    let (mut known, mut left) = (0, Vec::new());
    for batch in state::states::<Batch>(&green, port.run, &port.step, BATCHES).await? {
        known += batch.made.iter().map(|(_, n)| u64::from(*n)).sum::<u64>();
        left.extend(batch.left);
    }
    drop(green);
    let queue = batches
        .into_iter()
        .filter(|(from, _)| !done.contains(&format!("{BATCHES}{from}")))
        .map(|(from, to)| Unit::Batch(from, to));
    let shared = Arc::new(Shared {
        port: port.clone(),
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
    port.unit_done("large objects");
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
            () = shared.port.stop.cancelled() => return Err(Error::cancelled()),
            ended = workers.join_next() => match ended {
                None => return Ok(()),
                Some(Ok(result)) => result?,
                Some(Err(e)) => return Err(Error::internal(format!("a task that copies large objects broke off: {e}"))),
            },
        }
    }
}

async fn work(shared: Arc<Shared>) -> Result<()> {
    let port = &shared.port;
    let databases = port.databases.labelled(port.step.as_str());
    let reader = Source::reader(&databases, &shared.copy.from, &shared.exported).await?;
    let mut writer = port.writer(&shared.copy.to).await?;
    writer.set("synchronous_commit", "off").await?;
    loop {
        let next = lock(&shared.queue).pop_front();
        let Some(unit) = next else { return Ok(()) };
        port.proceed()?;
        match unit {
            Unit::Batch(from, to) => batch(&shared, &reader, &mut writer, from, to).await,
            Unit::Single(oid) => single(&shared, &reader, &mut writer, oid).await,
        }
        .map_err(explain)?;
    }
}

/// Copies the objects of a range that fit into one piece, and notes the others.
async fn batch(shared: &Shared, reader: &Session, writer: &mut Session, from: u32, to: u32) -> Result<()> {
    let (port, copy) = (&shared.port, &shared.copy);
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
    tx.save_checkpoint(port.run, &port.step, &format!("{BATCHES}{from}"), &state).await?;
    tx.commit().await?;
    count(shared, (objects.len() - state.left.len()) as u64);
    lock(&shared.left).extend(state.left);
    failpoint::at(failpoint::COPY_LARGE_OBJECTS)?;
    Ok(())
}

fn count(shared: &Shared, more: u64) {
    let done = shared.done.fetch_add(more, Ordering::Relaxed) + more;
    shared.port.progress("large objects", done, Some(shared.total), Measure::Items);
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
    let (port, copy) = (&shared.port, &shared.copy);
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
        port.proceed()?;
        let tx = writer.transaction().await?;
        let there: Option<Single> = tx.checkpoint(port.run, &port.step, &unit).await?;
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
            let params: handover_postgres::session::Params<'_> = &[&oid, &at, &data];
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
        tx.save_checkpoint(port.run, &port.step, &unit, &state).await?;
        tx.commit().await?;
        failpoint::at(failpoint::COPY_LARGE_OBJECT_STRETCH)?;
        if state.complete {
            count(shared, 1);
            return Ok(());
        }
    }
}
