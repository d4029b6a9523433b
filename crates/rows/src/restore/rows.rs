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

/// Inserts the rows that are not there; a concurrent insert of the same row is waited for.
pub(crate) async fn insert(cx: &Port, tx: &Tx<'_>, resolved: &Resolved, rows: &[Value]) -> Result<u64> {
    let columns: Vec<&Column> = resolved.columns.iter().map(|(c, _)| c).collect();
    let names: Vec<String> = columns.iter().map(|c| c.ident()).collect();
    let values: Vec<String> = columns.iter().map(|c| c.read_json("u.r")).collect();
    let sql = format!(
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
    );
    tx.execute(&sql, &[&rows, &cx.run.0, &cx.step.as_str(), &resolved.target.name.to_string()]).await
}

/// Gives rows that were there the source's values, and archives their own. After [`insert`] all of them are
/// visible, and they are locked before they are read.
pub(crate) async fn overwrite(cx: &Port, tx: &Tx<'_>, resolved: &Resolved, rows: &[Value]) -> Result<u64> {
    let target = &resolved.target;
    let columns: Vec<&Column> = resolved
        .columns
        .iter()
        .map(|(c, _)| c)
        .filter(|c| !c.identity_always && !target.key.iter().any(|k| k.name == c.name))
        .collect();
    if columns.is_empty() {
        return Ok(0);
    }
    let matches = key_matches(resolved, "t", "u.r");
    let table = target.name.sql();
    tx.execute(
        &format!(
            "select 1 from {table} t, unnest($1::jsonb[]) as u(r) where {matches} for no key update of t"
        ),
        &[&rows],
    )
    .await?;
    let sets: Vec<String> =
        columns.iter().map(|c| format!("{} = {}", c.ident(), c.read_json("u.r"))).collect();
    let differs: Vec<String> =
        columns.iter().map(|c| c.differs(&format!("t.{}", c.ident()), &c.read_json("u.r"))).collect();
    let all = object(target.columns.iter().filter(|c| !c.generated), "t.");
    let key = object(target.key.iter(), "t.");
    let changes = |of: &str, other: &str| {
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
        changes("was.r", "changed.r"),
        changes("changed.r", "was.r"),
    );
    tx.execute(&sql, &[&rows, &cx.run.0, &cx.step.as_str(), &target.name.to_string()]).await
}
