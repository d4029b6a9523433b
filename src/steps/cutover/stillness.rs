//! Whether anything was written on the old side after the decision. Its triggers refuse; that they were never off, and
//! that no table was made without them, is what the rows themselves say.
//!
//! The decision is committed with the number at which later transactions begin: whatever wrote a row of a frozen table
//! before it had to end before writers were held off. Tables whose counters moved since are asked for rows of later
//! transactions: counters alone also tell of earlier writes, which a server reports up to ten seconds late. Rows that were
//! deleted leave only the counter behind, so of those nothing is proven.
//! (<https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT>)

use super::freeze;
use super::options::Cutover;
use super::state::CARRIED_BACK;
use crate::error::{Class, Error, Result};
use crate::postgres::ours::OURS;
use crate::postgres::{Session, TableName, Tx};
use crate::problem::{count, few};
use crate::steps::Context;
use handover_copy::counters;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The checkpoint that is committed with the decision.
const UNIT: &str = "decided";
/// The journal's fact: how often each table had been written when the decision had just fallen.
const COUNTED: &str = "writes_when_decided";
/// How long all tables may be searched together. Nobody waits for it but the run.
const PATIENCE: Duration = Duration::from_secs(15);
/// Rows that are counted of one table.
const ROWS: i64 = 1000;

/// What is committed with the decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Decided {
    /// The number that the next transaction could get.
    next_xid: i64,
}

/// Keeps where later transactions begin, in the transaction that decides.
///
/// # Errors
/// What the server says.
pub async fn mark(tx: &Tx<'_>, cx: &Context) -> Result<()> {
    let row = tx.query_one("select pg_snapshot_xmax(pg_current_snapshot())::text::int8", &[]).await?;
    tx.save_checkpoint(cx.run, &cx.step, UNIT, &Decided { next_xid: row.get(0) }).await
}

/// Keeps the counters of now, when the decision stands and nothing else was done yet; the first ones count.
///
/// # Errors
/// The journal failing, or what the server says.
pub async fn begin(cutover: &Cutover, cx: &Context) -> Result<()> {
    let Some(freeze) = &cutover.freeze else { return Ok(()) };
    if cx.recall::<BTreeMap<String, i64>>(COUNTED)?.is_some() {
        return Ok(());
    }
    let counted: BTreeMap<String, i64> = counters::writes(&cx.reader(freeze).await?)
        .await?
        .into_iter()
        .map(|(t, n)| (t.to_string(), n))
        .collect();
    cx.remember(COUNTED, &counted).await
}

/// What was found.
#[derive(Debug, Default)]
pub struct Look {
    /// Tables with rows of later transactions, in words.
    written: Vec<String>,
    /// Tables whose counters moved, and of which no row is later.
    late: usize,
    /// Tables that could not be asked in time.
    unknown: Vec<TableName>,
}

/// Looks at the old side; none where the decision was made by an earlier version, or there is no old side, or a stream
/// writes there: rows do not tell that they came by it.
///
/// # Errors
/// No connection, or what the server says.
pub async fn look(cutover: &Cutover, cx: &Context) -> Result<Option<Look>> {
    let (Some(freeze), Some(before)) = (&cutover.freeze, cx.recall::<BTreeMap<String, i64>>(COUNTED)?) else {
        return Ok(None);
    };
    if cx.recall::<bool>(CARRIED_BACK)? == Some(true) {
        return Ok(None);
    }
    let session = cx.reader(freeze).await?;
    let kept = session
        .query_opt(
            &format!(
                "select (state ->> 'next_xid')::int8 from {OURS}.checkpoint where run = $1 and step = $2 and unit = $3"
            ),
            &[&cx.run.0, &cx.step.as_str(), &UNIT],
        )
        .await?;
    let Some(next_xid) = kept.and_then(|row| row.get::<_, Option<i64>>(0)) else { return Ok(None) };
    let frozen: BTreeSet<TableName> = freeze::tables(&session, cutover).await?.into_iter().collect();
    let mut out = Look::default();
    let begun = Instant::now();
    for (table, now) in counters::writes(&session).await? {
        // A counter that went down started over; one that is new belongs to a table that was made since.
        if !frozen.contains(&table) || before.get(&table.to_string()) == Some(&now) || now == 0 {
            continue;
        }
        let left = PATIENCE.saturating_sub(begun.elapsed());
        if left.is_zero() {
            out.unknown.push(table);
            continue;
        }
        session.set("statement_timeout", &format!("{}ms", left.as_millis().max(1))).await?;
        match later(&session, &table, next_xid).await {
            Ok(0) => out.late += 1,
            Ok(rows) => out.written.push(format!(
                "{} of {table}",
                if rows > ROWS {
                    format!("more than {ROWS} rows")
                } else {
                    count(usize::try_from(rows).unwrap_or(0), "row")
                }
            )),
            Err(error) if error.class() == Class::Timeout => out.unknown.push(table),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(out))
}

/// Rows of transactions that began at that number or later. Numbers are compared by their distance from the next one.
async fn later(session: &Session, table: &TableName, next_xid: i64) -> Result<i64> {
    let sql = format!(
        "select count(*) from (select from only {} where age(xmin) between 1 and age((($1::int8) % 4294967296)::text::xid) limit {}) r",
        table.sql(),
        ROWS + 1
    );
    Ok(session.query_one(&sql, &[&next_xid]).await?.get(0))
}

impl Look {
    /// In a line.
    #[must_use]
    pub fn words(&self) -> String {
        if !self.written.is_empty() {
            return format!("WRITTEN since the decision: {}", few(&self.written));
        }
        let mut out = "nothing written since the decision".to_owned();
        if self.late > 0 {
            out += &format!(
                " (writes of {} counted late, none of their rows is newer)",
                count(self.late, "table")
            );
        }
        if !self.unknown.is_empty() {
            out += &format!("; not known of {}, which took too long to search", few(&self.unknown));
        }
        out
    }

    /// Refuses what was written.
    ///
    /// # Errors
    /// [`Class::Invariant`], with tables and rows.
    pub fn assert_still(&self, database: &str) -> Result<()> {
        if self.written.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            Class::Invariant,
            format!("{database} was written to after the decision: {}; the new side lacks that", few(&self.written)),
        )
        .on_database(database)
        .hint(
            "find who writes there with its triggers off (a superuser, a restore, a job); carry those rows over by hand and delete them there; then `handover resume`",
        ))
    }
}

/// In a line, for the summary; never fails, for the decision stands.
pub async fn words(cutover: &Cutover, cx: &Context) -> Option<String> {
    let looked = async {
        begin(cutover, cx).await?;
        look(cutover, cx).await
    };
    match looked.await {
        Ok(look) => look.map(|look| look.words()),
        Err(error) => Some(format!("not known ({error})")),
    }
}

/// What was written, for a run that is about to be finished; the old side may be gone by then, and nobody minds.
pub async fn written(cutover: &Cutover, cx: &Context) -> Option<String> {
    let look = look(cutover, cx).await.ok()??;
    look.assert_still(cutover.freeze.as_deref()?).err().map(|error| error.message().to_owned())
}
