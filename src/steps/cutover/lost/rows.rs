//! Rows of transactions that the new side had not seen when it took over.
//!
//! What a snapshot of that time does not show as visible was inserted or updated since ([`newer`]). A deleted row tells
//! nothing.

use super::baseline::Mark;
use crate::error::{Class, Error, Result};
use crate::postgres::{Session, TableName, quote_literal};
use crate::steps::cutover::newer;
use std::time::Instant;

/// Pages that are searched at once: 32 MB. Between two stretches the time is looked at.
const STRETCH: i64 = 4 * 1024;

/// How many rows were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// So many.
    pub rows: i64,
    /// Whether the whole table was searched.
    pub whole: bool,
}

/// The condition on a row of `t`. `oldest`: how many transactions ago the oldest one could be that the mark does not show.
#[must_use]
pub fn since(mark: &Mark, oldest: i64) -> String {
    let later = newer::than(&format!("{}::pg_snapshot", quote_literal(&mark.snapshot)));
    // The first part is quick and leaves out nearly all rows; a snapshot does not move within a statement.
    format!("pg_catalog.age(t.xmin) <= {oldest} and {later}")
}

/// How many transactions ago the oldest one could be that the mark does not show, for [`since`].
///
/// # Errors
/// A server that has not come as far as the mark: it was restored, or is another one. What the server says.
pub async fn oldest(green: &Session, mark: &Mark) -> Result<i64> {
    let row = green
        .query_one(
            "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint, pg_snapshot_xmin(s)::text::bigint,
                    pg_snapshot_xmax(s)::text::bigint
             from (select $1::text::pg_snapshot) m (s)",
            &[&mark.snapshot],
        )
        .await?;
    let (next, xmin, xmax): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    if next < xmax {
        return Err(Error::new(
            Class::Invariant,
            "its server is at a point in time before the cutover: it was restored",
        ));
    }
    Ok(age(next, xmin))
}

/// The same by the numbers of the next transaction and of the oldest one that the mark knows to be running.
#[must_use]
pub fn age(next: i64, xmin: i64) -> i64 {
    // A row's age counts from the newest transaction, which may be some ahead of what is visible.
    (next - xmin + 1_000_000).min(i64::from(i32::MAX))
}

/// Counts a table's rows, from its end on: there the newest are. Ends at `until`.
///
/// # Errors
/// What the server says; time that is over is none.
pub async fn count(
    green: &Session,
    table: &TableName,
    condition: &str,
    by_stretches: bool,
    until: Instant,
) -> Result<Found> {
    let name = table.sql();
    let mut rows = 0;
    let pages: i64 = match by_stretches {
        true => {
            let size = "select pg_relation_size($1::text::regclass) / current_setting('block_size')::int8";
            green.query_one(size, &[&name]).await?.get(0)
        }
        false => 0,
    };
    // What is added behind the end meanwhile belongs to the first stretch.
    let (mut end, mut first) = (pages, true);
    while first || end > 0 {
        let begin = (end - STRETCH).max(0);
        let range = match (pages > STRETCH, first) {
            (false, _) => String::new(),
            (true, true) => format!("t.ctid >= '({begin},0)'::tid and "),
            (true, false) => format!("t.ctid >= '({begin},0)'::tid and t.ctid < '({end},0)'::tid and "),
        };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Found { rows, whole: false });
        }
        green.set("statement_timeout", &format!("{}ms", left.as_millis().max(1))).await?;
        match green
            .query_one(&format!("select count(*) from only {name} t where {range}{condition}"), &[])
            .await
        {
            Ok(row) => rows += row.get::<_, i64>(0),
            Err(error) if error.class() == Class::Timeout => return Ok(Found { rows, whole: false }),
            Err(error) => return Err(error),
        }
        (end, first) = (if pages > STRETCH { begin } else { 0 }, false);
    }
    Ok(Found { rows, whole: true })
}
