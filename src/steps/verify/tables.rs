//! Row counts and checksums of whole tables.
//!
//! A checksum is the sum of the rows' hashes within a chunk; a row's chunk is a hash of its key. So each side
//! reads a table once, without sorting and in whatever order it likes, both at the same time; only chunks that
//! differ are read again, to find the rows.

use super::rows::{self, Matching};
use super::side::Side;
use crate::error::{Error, Result};
use crate::postgres::{Session, TableName, quote_ident};
use std::collections::{BTreeMap, BTreeSet};

/// A table as it can be compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Whether its children are counted with it: partitions are, inheritors are not.
    pub partitioned: bool,
    /// Columns by name.
    pub columns: BTreeSet<String>,
    /// Columns of the primary key, in order; empty without one.
    pub key: Vec<String>,
    /// The planner's estimate of its rows.
    pub estimate: f64,
}

/// All tables of a side, without those that are part of another.
///
/// # Errors
/// What the server says.
pub async fn shapes(session: &Session) -> Result<BTreeMap<TableName, Shape>> {
    let rows = session
        .query(
            "select n.nspname::text, c.relname::text, c.relkind = 'p',
                    array(select a.attname::text from pg_attribute a
                          where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
                    array(select a.attname::text from pg_index i
                          cross join unnest(i.indkey::int2[]) with ordinality k (attnum, n)
                          join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
                          where i.indrelid = c.oid and i.indisprimary order by k.n),
                    (select coalesce(sum(greatest(l.reltuples, 0)), 0)::float8 from pg_class l
                     where l.oid = c.oid or l.oid in (select relid from pg_partition_tree(c.oid)))
             from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence <> 't'
               and n.nspname not like 'pg\\_%' and n.nspname not in ('information_schema', 'handover', 'handover_queue')
               and not exists (select from pg_depend e where e.classid = 'pg_class'::regclass and e.objid = c.oid
                               and e.deptype = 'e')",
            &[],
        )
        .await?;
    Ok(rows
        .iter()
        .map(|row| {
            let shape = Shape {
                partitioned: row.get(2),
                columns: row.get::<_, Vec<String>>(3).into_iter().collect(),
                key: row.get(4),
                estimate: row.get(5),
            };
            (TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)), shape)
        })
        .collect())
}

/// The tables to compare: those named, or all, without the excluded.
///
/// # Errors
/// None left, or one that is named and not there.
pub fn chosen(
    there: &BTreeMap<TableName, Shape>,
    tables: &[TableName],
    exclude: &[TableName],
    database: &str,
) -> Result<Vec<TableName>> {
    for name in tables.iter().chain(exclude) {
        if !there.contains_key(name) {
            return Err(Error::data(format!("there is no table {name} to compare"))
                .on_database(database)
                .hint("correct its name in the plan; partitions are compared as part of their table"));
        }
    }
    let chosen: Vec<TableName> = there
        .keys()
        .filter(|name| (tables.is_empty() || tables.contains(name)) && !exclude.contains(name))
        .cloned()
        .collect();
    if chosen.is_empty() {
        return Err(Error::data("no table is left to compare, so the check could not fail")
            .on_database(database)
            .hint("exclude fewer tables, or remove the check"));
    }
    Ok(chosen)
}

fn from(name: &TableName, shape: &Shape) -> String {
    if shape.partitioned { name.sql() } else { format!("only {}", name.sql()) }
}

/// Exact number of rows.
///
/// # Errors
/// What the server says.
pub async fn count(session: &Session, name: &TableName, shape: &Shape) -> Result<i64> {
    let sql = format!("select count(*) from {}", from(name, shape));
    Ok(session.query_one(&sql, &[]).await?.get(0))
}

/// What differs between two tables, in words; empty when nothing does.
///
/// # Errors
/// What either server says.
pub async fn checksum(
    (before, after): (&Side, &Side),
    name: &TableName,
    shapes: (&Shape, &Shape),
    chunk_rows: u32,
) -> Result<Vec<String>> {
    let lost: Vec<&str> = shapes.0.columns.difference(&shapes.1.columns).map(String::as_str).collect();
    if !lost.is_empty() {
        return Ok(vec![format!("columns {} are gone", lost.join(", "))]);
    }
    // Without a key the whole row stands in for it.
    let columns: Vec<&String> = shapes.0.columns.iter().collect();
    let list = |names: &[&String]| names.iter().map(|c| quote_ident(c)).collect::<Vec<_>>().join(", ");
    let row = format!("row({})::text", list(&columns));
    let keyed = !shapes.0.key.is_empty() && shapes.0.key.iter().all(|k| shapes.1.columns.contains(k));
    let key = if keyed {
        format!("row({})::text", list(&shapes.0.key.iter().collect::<Vec<_>>()))
    } else {
        row.clone()
    };
    let chunks = (shapes.0.estimate / f64::from(chunk_rows.max(1))).ceil().clamp(1.0, 65_536.0) as i64;
    // The first 60 bits of md5: the same on every version, and not negative.
    let hash = |text: &str| format!("('x0' || substr(md5({text}), 1, 15))::bit(64)::int8");
    let sum = |shape: &Shape| {
        format!(
            "select {} % {chunks} as chunk, count(*), sum({})::text from {} group by 1 order by 1",
            hash(&key),
            hash(&row),
            from(name, shape)
        )
    };
    let (left, right) = tokio::try_join!(before.join(), after.join())?;
    let (one, two) = (sum(shapes.0), sum(shapes.1));
    let (one, two) = tokio::try_join!(left.query(&one, &[]), right.query(&two, &[]))?;
    let collect = |rows: Vec<tokio_postgres::Row>| -> BTreeMap<i64, (i64, String)> {
        rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect()
    };
    let (one, two) = (collect(one), collect(two));
    let differing: BTreeSet<i64> =
        one.keys().chain(two.keys()).copied().filter(|chunk| one.get(chunk) != two.get(chunk)).collect();
    if differing.is_empty() {
        return Ok(Vec::new());
    }
    // Only keys are shown; of a row without one, only its hash: values may be secrets.
    let shown = if keyed { key.clone() } else { format!("md5({row})") };
    let few: Vec<String> = differing.iter().take(100).map(i64::to_string).collect();
    let rows_of = |shape: &Shape| {
        let inner = format!(
            "select {shown} as key, md5({row}) as hash from {} where {} % {chunks} in ({})",
            from(name, shape),
            hash(&key),
            few.join(", ")
        );
        rows::wrap(&inner, &["key".into()], Matching::Key)
    };
    let (one, two) = (rows_of(shapes.0), rows_of(shapes.1));
    let (one, two) = tokio::try_join!(rows::fetch(&left, &one), rows::fetch(&right, &two))?;
    let found = rows::compare(one, two, Matching::Key, None).await?;
    let mut out = vec![format!(
        "{} of {chunks} chunks differ, in {}{} rows",
        differing.len(),
        if differing.len() > few.len() { "at least " } else { "" },
        found.differing
    )];
    // "(key): (key, hash)": the hash says nothing to people.
    out.extend(found.shown.iter().map(|text| {
        let key = text.split("): (").next().unwrap_or(text);
        match key.strip_prefix("only ") {
            Some(_) => format!("{key})"),
            None => format!("changed: {key})"),
        }
        .replace("((", "(")
        .replace("))", ")")
    }));
    Ok(out)
}
