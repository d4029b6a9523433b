//! How fast the servers do what a copy is made of, tried on a small part of the real tables.
//!
//! Only reads, and only for a moment: a dry run may neither write nor be in anybody's way. So a load into the target is
//! not among what is measured; its processor is, by a query that needs no table.

use crate::state::Table;
use futures_util::StreamExt;
use handover_core::error::Result;
use handover_postgres::{Session, TableName, quote_ident};
use std::collections::BTreeMap;
use std::pin::pin;
use std::time::{Duration, Instant};

/// In all, for reading and for sorting each.
const BUDGET: Duration = Duration::from_millis(1500);
/// No statement is let run longer.
const STATEMENT: &str = "2s";
/// Tables that are read, the largest ones.
const TABLES: usize = 8;
/// Blocks that are read at once: 2 MB; and parts of a table that they are taken from.
const BLOCKS: u64 = 256;
const PARTS: u64 = 16;
/// Rows whose keys are sorted at once, about.
const SORTED: u64 = 100_000;

/// An index as the estimate needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Whose it is.
    pub table: TableName,
    /// Its name.
    pub name: String,
    /// E.g. `btree`.
    pub method: String,
    /// Its size on the source.
    pub bytes: u64,
    /// Its key as SQL, where that is nothing but columns: expressions could call anything.
    pub key: Option<String>,
}

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// Seconds for reading all of a table through the engine, by the table's place.
    pub reads: BTreeMap<usize, f64>,
    /// Bytes of tables that were read for it.
    pub bytes: u64,
    /// Seconds for sorting all keys of an index, by the index's place.
    pub sorts: BTreeMap<usize, f64>,
    /// How many times as long as the source the target needs for the same computation, unless they share a machine.
    pub slowness: Option<f64>,
    /// Whether both servers have the same address.
    pub together: bool,
}

/// A part of a table that was read.
struct Read {
    ranges: Vec<(u64, u64)>,
    rows: u64,
    /// Of all the table.
    share: f64,
    seconds: f64,
}

/// Tries it.
///
/// # Errors
/// No connection. What cannot be read is left out.
pub async fn measure(
    blue: &Session,
    green: &Session,
    major: u32,
    tables: &[Table],
    indexes: &[Index],
) -> Result<Measured> {
    for session in [blue, green] {
        for (name, value) in [("statement_timeout", STATEMENT), ("max_parallel_workers_per_gather", "0")] {
            session.set(name, value).await?;
        }
    }
    // Its own sort must not spill where the index build, with more memory, would not.
    blue.set("work_mem", "64MB").await?;
    let mut out = Measured { together: together(blue, green).await?, ..Measured::default() };
    let latency = latency(blue).await?;
    let begun = Instant::now();
    let mut reads = BTreeMap::new();
    for (i, table) in tables.iter().enumerate().take(TABLES).filter(|(_, t)| t.bytes > 0) {
        // The largest first, and each of the rest gets its part of what time is left.
        let left = BUDGET.saturating_sub(begun.elapsed());
        let weight = table.bytes.max(1) as f64
            / tables[i..].iter().take(TABLES).map(|t| t.bytes.max(1)).sum::<u64>() as f64;
        if left.is_zero() {
            break;
        }
        if let Some(read) = read(blue, table, major, left.mul_f64(weight), latency).await {
            out.reads.insert(i, read.seconds / read.share);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let bytes = (table.bytes as f64 * read.share) as u64;
            out.bytes += bytes;
            reads.insert(&table.name, read);
        }
    }
    let begun = Instant::now();
    for (i, index) in indexes.iter().enumerate() {
        let (Some(read), Some(key)) = (reads.get(&index.table), &index.key) else { continue };
        if begun.elapsed() > BUDGET {
            break;
        }
        if let Some(seconds) = sort(blue, index, key, read, latency).await {
            out.sorts.insert(i, seconds);
        }
    }
    if !out.together {
        out.slowness = slowness(blue, green).await;
    }
    Ok(out)
}

async fn together(blue: &Session, green: &Session) -> Result<bool> {
    let sql = "select coalesce(host(inet_server_addr()), '')";
    let (one, two) = tokio::try_join!(blue.query_one(sql, &[]), green.query_one(sql, &[]))?;
    Ok(one.get::<_, String>(0) == two.get::<_, String>(0))
}

/// What a statement costs that does nothing.
async fn latency(session: &Session) -> Result<f64> {
    let mut best = f64::MAX;
    for _ in 0..3 {
        let begun = Instant::now();
        let mut stream =
            pin!(session.copy_out("copy (select 1 where false) to stdout (format binary)").await?);
        while let Some(piece) = stream.next().await {
            piece.map_err(|e| session.error(&e))?;
        }
        best = best.min(begun.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Reads parts of a table as the copy would, for about that long.
async fn read(blue: &Session, table: &Table, major: u32, time: Duration, latency: f64) -> Option<Read> {
    let blocks = blue
        .query_one(
            "select pg_relation_size(to_regclass($1)) / current_setting('block_size')::int8",
            &[&table.name.sql()],
        )
        .await
        .ok()?
        .get::<_, i64>(0)
        .unsigned_abs();
    let columns = table.columns.iter().map(|c| quote_ident(c)).collect::<Vec<_>>().join(", ");
    let format = if table.binary { "binary" } else { "text" };
    let from = format!("copy (select {columns} from only {}", table.name.sql());
    let to = format!("to stdout (format {format})");
    let mut out = Read { ranges: Vec::new(), rows: 0, share: 0.0, seconds: 0.0 };
    if blocks <= BLOCKS || major < 14 {
        // Before Postgres 14 a condition on ctid reads all of a table.
        let percent = (100.0 * (4 * BLOCKS) as f64 / blocks.max(1) as f64).min(100.0);
        let sample = if percent < 100.0 { format!(" tablesample system ({percent})") } else { String::new() };
        let (rows, seconds, _) = stream(blue, &format!("{from}{sample}) {to}")).await?;
        let ranges = if sample.is_empty() { vec![(0, blocks.max(1))] } else { Vec::new() };
        return Some(Read {
            ranges,
            rows,
            share: percent / 100.0,
            seconds: (seconds - latency).max(seconds / 10.0),
        });
    }
    let begun = Instant::now();
    let parts = PARTS.min(blocks / BLOCKS).max(1);
    // Far from each other first: the beginning of a table is seldom like its end.
    for part in (0..parts).map(|i| scattered(i, parts)) {
        let lower = blocks * part / parts;
        let upper = (lower + BLOCKS).min(blocks);
        let sql = format!("{from} where ctid >= '({lower},0)'::tid and ctid < '({upper},0)'::tid) {to}");
        let (rows, seconds, bytes) = stream(blue, &sql).await?;
        out.rows += rows;
        out.seconds += (seconds - latency).max(seconds / 10.0);
        if rows == 0 && bytes > 0 {
            // Not to the end in its time: very wide rows. What came is so much of the table, roughly.
            out.share +=
                (bytes as f64 / table.bytes.max(1) as f64).min((upper - lower) as f64 / blocks as f64);
            break;
        }
        out.share += (upper - lower) as f64 / blocks as f64;
        out.ranges.push((lower, upper));
        if begun.elapsed() > time {
            break;
        }
    }
    (out.share > 0.0).then_some(out)
}

/// The numbers below `n` in an order in which neighbours lie far apart.
fn scattered(i: u64, n: u64) -> u64 {
    // A step that shares no divisor with `n`, near the golden section.
    let step = (1..=n).rev().map(|k| (n * 618 / 1000 + k) % n.max(1)).find(|s| *s > 0 && gcd(*s, n) == 1);
    (n / 2 + i * step.unwrap_or(1)) % n.max(1)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Rows, seconds and bytes of a COPY; no rows when it was cut short.
async fn stream(session: &Session, sql: &str) -> Option<(u64, f64, u64)> {
    let begun = Instant::now();
    // What cannot be read by whoever looks may be readable for the role that executes.
    let mut pieces = pin!(session.copy_out(sql).await.ok()?);
    let (mut rows, mut bytes) = (0, 0);
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => (rows, bytes) = (rows + 1, bytes + piece.len() as u64),
            Err(_) if bytes > 0 => return Some((0, begun.elapsed().as_secs_f64(), bytes)),
            Err(_) => return None,
        }
    }
    Some((rows, begun.elapsed().as_secs_f64(), bytes))
}

/// Sorts the keys of what was read, and says how long all of the table's would take.
async fn sort(blue: &Session, index: &Index, key: &str, read: &Read, latency: f64) -> Option<f64> {
    let per_range = read.rows / read.ranges.len().max(1) as u64;
    let ranges = (SORTED / per_range.max(1)).max(1);
    #[allow(clippy::cast_possible_truncation)]
    let some: Vec<String> = read
        .ranges
        .iter()
        .take(ranges as usize)
        .map(|(lower, upper)| {
            format!(
                "select {key} from only {} where ctid >= '({lower},0)'::tid and ctid < '({upper},0)'::tid",
                index.table.sql()
            )
        })
        .collect();
    if some.is_empty() {
        return None;
    }
    // OFFSET keeps the planner from leaving the sort away.
    let places: Vec<String> = (1..=key_columns(key)).map(|n| n.to_string()).collect();
    let sql = format!(
        "select count(*) from ({} order by {} offset 0) s",
        some.join(" union all "),
        places.join(", ")
    );
    let begun = Instant::now();
    let rows = blue.query_one(&sql, &[]).await.ok()?.get::<_, i64>(0).unsigned_abs();
    let seconds = begun.elapsed().as_secs_f64();
    let seconds = (seconds - latency).max(seconds / 10.0);
    let all = read.rows as f64 / read.share;
    let grows = all.max(2.0).log2() / (rows.max(2) as f64).log2();
    Some(seconds * all / rows.max(1) as f64 * grows.max(1.0))
}

/// How many columns a list of quoted names has.
fn key_columns(key: &str) -> usize {
    let mut quoted = false;
    let commas = key.chars().filter(|c| {
        quoted ^= *c == '"';
        *c == ',' && !quoted
    });
    commas.count() + 1
}

/// A computation that is alike to what a load does, on both servers in turn, so that what else they do meanwhile
/// weighs on both.
async fn slowness(blue: &Session, green: &Session) -> Option<f64> {
    let sql = "select count(*) from (select md5(i::text) collate \"C\" from generate_series(1, 30000) i order by 1 offset 0) s";
    let mut best = (f64::MAX, f64::MAX);
    for _ in 0..4 {
        for (session, best) in [(blue, &mut best.0), (green, &mut best.1)] {
            let begun = Instant::now();
            session.query_one(sql, &[]).await.ok()?;
            *best = best.min(begun.elapsed().as_secs_f64());
        }
    }
    // Beyond that it says more of the connection than of the server.
    Some((best.1 / best.0.max(1e-6)).clamp(0.25, 4.0))
}

#[cfg(test)]
mod tests {
    use super::{key_columns, scattered};
    use std::collections::BTreeSet;

    #[test]
    fn parts_are_all_taken_and_lie_apart() {
        for n in 1..=16 {
            let all: BTreeSet<u64> = (0..n).map(|i| scattered(i, n)).collect();
            assert_eq!(all, (0..n).collect(), "{n}");
        }
        assert!(scattered(0, 16).abs_diff(scattered(1, 16)) > 3);
    }

    #[test]
    fn columns_with_odd_names_are_counted() {
        assert_eq!((key_columns("a"), key_columns("\"a,\"\"b\", c"), key_columns("a, b, c")), (1, 2, 3));
    }
}
