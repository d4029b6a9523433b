//! Tables as they can be compared: columns, keys, size, and where their rows lie.

use crate::given::Carried;
use handover_core::error::{Error, Result};
use handover_postgres::catalog::is_application;
use handover_postgres::{Session, TableName};
use std::collections::BTreeMap;

/// Rows of a page of a table that was never analyzed.
const ROWS_OF_A_PAGE: f64 = 50.0;

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its type, or the one beneath a domain.
    pub base: u32,
    /// Its type in SQL, without length or precision.
    pub sql_type: String,
    /// Whether it refuses NULL.
    pub required: bool,
    /// Whether a cast to text does not give what its type writes.
    pub odd: bool,
}

/// Columns that no two rows share, as a btree index that is complete and valid promises.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// In the index's order.
    pub columns: Vec<String>,
    /// How many of the first columns sort alike on every server: numbers, times, uuids, bytes, and text only
    /// under collation C. Others depend on the operating system's or ICU's version.
    pub ranged: usize,
    /// How closely rows lie in the order of the first column, 0 to 1, when the server's statistics know.
    pub correlation: Option<f32>,
}

/// One heap of a table: itself, or one of its partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heap {
    /// Its name.
    pub name: TableName,
    /// Its blocks.
    pub blocks: u64,
    /// Whether some of its blocks can be read without the others: before Postgres 14 a condition on `ctid`
    /// reads the whole table.
    pub divisible: bool,
}

/// A table as it can be compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Whether its children are counted with it: partitions are, inheritors are not.
    pub partitioned: bool,
    /// Columns by name.
    pub columns: BTreeMap<String, Column>,
    /// The primary key first, then others by the number of their columns.
    pub keys: Vec<Key>,
    /// The planner's estimate of its rows.
    pub estimate: f64,
    /// Bytes on disk, without indexes.
    pub bytes: u64,
    /// Where its rows lie.
    pub heaps: Vec<Heap>,
}

/// A condition on `c` and `n`: the application's, and no part of another table.
fn whole() -> String {
    format!("{} and not c.relispartition", is_application("'r', 'p'"))
}

fn whole_tables() -> String {
    format!("pg_class c join pg_namespace n on n.oid = c.relnamespace where {}", whole())
}

/// All tables of a side, without those that are part of another.
pub async fn shapes(session: &Session) -> Result<BTreeMap<TableName, Shape>> {
    let mut out: BTreeMap<u32, (TableName, Shape)> = BTreeMap::new();
    let tables = whole_tables();
    let sql = format!("select c.oid, n.nspname::text, c.relname::text, c.relkind = 'p' from {tables}");
    for row in session.query(&sql, &[]).await? {
        let shape = Shape {
            partitioned: row.get(3),
            columns: BTreeMap::new(),
            keys: Vec::new(),
            estimate: 0.0,
            bytes: 0,
            heaps: Vec::new(),
        };
        out.insert(row.get(0), (TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)), shape));
    }
    // A length of -1: without one, `character` would mean one character.
    let columns = format!(
        "with recursive {odd}
         select a.attrelid, a.attname::text, case t.typtype when 'd' then t.typbasetype else t.oid end,
                format_type(a.atttypid, -1), a.attnotnull, a.atttypid in (select type from odd)
         from pg_attribute a join pg_type t on t.oid = a.atttypid
         where a.attnum > 0 and not a.attisdropped and a.attrelid in (select c.oid from {tables})",
        odd = odd("c.oid >= 16384 or c.castsource in ('bpchar'::regtype, 'xml'::regtype)", false),
    );
    for row in session.query(&columns, &[]).await? {
        if let Some((_, shape)) = out.get_mut(&row.get(0)) {
            let column =
                Column { base: row.get(2), sql_type: row.get(3), required: row.get(4), odd: row.get(5) };
            shape.columns.insert(row.get(1), column);
        }
    }
    for row in session.query(&keys(), &[]).await? {
        if let Some((_, shape)) = out.get_mut(&row.get(0)) {
            let ranged: Vec<bool> = row.get(2);
            shape.keys.push(Key {
                columns: row.get(1),
                ranged: ranged.iter().take_while(|alike| **alike).count(),
                correlation: row.get(3),
            });
        }
    }
    let heaps = format!(
        "select t.root, n.nspname::text, c.relname::text, c.relkind = 'r' and m.amname = 'heap' and current_setting('server_version_num')::int4 >= 140000,
                coalesce(pg_relation_size(c.oid), 0) / current_setting('block_size')::int8,
                coalesce(pg_table_size(c.oid), 0), greatest(c.reltuples, 0)::float8
         from (select c.oid as root, coalesce(p.relid, c.oid) as oid
               from pg_class c join pg_namespace n on n.oid = c.relnamespace
               left join lateral (select relid::oid, isleaf from pg_partition_tree(c.oid)) p on c.relkind = 'p'
               where coalesce(p.isleaf, true) and {}) t
         join pg_class c on c.oid = t.oid join pg_namespace n on n.oid = c.relnamespace
         left join pg_am m on m.oid = c.relam where c.relkind <> 'p' order by t.root, c.oid",
        whole()
    );
    for row in session.query(&heaps, &[]).await? {
        if let Some((_, shape)) = out.get_mut(&row.get(0)) {
            let blocks = row.get::<_, i64>(4).unsigned_abs();
            let rows: f64 = row.get(6);
            #[allow(clippy::cast_precision_loss)]
            let guess = blocks as f64 * ROWS_OF_A_PAGE;
            shape.estimate += if rows > 0.0 { rows } else { guess };
            shape.bytes += row.get::<_, i64>(5).unsigned_abs();
            let name = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
            shape.heaps.push(Heap { name, blocks, divisible: row.get(3) });
        }
    }
    Ok(out.into_values().collect())
}

/// Types whose cast to text (or, `both`, from it) is somebody's function, or drops something, and domains over them, as a
/// recursive common table `odd (type)`. The cast of all others is their output.
/// (<https://www.postgresql.org/docs/current/sql-createcast.html>)
fn odd(condition: &str, both: bool) -> String {
    let back = if both {
        "union select c.casttarget from pg_cast c
         where c.castsource = 'text'::regtype and c.castmethod <> 'i' and c.oid >= 16384"
    } else {
        ""
    };
    format!(
        "odd (type) as (
             select type from (
                 select c.castsource from pg_cast c
                 where c.casttarget = 'text'::regtype and c.castmethod <> 'i' and ({condition}) {back}) s (type)
             union select t.oid from odd join pg_type t on t.typbasetype = odd.type where t.typtype = 'd')"
    )
}

/// Columns after the key's own (`INCLUDE`) are stored, not unique. The types are those whose order no locale
/// decides: smallint, integer, bigint, oid, numeric, uuid, date, timestamp, timestamptz, bytea, name, text,
/// varchar. Collation 100 is the database's; since Postgres 17 its provider may be the server itself (`b`),
/// which compares bytes. (<https://www.postgresql.org/docs/current/collation.html>)
/// A key is looked up by its text, so its types' casts must be theirs.
fn keys() -> String {
    format!(
        "with recursive {odd}
         select i.indrelid, array_agg(a.attname::text order by k.n),
                array_agg(a.atttypid in (21, 23, 20, 26, 1700, 2950, 1082, 1114, 1184, 17, 19, 25, 1043)
                    and o.opcdefault and (i.indoption[k.n - 1]::int & 1) = (i.indoption[0]::int & 1)
                    and (i.indcollation[k.n - 1] = 0 or i.indcollation[k.n - 1] = a.attcollation
                         and (l.collname in ('C', 'POSIX')
                              or l.oid = 100 and case coalesce(to_jsonb(d) ->> 'datlocprovider', 'c')
                                  when 'c' then d.datcollate in ('C', 'POSIX') else to_jsonb(d) ->> 'datlocprovider' = 'b' end))
                    order by k.n),
                (select max(abs(s.correlation)) from pg_stats s
                 where s.schemaname = n.nspname and s.tablename = c.relname
                   and s.attname = (array_agg(a.attname order by k.n))[1])
         from pg_index i join pg_class c on c.oid = i.indrelid join pg_namespace n on n.oid = c.relnamespace
         join pg_class x on x.oid = i.indexrelid join pg_am m on m.oid = x.relam and m.amname = 'btree'
         cross join unnest(i.indkey::int2[]) with ordinality k (attnum, n)
         left join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum and k.attnum > 0
         left join pg_opclass o on o.oid = i.indclass[k.n - 1]
         left join pg_collation l on l.oid = i.indcollation[k.n - 1]
         cross join (select * from pg_database where datname = current_database()) d
         where i.indisunique and i.indisvalid and i.indisready and i.indpred is null and k.n <= i.indnkeyatts
           and c.oid in (select c.oid from {tables})
         group by i.indexrelid, i.indrelid, i.indisprimary, n.nspname, c.relname
         having bool_and(coalesce(a.attnotnull, false) and a.atttypid not in (select type from odd))
         order by i.indrelid, i.indisprimary desc, count(*), array_agg(a.attname::text order by k.n)",
        odd = odd("c.oid >= 16384", true),
        tables = whole_tables(),
    )
}

/// Whether the copy before did not carry all of a table's rows, as its plan says.
#[must_use]
pub fn left_out(copy: Option<Carried<'_>>, name: &TableName, shape: &Shape) -> bool {
    copy.is_some_and(|copy| {
        !copy.takes_rows(name) || shape.heaps.iter().any(|heap| !copy.takes_rows(&heap.name))
    })
}

/// The tables to compare: those named, or all that the copy before carried, without the excluded.
///
/// # Errors
/// None left, or one that is named and not there.
pub fn chosen(
    there: &BTreeMap<TableName, Shape>,
    tables: &[TableName],
    exclude: &[TableName],
    copy: Option<Carried<'_>>,
    database: &str,
) -> Result<Vec<TableName>> {
    for name in tables.iter().chain(exclude) {
        if !there.contains_key(name) {
            return Err(Error::data(format!("there is no table {name} to compare"))
                .on_database(database)
                .hint("correct its name in the plan; partitions are compared as part of their table"));
        }
    }
    let wanted = |(name, shape): &(&TableName, &Shape)| {
        if tables.is_empty() { !left_out(copy, name, shape) } else { tables.contains(name) }
    };
    let chosen: Vec<TableName> = there
        .iter()
        .filter(|one| wanted(one) && !exclude.contains(one.0))
        .map(|(name, _)| name.clone())
        .collect();
    if chosen.is_empty() {
        return Err(Error::data("no table is left to compare, so the check could not fail")
            .on_database(database)
            .hint("exclude fewer tables, or remove the check"));
    }
    Ok(chosen)
}

/// A table in a FROM clause, with all rows that are its own.
#[must_use]
pub fn from(name: &TableName, shape: &Shape) -> String {
    if shape.partitioned { name.sql() } else { format!("only {}", name.sql()) }
}

/// Exact number of rows.
pub async fn count(session: &Session, name: &TableName, shape: &Shape) -> Result<i64> {
    let sql = format!("select count(*) from {}", from(name, shape));
    Ok(session.query_one(&sql, &[]).await?.get(0))
}
