//! Setting rows aside that another kind of step found, by their places.

use crate::children;
use crate::table::{Catalog, Table, params};
use handover_core::error::{Class, Error, Result};
use handover_core::event::{RunId, StepId};
use handover_port::Port;
use handover_postgres::ours::OURS;
use handover_postgres::{Session, TableName, Tx};
use std::collections::BTreeMap;
use tokio_postgres::types::ToSql;

/// A row's place as text: the oid of its table (a partition of it), and its tuple.
pub type Place = (String, String);

/// Rows whose places come as two arrays.
const AMONG: &str = "ctid = any ($2::text[]::tid[])
    and (tableoid, ctid) in (select o::oid, t::tid from unnest($1::text[], $2::text[]) as handover_p (o, t))";

async fn load(tx: &Tx<'_>, name: &TableName) -> Result<Table> {
    match Table::load(Catalog::Transaction(tx), name, None).await {
        Err(e) if e.class() == Class::Data => Table::load_without_key(Catalog::Transaction(tx), name).await,
        loaded => loaded,
    }
}

async fn by_table(tx: &Tx<'_>, places: &[Place]) -> Result<Vec<(TableName, Vec<Place>)>> {
    let mut out: BTreeMap<&str, Vec<Place>> = BTreeMap::new();
    for place in places {
        out.entry(&place.0).or_default().push(place.clone());
    }
    let mut named = Vec::new();
    for (oid, places) in out {
        let row = tx
            .query_one(
                "select n.nspname::text, c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
                 where c.oid = $1::text::oid",
                &[&oid],
            )
            .await?;
        named.push((TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)), places));
    }
    Ok(named)
}

fn arrays(places: &[Place]) -> Vec<Vec<&str>> {
    vec![places.iter().map(|p| p.0.as_str()).collect(), places.iter().map(|p| p.1.as_str()).collect()]
}

/// Moves rows into `handover.archive` as quarantined, and before them those that refer to them.
pub async fn set_aside(cx: &Port, tx: &Tx<'_>, places: &[Place]) -> Result<()> {
    for (name, places) in by_table(tx, places).await? {
        let table = load(tx, &name).await?;
        let arrays = arrays(&places);
        children::take(cx, tx, &table, AMONG, &arrays, Some("quarantine")).await?;
        let sql = format!(
            "with gone as (delete from {} where {AMONG} returning {} as k, {} as r),
             kept as (insert into {OURS}.archive (run, step, action, table_name, key, old_row)
                      select $3, $4, 'quarantine', $5, k, r from gone)
             select count(*) from gone",
            name.sql(),
            table.key_json(),
            table.row_json(),
        );
        let (step, text) = (cx.step.as_str(), name.to_string());
        let mut values = params(&arrays);
        values.extend([&cx.run.0 as &(dyn ToSql + Sync), &step, &text]);
        let gone: i64 = tx.query_one(&sql, &values).await?.get(0);
        // One that refers to another of them went with it.
        if gone.unsigned_abs() > places.len() as u64 {
            return Err(Error::internal(format!(
                "{gone} rows of {name} were set aside for {}",
                places.len()
            )));
        }
    }
    Ok(())
}

/// Rows in words: the values of their key, or their place where they have none.
pub async fn words(tx: &Tx<'_>, places: &[Place]) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for (name, places) in by_table(tx, places).await? {
        let table = load(tx, &name).await?;
        let columns: Vec<String> = table.key.iter().map(|c| format!("{}::text", c.ident())).collect();
        let what = if columns.is_empty() { "ctid::text".to_owned() } else { columns.join(", ") };
        let sql = format!("select concat_ws(', ', {what}) from {} where {AMONG} order by 1", name.sql());
        let arrays = arrays(&places);
        let of = if columns.is_empty() {
            "place".to_owned()
        } else {
            table.key.iter().map(|c| c.name.clone()).collect::<Vec<_>>().join(", ")
        };
        for row in tx.query(&sql, &params(&arrays)).await? {
            out.push(format!("{name} ({of}) = ({})", row.get::<_, String>(0)));
        }
    }
    Ok(out)
}

/// How many rows a step set aside, by table.
pub async fn counts(session: &Session, run: RunId, step: &StepId) -> Result<BTreeMap<TableName, u64>> {
    let sql = format!(
        "select table_name, count(*) from {OURS}.archive
         where run = $1 and step = $2 and action = 'quarantine' group by 1"
    );
    let rows = session.query(&sql, &[&run.0, &step.as_str()]).await?;
    rows.iter()
        .map(|row| {
            let name = TableName::try_from(row.get::<_, String>(0)).map_err(Error::internal)?;
            Ok((name, row.get::<_, i64>(1).unsigned_abs()))
        })
        .collect()
}
