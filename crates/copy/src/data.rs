//! The rows: COPY from the one snapshot into one transaction per chunk.

use crate::split;
use crate::state::{Chunk, Loaded, Table};
use bytes::BytesMut;
use futures_util::{SinkExt, StreamExt};
use handover_core::error::Result;
use handover_core::event::Measure;
use handover_core::failpoint;
use handover_port::Port;
use handover_postgres::{Session, quote_ident};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often a progress bar moves.
const TICK: Duration = Duration::from_millis(200);
/// Rows are gathered up to this size and sent on as one message: the driver hands out a message per row.
const GATHERED: usize = 256 << 10;

/// How far a table's rows have come.
#[derive(Debug, Default)]
pub struct Done {
    /// Bytes of its chunks that are committed.
    bytes: AtomicU64,
    /// Chunks that are committed.
    chunks: AtomicU64,
    /// Bytes of chunks that are on their way.
    moving: AtomicU64,
}

impl Done {
    /// A table of which an earlier attempt loaded some chunks.
    #[must_use]
    pub fn already(table: &Table, chunks: usize) -> Self {
        let bytes = share(table) * chunks as u64;
        Done { bytes: bytes.into(), chunks: (chunks as u64).into(), moving: 0.into() }
    }

    /// Bytes that are there or on their way.
    #[must_use]
    pub fn so_far(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed) + self.moving.load(Ordering::Relaxed)
    }
}

/// A chunk's part of the table's bytes.
fn share(table: &Table) -> u64 {
    table.bytes / table.chunks.len().max(1) as u64
}

/// Prepares a session on the target for loading.
pub async fn prepare_writer(writer: &Session) -> Result<()> {
    // A chunk's checkpoint commits with its rows, so a crash of the server loses both or none.
    writer.set("synchronous_commit", "off").await
}

/// Streams one chunk, and commits it with its checkpoint.
///
/// # Errors
/// What either server says; then nothing of the chunk is there.
pub async fn load(
    port: &Port,
    reader: &Session,
    writer: &mut Session,
    table: &Table,
    chunk: usize,
    done: &Done,
) -> Result<()> {
    let (read, write) = statements(table, chunk);
    let share = share(table);
    let name = table.name.to_string();
    let tx = writer.transaction().await?;
    if alone(table) {
        // COPY FREEZE is for a table that this transaction emptied; this one holds nothing yet.
        tx.execute(&format!("truncate only {}", table.name.sql()), &[]).await?;
    }
    let mut rows = pin!(reader.copy_out(&read).await?);
    let mut sink = pin!(tx.copy_in(&write).await?);
    let (mut streamed, mut shown, mut tick) = (0_u64, 0_u64, Instant::now());
    let mut gathered = BytesMut::with_capacity(GATHERED * 2);
    while let Some(piece) = rows.next().await {
        gathered.extend_from_slice(&piece.map_err(|e| reader.error(&e))?);
        if gathered.len() < GATHERED {
            continue;
        }
        streamed += gathered.len() as u64;
        sink.feed(gathered.split().freeze()).await.map_err(|e| tx.error(&e))?;
        if tick.elapsed() > TICK {
            tick = Instant::now();
            // Bytes on the wire are not bytes on disk: within a chunk this is an approximation.
            let now = streamed.min(share);
            done.moving.fetch_add(now - shown, Ordering::Relaxed);
            shown = now;
            port.progress(&name, done.so_far().min(table.bytes), Some(table.bytes), Measure::Bytes);
        }
    }
    streamed += gathered.len() as u64;
    if !gathered.is_empty() {
        sink.feed(gathered.freeze()).await.map_err(|e| tx.error(&e))?;
    }
    let rows = sink.as_mut().finish().await.map_err(|e| tx.error(&e))?;
    let loaded = Loaded { table: table.name.clone(), rows, bytes: streamed };
    tx.save_checkpoint(port.run, &port.step, &table.unit(chunk), &loaded).await?;
    tx.commit().await?;
    done.moving.fetch_sub(shown, Ordering::Relaxed);
    let bytes = done.bytes.fetch_add(share, Ordering::Relaxed) + share;
    if done.chunks.fetch_add(1, Ordering::Relaxed) + 1 == table.chunks.len() as u64 {
        port.progress(&name, table.bytes, Some(table.bytes), Measure::Bytes);
        port.unit_done(&name);
    } else {
        port.progress(&name, bytes, Some(table.bytes), Measure::Bytes);
    }
    failpoint::at(failpoint::COPY_CHUNK_COMMITTED)?;
    Ok(())
}

/// Whether one transaction loads all of a table, which can then store its rows as if vacuum had been there:
/// nobody has to look at their transaction, or write their pages, again.
/// (<https://www.postgresql.org/docs/current/sql-copy.html>, FREEZE)
pub fn alone(table: &Table) -> bool {
    table.chunks.len() == 1 && table.root.is_none()
}

/// The two statements that move a chunk.
fn statements(table: &Table, number: usize) -> (String, String) {
    let chunk = table.chunks.get(number).unwrap_or(&Chunk::WHOLE);
    let name = table.name.sql();
    let columns: Vec<String> = table.columns.iter().map(|c| quote_ident(c)).collect();
    let columns = columns.join(", ");
    // Without columns of its own to name (none at all, or only generated ones) the list is left out.
    let list = if columns.is_empty() { String::new() } else { format!(" ({columns})") };
    let format = if table.binary { "binary" } else { "text" };
    let read = match split::condition(chunk, table.key.as_ref()) {
        None => format!("copy {name}{list} to stdout (format {format})"),
        Some(condition) => {
            format!(
                "copy (select {columns} from only {name} t where {condition}) to stdout (format {format})"
            )
        }
    };
    let name = table.root.as_ref().unwrap_or(&table.name).sql();
    let freeze = if alone(table) { ", freeze" } else { "" };
    (read, format!("copy {name}{list} from stdin (format {format}{freeze})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use handover_postgres::TableName;

    #[test]
    fn generated_and_missing_columns_are_left_out() {
        let mut table = Table {
            name: TableName::new("s", "a\"b"),
            root: None,
            columns: vec!["id".into(), "od\"d".into()],
            binary: true,
            bytes: 1,
            chunks: vec![Chunk::WHOLE],
            key: None,
        };
        let (read, write) = statements(&table, 0);
        assert_eq!(read, "copy \"s\".\"a\"\"b\" (\"id\", \"od\"\"d\") to stdout (format binary)");
        assert_eq!(write, "copy \"s\".\"a\"\"b\" (\"id\", \"od\"\"d\") from stdin (format binary, freeze)");
        table.chunks = vec![Chunk::Blocks { from: 0, to: Some(5) }, Chunk::Blocks { from: 5, to: Some(9) }];
        let (read, write) = statements(&table, 1);
        assert!(!write.contains("freeze"), "another transaction loads the rest");
        assert!(
            read.ends_with(
                "where t.ctid >= '(5,0)'::tid and t.ctid < '(9,0)'::tid) to stdout (format binary)"
            )
        );
        table.columns.clear();
        table.binary = false;
        assert_eq!(statements(&table, 0).1, "copy \"s\".\"a\"\"b\" from stdin (format text)");
    }
}
