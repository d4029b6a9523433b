//! How many rows a condition takes, without looking for longer than some seconds.

use crate::table::Table;
use handover_core::error::{Class, Result};
use handover_postgres::{Session, quote_ident};
use serde_json::Value;

/// Memory for the conditions of a plan: `not in (select …)` is only looked up in a hash table while that fits, and
/// beyond it reads the whole list once a row.
pub(crate) const WORK_MEM: &str = "128MB";
/// How long a dry run may count before it asks the planner instead.
pub(crate) const COUNT_LIMIT: &str = "10s";
/// How long it may then look at a sample, before it says what the planner believes.
pub(crate) const SAMPLE_LIMIT: &str = "5s";
/// Rows of a sample, and about how many it is drawn from: those of whole pages, which may be alike.
const SAMPLE: u32 = 500;
const POOL: f64 = 10_000.0;

/// How many rows a query has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Count {
    Exact(u64),
    /// Extrapolated from rows that were looked at.
    Sample {
        rows: u64,
        of: u64,
    },
    /// What the planner believes; of a condition with a subquery it knows nothing.
    Estimate(u64),
}

/// Counts for a bounded time; then a sample; then asks the planner.
pub(crate) async fn count(session: &Session, table: &Table, base: &str, matching: &str) -> Result<Count> {
    session.set("work_mem", WORK_MEM).await?;
    if let Some((rows, _)) =
        bounded(session, COUNT_LIMIT, &format!("select count(*), 0::float8 {base}")).await?
    {
        return Ok(Count::Exact(rows));
    }
    let about: f64 = session
        .query_one(
            "select greatest(reltuples, 1)::float8 from pg_catalog.pg_class where oid = pg_catalog.to_regclass($1)",
            &[&table.name.sql()],
        )
        .await?
        .get(0);
    let percent = (POOL * 100.0 / about).clamp(0.000_1, 100.0);
    // Under the table's own name, which the condition may use. Only the rows of the sample are asked for it.
    let sample = format!(
        "select count(*) filter (where ({matching}\n)), count(*)::float8
         from (select * from {} tablesample system ({percent}) order by pg_catalog.random() limit {SAMPLE}) as {}",
        table.name.sql(),
        quote_ident(&table.name.name)
    );
    match bounded(session, SAMPLE_LIMIT, &sample).await {
        Ok(Some((found, of))) if of > 0.0 => {
            let rows = (found as f64 / of * about.max(of)).round() as u64;
            return Ok(Count::Sample { rows, of: of as u64 });
        }
        // A condition that names the table with its schema is not understood here.
        Ok(_) => {}
        Err(e) if e.class() == Class::Data => {}
        Err(e) => return Err(e),
    }
    let row = session.query_one(&format!("explain (format json) select 1 {base}"), &[]).await?;
    let plan: Value = row.get(0);
    Ok(Count::Estimate(plan[0]["Plan"]["Plan Rows"].as_f64().unwrap_or_default() as u64))
}

/// A query's two numbers, unless it takes longer than `limit`.
pub(crate) async fn bounded(session: &Session, limit: &str, sql: &str) -> Result<Option<(u64, f64)>> {
    session.set("statement_timeout", limit).await?;
    let counted = session.query_one(sql, &[]).await;
    session.set("statement_timeout", "0").await?;
    match counted {
        Ok(row) => Ok(Some((row.get::<_, i64>(0).unsigned_abs(), row.get(1)))),
        Err(e) if e.class() == Class::Timeout => Ok(None),
        Err(e) => Err(e),
    }
}
