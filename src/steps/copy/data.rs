//! The rows: parallel COPY from one snapshot into one transaction per chunk.

use super::source::{Source, text_settings};
use super::state::{Chunk, Loaded, State, Table};
use super::{Copy, state};
use crate::error::{Error, Result};
use crate::event::{Measure, RunId, StepId};
use crate::failpoint;
use crate::postgres::{Session, quote_ident};
use crate::steps::Context;
use futures_util::{SinkExt, StreamExt};
use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How often a progress bar moves.
const TICK: Duration = Duration::from_millis(200);
/// How often a held snapshot is mentioned.
const REMINDER: Duration = Duration::from_secs(300);

/// One chunk of one table.
#[derive(Debug, Clone)]
struct Unit {
    table: usize,
    chunk: usize,
    /// Its share of the table's bytes.
    bytes: u64,
}

struct Shared {
    cx: Context,
    from: String,
    to: String,
    exported: String,
    tables: Vec<Table>,
    queue: Mutex<VecDeque<Unit>>,
    /// Bytes and chunks done, per table.
    done: Vec<(AtomicU64, AtomicU64)>,
    /// Backends on blue, to be cancelled when the copy breaks off.
    backends: Mutex<Vec<i32>>,
}

/// Copies all rows. Returns when every chunk is committed.
///
/// # Errors
/// What either server says; whatever was committed stays, to be discarded or kept by the caller.
pub async fn copy_rows(cx: &Context, copy: &Copy, source: &Source, state: &State) -> Result<()> {
    let mut units: Vec<Unit> = Vec::new();
    for (i, table) in state.tables.iter().enumerate() {
        let share = table.bytes / table.chunks.len().max(1) as u64;
        units.extend((0..table.chunks.len()).map(|chunk| Unit { table: i, chunk, bytes: share }));
    }
    // Largest first, so that no big one is left for the end.
    units.sort_by_key(|u| (std::cmp::Reverse(u.bytes), u.table, u.chunk));
    let jobs = copy.jobs().min(units.len().max(1));
    let shared = Arc::new(Shared {
        cx: cx.clone(),
        from: copy.from.clone(),
        to: copy.to.clone(),
        exported: source.exported.clone(),
        done: state.tables.iter().map(|_| (AtomicU64::new(0), AtomicU64::new(0))).collect(),
        tables: state.tables.clone(),
        queue: Mutex::new(units.into()),
        backends: Mutex::new(Vec::new()),
    });
    let mut workers = JoinSet::new();
    for _ in 0..jobs {
        workers.spawn(work(shared.clone()));
    }
    let result = supervise(cx, source, &mut workers).await;
    if result.is_err() {
        workers.shutdown().await;
        // A COPY whose reader is gone would read on to its end; the holder may end its own role's queries.
        let backends = shared.backends.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sql = "select pg_cancel_backend(pid) from unnest($1::int4[]) pid";
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&backends];
        let cancel = source.session().query(sql, &params);
        let _ = tokio::time::timeout(Duration::from_secs(5), cancel).await;
    }
    result
}

async fn supervise(cx: &Context, source: &Source, workers: &mut JoinSet<Result<()>>) -> Result<()> {
    let mut reminder = tokio::time::interval(REMINDER);
    reminder.tick().await;
    loop {
        tokio::select! {
            () = cx.stop.cancelled() => return Err(Error::cancelled()),
            _ = reminder.tick() => {
                source.assert_held().await?;
                cx.note(format!(
                    "the snapshot on the source is {} minutes old; vacuum there keeps every row version that died since",
                    source.age().as_secs() / 60
                ));
            }
            ended = workers.join_next() => match ended {
                None => return Ok(()),
                Some(Ok(result)) => result?,
                Some(Err(e)) => return Err(Error::internal(format!("a copying task broke off: {e}"))),
            },
        }
    }
}

async fn work(shared: Arc<Shared>) -> Result<()> {
    let databases = shared.cx.databases.labelled(shared.cx.step.as_str());
    let reader = Source::reader(&databases, &shared.from, &shared.exported).await?;
    let pid = reader.backend_pid().await?;
    shared.backends.lock().unwrap_or_else(PoisonError::into_inner).push(pid);
    let mut writer = shared.cx.writer(&shared.to).await?;
    text_settings(&writer).await?;
    for (name, value) in [("statement_timeout", "0"), ("synchronous_commit", "off"), ("row_security", "off")]
    {
        writer.set(name, value).await?;
    }
    loop {
        let next = shared.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(unit) = next else { return Ok(()) };
        shared.cx.proceed()?;
        let table = &shared.tables[unit.table];
        load(&shared, &reader, &mut writer, &unit)
            .await
            .map_err(|e| e.context(format!("copying table {}", table.name)))?;
        let (bytes, chunks) = &shared.done[unit.table];
        let bytes = bytes.fetch_add(unit.bytes, Ordering::Relaxed) + unit.bytes;
        let name = table.name.to_string();
        if chunks.fetch_add(1, Ordering::Relaxed) + 1 == table.chunks.len() as u64 {
            shared.cx.progress(&name, table.bytes, Some(table.bytes), Measure::Bytes);
            shared.cx.unit_done(&name);
        } else {
            shared.cx.progress(&name, bytes, Some(table.bytes), Measure::Bytes);
        }
        failpoint::hit(failpoint::COPY_CHUNK_COMMITTED);
    }
}

/// Streams one chunk, and commits it with its checkpoint.
async fn load(shared: &Shared, reader: &Session, writer: &mut Session, unit: &Unit) -> Result<()> {
    let table = &shared.tables[unit.table];
    let (read, write) = statements(table, table.chunks[unit.chunk]);
    let tx = writer.transaction().await?;
    let mut rows = pin!(reader.copy_out(&read).await?);
    let mut sink = pin!(tx.copy_in(&write).await?);
    let mut streamed = 0_u64;
    let mut tick = Instant::now();
    while let Some(piece) = rows.next().await {
        let piece = piece.map_err(|e| reader.error(&e))?;
        streamed += piece.len() as u64;
        sink.feed(piece).await.map_err(|e| tx.error(&e))?;
        if tick.elapsed() > TICK {
            tick = Instant::now();
            // Bytes on the wire are not bytes on disk: within a chunk this is an approximation.
            let before = shared.done[unit.table].0.load(Ordering::Relaxed);
            let done = (before + streamed.min(unit.bytes)).min(table.bytes);
            shared.cx.progress(&table.name.to_string(), done, Some(table.bytes), Measure::Bytes);
        }
    }
    let rows = sink.as_mut().finish().await.map_err(|e| tx.error(&e))?;
    let loaded = Loaded { table: table.name.clone(), rows, bytes: streamed };
    tx.save_checkpoint(shared.cx.run, &shared.cx.step, &table.unit(unit.chunk), &loaded).await?;
    tx.commit().await
}

/// The two statements that move a chunk.
fn statements(table: &Table, chunk: Chunk) -> (String, String) {
    let name = table.name.sql();
    let columns: Vec<String> = table.columns.iter().map(|c| quote_ident(c)).collect();
    let columns = columns.join(", ");
    // Without columns of its own to name (none at all, or only generated ones) the list is left out.
    let list = if columns.is_empty() { String::new() } else { format!(" ({columns})") };
    let format = if table.binary { "binary" } else { "text" };
    let read = if chunk.from == 0 && chunk.to.is_none() {
        format!("copy {name}{list} to stdout (format {format})")
    } else {
        let upper = chunk.to.map(|to| format!(" and ctid < '({to},0)'::tid")).unwrap_or_default();
        format!(
            "copy (select {columns} from only {name} where ctid >= '({},0)'::tid{upper}) to stdout (format {format})",
            chunk.from
        )
    };
    let name = table.root.as_ref().unwrap_or(&table.name).sql();
    (read, format!("copy {name}{list} from stdin (format {format})"))
}

/// Rows that were loaded, per table.
///
/// # Errors
/// What the server says.
pub async fn loaded(session: &Session, cx: &Context) -> Result<Vec<Loaded>> {
    loaded_by(session, cx.run, &cx.step).await
}

/// The same of another step.
///
/// # Errors
/// What the server says.
pub async fn loaded_by(session: &Session, run: RunId, step: &StepId) -> Result<Vec<Loaded>> {
    let mut totals: std::collections::BTreeMap<_, Loaded> = std::collections::BTreeMap::new();
    for one in state::states::<Loaded>(session, run, step, "rows:").await? {
        let total = totals.entry(one.table.clone()).or_insert(Loaded { rows: 0, bytes: 0, table: one.table });
        total.rows += one.rows;
        total.bytes += one.bytes;
    }
    Ok(totals.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::TableName;

    #[test]
    fn generated_and_missing_columns_are_left_out() {
        let mut table = Table {
            name: TableName::new("s", "a\"b"),
            root: None,
            columns: vec!["id".into(), "od\"d".into()],
            binary: true,
            bytes: 1,
            chunks: vec![],
        };
        let (read, write) = statements(&table, Chunk { from: 0, to: None });
        assert_eq!(read, "copy \"s\".\"a\"\"b\" (\"id\", \"od\"\"d\") to stdout (format binary)");
        assert_eq!(write, "copy \"s\".\"a\"\"b\" (\"id\", \"od\"\"d\") from stdin (format binary)");
        let (read, _) = statements(&table, Chunk { from: 5, to: Some(9) });
        assert!(
            read.ends_with("where ctid >= '(5,0)'::tid and ctid < '(9,0)'::tid) to stdout (format binary)")
        );
        table.columns.clear();
        table.binary = false;
        assert_eq!(
            statements(&table, Chunk { from: 0, to: None }).1,
            "copy \"s\".\"a\"\"b\" from stdin (format text)"
        );
    }
}
