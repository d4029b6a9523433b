//! Checksums of tables, piece by piece, by both servers at the same time.
//!
//! A piece's checksum is the number of its rows and the sum of their hashes, which no order of rows changes and
//! which counts duplicates. Several pairs of sessions take pieces from one queue; only pieces that differ are
//! read again, for their rows.

use crate::agreed::{Agreed, Boundaries, Sums};
use crate::found::{Kind, SHOWN, TableFound};
use crate::hash::Hasher;
use crate::narrow::{self, Candidate};
use crate::sessions::{Pair, Sessions};
use crate::side::BEGIN;
use crate::split::{self, Blocks, Split, Table};
use crate::tally::{Buckets, Range, Tally, Unit, buckets, merge};
use futures_util::future::try_join_all;
use handover_core::error::{Error, Result};
use handover_core::event::Measure;
use handover_core::failpoint;
use handover_core::value::fingerprint;
use handover_port::Port;
use handover_postgres::Session;
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Differing pieces of a table whose rows are searched, at most; and rows that are looked for.
const SEARCHED: u64 = 1_000;
const ROWS_SEARCHED: u64 = 1_000_000;
/// Types of keys that may stand in the journal, which is read by many: numbers, dates and times. Text or bytes may be
/// what opens a session.
const PLAIN: &[u32] = &[20, 21, 23, 26, 1082, 1114, 1184, 1700];
/// A table of this many pieces is resumed piece by piece, a smaller one is read again.
const KEPT: usize = 20;
/// Sums of so many buckets go into the journal: some hundred kilobytes.
const BUCKETS: i64 = 4_096;
/// Differing rows of a table that are remembered while it is being written.
pub const REMEMBERED: usize = 100_000;

/// A comparison of tables.
pub struct Comparison<'a> {
    cx: &'a Port,
    sessions: Sessions<'a>,
    hasher: Hasher,
    tables: &'a [Table],
    queue: Mutex<VecDeque<Unit>>,
    planning: AtomicUsize,
    tallies: Vec<Mutex<Tally>>,
    total: (AtomicU64, u64),
    agreed: &'a Agreed,
}

/// A table that was compared: what was found, and the rows that differ.
pub type Compared = (TableFound, Vec<Candidate>);

impl<'a> Comparison<'a> {
    /// A comparison that was not begun.
    #[must_use]
    pub fn new(
        cx: &'a Port,
        sessions: Sessions<'a>,
        hasher: Hasher,
        tables: &'a [Table],
        agreed: &'a Agreed,
    ) -> Self {
        let mut order: Vec<usize> = (0..tables.len()).collect();
        // Largest first, so that no big one is left for the end.
        order.sort_by_key(|i| std::cmp::Reverse(tables[*i].shapes.0.bytes));
        let tallies = tables.iter().map(|table| {
            let (table, key) = (table.name.to_string(), table.key.clone());
            Mutex::new(Tally {
                found: TableFound { table, key, ..TableFound::default() },
                ..Tally::default()
            })
        });
        Comparison {
            cx,
            sessions,
            hasher,
            tables,
            queue: Mutex::new(order.into_iter().map(Unit::Plan).collect()),
            planning: AtomicUsize::new(0),
            tallies: tallies.collect(),
            total: (AtomicU64::new(0), tables.iter().map(|t| t.shapes.0.bytes).sum()),
            agreed,
        }
    }

    /// Compares all tables with `jobs` sessions on each side.
    ///
    /// # Errors
    /// What either server says.
    pub async fn run(self, jobs: usize) -> Result<Vec<Compared>> {
        let workers = try_join_all((0..jobs.max(1)).map(|_| self.work()));
        let result = tokio::select! {
            result = workers => result.map(drop),
            () = self.cx.stop.cancelled() => Err(Error::cancelled()),
        };
        if let Err(e) = result {
            // What was read since the last fact need not be read again; unless the journal is what failed.
            for (i, table) in self.tables.iter().enumerate() {
                self.agreed.keep_sums(&table.name, self.sums_so_far(i));
            }
            let _ = self.agreed.flush().await;
            return Err(e);
        }
        let mut out = Vec::new();
        for tally in self.tallies {
            let Tally { mut found, candidates, .. } =
                tally.into_inner().unwrap_or_else(PoisonError::into_inner);
            if !self.sessions.moving() && found.differed > 0 && found.equal() && !found.at_least {
                found.problem = Some("its sums differ although no row does".into());
            }
            out.push((found, candidates));
        }
        self.cx.unit_done(IN_ALL);
        Ok(out)
    }

    async fn work(&self) -> Result<()> {
        let pair = self.sessions.pair().await?;
        loop {
            self.cx.proceed()?;
            let unit = {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                let unit = queue.pop_front();
                if matches!(unit, Some(Unit::Plan(_))) {
                    self.planning.fetch_add(1, Ordering::SeqCst);
                }
                unit
            };
            let Some(unit) = unit else {
                if self.planning.load(Ordering::SeqCst) == 0 {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            let (Unit::Plan(i) | Unit::Range(i, _) | Unit::Blocks(i, ..)) = &unit;
            let (i, name) = (*i, &self.tables[*i].name);
            let result = match unit {
                Unit::Plan(_) => {
                    let planned = self.plan(&pair, i).await;
                    self.planning.fetch_sub(1, Ordering::SeqCst);
                    planned
                }
                Unit::Range(_, range) => self.range(&pair, i, &range).await,
                Unit::Blocks(_, from, to) => self.blocks(&pair, i, from, to).await,
            };
            result.map_err(|e| e.context(format!("comparing table {name}")))?;
        }
    }

    fn tally(&self, i: usize) -> MutexGuard<'_, Tally> {
        self.tallies[i].lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn plan(&self, pair: &Pair, i: usize) -> Result<()> {
        let table = &self.tables[i];
        if self.agreed.whole(&table.name) {
            self.tally(i).found.resumed += 1;
            self.advance(i, table.shapes.0.bytes);
            self.cx.unit_done(&table.name.to_string());
            return Ok(());
        }
        let units: Vec<Unit> = match &table.split {
            Split::Ranges { columns, pieces } => {
                let (bounds, kept) = self.boundaries(pair, table, columns, *pieces).await?;
                let n = bounds.len() + 1;
                let bytes = table.shapes.0.bytes / n as u64;
                let done = |n: &usize| kept && self.agreed.piece(&table.name, *n);
                let resumed = (0..n).filter(done).count() as u64;
                self.tally(i).found.resumed += resumed;
                self.advance(i, bytes * resumed);
                let unit = |n: usize| {
                    let lower = n.checked_sub(1).and_then(|n| bounds.get(n)).cloned();
                    let (number, upper) = (kept.then_some(n), bounds.get(n).cloned());
                    Unit::Range(i, Range { number, columns: columns.clone(), lower, upper, bytes })
                };
                (0..n).filter(|n| !done(n)).map(unit).collect()
            }
            Split::Blocks { pieces, .. } => {
                let n = pieces.0.len().max(pieces.1.len());
                let bytes = table.shapes.0.bytes / n.max(1) as u64;
                let kept = self.split_digest(i).and_then(|split| self.agreed.sums(&table.name, &split));
                if let Some(sums) = kept.filter(|sums| sums.done.len() < n) {
                    let (one, two) = (buckets(&sums.buckets.0)?, buckets(&sums.buckets.1)?);
                    let mut tally = self.tally(i);
                    tally.found.resumed += sums.done.len() as u64;
                    (tally.buckets, tally.blocks_done) = ((one, two), sums.done);
                    let resumed = tally.blocks_done.len() as u64;
                    drop(tally);
                    self.advance(i, bytes * resumed);
                }
                // Rows move between blocks while they are written: then one transaction must see all pieces.
                let units: Vec<Unit> = if self.sessions.moving() {
                    vec![Unit::Blocks(i, 0, n)]
                } else {
                    let tally = self.tally(i);
                    let left = (0..n).filter(|at| !tally.blocks_done.contains(at));
                    left.map(|at| Unit::Blocks(i, at, at + 1)).collect()
                };
                self.tally(i).blocks_left = units.len();
                units
            }
        };
        self.tally(i).units_left = units.len();
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        for unit in units.into_iter().rev() {
            queue.push_front(unit);
        }
        Ok(())
    }

    /// Where a table is split, and whether the journal knows.
    async fn boundaries(
        &self,
        pair: &Pair,
        table: &Table,
        columns: &[String],
        pieces: u64,
    ) -> Result<(Vec<Vec<String>>, bool)> {
        let fits = |bounds: &[Vec<String>]| bounds.iter().all(|bound| bound.len() == columns.len());
        match self.agreed.boundaries(&table.name)? {
            Some(Boundaries::Plain(kept)) if fits(&kept) => return Ok((kept, true)),
            Some(Boundaries::Drawn { sample, digest }) => {
                let bounds = split::boundaries(&pair.before, table, columns, &sample).await?;
                if digest == Boundaries::digest(&bounds) {
                    return Ok((bounds, true));
                }
            }
            _ => {}
        }
        let sample = split::Sample::of(table, pieces);
        let bounds = split::boundaries(&pair.before, table, columns, &sample).await?;
        let keep = bounds.len() >= KEPT;
        if keep {
            let base = |name| table.shapes.0.columns.get(name).map(|column| column.base);
            let plain = columns.iter().all(|name| base(name).is_some_and(|base| PLAIN.contains(&base)));
            let kept = if plain {
                Boundaries::Plain(bounds.clone())
            } else {
                Boundaries::Drawn { sample, digest: Boundaries::digest(&bounds) }
            };
            self.agreed.keep_boundaries(&table.name, &kept).await?;
        }
        Ok((bounds, keep))
    }

    async fn range(&self, pair: &Pair, i: usize, range: &Range) -> Result<()> {
        let table = &self.tables[i];
        let (lower, upper) = (range.lower.as_deref(), range.upper.as_deref());
        pair.by_index(lower.is_some() || upper.is_some()).await?;
        let condition = split::condition(table, &range.columns, lower, upper);
        let sources = (
            format!("{} where {condition}", table.from(true)),
            format!("{} where {condition}", table.from(false)),
        );
        let row = table.summed(&self.hasher);
        let sum = |source: &str| format!("select count(*), coalesce(sum({row}), 0)::text from {source}");
        let (one, two) = (sum(&sources.0), sum(&sources.1));
        let (one, two) = tokio::try_join!(pair.before.query_one(&one, &[]), pair.after.query_one(&two, &[]))?;
        let (one, two): ((i64, String), (i64, String)) = ((one.get(0), one.get(1)), (two.get(0), two.get(1)));
        let equal = one == two;
        {
            let mut tally = self.tally(i);
            tally.found.chunks += 1;
            tally.found.rows_before += one.0.unsigned_abs();
            tally.found.rows_after += two.0.unsigned_abs();
            tally.found.differed += u64::from(!equal);
        }
        if !equal {
            self.narrow(pair, i, (&sources.0, &sources.1)).await?;
        }
        self.advance(i, range.bytes);
        if equal && range.number.is_some() {
            self.agreed.add(&table.name, range.number, range.bytes).await?;
        }
        self.close_unit(i).await?;
        failpoint::at(failpoint::VERIFY_CHUNK)?;
        Ok(())
    }

    async fn blocks(&self, pair: &Pair, i: usize, from: usize, to: usize) -> Result<()> {
        let table = &self.tables[i];
        let Split::Blocks { buckets, pieces } = &table.split else { return Ok(()) };
        let bucket = table.bucket(&self.hasher, *buckets);
        pair.by_index(false).await?;
        let moving = self.sessions.moving();
        if moving {
            tokio::try_join!(pair.before.query(BEGIN, &[]), pair.after.query(BEGIN, &[]))?;
        }
        let n = pieces.0.len().max(pieces.1.len()) as u64;
        for at in from..to {
            self.cx.proceed()?;
            let (one, two) = tokio::try_join!(
                self.sums(&pair.before, table, &bucket, pieces.0.get(at), true),
                self.sums(&pair.after, table, &bucket, pieces.1.get(at), false)
            )?;
            {
                let mut tally = self.tally(i);
                tally.found.chunks += 1;
                merge(&mut tally.buckets.0, one);
                merge(&mut tally.buckets.1, two);
                tally.blocks_done.insert(at);
            }
            let bytes = table.shapes.0.bytes / n.max(1);
            self.advance(i, bytes);
            self.agreed.add_sums(&table.name, bytes, || self.sums_so_far(i)).await?;
            failpoint::at(failpoint::VERIFY_CHUNK)?;
        }
        let differing: Option<BTreeSet<i64>> = {
            let mut tally = self.tally(i);
            tally.blocks_left -= 1;
            (tally.blocks_left == 0).then(|| {
                let (one, two) = std::mem::take(&mut tally.buckets);
                tally.found.rows_before = one.values().map(|b| b.0.unsigned_abs()).sum();
                tally.found.rows_after = two.values().map(|b| b.0.unsigned_abs()).sum();
                one.keys().chain(two.keys()).copied().filter(|b| one.get(b) != two.get(b)).collect()
            })
        };
        if let Some(differing) = differing.filter(|d| !d.is_empty()) {
            self.tally(i).found.differed = differing.len() as u64;
            let few: Vec<String> =
                differing.iter().take(SEARCHED as usize).map(ToString::to_string).collect();
            self.tally(i).found.at_least |= few.len() < differing.len();
            let condition = format!("{bucket} in ({})", few.join(", "));
            let source = |before| format!("{} where {condition}", table.from(before));
            self.narrow(pair, i, (&source(true), &source(false))).await?;
        }
        if moving {
            tokio::try_join!(pair.before.query("commit", &[]), pair.after.query("commit", &[]))?;
        }
        self.close_unit(i).await
    }

    /// By what to know that a table that is read by block is split and hashed as it was; none where its sums are not
    /// kept: they would be many, or they are of several points in time.
    fn split_digest(&self, i: usize) -> Option<String> {
        let table = &self.tables[i];
        match &table.split {
            Split::Blocks { buckets, pieces } if !self.sessions.moving() && *buckets <= BUCKETS => {
                let how =
                    (table.bucket(&self.hasher, *buckets), table.summed(&self.hasher), pieces, &table.aside);
                Some(fingerprint(&format!("{how:?}"), 16))
            }
            _ => None,
        }
    }

    /// What is known of a table that is read by block, until all of it is.
    fn sums_so_far(&self, i: usize) -> Option<Sums> {
        let split = self.split_digest(i)?;
        let tally = self.tally(i);
        let text =
            |buckets: &Buckets| buckets.iter().map(|(b, (n, sum))| (*b, *n, sum.to_string())).collect();
        let buckets = (text(&tally.buckets.0), text(&tally.buckets.1));
        let open = tally.blocks_left > 0 && !tally.blocks_done.is_empty();
        open.then(|| Sums { split, done: tally.blocks_done.clone(), buckets })
    }

    async fn sums(
        &self,
        session: &Session,
        table: &Table,
        bucket: &str,
        blocks: Option<&Blocks>,
        before: bool,
    ) -> Result<Vec<(i64, i64, i128)>> {
        let Some(blocks) = blocks else { return Ok(Vec::new()) };
        let sql = format!(
            "select b, count(*), sum(h)::text from (select {bucket} as b, {} as h from {} offset 0) s group by b",
            table.summed(&self.hasher),
            table.of_blocks(blocks, before)
        );
        let rows = session.query(&sql, &[]).await?;
        rows.iter()
            .map(|row| {
                let sum = row.get::<_, String>(2).parse();
                Ok((row.get(0), row.get(1), sum.map_err(|_| Error::internal("a sum is no whole number"))?))
            })
            .collect()
    }

    async fn narrow(&self, pair: &Pair, i: usize, sources: (&str, &str)) -> Result<()> {
        let table = &self.tables[i];
        let keep = {
            let mut tally = self.tally(i);
            let enough = if self.sessions.moving() {
                tally.candidates.len() >= REMEMBERED
            } else {
                tally.found.differed > SEARCHED && !matches!(table.split, Split::Blocks { .. })
                    || tally.found.differing() > ROWS_SEARCHED
            };
            if enough {
                tally.found.at_least = true;
                return Ok(());
            }
            let most = if self.sessions.moving() { REMEMBERED } else { SHOWN };
            most.saturating_sub(tally.candidates.len())
        };
        let found = narrow::rows(pair.both(), table, &self.hasher, sources, keep).await?;
        let mut tally = self.tally(i);
        let count = |kind| found.counts.get(narrow::count_name(kind)).copied().unwrap_or(0);
        tally.found.only_before += count(Kind::OnlyBefore);
        tally.found.only_after += count(Kind::OnlyAfter);
        tally.found.changed += count(Kind::Changed);
        // While rows are written, each that differs must be looked at again.
        tally.found.at_least |= self.sessions.moving() && found.more;
        tally.candidates.extend(found.candidates);
        Ok(())
    }

    /// A unit is done; with the last one all of its table is.
    async fn close_unit(&self, i: usize) -> Result<()> {
        let agreed = {
            let mut tally = self.tally(i);
            tally.units_left -= 1;
            if tally.units_left > 0 {
                return Ok(());
            }
            self.cx.unit_done(&tally.found.table);
            tally.found.differed == 0
        };
        if agreed {
            let table = &self.tables[i];
            self.agreed.add(&table.name, None, table.shapes.0.bytes).await?;
        }
        Ok(())
    }

    /// Moves the bars.
    fn advance(&self, i: usize, bytes: u64) {
        let table = &self.tables[i];
        let of = table.shapes.0.bytes;
        let done = {
            let mut tally = self.tally(i);
            tally.bytes = (tally.bytes + bytes).min(of);
            tally.bytes
        };
        let all = self.total.0.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.cx.progress(&table.name.to_string(), done, Some(of), Measure::Bytes);
        self.cx.progress(IN_ALL, all.min(self.total.1), Some(self.total.1), Measure::Bytes);
    }
}

/// The bar over all tables.
const IN_ALL: &str = "in all";
