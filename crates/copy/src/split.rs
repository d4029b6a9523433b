//! How large tables are split into chunks that are copied at once, and resumed one by one.
//!
//! From Postgres 14 on a chunk is a range of blocks (a TID range scan). Before, a condition on `ctid` reads the
//! whole table, so a chunk is a range of a key there, through its index. Boundaries come from a sample of the
//! table's pages at the copy's own snapshot: it costs a few thousand page reads whatever the table's size, works
//! for keys of any type and of several columns, and asks for no fresh statistics (`pg_stats` has bounds for single
//! columns only, of whenever ANALYZE last ran; walking an index by offsets reads all of it, and much of the table
//! where the visibility map is not set). Whatever the boundaries are, each row is in exactly one chunk.

use crate::options::{Copy, SplitBy};
use crate::state::{Chunk, Key, KeyColumn, Table};
use handover_core::error::Result;
use handover_postgres::{Session, TableName, quote_ident, quote_literal};
use std::fmt::Write;

/// Chunks of one table at most: each is a checkpoint and a line of the plan that is kept for resuming.
const CHUNKS: u64 = 4_096;
/// Pages that are sampled for each chunk, and for all together at most.
const PAGES: (f64, f64) = (16.0, 16_384.0);
/// Indexes of one table that are tried.
const TRIED: usize = 4;
/// Rows that lie this closely in the order of a key are read by it.
const CORRELATED: f64 = 0.8;
/// A table of this many bytes is in memory after it was read once, in whatever order.
const CACHED: u64 = 1 << 30;
/// The first version with TID range scans (<https://www.postgresql.org/docs/14/release-14.html>).
pub const TID_RANGES: u32 = 14;

/// Whether a copy splits by key on a server of that version.
#[must_use]
pub fn by_key(copy: &Copy, major: u32) -> bool {
    match copy.split_by {
        SplitBy::Auto => major < TID_RANGES,
        SplitBy::Tid => false,
        SplitBy::Key => true,
    }
}

/// Splits `table` of so many `blocks` as the copy wants it on a server of that version.
pub async fn split(session: &Session, copy: &Copy, major: u32, table: &mut Table, blocks: u64) -> Result<()> {
    let pieces = table.bytes.div_ceil(copy.chunk_bytes()).clamp(1, blocks.clamp(1, CHUNKS));
    if !by_key(copy, major) {
        // `split_by: tid` on a server without them is refused; a table is then at least not read many times.
        table.chunks = if major >= TID_RANGES { by_block(blocks, pieces) } else { vec![Chunk::WHOLE] };
        return Ok(());
    }
    if pieces < 2 {
        return Ok(());
    }
    let mut best: Option<(f64, f64, Key, Vec<Vec<String>>)> = None;
    for key in keys(session, &table.name).await? {
        let (order, bounds) = boundaries(session, &table.name, &key, blocks, pieces).await?;
        // An index with only a few values splits badly; among others the order of the rows decides.
        #[allow(clippy::cast_precision_loss)]
        let merit = order * (2.0 * bounds.len() as f64 / pieces as f64).min(1.0);
        if !bounds.is_empty() && best.as_ref().is_none_or(|(other, ..)| merit > *other) {
            best = Some((merit, order, key, bounds));
        }
        if merit >= CORRELATED {
            break;
        }
    }
    // Where rows lie in another order than the key's, each chunk would visit most of the table's pages: one that
    // does not fit into memory is read faster in one go.
    let wanted = |order: f64| order >= CORRELATED || table.bytes <= CACHED || copy.split_by == SplitBy::Key;
    if let Some((_, order, key, bounds)) = best
        && wanted(order)
    {
        table.chunks = ranges(bounds);
        table.key = Some(key);
    }
    Ok(())
}

/// Splits `blocks` into `pieces` of equal size, the last without an end.
fn by_block(blocks: u64, pieces: u64) -> Vec<Chunk> {
    let size = blocks.div_ceil(pieces.max(1)).max(1);
    let starts = (0..pieces.max(1)).map(|i| i * size).take_while(|from| *from == 0 || *from < blocks);
    let starts: Vec<u64> = starts.collect();
    let end = |i: usize| starts.get(i + 1).copied();
    starts.iter().enumerate().map(|(i, from)| Chunk::Blocks { from: *from, to: end(i) }).collect()
}

/// The first range has no lower and the last no upper bound.
fn ranges(bounds: Vec<Vec<String>>) -> Vec<Chunk> {
    let mut lower = None;
    let mut out = Vec::with_capacity(bounds.len() + 1);
    for bound in bounds {
        out.push(Chunk::Keys { lower: lower.replace(bound.clone()), upper: Some(bound) });
    }
    out.push(Chunk::Keys { lower, upper: None });
    out
}

/// What a table can be split by, best guess first: B-tree indexes of all rows, each with as many of its first
/// columns as can be compared as a row. None of these may be null, or a row would be in no range. That nobody
/// altered the table since is the business of the lock that the copy holds.
async fn keys(session: &Session, table: &TableName) -> Result<Vec<Key>> {
    // Comparisons are those of the index's operator class, by their full names: other operators could order
    // values in another way (citext's and text's, for example), and the index could not answer them. On Postgres 18
    // a column is "not null" also where rows from before that are not.
    let rows = session
        .query(
            "select i.indexrelid, a.attname::text, format_type(a.atttypid, a.atttypmod),
                    case when k.collate_by <> 0 then (select format('%I.%I', cn.nspname, c.collname) from pg_collation c
                         join pg_namespace cn on cn.oid = c.collnamespace where c.oid = k.collate_by) end,
                    less.name, least.name, k.options & 1 = 1,
                    a.attnotnull and not exists (
                        select from pg_constraint n where n.conrelid = i.indrelid and n.contype = 'n'
                        and not n.convalidated and a.attnum = any (n.conkey))
             from pg_index i join pg_class x on x.oid = i.indexrelid join pg_am m on m.oid = x.relam
             cross join lateral unnest(i.indkey::int2[], i.indclass::oid[], i.indcollation::oid[], i.indoption::int2[])
                  with ordinality k (attnum, class, collate_by, options, n)
             left join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
             join pg_opclass oc on oc.oid = k.class
             left join lateral (select format('operator(%I.%s)', n.nspname, o.oprname) as name from pg_amop s
                  join pg_operator o on o.oid = s.amopopr join pg_namespace n on n.oid = o.oprnamespace
                  where s.amopfamily = oc.opcfamily and s.amoplefttype = oc.opcintype
                    and s.amoprighttype = oc.opcintype and s.amopstrategy = 1) less on true
             left join lateral (select format('operator(%I.%s)', n.nspname, o.oprname) as name from pg_amop s
                  join pg_operator o on o.oid = s.amopopr join pg_namespace n on n.oid = o.oprnamespace
                  where s.amopfamily = oc.opcfamily and s.amoplefttype = oc.opcintype
                    and s.amoprighttype = oc.opcintype and s.amopstrategy = 4) least on true
             where i.indrelid = (select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
                                 where n.nspname = $1 and c.relname = $2)
               and m.amname = 'btree' and i.indisvalid and i.indisready and i.indislive and i.indpred is null
               and k.n <= i.indnkeyatts
             order by i.indisprimary desc, i.indisunique desc, i.indnkeyatts, i.indexrelid, k.n",
            &[&table.schema, &table.name],
        )
        .await?;
    let mut out = Vec::new();
    for index in rows.chunk_by(|a, b| a.get::<_, u32>(0) == b.get::<_, u32>(0)) {
        // How the columns after the first must be like it: the server compares rows with one operator's name, and an
        // index is walked in one direction.
        let first = &index[0];
        let alike = |row: &&tokio_postgres::Row| {
            let operator = |at: usize| {
                let one: Option<&str> = row.get(at);
                one.is_some() && one == first.get(at)
            };
            // Neither an expression nor a column of the system's.
            row.get::<_, Option<bool>>(7) == Some(true)
                && operator(4)
                && operator(5)
                && row.get::<_, bool>(6) == first.get::<_, bool>(6)
        };
        let columns: Vec<KeyColumn> = index
            .iter()
            .take_while(alike)
            .map(|row| KeyColumn { name: row.get(1), sql_type: row.get(2), collation: row.get(3) })
            .collect();
        if !columns.is_empty() && out.len() < TRIED {
            out.push(Key { columns, less: first.get(4), at_least: first.get(5) });
        }
    }
    Ok(out)
}

impl KeyColumn {
    /// The column of the table `t`, as the index orders it.
    fn sql(&self) -> String {
        let collate = self.collation.as_ref().map(|c| format!(" collate {c}")).unwrap_or_default();
        format!("t.{}{collate}", quote_ident(&self.name))
    }
}

/// Boundaries in the key's order, and how closely the table's rows lie in it: 1 is exactly.
async fn boundaries(
    session: &Session,
    table: &TableName,
    key: &Key,
    blocks: u64,
    pieces: u64,
) -> Result<(f64, Vec<Vec<String>>)> {
    #[allow(clippy::cast_precision_loss)]
    let (blocks, pieces) = (blocks.max(1) as f64, pieces as f64);
    let percent = (100.0 * (PAGES.0 * pieces).min(PAGES.1).max(pieces) / blocks).min(100.0);
    let numbered = || key.columns.iter().enumerate().map(|(i, column)| (i + 1, column));
    let list = |sql: &dyn Fn(usize, &KeyColumn) -> String| {
        numbered().map(|(i, column)| sql(i, column)).collect::<Vec<_>>().join(", ")
    };
    let collate = |c: &KeyColumn| c.collation.as_ref().map(|c| format!(" collate {c}")).unwrap_or_default();
    // format() writes a value as its type does; a cast to text may be another function of somebody's.
    let sql = format!(
        "with s as materialized (select t.ctid as place, {columns} from only {table} t tablesample system ({percent})),
              r as materialized (select *, row_number() over (order by {order}) as n,
                          row_number() over (order by place) as m, count(*) over () as total from s),
              q as (select *, {previous} from r
                    where n = 1 or n < total and n % greatest(2, ceil(total / {pieces}::float8))::int8 = 0
                    window w as (order by n))
         select (select coalesce(abs(corr(n, m)), 0) from r), array[{texts}]
         from q where p1 is not null and {before} {less} {this} order by n",
        columns = list(&|i, c| format!("t.{} as k{i}", quote_ident(&c.name))),
        table = table.sql(),
        order = list(&|i, c| format!("k{i}{} using {}", collate(c), key.less)),
        previous = list(&|i, _| format!("lag(k{i}) over w as p{i}")),
        texts = list(&|i, _| format!("format('%s', k{i})")),
        before = row(list(&|i, c| format!("p{i}{}", collate(c))), key),
        this = row(list(&|i, c| format!("k{i}{}", collate(c))), key),
        less = key.less,
    );
    let rows = session.query(&sql, &[]).await?;
    Ok((rows.first().map_or(0.0, |row| row.get(0)), rows.iter().map(|row| row.get(1)).collect()))
}

/// Several values are compared as a row.
fn row(list: String, key: &Key) -> String {
    if key.columns.len() == 1 { format!("({list})") } else { format!("row ({list})") }
}

/// The condition for a chunk of the table `t`, none for one that is the whole.
#[must_use]
pub fn condition(chunk: &Chunk, key: Option<&Key>) -> Option<String> {
    let mut out = String::new();
    match (chunk, key) {
        (Chunk::Blocks { from: 0, to: None }, _) | (Chunk::Keys { lower: None, upper: None }, _) => {}
        (Chunk::Blocks { from, to }, _) => {
            let _ = write!(out, "t.ctid >= '({from},0)'::tid");
            if let Some(to) = to {
                let _ = write!(out, " and t.ctid < '({to},0)'::tid");
            }
        }
        (Chunk::Keys { lower, upper }, Some(key)) => {
            let columns = row(key.columns.iter().map(KeyColumn::sql).collect::<Vec<_>>().join(", "), key);
            let values = |bound: &[String]| {
                let one = |(column, value): (&KeyColumn, &String)| {
                    format!("{}::{}", quote_literal(value).trim_start(), column.sql_type)
                };
                row(std::iter::zip(&key.columns, bound).map(one).collect::<Vec<_>>().join(", "), key)
            };
            if let Some(lower) = lower {
                let _ = write!(out, "{columns} {} {}", key.at_least, values(lower));
            }
            if let Some(upper) = upper {
                let and = if out.is_empty() { "" } else { " and " };
                let _ = write!(out, "{and}{columns} {} {}", key.less, values(upper));
            }
        }
        // Never written: a range without what it is a range of. It must not become the whole table.
        (Chunk::Keys { .. }, None) => out.push_str("false"),
    }
    (!out.is_empty()).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_every_block_once() {
        for (blocks, pieces) in [(0, 1), (1, 1), (10, 3), (10, 10), (7, 4), (1_000_001, 13)] {
            let mut at = Some(0);
            for chunk in by_block(blocks, pieces) {
                let Chunk::Blocks { from, to } = chunk else { panic!("{chunk:?}") };
                assert_eq!(at, Some(from), "{blocks} {pieces}");
                assert!(from == 0 || from < blocks);
                at = to;
            }
            assert_eq!(at, None, "the last has no end");
        }
    }

    #[test]
    fn ranges_cover_every_key_once() {
        let column = |name: &str, collation: Option<&str>| KeyColumn {
            name: name.into(),
            sql_type: "text".into(),
            collation: collation.map(str::to_owned),
        };
        let mut key = Key {
            columns: vec![column("a\"b", Some("pg_catalog.\"C\""))],
            less: "operator(pg_catalog.<)".into(),
            at_least: "operator(pg_catalog.>=)".into(),
        };
        let chunks = ranges(vec![vec!["it's".into()], vec!["z\\".into()]]);
        let conditions: Vec<_> = chunks.iter().map(|c| condition(c, Some(&key)).unwrap()).collect();
        let column_sql = "(t.\"a\"\"b\" collate pg_catalog.\"C\")";
        assert_eq!(
            conditions,
            [
                format!("{column_sql} operator(pg_catalog.<) ('it''s'::text)"),
                format!(
                    "{column_sql} operator(pg_catalog.>=) ('it''s'::text) and {column_sql} operator(pg_catalog.<) (E'z\\\\'::text)"
                ),
                format!("{column_sql} operator(pg_catalog.>=) (E'z\\\\'::text)"),
            ]
        );
        key.columns = vec![column("a", None), column("b", None)];
        let chunk = Chunk::Keys { lower: None, upper: Some(vec!["1".into(), "2".into()]) };
        assert_eq!(
            condition(&chunk, Some(&key)).unwrap(),
            "row (t.\"a\", t.\"b\") operator(pg_catalog.<) row ('1'::text, '2'::text)"
        );
        assert_eq!(condition(&Chunk::WHOLE, None), None);
        assert_eq!(condition(&ranges(Vec::new())[0], Some(&key)), None);
    }

    #[test]
    fn chunks_of_earlier_versions_can_be_read() {
        let read = |text: &str| serde_json::from_str::<Chunk>(text).unwrap();
        assert_eq!(read(r#"{"from":3,"to":null}"#), Chunk::Blocks { from: 3, to: None });
        for chunk in ranges(vec![vec!["a".into()]]) {
            assert_eq!(read(&serde_json::to_string(&chunk).unwrap()), chunk);
        }
    }
}
