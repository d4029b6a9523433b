//! How often tables were written to, as a server's statistics say.

use handover_core::error::Result;
use handover_postgres::catalog::application;
use handover_postgres::{Session, TableName};

/// How often rows of each table were written so far, as far as the server's statistics have heard of it.
pub async fn writes(session: &Session) -> Result<Vec<(TableName, i64)>> {
    Ok(operations(session).await?.into_iter().map(|(table, n)| (table, n.iter().sum())).collect())
}

/// The same by operation: rows inserted, updated and deleted.
/// (<https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ALL-TABLES-VIEW>)
pub async fn operations(session: &Session) -> Result<Vec<(TableName, [i64; 3])>> {
    let rows = session
        .query(
            &format!(
                "select n.nspname::text, c.relname::text, pg_stat_get_tuples_inserted(c.oid),
                        pg_stat_get_tuples_updated(c.oid), pg_stat_get_tuples_deleted(c.oid)
                 from {} order by 1, 2",
                application("'r'")
            ),
            &[],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
            (table, [row.get(2), row.get(3), row.get(4)])
        })
        .collect())
}

/// When the server was started.
pub async fn server_started(session: &Session) -> Result<String> {
    Ok(session
        .query_one("select pg_postmaster_start_time()::timestamptz at time zone 'UTC' || ''", &[])
        .await?
        .get(0))
}
