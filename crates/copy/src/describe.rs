//! What a dry run says of a copy: every table, the settings, and how long it may take.

use crate::estimate::{self, Estimate, Work};
use crate::options::{Copy, LargeObjects};
use crate::sample::{self, Index};
use crate::state::Table;
use crate::{catalog, data, extensions, jobs, preflight, source, split, state};
use handover_core::error::Result;
use handover_core::problem::few;
use handover_port::{Description, Port};
use handover_postgres::ours::OURS;
use handover_postgres::{Session, TableName};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// Tables that are shown to people; the others are counted. A machine gets all.
const SHOWN: usize = 20;

/// Looks at both sides and says what would be done.
pub async fn describe(copy: &Copy, port: &Port) -> Result<Description> {
    let (blue, green) = (port.reader(&copy.from).await?, port.reader(&copy.to).await?);
    let mut out = Description::default();
    let program = preflight::look(copy, &blue, &green, &mut out).await?;
    let resumable = own_checkpoints(&green, port).await?;
    preflight::emptiness(copy, &green, resumable, &mut out).await?;
    if !resumable {
        extensions::look(copy, &blue, &green, &mut out).await?;
    }
    let jobs = jobs::choose(copy, &blue, &green).await?;
    let major = blue.major().await?;
    let tables = source::tables(&blue, copy, major).await?;
    let indexes = indexes(&blue, copy).await?;
    let (facts, keys) = inventory(&blue, copy).await?;
    if let Some(program) = program {
        out.action(format!(
            "create the schema of {} on {} with pg_dump {}",
            copy.from, copy.to, program.major
        ));
    }
    out.action(format!(
        "copy {} tables, {} in {} pieces, {} at a time ({}), from one snapshot",
        tables.len(),
        size(tables.iter().map(|t| t.bytes).sum()),
        tables.iter().map(|t| t.chunks.len()).sum::<usize>(),
        jobs.number,
        jobs.from
    ));
    let whole: Vec<String> = tables
        .iter()
        .filter(|t| t.chunks.len() == 1 && t.bytes > 2 * copy.chunk_bytes())
        .map(|t| t.name.to_string())
        .collect();
    if !whole.is_empty() && split::by_key(copy, major) {
        out.warning(format!(
            "no index cuts these tables, so each is copied in one piece, and again from its beginning after a failure: {}; one is of use whose columns are never null and whose order the rows are stored in",
            few(&whole)
        ));
    }
    let by_table = by_table(&indexes);
    listed(&tables, &by_table, &mut out);
    let memory: String = green
        .query_one(
            "select coalesce($1, current_setting('maintenance_work_mem'))",
            &[&copy.maintenance_work_mem],
        )
        .await?
        .get(0);
    out.action(format!(
        "load with synchronous_commit = off, and with FREEZE where a table is one piece; build with maintenance_work_mem = {memory}, up to {} builds beside the loads",
        jobs.number
    ));
    for (name, value) in &copy.tune {
        out.action(format!("set {name} = {value} on {}'s server for the load, and put it back", copy.to));
    }
    let indexed: u64 = indexes.iter().map(|i| i.bytes).sum();
    out.action(format!(
        "build {} indexes ({} on {}), add {keys} foreign keys, set sequences, analyze every table",
        indexes.len(),
        size(indexed),
        copy.from
    ));
    let objects = large_objects(&blue, copy, &mut out).await?;
    out.warning(format!(
            "while rows are copied, vacuum on {} keeps every row version that dies, and tables cannot be altered or truncated",
            copy.from
        ));
    let bytes = tables.iter().map(|t| t.bytes).sum::<u64>();
    let earlier = port.memory.precedent(&port.step);
    let estimate = match earlier.and_then(|earlier| estimate::precedent(bytes, &earlier)) {
        Some(known) => known,
        None => {
            let measured = sample::measure(&blue, &green, major, &tables, &indexes).await?;
            let work = Work {
                tables: &tables,
                indexes: &indexes,
                objects: facts,
                large_objects: objects,
                jobs: jobs.number,
                names: (&copy.from, &copy.to),
            };
            estimate::measured(&work, &measured)
        }
    };
    out.details = Some(json!({
        "tables": tables.iter().map(|table| details(table, &by_table)).collect::<Vec<_>>(),
        "indexes": { "count": indexes.len(), "bytes": indexed },
        "foreign_keys": keys,
        "large_objects": { "bytes": objects },
        "jobs": jobs.number,
        "settings": { "synchronous_commit": "off", "maintenance_work_mem": memory },
        "tune": copy.tune,
        "estimate": estimate,
    }));
    out.estimate = Some(words(&estimate, &blue, copy).await?);
    Ok(out)
}

/// Whether this run and step has begun a copy there.
async fn own_checkpoints(green: &Session, port: &Port) -> Result<bool> {
    let table = green.query_one(&format!("select to_regclass('{OURS}.checkpoint') is not null"), &[]).await?;
    Ok(table.get(0) && !state::units(green, port.run, &port.step).await?.is_empty())
}

/// The estimate, and what it leaves out.
async fn words(estimate: &Estimate, blue: &Session, copy: &Copy) -> Result<String> {
    let views = blue
        .query(&catalog::relations("'m'"), &[])
        .await?
        .iter()
        .filter(|row| {
            copy.selection().relation(&TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)))
        })
        .count();
    Ok(match views {
        0 => estimate.words(),
        n => format!("{}; the queries of {n} materialized views come on top", estimate.words()),
    })
}

/// How many objects there are, and how many foreign keys among them.
async fn inventory(blue: &Session, copy: &Copy) -> Result<(usize, usize)> {
    let facts = source::inventory(blue, &copy.selection()).await?;
    let keys =
        facts.iter().filter(|f| f.text.starts_with("constraint ") && f.text.contains("of kind f")).count();
    Ok((facts.iter().filter(|f| !f.text.starts_with("column ")).count(), keys))
}

/// The indexes of selected tables, largest first.
async fn indexes(blue: &Session, copy: &Copy) -> Result<Vec<Index>> {
    let rows = blue.query(&catalog::indexes(), &[]).await?;
    let index = |row: &tokio_postgres::Row| Index {
        table: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        name: row.get(2),
        method: row.get(3),
        bytes: row.get::<_, i64>(4).unsigned_abs(),
        key: row.get(5),
    };
    let selection = copy.selection();
    let mut out: Vec<Index> = rows.iter().map(index).filter(|i| selection.relation(&i.table)).collect();
    for index in out.iter_mut().filter(|i| copy.without_data.contains(&i.table)) {
        index.bytes = 0;
    }
    out.sort_by_key(|index| std::cmp::Reverse(index.bytes));
    Ok(out)
}

fn by_table(indexes: &[Index]) -> BTreeMap<&TableName, (usize, u64)> {
    let mut out: BTreeMap<&TableName, (usize, u64)> = BTreeMap::new();
    for index in indexes {
        let entry = out.entry(&index.table).or_default();
        *entry = (entry.0 + 1, entry.1 + index.bytes);
    }
    out
}

/// One line for each of the largest tables, and one for all others.
fn listed(tables: &[Table], by_table: &BTreeMap<&TableName, (usize, u64)>, out: &mut Description) {
    let shown = &tables[..tables.len().min(SHOWN)];
    let width = shown.iter().map(|t| t.name.to_string().chars().count()).max().unwrap_or(0).min(50);
    let line = |name: &str, bytes, pieces: &str, (indexes, indexed): (usize, u64)| {
        let indexes = match indexes {
            0 => "no index".to_owned(),
            1 => format!("1 index of {}", size(indexed)),
            n => format!("{n} indexes of {}", size(indexed)),
        };
        format!("  {name:width$}  {:>8}  {pieces:>10}, {indexes}", size(bytes))
    };
    for table in shown {
        let indexes = by_table.get(&table.name).copied().unwrap_or_default();
        let mut text = line(&table.name.to_string(), table.bytes, &pieces(table), indexes);
        if !table.binary {
            text += ", as text";
        }
        out.action(text);
    }
    let rest = &tables[shown.len()..];
    if !rest.is_empty() {
        let names: BTreeSet<&TableName> = rest.iter().map(|t| &t.name).collect();
        let theirs = by_table.iter().filter(|(name, _)| names.contains(*name)).map(|(_, i)| *i);
        let indexes = theirs.fold((0, 0), |sum, i| (sum.0 + i.0, sum.1 + i.1));
        out.action(line(
            &format!("and {} smaller", rest.len()),
            rest.iter().map(|t| t.bytes).sum(),
            &format!("{} pieces", rest.iter().map(|t| t.chunks.len()).sum::<usize>()),
            indexes,
        ));
    }
}

/// In how many pieces a table is copied, and which.
fn pieces(table: &Table) -> String {
    match (&table.key, table.chunks.len()) {
        (_, 1) => "1 piece".into(),
        (None, n) => format!("{n} pieces"),
        (Some(key), n) => {
            let columns: Vec<&str> = key.columns.iter().map(|c| c.name.as_str()).collect();
            format!("{n} ranges of {}", columns.join(", "))
        }
    }
}

/// A table for a machine.
fn details(table: &Table, by_table: &BTreeMap<&TableName, (usize, u64)>) -> serde_json::Value {
    let (indexes, indexed) = by_table.get(&table.name).copied().unwrap_or_default();
    json!({
        "table": table.name.to_string(),
        "bytes": table.bytes,
        "chunks": table.chunks.len(),
        "indexes": indexes,
        "index_bytes": indexed,
        "format": if table.binary { "binary" } else { "text" },
        "cut_by": table.key.as_ref().map(|key| key.columns.iter().map(|c| &c.name).collect::<Vec<_>>()),
        "freeze": data::alone(table),
    })
}

/// Bytes of large objects that are copied. Who looks may not be allowed to see them one by one.
async fn large_objects(blue: &Session, copy: &Copy, out: &mut Description) -> Result<u64> {
    if copy.large_objects == LargeObjects::Skip {
        return Ok(0);
    }
    let row = blue
        .query_one(
            "select (select count(*) from pg_largeobject_metadata), pg_table_size('pg_largeobject')",
            &[],
        )
        .await?;
    let (objects, bytes): (i64, i64) = (row.get(0), row.get(1));
    if objects == 0 {
        return Ok(0);
    }
    out.action(format!("copy {objects} large objects, {}", size(bytes.unsigned_abs())));
    Ok(bytes.unsigned_abs())
}

fn size(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss)]
    let n = bytes as f64;
    match bytes {
        0..1_000_000 => format!("{:.0} kB", (n / 1e3).ceil()),
        1_000_000..10_000_000_000 => format!("{:.0} MB", n / 1e6),
        _ => format!("{:.1} GB", n / 1e9),
    }
}
