//! What an earlier attempt found equal, so that a verification that was interrupted does not read it again.
//!
//! The points in time of the earlier attempt are gone. So a piece counts only while its table was not written
//! since, on either side, by the servers' own count of writes; that is looked at before the first snapshot is
//! taken and again at the end. What follows by replication is different: there a row is equal when it was seen
//! equal at some time since the step began, and an interruption does not change that.

use crate::split::Sample;
use handover_core::error::Result;
use handover_core::value::fingerprint;
use handover_port::Port;
use handover_postgres::catalog::application;
use handover_postgres::{Databases, Session, TableName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is agreed goes to the journal this often, and whenever a twentieth of all bytes was read since.
const EVERY: Duration = Duration::from_secs(10);
const SHARE: u64 = 20;
/// Since Postgres 15 a server counts writes ten seconds after they were committed at the latest.
/// (`PGSTAT_IDLE_INTERVAL` in its source)
pub const COUNTED: Duration = Duration::from_secs(11);

/// What says that a table is as it was: of both sides.
pub type Evidence = BTreeMap<TableName, String>;

/// Where a table was split, as the journal has it: the numbers of its pieces mean something only with that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Boundaries {
    /// Keys that anybody may read.
    Plain(Vec<Vec<String>>),
    /// Keys that stay out of the journal: how they were drawn, and by what to know that they are the same again.
    Drawn {
        /// Drawn again from a table that was not written, it gives the same.
        sample: Sample,
        /// Of all of them.
        digest: String,
    },
}

impl Boundaries {
    /// What only the same boundaries have.
    #[must_use]
    pub fn digest(bounds: &[Vec<String>]) -> String {
        fingerprint(&serde_json::json!(bounds).to_string(), 16)
    }
}

/// Pieces of a table that agreed, under the evidence they hold under.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Pieces {
    evidence: String,
    /// Numbers of pieces, by the boundaries that the journal has; none: all of it.
    pieces: Option<BTreeSet<usize>>,
    /// For a table that is read by block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sums: Option<Sums>,
}

impl Pieces {
    fn under(evidence: &str) -> Self {
        Pieces { evidence: evidence.to_owned(), pieces: Some(BTreeSet::new()), sums: None }
    }
}

/// A bucket's number, its rows, and the sum of their hashes: as text, for JSON has no numbers of that size.
pub type Bucket = (i64, i64, String);

/// What was summed so far of a table that is read by block: whether it agrees is known only when all of it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// By what to know that the table is split and hashed the same way. The journal's name for it stays.
    #[serde(rename = "cut")]
    pub split: String,
    /// Pieces that are in the sums.
    pub done: BTreeSet<usize>,
    /// Before and after.
    pub buckets: (Vec<Bucket>, Vec<Bucket>),
}

#[derive(Debug, Default)]
struct State {
    /// By earlier attempts and by this one.
    known: BTreeMap<TableName, Option<BTreeSet<usize>>>,
    /// By earlier attempts.
    sums: BTreeMap<TableName, Sums>,
    /// Not yet in the journal.
    fresh: BTreeMap<TableName, Pieces>,
    bytes: u64,
    written: Option<Instant>,
    facts: usize,
}

impl State {
    fn due(&self, total: u64) -> bool {
        self.written.is_none_or(|at| at.elapsed() > EVERY) || self.bytes > total / SHARE
    }

    /// The next fact: its number, and what belongs into it.
    fn take(&mut self) -> (usize, BTreeMap<TableName, Pieces>) {
        self.bytes = 0;
        self.written = Some(Instant::now());
        self.facts += 1;
        (self.facts - 1, std::mem::take(&mut self.fresh))
    }
}

/// What agreed.
pub struct Agreed {
    cx: Port,
    evidence: Evidence,
    total: u64,
    state: Mutex<State>,
}

fn fact(n: usize) -> String {
    format!("agreed.{n}")
}

fn bounds(table: &TableName) -> String {
    format!("boundaries.{table}")
}

impl Agreed {
    /// What earlier attempts of this step agreed on and what still counts. `total` is the bytes of all tables.
    ///
    /// # Errors
    /// A fact of another version.
    pub fn read(cx: &Port, evidence: Evidence, total: u64) -> Result<Self> {
        let mut state = State { written: Some(Instant::now()), ..State::default() };
        while let Some(fact) = cx.recall::<BTreeMap<TableName, Pieces>>(&fact(state.facts))? {
            state.facts += 1;
            for (table, Pieces { evidence: then, pieces, sums }) in fact {
                if evidence.get(&table) == Some(&then) {
                    state.sums.extend(sums.map(|sums| (table.clone(), sums)));
                    match (state.known.entry(table).or_insert_with(|| Some(BTreeSet::new())), pieces) {
                        (Some(known), Some(more)) => known.extend(more),
                        (known, _) => *known = None,
                    }
                }
            }
        }
        Ok(Agreed { cx: cx.clone(), evidence, total, state: Mutex::new(state) })
    }

    /// Forgets what earlier attempts agreed on.
    ///
    /// # Errors
    /// The journal failing.
    pub async fn forget(cx: &Port) -> Result<()> {
        for n in 0.. {
            if cx.recall::<serde_json::Value>(&fact(n))?.is_none() {
                return Ok(());
            }
            cx.forget(&fact(n)).await?;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all of a table agreed.
    #[must_use]
    pub fn whole(&self, table: &TableName) -> bool {
        self.state().known.get(table) == Some(&None)
    }

    /// Whether a piece of a table agreed.
    #[must_use]
    pub fn piece(&self, table: &TableName, piece: usize) -> bool {
        match self.state().known.get(table) {
            Some(Some(pieces)) => pieces.contains(&piece),
            Some(None) => true,
            None => false,
        }
    }

    /// Whether what agreed on all these tables still does, by the evidence of now.
    #[must_use]
    pub fn holds(&self, tables: &BTreeSet<String>, now: &Evidence) -> bool {
        let same = |(table, then): (&TableName, &String)| {
            !tables.contains(&table.to_string())
                || now.get(table).is_some_and(|now| then.starts_with(now.as_str()))
        };
        self.evidence.iter().all(same)
    }

    /// The boundaries that an earlier attempt split a table at.
    ///
    /// # Errors
    /// A fact of another version.
    pub fn boundaries(&self, table: &TableName) -> Result<Option<Boundaries>> {
        self.cx.recall(&bounds(table))
    }

    /// Keeps boundaries.
    ///
    /// # Errors
    /// The journal failing.
    pub async fn keep_boundaries(&self, table: &TableName, boundaries: &Boundaries) -> Result<()> {
        self.cx.remember(&bounds(table), boundaries).await
    }

    /// A piece agreed, or (none) the rest of a table; `bytes` is what was read for it.
    ///
    /// # Errors
    /// The journal failing.
    pub async fn add(&self, table: &TableName, piece: Option<usize>, bytes: u64) -> Result<()> {
        let Some(evidence) = self.evidence.get(table) else { return Ok(()) };
        let (n, facts) = {
            let mut state = self.state();
            state.bytes += bytes;
            let fresh = state.fresh.entry(table.clone()).or_insert_with(|| Pieces::under(evidence));
            match (piece, &mut fresh.pieces) {
                (Some(piece), Some(pieces)) => drop(pieces.insert(piece)),
                (Some(_), None) => {}
                (None, pieces) => *pieces = None,
            }
            if !state.due(self.total) {
                return Ok(());
            }
            state.take()
        };
        self.cx.remember(&fact(n), &facts).await
    }

    /// What earlier attempts summed of a table that is split like that.
    #[must_use]
    pub fn sums(&self, table: &TableName, split: &str) -> Option<Sums> {
        self.state().sums.get(table).filter(|sums| sums.split == split).cloned()
    }

    /// A piece of a table that is read by block was summed, `bytes` of it. `sums` are asked for when it is time to
    /// write them down.
    ///
    /// # Errors
    /// The journal failing.
    pub async fn add_sums(
        &self,
        table: &TableName,
        bytes: u64,
        sums: impl FnOnce() -> Option<Sums>,
    ) -> Result<()> {
        let due = {
            let mut state = self.state();
            state.bytes += bytes;
            state.due(self.total)
        };
        if !due {
            return Ok(());
        }
        self.keep_sums(table, sums());
        self.flush().await
    }

    /// Takes sums into the next fact.
    pub fn keep_sums(&self, table: &TableName, sums: Option<Sums>) {
        if let (Some(evidence), Some(sums)) = (self.evidence.get(table), sums) {
            let mut state = self.state();
            state.fresh.entry(table.clone()).or_insert_with(|| Pieces::under(evidence)).sums = Some(sums);
        }
    }

    /// Writes what is not yet in the journal.
    ///
    /// # Errors
    /// The journal failing.
    pub async fn flush(&self) -> Result<()> {
        let (n, facts) = {
            let mut state = self.state();
            if state.fresh.is_empty() {
                return Ok(());
            }
            state.take()
        };
        self.cx.remember(&fact(n), &facts).await
    }
}

/// What says that tables are as they were. Those about which nothing can be said are left out: before Postgres
/// 15 a write may stay uncounted for as long as its session idles, and a standby counts none.
///
/// # Errors
/// What a server says.
pub async fn evidence(databases: &Databases, names: (&str, &str), moving: bool) -> Result<Evidence> {
    let (before, after) = tokio::try_join!(databases.read_only(names.0), databases.read_only(names.1))?;
    let (one, mut two) = tokio::try_join!(side(&before, moving), side(&after, moving))?;
    Ok(one
        .into_iter()
        .filter_map(|(table, text)| Some((table.clone(), text + &two.remove(&table)?)))
        .collect())
}

async fn side(session: &Session, moving: bool) -> Result<Evidence> {
    // In a transaction of its own, so that counts are of now. Children of `c` are its partitions.
    let writes = if moving {
        "'moving'"
    } else {
        "(select md5(string_agg(format('%s %s %s', r.oid, pg_relation_filenode(r.oid),
                    pg_stat_get_tuples_inserted(r.oid) + pg_stat_get_tuples_updated(r.oid) + pg_stat_get_tuples_deleted(r.oid)),
                    ',' order by r.oid) || pg_postmaster_start_time())
          from pg_class r where r.oid = c.oid or c.relkind = 'p' and r.oid in (select relid from pg_partition_tree(c.oid)))"
    };
    let usable = if moving {
        "true"
    } else {
        "not pg_is_in_recovery() and current_setting('track_counts')::bool
         and current_setting('server_version_num')::int4 >= 150000"
    };
    let sql = format!(
        "select n.nspname::text, c.relname::text, {writes} ||
                (select coalesce(md5(string_agg(format('%s %s %s', a.attname, a.atttypid, a.attnum), ',' order by a.attnum)), '')
                 from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped)
         from {tables} and not c.relispartition and {usable}",
        tables = application("'r', 'p'")
    );
    let rows = session.query(&sql, &[]).await?;
    Ok(rows
        .iter()
        .filter_map(|row| {
            let name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
            Some((name, row.get::<_, Option<String>>(2)?))
        })
        .collect())
}
