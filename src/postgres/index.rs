//! Indexes as the catalog has them, and what a concurrent build would wait for.

use super::ident::TableName;
use super::session::Session;
use crate::error::Result;

/// What the catalog says of an index's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing has that name.
    Absent,
    /// A usable index of that table.
    Valid,
    /// What a failed or interrupted concurrent build left: nobody reads it, and every write pays for it.
    Invalid,
    /// The name belongs to something else; what, in words.
    Other(String),
}

/// Looks up the index `name` of `table`.
///
/// # Errors
/// What the server says.
pub async fn find(session: &Session, table: &TableName, name: &str) -> Result<Found> {
    let row = session
        .query_opt(
            "select c.relkind::text, i.indisvalid and i.indisready, t.relname = $3
             from pg_class c join pg_namespace n on n.oid = c.relnamespace
             left join pg_index i on i.indexrelid = c.oid left join pg_class t on t.oid = i.indrelid
             where n.nspname = $1 and c.relname = $2",
            &[&table.schema, &name, &table.name],
        )
        .await?;
    Ok(match row {
        None => Found::Absent,
        Some(row) => match (row.get::<_, Option<bool>>(1), row.get::<_, Option<bool>>(2)) {
            (Some(_), Some(false)) => Found::Other("an index of another table".into()),
            (Some(true), _) => Found::Valid,
            (Some(false), _) => Found::Invalid,
            (None, _) => Found::Other("a table, view or sequence".into()),
        },
    })
}

/// Transactions whose snapshots a concurrent build would wait for, oldest first, in words.
///
/// # Errors
/// What the server says.
pub async fn snapshot_holders(session: &Session) -> Result<Vec<String>> {
    let rows = session
        .query(
            "select pid, coalesce(usename::text, '?'), coalesce(state, '?'),
                    extract(epoch from clock_timestamp() - xact_start)::float8, left(coalesce(query, ''), 60)
             from pg_stat_activity
             where datname = current_database() and pid <> pg_backend_pid()
               and xact_start < clock_timestamp() - interval '5 seconds'
             order by xact_start limit 5",
            &[],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let (pid, user, state): (i32, String, String) = (row.get(0), row.get(1), row.get(2));
            let (age, query): (f64, String) = (row.get(3), row.get(4));
            format!("pid {pid} ({user}, {state}, open for {age:.0} s): {query}")
        })
        .collect())
}
