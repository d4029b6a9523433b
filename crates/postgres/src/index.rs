//! Indexes as the catalog has them.

use super::ident::TableName;
use super::session::Session;
use handover_core::error::{Class, Result};

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

/// What a table's name stands for, when no index can be built on it concurrently; none when one can.
pub async fn obstacle(session: &Session, table: &TableName) -> Result<Option<(String, String)>> {
    let row = session
        .query_opt(
            "select c.relkind::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where n.nspname = $1 and c.relname = $2",
            &[&table.schema, &table.name],
        )
        .await?;
    Ok(match row.as_ref().map(|row| row.get::<_, String>(0)).as_deref() {
        Some("r" | "m") => None,
        Some("p") => Some((
            format!(
                "{table} is partitioned, and Postgres cannot build an index on all partitions concurrently"
            ),
            format!(
                "name each partition as a `table` here; a `migrate` step then makes the parent's index with \
                 `create index … on only {table}` and attaches theirs, which takes no time"
            ),
        )),
        Some(_) => Some((
            format!("{table} is not a table"),
            "indexes can be built on tables and materialized views".into(),
        )),
        None => Some((
            format!("there is no table {table}"),
            "correct the name, or let an earlier step create the table".into(),
        )),
    })
}

/// Whether the index `name` of `table` is what `wanted` would build: `wanted` makes the statement that builds
/// one of a given name on a given table. The server is asked, by building it on an empty table of the same
/// shape that nobody else sees. None when the role may not create temporary tables.
///
/// # Errors
/// A definition that the server refuses.
pub async fn is_as_wanted(
    session: &mut Session,
    table: &TableName,
    name: &str,
    wanted: impl FnOnce(&str, &str) -> String,
) -> Result<Option<bool>> {
    const PROBE: &str = "handover_wanted";
    let existing = TableName::new(&table.schema, name).sql();
    let tx = session.transaction().await?;
    // Under the table's own name, which expressions may use.
    let twin = TableName::new("pg_temp", &table.name).sql();
    let made = tx.execute(&format!("create temporary table {twin} (like {})", table.sql()), &[]).await;
    match made {
        Ok(_) => {}
        Err(e) if e.class() == Class::Privilege => return Ok(None),
        Err(e) => return Err(e),
    }
    tx.execute(&wanted(PROBE, &twin), &[]).await?;
    let row = tx
        .query_one(
            "select count(distinct array[m.amname::text, i.indisunique::text, i.indnkeyatts::text, i.indoption::text,
                    i.indclass::text, i.indcollation::text, coalesce(to_jsonb(i) ->> 'indnullsnotdistinct', ''),
                    coalesce(pg_get_expr(i.indpred, i.indrelid), '')]
                 || array(select pg_get_indexdef(i.indexrelid, k, false) from generate_series(1, i.indnatts) k)) = 1
             from pg_index i join pg_class c on c.oid = i.indexrelid join pg_am m on m.oid = c.relam
             where i.indexrelid in (to_regclass($1), to_regclass($2))",
            &[&existing, &format!("pg_temp.{PROBE}")],
        )
        .await?;
    let same = row.get(0);
    tx.rollback().await?;
    Ok(Some(same))
}

/// An index's definition, as the server words it.
pub async fn definition(session: &Session, table: &TableName, name: &str) -> Result<String> {
    let qualified = TableName::new(&table.schema, name).sql();
    let row =
        session.query_one("select coalesce(pg_get_indexdef(to_regclass($1)), '?')", &[&qualified]).await?;
    Ok(row.get(0))
}
