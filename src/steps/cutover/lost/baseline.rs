//! Where the new side stood when it took over: the transactions that it had seen, and what its server had counted.
//!
//! The snapshot is taken when everything of the old side has arrived and nobody was sent to the new side yet, and is
//! committed on the old side with the decision: no decision stands without it. The counters come from before the pause,
//! which they must not lengthen; they are late by up to ten seconds anyway.
//! (<https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT>)

use crate::error::Result;
use crate::postgres::catalog::application;
use crate::postgres::ours::OURS;
use crate::postgres::{Session, TableName, Tx};
use crate::steps::Context;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The checkpoint that is committed with the decision.
const UNIT: &str = "successor_when_decided";
/// The journal's fact with the counters.
const COUNTERS: &str = "successor_counted_before";

/// The new side when it took over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Its snapshot: what it does not show as visible was written later.
    pub snapshot: String,
    /// Which server that was.
    pub system: i64,
    /// Which database there.
    pub oid: u32,
}

/// What the new side's server had counted of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Rows inserted, updated and deleted, also by transactions that were rolled back.
    pub operations: [i64; 3],
    /// The file with its rows: another one after TRUNCATE or a rewrite.
    pub file: Option<u32>,
    /// Its size in pages, as far as the catalog knows.
    #[serde(skip)]
    pub pages: i64,
}

/// What the new side's server had counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// By table.
    pub tables: BTreeMap<String, Counted>,
    /// When the statistics were reset, if ever.
    pub reset: Option<String>,
    /// When the server started: a restart in good order keeps the statistics, a crash does not.
    pub started: String,
    /// Events that replays had applied there.
    pub replayed: i64,
}

/// Looks where the new side stands, when all of the old side has arrived.
///
/// # Errors
/// What the server says.
pub async fn look(green: &Session) -> Result<Mark> {
    let row = green
        .query_one(
            "select pg_current_snapshot()::text, s.system_identifier, d.oid
             from pg_control_system() s, pg_database d where d.datname = current_database()",
            &[],
        )
        .await?;
    Ok(Mark { snapshot: row.get(0), system: row.get(1), oid: row.get(2) })
}

/// Keeps it, in the transaction that decides.
///
/// # Errors
/// What the server says.
pub async fn keep(tx: &Tx<'_>, cx: &Context, mark: &Mark) -> Result<()> {
    tx.save_checkpoint(cx.run, &cx.step, UNIT, mark).await
}

/// The mark of the decision that stands; none of one that an older version made.
///
/// # Errors
/// What the server says, or a mark of another shape.
pub async fn kept(cx: &Context, blue: &mut Session) -> Result<Option<Mark>> {
    blue.transaction().await?.checkpoint(cx.run, &cx.step, UNIT).await
}

/// Keeps what the new side's server has counted so far, before a pause.
///
/// # Errors
/// The journal failing, or what the server says.
pub async fn keep_counters(cx: &Context, green: &Session) -> Result<()> {
    cx.remember(COUNTERS, &counters(green).await?).await
}

/// What was kept of it; none where it cannot be read.
pub fn kept_counters(cx: &Context) -> Option<Counters> {
    cx.recall(COUNTERS).ok().flatten()
}

/// What a server has counted.
///
/// # Errors
/// What it says.
pub async fn counters(session: &Session) -> Result<Counters> {
    let sql = format!(
        "select n.nspname::text, c.relname::text, pg_stat_get_tuples_inserted(c.oid), pg_stat_get_tuples_updated(c.oid),
                pg_stat_get_tuples_deleted(c.oid), pg_relation_filenode(c.oid::regclass), c.relpages::int8
         from {}",
        application("'r'")
    );
    let rows = session.query(&sql, &[]).await?;
    let tables = rows
        .iter()
        .map(|row| {
            let name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)).to_string();
            let operations = [row.get(2), row.get(3), row.get(4)];
            (name, Counted { operations, file: row.get(5), pages: row.get(6) })
        })
        .collect();
    let since = session
        .query_one(
            "select stats_reset::text, pg_postmaster_start_time()::text
             from pg_stat_database where datname = current_database()",
            &[],
        )
        .await?;
    let replayed = session
        .query_one(&format!("select coalesce(sum(applied), 0)::int8 from {OURS}.replay"), &[])
        .await?
        .get(0);
    Ok(Counters { tables, reset: since.get(0), started: since.get(1), replayed })
}

impl Counters {
    /// By how much a table's counters moved since `then`; none where they began anew, or nothing was kept of it. A table
    /// that is new since counts from nothing.
    #[must_use]
    pub fn moved(&self, table: &str, then: Option<&Counters>) -> Option<[i64; 3]> {
        let (now, then) = (self.tables.get(table)?, then?);
        let was = then.tables.get(table).map_or([0; 3], |was| was.operations);
        let smaller = now.operations.iter().zip(&was).any(|(now, was)| now < was);
        if smaller || self.reset != then.reset {
            return None;
        }
        Some(std::array::from_fn(|i| now.operations[i] - was[i]))
    }

    /// Whether a table has its rows in another file than then.
    #[must_use]
    pub fn rewritten(&self, table: &str, then: Option<&Counters>) -> bool {
        let file = |counters: &Counters| counters.tables.get(table).and_then(|counted| counted.file);
        match (file(self), then.and_then(file)) {
            (Some(now), Some(was)) => now != was,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(operations: [i64; 3], reset: Option<&str>) -> Counters {
        let tables = BTreeMap::from([("t".to_owned(), Counted { operations, file: Some(1), pages: 0 })]);
        Counters { tables, reset: reset.map(str::to_owned), started: String::new(), replayed: 0 }
    }

    #[test]
    fn counters_that_began_anew_tell_nothing() {
        let then = counters([5, 5, 5], None);
        assert_eq!(counters([7, 5, 6], None).moved("t", Some(&then)), Some([2, 0, 1]));
        assert_eq!(counters([9, 9, 4], None).moved("t", Some(&then)), None);
        assert_eq!(counters([9, 9, 9], Some("today")).moved("t", Some(&then)), None);
        assert_eq!(counters([9, 9, 9], None).moved("t", None), None);
        assert_eq!(
            counters([1, 0, 0], None).moved("t", Some(&Counters { tables: BTreeMap::new(), ..then })),
            Some([1, 0, 0])
        );
    }
}
