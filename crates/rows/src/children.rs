//! Rows that refer to the ones being deleted: refused, or taken along and archived before their parents.
//!
//! `ON DELETE CASCADE` would delete children behind the archive's back, and `SET NULL` would change them, so
//! neither is left to the server.

use crate::table::{Catalog, ForeignKey, Table, params};
use handover_core::error::{Class, Error, Result};
use handover_port::Port;
use handover_postgres::ours::OURS;
use handover_postgres::{Tx, quote_ident};
use std::collections::BTreeSet;
use tokio_postgres::types::ToSql;

/// A row's place: its table (a partition of it) and its tuple. Stable while we hold its lock.
type Place = (u32, String);

/// A table whose rows are found by their place.
const BY_PLACE: &str = "ctid = any ($2::text[]::tid[])
    and (tableoid, ctid) in (select o, t from unnest($1::oid[], $2::text[]::tid[]) as handover_p(o, t))";

/// Deletes and archives the rows that refer to the chosen rows of `table`, deepest first; or refuses them.
pub(crate) async fn take(
    cx: &Port,
    tx: &Tx<'_>,
    table: &Table,
    among: &str,
    keys: &[Vec<&str>],
    // The action to archive children under; none refuses them.
    archive: Option<&str>,
) -> Result<()> {
    if table.foreign_keys.is_empty() {
        return Ok(());
    }
    let chosen = places(
        tx,
        &format!("select tableoid, ctid::text from {} where {among}", table.name.sql()),
        &params(keys),
    )
    .await?;
    let mut seen: BTreeSet<Place> = chosen.iter().cloned().collect();
    // A stack of (table, rows) found; children come after their parents, so it is emptied from its end.
    let mut levels: Vec<(Table, Vec<Place>)> = vec![(table.clone(), chosen)];
    let mut next = 0;
    while let Some((parent, rows)) = levels.get(next).cloned() {
        next += 1;
        for fk in &parent.foreign_keys {
            let found: Vec<Place> =
                referring(tx, &parent, fk, &rows).await?.into_iter().filter(|p| !seen.contains(p)).collect();
            if found.is_empty() {
                continue;
            }
            if matches!(fk.on_delete.as_str(), "n" | "d") {
                return Err(refuse(tx, fk, found.len(), "would be changed by its ON DELETE SET clause")
                    .hint("clear or move those references with an `update` step before this one"));
            }
            if archive.is_none() {
                return Err(refuse(tx, fk, found.len(), "refer to rows that would be deleted").hint(
                    "clean them first in a step of their own, or say `children: archive` to take them along; undo brings both back",
                ));
            }
            seen.extend(found.iter().cloned());
            levels.push((child_table(Catalog::Transaction(tx), fk).await?, found));
        }
    }
    for (child, rows) in levels.iter().skip(1).rev() {
        remove(cx, tx, child, rows, archive.unwrap_or("delete")).await?;
    }
    Ok(())
}

fn refuse(tx: &Tx<'_>, fk: &ForeignKey, count: usize, what: &str) -> Error {
    Error::new(Class::Data, format!("{count} rows of {} {what} [constraint {}]", fk.child, fk.name))
        .on_database(tx.database())
}

async fn child_table(catalog: Catalog<'_>, fk: &ForeignKey) -> Result<Table> {
    match Table::load(catalog, &fk.child, None).await {
        Err(e) if e.class() == Class::Data => Table::load_without_key(catalog, &fk.child).await,
        other => other,
    }
}

async fn places(tx: &Tx<'_>, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Place>> {
    Ok(tx.query(sql, values).await?.iter().map(|row| (row.get(0), row.get(1))).collect())
}

fn split(rows: &[Place]) -> (Vec<u32>, Vec<&str>) {
    rows.iter().map(|(table, tuple)| (*table, tuple.as_str())).unzip()
}

/// Locks the rows that refer to `rows` of `parent` through `fk`.
async fn referring(tx: &Tx<'_>, parent: &Table, fk: &ForeignKey, rows: &[Place]) -> Result<Vec<Place>> {
    let list = |names: &[String]| names.iter().map(|n| quote_ident(n)).collect::<Vec<_>>().join(", ");
    let sql = format!(
        "select tableoid, ctid::text from {} where ({}) in (select {} from {} where {BY_PLACE}) for update",
        fk.child.sql(),
        list(&fk.child_columns),
        list(&fk.parent_columns),
        parent.name.sql(),
    );
    let (tables, tuples) = split(rows);
    places(tx, &sql, &[&tables, &tuples]).await
}

/// The statements by which [`take`] takes rows along that refer to rows of `table`, one for each table that has such.
pub(crate) async fn removals(catalog: Catalog<'_>, table: &Table, action: &str) -> Result<Vec<String>> {
    let (mut known, mut out) = (BTreeSet::new(), Vec::new());
    let mut next = vec![table.clone()];
    while let Some(parent) = next.pop() {
        for fk in &parent.foreign_keys {
            // Through the others rows are never taken: they stop the step.
            if !matches!(fk.on_delete.as_str(), "n" | "d") && known.insert(fk.child.clone()) {
                let child = child_table(catalog, fk).await?;
                out.push(removal(&child, action));
                next.push(child);
            }
        }
    }
    Ok(out)
}

/// What archives and deletes rows by their place.
fn removal(child: &Table, action: &str) -> String {
    format!(
        "with gone as (delete from {} where {BY_PLACE} returning {} as k, {} as r)
         insert into {OURS}.archive (run, step, action, table_name, key, old_row)
         select $3, $4, '{action}', $5, k, r from gone",
        child.name.sql(),
        child.key_json(),
        child.row_json(),
    )
}

async fn remove(cx: &Port, tx: &Tx<'_>, child: &Table, rows: &[Place], action: &str) -> Result<()> {
    let (tables, tuples) = split(rows);
    let name = child.name.to_string();
    let step = cx.step.as_str();
    let gone = tx.execute(&removal(child, action), &[&tables, &tuples, &cx.run.0, &step, &name]).await?;
    if gone != rows.len() as u64 {
        return Err(Error::data(format!(
            "{} of {} child rows of {} were not deleted",
            rows.len() as u64 - gone,
            rows.len(),
            child.name
        ))
        .on_database(tx.database())
        .hint("a trigger or rule keeps them; see the triggers on that table"));
    }
    Ok(())
}
