//! Rows that differed while both sides were being written are looked at again until it is known what they are.

use crate::fence::Fence;
use crate::hash::Hasher;
use crate::narrow::{Candidate, Now, look, looking};
use crate::sessions::Pair;
use crate::split::Table;
use crate::watched::{Verdict, Watched};
use handover_core::error::Result;
use handover_core::event::Measure;
use handover_port::Port;
use handover_postgres::Session;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_postgres::Statement;

/// Keys that are looked up by one query.
const KEYS: usize = 1_000;
/// Rows that are looked at all the time while a fence is passed: those that are written all the time.
const HOT: usize = 200;
/// Between two rounds.
const REST: Duration = Duration::from_millis(20);
/// The bar.
const UNIT: &str = "rows that differed, seen again";

/// What became of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is the same.
    Equal,
    /// It is not.
    Different,
    /// It was written all the time, or changes did not arrive.
    Unsettled,
}

/// A row to settle: of which table, and the fate that was found.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its table's place.
    pub table: usize,
    /// Its key, and the contents that were seen last.
    pub candidate: Candidate,
    /// None while it is open.
    pub fate: Option<Fate>,
    watched: Watched,
}

impl Row {
    /// One that is open.
    #[must_use]
    pub fn new(table: usize, candidate: Candidate) -> Self {
        Row { table, candidate, fate: None, watched: Watched::default() }
    }
}

/// Two sessions that see what is there now, and what they look at.
pub struct Settling<'a> {
    /// The run.
    pub cx: &'a Port,
    /// Sessions in no transaction.
    pub pair: &'a Pair,
    /// All tables.
    pub tables: &'a [Table],
    /// How rows are hashed.
    pub hasher: Hasher,
    /// Queries that are prepared already, by table and side.
    pub prepared: Mutex<BTreeMap<(usize, bool), Statement>>,
}

impl Settling<'_> {
    /// Looks again until every row has its fate, or the time is up; it looks at least as often as a difference
    /// needs to be certain.
    ///
    /// # Errors
    /// What either server or the fence says.
    pub async fn settle(&self, rows: &mut [Row], fence: &mut dyn Fence, deadline: Instant) -> Result<()> {
        /// At least.
        const ROUNDS: u32 = 3;
        self.pair.by_index(true).await?;
        let total = rows.len() as u64;
        let mut rounds = 0;
        loop {
            let open: Vec<usize> = (0..rows.len()).filter(|i| rows[*i].fate.is_none()).collect();
            self.cx.progress(UNIT, total - open.len() as u64, Some(total), Measure::Rows);
            if open.is_empty() || rounds >= ROUNDS && Instant::now() >= deadline {
                break;
            }
            self.cx.proceed()?;
            self.round(rows, &open, fence).await?;
            rounds += 1;
            self.cx.sleep(REST).await?;
        }
        self.cx.unit_done(UNIT);
        for row in rows.iter_mut().filter(|row| row.fate.is_none()) {
            let differs = !fence.proves() && row.watched.differs();
            row.fate = Some(if differs { Fate::Different } else { Fate::Unsettled });
        }
        Ok(())
    }

    async fn round(&self, rows: &mut [Row], open: &[usize], fence: &mut dyn Fence) -> Result<()> {
        let first = self.read(rows, open, true).await?;
        let hot: Vec<usize> = open.iter().copied().filter(|i| rows[*i].watched.hot()).take(HOT).collect();
        for (i, now) in open.iter().zip(&first) {
            rows[*i].watched.before(now.content);
        }
        let proven = {
            let passed = fence.pass();
            tokio::pin!(passed);
            let watching = self.watch(rows, &hot);
            tokio::pin!(watching);
            tokio::select! {
                passed = &mut passed => passed?,
                never = &mut watching => match never? {},
            }
        };
        let after = self.read(rows, open, false).await?;
        let last = self.read(rows, open, true).await?;
        for ((i, first), (after, last)) in open.iter().zip(&first).zip(after.iter().zip(&last)) {
            let row = &mut rows[*i];
            row.candidate.contents = (last.content, after.content);
            row.fate = match row.watched.round(first, after.content, last, proven) {
                Verdict::Open => None,
                Verdict::Equal => Some(Fate::Equal),
                Verdict::Different => Some(Fate::Different),
            };
        }
        Ok(())
    }

    /// Looks at both sides as fast as it can.
    async fn watch(&self, rows: &mut [Row], hot: &[usize]) -> Result<std::convert::Infallible> {
        loop {
            if hot.is_empty() {
                std::future::pending::<()>().await;
            }
            let (before, after) = tokio::try_join!(self.read(rows, hot, true), self.read(rows, hot, false))?;
            for (i, (before, after)) in hot.iter().zip(before.iter().zip(&after)) {
                // Read at the same time: after may only match what before was seen to have earlier.
                rows[*i].watched.after(after.content);
                rows[*i].watched.before(before.content);
            }
        }
    }

    /// The query for rows of a table, prepared once: what is written all the time is looked at very often.
    async fn query(&self, session: &Session, table: usize, before: bool) -> Result<Statement> {
        let prepared = || self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let there = prepared().get(&(table, before)).cloned();
        if let Some(there) = there {
            return Ok(there);
        }
        let query = session.prepare(&looking(&self.tables[table], &self.hasher, before, false)).await?;
        prepared().insert((table, before), query.clone());
        Ok(query)
    }

    /// Reads some rows, in their order.
    async fn read(&self, rows: &[Row], which: &[usize], before: bool) -> Result<Vec<Now>> {
        let session = if before { &self.pair.before } else { &self.pair.after };
        let mut out = vec![Now::default(); which.len()];
        let mut by_table: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (at, i) in which.iter().enumerate() {
            by_table.entry(rows[*i].table).or_default().push(at);
        }
        for (t, mine) in by_table {
            let table = &self.tables[t];
            let query = self.query(session, t, before).await?;
            for some in mine.chunks(KEYS) {
                let keys: Vec<Vec<String>> =
                    some.iter().map(|at| rows[which[*at]].candidate.key.clone()).collect();
                let found = look(session, &query, table, &keys).await?;
                for (at, now) in some.iter().zip(found) {
                    out[*at] = now;
                }
            }
        }
        Ok(out)
    }
}
