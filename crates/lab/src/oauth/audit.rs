//! Looks at the databases: what green did, and what it makes of the tokens that the client and blue know.

use handover_core::error::{Error, Result};
use std::collections::BTreeSet;
use tokio_postgres::Client;

/// Signatures asked about in one query.
const CHUNK: usize = 20_000;

fn failed(error: &tokio_postgres::Error) -> Error {
    let detail = error
        .as_db_error()
        .map_or_else(|| error.to_string(), |e| format!("{} ({})", e.message(), e.code().code()));
    Error::external(format!("the demo cannot look into a database: {detail}"))
        .hint("see the server's log; `handover demo --keep` leaves it in place")
}

/// The figures of a database that count what was done to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// `tup_updated`.
    pub updated: i64,
    /// `tup_inserted`.
    pub inserted: i64,
    /// `temp_bytes`.
    pub temp_bytes: i64,
    /// `xact_commit`.
    pub commits: i64,
    /// The server's position in its write-ahead log.
    pub wal: i64,
}

/// Reads the figures of the database that `client` is connected to. Sessions report theirs at most once a second
/// (<https://www.postgresql.org/docs/current/monitoring-stats.html>), so wait that long after the last work.
pub async fn work(client: &Client) -> Result<Work> {
    let row = client
        .query_one(
            "select tup_updated, tup_inserted, temp_bytes, xact_commit,
                    (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint
             from pg_stat_database where datname = current_database()",
            &[],
        )
        .await
        .map_err(|e| failed(&e))?;
    Ok(Work {
        updated: row.get(0),
        inserted: row.get(1),
        temp_bytes: row.get(2),
        commits: row.get(3),
        wal: row.get(4),
    })
}

/// Every token that blue knows to be revoked or replaced, by its signature.
pub async fn dead_on_blue(blue: &Client) -> Result<Vec<String>> {
    let rows = blue
        .query(
            "select signature from access_token where not active
             union all select signature from refresh_token where not active",
            &[],
        )
        .await
        .map_err(|e| failed(&e))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Those of `signatures` that green holds to be good.
pub async fn active_on_green(green: &Client, signatures: &[String]) -> Result<BTreeSet<String>> {
    those(green, signatures, "select signature from oauth_token where active and signature = any ($1)").await
}

/// Those of `signatures` that green does not know.
pub async fn unknown_on_green(green: &Client, signatures: &[String]) -> Result<BTreeSet<String>> {
    let sql =
        "select s from unnest($1::text[]) s where not exists (select from oauth_token where signature = s)";
    those(green, signatures, sql).await
}

/// Those of `signatures` that blue holds to be good.
pub async fn active_on_blue(blue: &Client, signatures: &[String]) -> Result<BTreeSet<String>> {
    let sql = "select signature from access_token where active and signature = any ($1)
               union all select signature from refresh_token where active and signature = any ($1)";
    those(blue, signatures, sql).await
}

/// Those of `signatures` that blue does not know.
pub async fn unknown_on_blue(blue: &Client, signatures: &[String]) -> Result<BTreeSet<String>> {
    let sql =
        "select s from unnest($1::text[]) s where not exists (select from access_token where signature = s)
               and not exists (select from refresh_token where signature = s)";
    those(blue, signatures, sql).await
}

/// Asks about a part of them at a time.
async fn those(client: &Client, signatures: &[String], sql: &str) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for chunk in signatures.chunks(CHUNK) {
        let rows = client.query(sql, &[&chunk]).await.map_err(|e| failed(&e))?;
        found.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    }
    Ok(found)
}
