//! Moving rows: which are missing, bringing them in, and replacing what stands in their place.

use super::resolve::Resolved;
use crate::table::{Catalog, Column, object};
use handover_core::error::Result;
use handover_port::Port;
use handover_postgres::Tx;
use handover_postgres::ours::OURS;
use serde_json::Value;

fn key_matches(resolved: &Resolved, table: &str, row: &str) -> String {
    let parts: Vec<String> =
        resolved.target.key.iter().map(|c| format!("{table}.{} = {}", c.ident(), c.read_json(row))).collect();
    parts.join(" and ")
}

pub(crate) async fn missing(at: Catalog<'_>, resolved: &Resolved, rows: &[Value]) -> Result<u64> {
    let sql = format!(
        "select count(*) from unnest($1::jsonb[]) as u(r) where not exists (select 1 from {} t where {})",
        resolved.target.name.sql(),
        key_matches(resolved, "t", "u.r")
    );
    let rows = at.query(&sql, &[&rows]).await?;
    Ok(rows.first().map_or(0, |row| row.get::<_, i64>(0).unsigned_abs()))
}

/// What inserts rows that are not there.
fn insertion(resolved: &Resolved) -> String {
    let columns: Vec<&Column> = resolved.columns.iter().map(|(c, _)| c).collect();
    let names: Vec<String> = columns.iter().map(|c| c.ident()).collect();
    let values: Vec<String> = columns.iter().map(|c| c.read_json("u.r")).collect();
    format!(
        "with came as (insert into {} ({}) overriding system value
                       select {} from unnest($1::jsonb[]) as u(r) on conflict do nothing
                       returning {} as k, {} as r)
         insert into {OURS}.archive (run, step, action, table_name, key, new_row)
         select $2, $3, 'insert', $4, k, r from came",
        resolved.target.name.sql(),
        names.join(", "),
        values.join(", "),
        resolved.target.key_json(),
        object(columns.iter().copied(), ""),
    )
}

/// The statements of a batch that change rows, which are its parameters. A run executes no other.
pub(crate) fn changes(resolved: &Resolved, overwrites: bool) -> Vec<String> {
    let replacement = replacement(resolved).filter(|_| overwrites);
    [insertion(resolved)].into_iter().chain(replacement.map(|(_, sql)| sql)).collect()
}

/// Inserts the rows that are not there; a concurrent insert of the same row is waited for.
pub(crate) async fn insert(cx: &Port, tx: &Tx<'_>, resolved: &Resolved, rows: &[Value]) -> Result<u64> {
    tx.execute(
        &insertion(resolved),
        &[&rows, &cx.run.0, &cx.step.as_str(), &resolved.target.name.to_string()],
    )
    .await
}

/// What locks rows that are there, and what gives them the source's values. None where there is nothing but the key.
fn replacement(resolved: &Resolved) -> Option<(String, String)> {
    let target = &resolved.target;
    let columns: Vec<&Column> = resolved
        .columns
        .iter()
        .map(|(c, _)| c)
        .filter(|c| !c.identity_always && !target.key.iter().any(|k| k.name == c.name))
        .collect();
    if columns.is_empty() {
        return None;
    }
    let matches = key_matches(resolved, "t", "u.r");
    let table = target.name.sql();
    let lock = format!(
        "select 1 from {table} t, unnest($1::jsonb[]) as u(r) where {matches} for no key update of t"
    );
    let sets: Vec<String> =
        columns.iter().map(|c| format!("{} = {}", c.ident(), c.read_json("u.r"))).collect();
    let differs: Vec<String> =
        columns.iter().map(|c| c.differs(&format!("t.{}", c.ident()), &c.read_json("u.r"))).collect();
    let all = object(target.columns.iter().filter(|c| !c.generated), "t.");
    let key = object(target.key.iter(), "t.");
    let difference = |of: &str, other: &str| {
        format!(
            "(select jsonb_object_agg(e.key, e.value) from jsonb_each({of}) e where e.value is distinct from {other} -> e.key)"
        )
    };
    let sql = format!(
        "with was as materialized (select {key} as k, {all} as r from {table} t, unnest($1::jsonb[]) as u(r) where {matches}),
         changed as (update {table} t set {} from unnest($1::jsonb[]) as u(r) where {matches} and ({})
                     returning {key} as k, {all} as r)
         insert into {OURS}.archive (run, step, action, table_name, key, old_row, new_row)
         select $2, $3, 'update', $4, was.k, {}, {} from was join changed on was.k = changed.k
         where was.r is distinct from changed.r",
        sets.join(", "),
        differs.join(" or "),
        difference("was.r", "changed.r"),
        difference("changed.r", "was.r"),
    );
    Some((lock, sql))
}

/// Gives rows that were there the source's values, and archives their own. After [`insert`] all of them are
/// visible, and they are locked before they are read.
pub(crate) async fn overwrite(cx: &Port, tx: &Tx<'_>, resolved: &Resolved, rows: &[Value]) -> Result<u64> {
    let Some((lock, sql)) = replacement(resolved) else { return Ok(0) };
    tx.execute(&lock, &[&rows]).await?;
    tx.execute(&sql, &[&rows, &cx.run.0, &cx.step.as_str(), &resolved.target.name.to_string()]).await
}
