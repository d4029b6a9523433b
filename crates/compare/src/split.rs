//! How a table is split into pieces that both servers can sum alike, without sorting it and without memory for it.
//!
//! Two ways. **Key ranges**, where both sides have an index whose first columns sort alike everywhere: a piece
//! can be read again by itself. Where rows do not lie in the order of the key (random ids), reading a large
//! table by ranges would fetch each page many times; that, tables without a key, and keys that are text in some
//! locale are read **by block** in whatever order each server has them, and rows fall into buckets by a hash of
//! their key.

use crate::hash::{self, Both, Hasher, at};
use crate::shape::{self, Heap, Shape, from};
use handover_core::error::Result;
use handover_postgres::{Session, TableName, quote_literal};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// Pieces of a table at most, so that boundaries and results stay small whatever its size.
const PIECES: f64 = 10_000.0;
/// A piece of key ranges holds this much at most, in bytes of table.
const PIECE_BYTES: f64 = 256.0 * 1024.0 * 1024.0;
/// Blocks of a heap that are read by one query: a share of all, at least and at most so many.
const BLOCKS: (u64, u64, u64) = (64, 1_024, 65_536);
/// Buckets of a table, at least.
const BUCKETS: f64 = 256.0;
/// Rows that lie this closely in the order of a key are read by it.
const CORRELATED: f32 = 0.8;
/// A table of this many bytes is in memory after it was read once, in whatever order.
const CACHED: u64 = 1024 * 1024 * 1024;

/// A range of blocks of one heap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    heap: TableName,
    from: u64,
    /// None: to its end.
    to: Option<u64>,
}

/// A way to split a table.
#[derive(Debug, Clone, PartialEq)]
pub enum Split {
    /// By the first columns of a key; boundaries come from a sample.
    Ranges {
        /// Those columns.
        columns: Vec<String>,
        /// Pieces wanted.
        pieces: u64,
    },
    /// By block, into that many buckets (a power of two).
    Blocks {
        /// How many buckets.
        buckets: i64,
        /// Pieces of "before" and of "after".
        pieces: (Vec<Blocks>, Vec<Blocks>),
    },
}

/// One table that both sides have, ready to be compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Its name.
    pub name: TableName,
    /// Either side's shape.
    pub shapes: (Shape, Shape),
    /// Columns of both.
    pub columns: Vec<Both>,
    /// Columns that identify a row on both sides; empty when nothing does.
    pub key: Vec<String>,
    /// Whether both sides find a row by its key through an index.
    pub indexed: bool,
    /// How it is split.
    pub split: Split,
    /// Rows of "before" that the copy set aside, and that are therefore not compared: a condition on `q`.
    pub aside: Option<String>,
}

impl Table {
    /// Decides how to compare a table, in pieces of about `rows` rows.
    #[must_use]
    pub fn new(name: TableName, before: Shape, after: Shape, rows: u32) -> Self {
        let columns = hash::columns(&before, &after);
        let twin = |key: &shape::Key| {
            after.keys.iter().find(|other| {
                other.columns.len() == key.columns.len()
                    && key.columns.iter().all(|c| other.columns.contains(c))
            })
        };
        let there = |key: &&shape::Key| key.columns.iter().all(|c| after.columns.contains_key(c));
        let key = before.keys.iter().find(|key| twin(key).is_some()).or(before.keys.iter().find(there));
        let split = key
            .and_then(|key| Some((key, twin(key)?)))
            .and_then(|(key, other)| ranges((&before, key), (&after, other), rows))
            .unwrap_or_else(|| Split::Blocks {
                buckets: buckets(&before, rows),
                pieces: (blocks(&before.heaps), blocks(&after.heaps)),
            });
        Table {
            indexed: key.is_some_and(|key| twin(key).is_some()),
            key: key.map(|key| key.columns.clone()).unwrap_or_default(),
            name,
            columns,
            split,
            aside: None,
            shapes: (before, after),
        }
    }

    /// The same with nothing to compare but which rows there are, if those can be told from each other.
    #[must_use]
    pub fn counted(mut self) -> Self {
        if !self.key.is_empty() {
            self.columns.clear();
        }
        self
    }

    /// What is summed of a row, as an expression: its hash, or its key's where only the rows themselves are compared.
    ///
    /// A number of rows alone would not do: one row lost and another one added leave it as it was.
    #[must_use]
    pub fn summed(&self, hasher: &Hasher) -> String {
        if self.columns.is_empty() { hasher.key(&self.key) } else { hasher.row(&self.columns) }
    }

    /// Columns that "after" lacks.
    #[must_use]
    pub fn lost(&self) -> Vec<&str> {
        let lost = |name: &&String| !self.shapes.1.columns.contains_key(*name);
        self.shapes.0.columns.keys().filter(lost).map(String::as_str).collect()
    }

    /// How it is split, in words.
    #[must_use]
    pub fn words(&self) -> String {
        match &self.split {
            Split::Ranges { pieces: 1, .. } => "in one piece".into(),
            Split::Ranges { columns, pieces } => {
                format!("in about {pieces} ranges of {}", columns.join(", "))
            }
            Split::Blocks { buckets, pieces } => format!(
                "by block in {} pieces, in {buckets} buckets by a hash of {}",
                pieces.0.len().max(pieces.1.len()),
                if self.key.is_empty() { "the row".into() } else { self.key.join(", ") }
            ),
        }
    }

    /// A side's FROM item, named `t`.
    #[must_use]
    pub fn from(&self, before: bool) -> String {
        let all = from(&self.name, if before { &self.shapes.0 } else { &self.shapes.1 });
        if before { self.without(&all, None) } else { format!("{all} t") }
    }

    /// A FROM item of "before", named `t`, without the rows that were set aside.
    fn without(&self, all: &str, blocks: Option<&str>) -> String {
        match &self.aside {
            None => format!("{all} t{}", blocks.map(|b| format!(" where {b}")).unwrap_or_default()),
            Some(aside) => {
                let blocks =
                    blocks.map(|b| format!(" and {}", b.replace("t.ctid", "q.ctid"))).unwrap_or_default();
                format!("(select q.*, q.ctid, q.xmin, q.tableoid from {all} q where not ({aside}){blocks}) t")
            }
        }
    }

    /// A side's rows in some blocks, as a FROM item named `t`, with its condition.
    #[must_use]
    pub fn of_blocks(&self, blocks: &Blocks, before: bool) -> String {
        if before && self.aside.is_some() {
            self.without(&format!("only {}", blocks.heap.sql()), blocks.condition().as_deref())
        } else {
            blocks.from()
        }
    }

    /// The bucket of a row, as an expression.
    #[must_use]
    pub fn bucket(&self, hasher: &Hasher, buckets: i64) -> String {
        let hash = if self.key.is_empty() { hasher.row(&self.columns) } else { hasher.key(&self.key) };
        format!("({hash} & {})", buckets - 1)
    }
}

/// Key ranges, if both sides can read them well.
fn ranges(
    (before, key): (&Shape, &shape::Key),
    (after, other): (&Shape, &shape::Key),
    rows: u32,
) -> Option<Split> {
    let alike = |(one, two): &(&String, &String)| {
        one == two
            && before.columns.get(*one).map(|c| c.base) == after.columns.get(*two).map(|c| c.base)
            && before.columns.contains_key(*one)
    };
    let columns: Vec<String> = key.columns[..key.ranged]
        .iter()
        .zip(&other.columns[..other.ranged])
        .take_while(alike)
        .map(|(name, _)| name.clone())
        .collect();
    #[allow(clippy::cast_precision_loss)]
    let by_bytes = before.bytes as f64 / PIECE_BYTES;
    let pieces = (before.estimate / f64::from(rows.max(1))).max(by_bytes).ceil().clamp(1.0, PIECES);
    if pieces > 1.0 {
        let in_order = |key: &shape::Key| key.correlation.is_some_and(|c| c >= CORRELATED);
        let cached = before.bytes.max(after.bytes) <= CACHED;
        if columns.is_empty() || !(cached || in_order(key) && in_order(other)) {
            return None;
        }
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Some(Split::Ranges { columns, pieces: pieces as u64 })
}

fn buckets(shape: &Shape, rows: u32) -> i64 {
    let wanted = (shape.estimate / f64::from(rows.max(1))).clamp(BUCKETS, 65_536.0);
    #[allow(clippy::cast_possible_truncation)]
    let wanted = wanted.log2().ceil() as u32;
    1 << wanted
}

fn blocks(heaps: &[Heap]) -> Vec<Blocks> {
    let mut out = Vec::new();
    for heap in heaps {
        let (share, least, most) = BLOCKS;
        let size = (heap.blocks / share).clamp(least, most);
        let mut from = 0;
        while heap.divisible && from + size < heap.blocks {
            out.push(Blocks { heap: heap.name.clone(), from, to: Some(from + size) });
            from += size;
        }
        out.push(Blocks { heap: heap.name.clone(), from, to: None });
    }
    out
}

impl Blocks {
    /// A query for its rows: a FROM item named `t`, with its condition.
    #[must_use]
    pub fn from(&self) -> String {
        let condition = self.condition().map(|c| format!(" where {c}")).unwrap_or_default();
        format!("only {} t{condition}", self.heap.sql())
    }

    /// Which blocks; none for all.
    fn condition(&self) -> Option<String> {
        if self.from == 0 && self.to.is_none() {
            return None;
        }
        let mut out = format!("t.ctid >= '({},0)'::tid", self.from);
        if let Some(to) = self.to {
            let _ = write!(out, " and t.ctid < '({to},0)'::tid");
        }
        Some(out)
    }
}

/// How boundaries are drawn. The same sample of a table that was not written is the same rows again; numbers are kept
/// as text, so that they are the same, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    pieces: u64,
    percent: String,
    share: String,
}

impl Sample {
    /// One that is large enough for that many pieces of about the same size.
    #[must_use]
    pub fn of(table: &Table, pieces: u64) -> Self {
        /// Pages and rows that are sampled for a piece.
        const PAGES: f64 = 4.0;
        const ROWS: f64 = 40.0;
        let shape = &table.shapes.0;
        #[allow(clippy::cast_precision_loss)]
        let (blocks, n) = (shape.heaps.iter().map(|h| h.blocks).sum::<u64>().max(1) as f64, pieces as f64);
        let percent = (100.0 * PAGES.max(ROWS * blocks / shape.estimate.max(1.0)) * n / blocks).min(100.0);
        let share = (ROWS * n / (shape.estimate * percent / 100.0).max(1.0)).min(1.0);
        Sample { pieces, percent: percent.to_string(), share: share.to_string() }
    }
}

/// Boundaries of key ranges, from a sample of the table's pages, in order. A bad sample makes uneven pieces and
/// never a wrong result: whatever the boundaries are, each row is in exactly one piece.
pub async fn boundaries(
    session: &Session,
    table: &Table,
    columns: &[String],
    sample: &Sample,
) -> Result<Vec<Vec<String>>> {
    let Sample { pieces, percent, share } = sample;
    if *pieces < 2 {
        return Ok(Vec::new());
    }
    let list = columns.iter().map(|c| at(c)).collect::<Vec<_>>().join(", ");
    let texts =
        columns.iter().map(|c| format!("k.{}::text", handover_postgres::quote_ident(c))).collect::<Vec<_>>();
    let order = columns
        .iter()
        .map(|c| format!("k.{}", handover_postgres::quote_ident(c)))
        .collect::<Vec<_>>()
        .join(", ");
    let sql = format!(
        "select b from (select array[{}]::text[] as b, row_number() over (order by {order}) as n, count(*) over () as all
            from (select distinct {list} from {} tablesample system ({percent}) repeatable (0)
                  where (hashtext(t.ctid::text)::int8 & 1048575) <= {share} * 1048575) k) s
         where n > 1 and n % greatest(1, ceil(s.all / {pieces}.0))::int8 = 0 order by n",
        texts.join(", "),
        table.from(true),
    );
    Ok(session.query(&sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

/// The condition for a range: from its lower boundary to before its upper one.
#[must_use]
pub fn condition(
    table: &Table,
    columns: &[String],
    lower: Option<&[String]>,
    upper: Option<&[String]>,
) -> String {
    let row = |items: Vec<String>| {
        if items.len() == 1 { items.join("") } else { format!("({})", items.join(", ")) }
    };
    let names = row(columns.iter().map(|c| at(c)).collect());
    let values = |bound: &[String]| {
        let one = |(name, value): (&String, &String)| {
            let sql_type = table.shapes.0.columns.get(name).map_or("text", |c| c.sql_type.as_str());
            format!("{}::{sql_type}", quote_literal(value).trim_start())
        };
        row(columns.iter().zip(bound).map(one).collect())
    };
    let mut parts = Vec::new();
    parts.extend(lower.map(|bound| format!("{names} >= {}", values(bound))));
    parts.extend(upper.map(|bound| format!("{names} < {}", values(bound))));
    if parts.is_empty() { "true".into() } else { parts.join(" and ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::{Column, Key};

    fn shape(correlation: f32, ranged: usize, bytes: u64) -> Shape {
        let column = Column { base: 20, sql_type: "bigint".into(), required: true, odd: false };
        Shape {
            partitioned: false,
            columns: [("a".to_owned(), column.clone()), ("b".to_owned(), column)].into(),
            keys: vec![Key { columns: vec!["a".into(), "b".into()], ranged, correlation: Some(correlation) }],
            estimate: 1e7,
            bytes,
            heaps: vec![Heap { name: TableName::new("s", "t"), blocks: bytes / 8192, divisible: true }],
        }
    }

    fn split(before: Shape, after: Shape) -> Table {
        Table::new(TableName::new("s", "t"), before, after, 50_000)
    }

    #[test]
    fn keys_split_where_rows_lie_in_their_order_or_in_memory_and_locales_do_not_matter() {
        let large = 20 * CACHED;
        for (before, after, expected) in [
            (shape(1.0, 2, large), shape(0.9, 2, large), Some(vec!["a", "b"])),
            (shape(1.0, 1, large), shape(1.0, 2, large), Some(vec!["a"])),
            (shape(1.0, 2, large), shape(0.1, 2, large), None),
            (shape(0.0, 2, CACHED), shape(0.0, 2, CACHED), Some(vec!["a", "b"])),
            (shape(1.0, 2, large), shape(1.0, 0, large), None),
        ] {
            let table = split(before, after);
            match (&table.split, expected) {
                (Split::Ranges { columns, pieces }, Some(expected)) => assert_eq!(
                    (columns.clone(), *pieces),
                    (expected.into_iter().map(str::to_owned).collect(), 200)
                ),
                (Split::Blocks { buckets, .. }, None) => assert_eq!(*buckets, 256),
                other => panic!("{other:?}"),
            }
            assert!(table.indexed && table.key == ["a", "b"]);
        }
        let mut other = shape(1.0, 2, large);
        other.keys[0].columns.reverse();
        assert!(
            matches!(split(shape(1.0, 2, large), other.clone()).split, Split::Blocks { .. }),
            "another order"
        );
        other.keys.clear();
        let table = split(shape(1.0, 2, large), other);
        assert!(!table.indexed && table.key == ["a", "b"] && matches!(table.split, Split::Blocks { .. }));
    }

    #[test]
    fn blocks_cover_every_heap_once() {
        for blocks_there in [0, 1, 1_024, 1_025, 100_000, 10_000_000] {
            let mut heap = Heap { name: TableName::new("s", "t"), blocks: blocks_there, divisible: true };
            let pieces = blocks(&[heap.clone(), heap.clone()]);
            let (one, two) = pieces.split_at(pieces.len() / 2);
            assert_eq!(one, two);
            let mut at = 0;
            for (i, piece) in one.iter().enumerate() {
                assert_eq!(piece.from, at);
                assert_eq!(piece.to.is_none(), i + 1 == one.len(), "the last has no end");
                at = piece.to.unwrap_or(at);
            }
            assert!(one.len() <= 160);
            heap.divisible = false;
            assert_eq!(blocks(&[heap]).len(), 1);
        }
    }

    #[test]
    fn ranges_are_conditions_that_an_index_answers() {
        let table = split(shape(1.0, 2, 1), shape(1.0, 2, 1));
        let (a, ab) = (vec!["a".to_owned()], vec!["a".to_owned(), "b".to_owned()]);
        let (one, two) = (vec!["1".to_owned(), "it's".to_owned()], vec!["2".to_owned(), "x".to_owned()]);
        assert_eq!(condition(&table, &a, None, None), "true");
        assert_eq!(condition(&table, &a, Some(&one[..1]), None), "t.\"a\" >= '1'::bigint");
        assert_eq!(
            condition(&table, &ab, Some(&one), Some(&two)),
            "(t.\"a\", t.\"b\") >= ('1'::bigint, 'it''s'::bigint) and (t.\"a\", t.\"b\") < ('2'::bigint, 'x'::bigint)"
        );
    }
}
