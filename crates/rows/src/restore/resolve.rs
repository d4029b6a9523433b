//! What is brought from where, against both catalogs.

use super::options::{Restore, Source};
use crate::prepare::prepare;
use crate::table::{Catalog, Column, Table, params};
use handover_core::error::{Error, Result};
use handover_core::event::StepId;
use handover_port::Port;
use handover_postgres::ours::OURS;
use handover_postgres::{Session, TableName, quote_ident, quote_literal};
use serde_json::Value;

/// A restore against both catalogs.
pub(super) struct Resolved {
    pub target: Table,
    /// The relation to read from, under the table's own name.
    pub relation: String,
    /// The key to walk the source by, as the key of a table.
    pub walk: Table,
    /// The target's columns and their expressions over the source.
    pub columns: Vec<(Column, String)>,
    /// Columns of the source that the target has not.
    pub left_out: Vec<String>,
    pub condition: String,
}

impl Restore {
    /// Finds what is to be brought, and has the server read the plan's SQL.
    pub(super) async fn resolve(&self, cx: &Port, source: &Session, target: &Session) -> Result<Resolved> {
        let table = Table::load(Catalog::Session(target), &self.table, self.key.as_deref()).await?;
        let from_name = self.from_table.as_ref().unwrap_or(&self.table);
        let (relation, walk, names) = match &self.from {
            Source::Database(_) => {
                let from = Table::load(Catalog::Session(source), from_name, None).await?;
                let names = from.columns.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
                (from.name.sql(), from, names)
            }
            Source::Archive { quarantine } => archived(cx, source, quarantine, from_name, &table).await?,
        };
        let mut columns = Vec::new();
        match &self.columns {
            Some(map) => {
                for (name, e) in map {
                    columns.push((target_column(&table, name, &self.to)?, e.clone()));
                }
            }
            None => columns.extend(
                table
                    .columns
                    .iter()
                    .filter(|c| !c.generated && names.contains(&c.name))
                    .map(|c| (c.clone(), c.ident())),
            ),
        }
        let has = |c: &Column| columns.iter().any(|(column, _)| column.name == c.name);
        let fail = |message: String, hint: &str| Err(Error::data(message).on_database(&self.to).hint(hint));
        if let Some(column) = table.key.iter().find(|c| !has(c)) {
            return fail(
                format!("the key column `{}` of {} has no value from the source", column.name, table.name),
                "give it under `columns`, or name another unique key under `key`",
            );
        }
        let lacking = |c: &&Column| c.not_null && !c.has_default && !c.generated && !has(c);
        if let Some(column) = table.columns.iter().find(lacking) {
            return fail(
                format!(
                    "column `{}` of {} must not be null and has no value from the source",
                    column.name, table.name
                ),
                "give its expression under `columns`",
            );
        }
        let condition = self.condition.clone().unwrap_or_else(|| "true".into());
        prepare(source, &format!("select 1 from {relation} where {condition}"), "where").await?;
        for (c, e) in &columns {
            let place = format!("columns.{}", c.name);
            if prepare(source, &format!("select {e}\nfrom {relation}"), &place).await? != 1 {
                return fail(
                    format!("`{place}` is not one expression"),
                    "give each column its own expression",
                );
            }
        }
        let left_out = match &self.columns {
            Some(_) => Vec::new(),
            None => names.into_iter().filter(|n| table.column(n).is_none()).collect(),
        };
        Ok(Resolved { target: table, relation, walk, columns, left_out, condition })
    }

    /// The next rows of the source as archived objects, and the last key.
    pub(super) async fn read(
        &self,
        source: &Session,
        resolved: &Resolved,
        last: Option<&[String]>,
    ) -> Result<(Vec<Value>, Option<Vec<String>>)> {
        let walk = &resolved.walk;
        let (names, values): (Vec<String>, Vec<String>) =
            resolved.columns.iter().map(|(c, e)| (quote_literal(&c.name), format!("({e}\n)::text"))).unzip();
        let sql = format!(
            "select jsonb_object(array[{}]::text[], array[{}]::text[]), {} from {} where ({}\n) and {} order by {} limit {}",
            names.join(", "),
            values.join(", "),
            walk.key_text(),
            resolved.relation,
            resolved.condition,
            last.map_or("true".into(), |_| walk.key_beyond(">", 1)),
            walk.key_list(),
            self.batch
        );
        let rows = source.query(&sql, &params(last.unwrap_or_default())).await?;
        let key = rows.last().map(|row| (1..=walk.key.len()).map(|i| row.get(i)).collect());
        Ok((rows.iter().map(|row| row.get(0)).collect(), key))
    }
}

/// A column of the target; identity columns may be inserted.
fn target_column(table: &Table, name: &str, database: &str) -> Result<Column> {
    match table.column(name) {
        Some(column) if column.identity_always => Ok(column.clone()),
        _ => table.writable(name, database).cloned(),
    }
}

/// The archived rows of a step as a relation with the table's own columns, walked by their place in the archive.
async fn archived(
    cx: &Port,
    session: &Session,
    step: &StepId,
    name: &TableName,
    like: &Table,
) -> Result<(String, Table, Vec<String>)> {
    let rows_of = format!(
        "{OURS}.archive a where a.run = '{}' and a.step = {} and a.table_name = {} and a.action in ('quarantine', 'delete') and a.conflict is null",
        cx.run,
        quote_literal(step.as_str()),
        quote_literal(&name.to_string())
    );
    let names: Vec<String> = session
        .query(
            &format!("select jsonb_object_keys(x.old_row) from (select a.old_row from {rows_of} limit 1) x"),
            &[],
        )
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect();
    // Nothing was set aside: the target's own columns, over no rows.
    let names = if names.is_empty() { like.columns.iter().map(|c| c.name.clone()).collect() } else { names };
    let columns: Vec<String> = names
        .iter()
        .map(|n| match like.column(n) {
            Some(c) => format!("{} as {}", c.read_json("a.old_row"), c.ident()),
            None => format!("a.old_row ->> {} as {}", quote_literal(n), quote_ident(n)),
        })
        .collect();
    let relation = format!(
        "(select a.id as handover_id, {} from {rows_of}) as {}",
        columns.join(", "),
        quote_ident(&name.name)
    );
    let key = vec![Column::new("handover_id", "bigint")];
    Ok((relation, Table { key, ..like.clone() }, names))
}
