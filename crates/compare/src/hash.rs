//! One number for a row, the same on both servers when the row is the same.
//!
//! Columns are hashed as text, one after the other, each hash being the seed of the next: nothing is quoted or
//! put together, which is what costs most in hashing a row's text. A chain is not linear, so two rows that
//! swapped values have other hashes and another sum.

use crate::shape::{Column, Shape};
use handover_core::error::Result;
use handover_postgres::{Session, quote_ident};

/// Longer chains are split, because each link is a level of nesting to the server's parser.
const LINKS: usize = 50;
/// Types whose text is never empty: bool, numbers, json, dates and times, money, oid, uuid, bytea, inet.
const NEVER_EMPTY: &[u32] = &[
    16, 17, 20, 21, 23, 26, 114, 650, 700, 701, 790, 829, 869, 1082, 1083, 1114, 1184, 1186, 1266, 1700,
    2950, 3802,
];

/// How the two servers hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hasher {
    /// Whether `hashtextextended` gives both the same. It has been the same in every version since 11, but it
    /// follows the processor's byte order; where it differs, md5 is used, which costs three times as much.
    native: bool,
    /// Whether text has other bytes on the two, so that it is hashed as UTF-8.
    convert: bool,
    /// Whether a side's text sorts by other bytes than it has here.
    foreign: bool,
}

/// A column on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Both {
    /// Its name.
    pub name: String,
    nullable: bool,
    never_empty: bool,
    odd: bool,
}

/// The columns of "before" by name, as both sides hash them. Those that "after" lacks are left out.
#[must_use]
pub fn columns(before: &Shape, after: &Shape) -> Vec<Both> {
    let both = |(name, one): (&String, &Column)| {
        let other = after.columns.get(name)?;
        Some(Both {
            name: name.clone(),
            nullable: !(one.required && other.required),
            never_empty: one.base == other.base && NEVER_EMPTY.contains(&one.base),
            odd: one.odd || other.odd,
        })
    };
    before.columns.iter().filter_map(both).collect()
}

impl Hasher {
    /// Asks both servers to hash the same texts.
    ///
    /// # Errors
    /// What either says.
    pub async fn agree(before: &Session, after: &Session) -> Result<Self> {
        let probe = "select current_setting('server_encoding'),
                (select string_agg(hashtextextended(repeat('aZ9~', n) collate \"C\", n * 1234567890123)::text, ',' order by n)
                 from generate_series(0, 40) n)";
        let (one, two) = tokio::try_join!(before.query_one(probe, &[]), after.query_one(probe, &[]))?;
        let (left, right): (String, String) = (one.get(0), two.get(0));
        Ok(Hasher {
            native: one.get::<_, String>(1) == two.get::<_, String>(1),
            convert: left != right,
            foreign: [left, right].iter().any(|encoding| encoding != "UTF8" && encoding != "SQL_ASCII"),
        })
    }

    /// The same by md5, for servers whose own hashes differ.
    #[must_use]
    pub fn by_md5(self) -> Self {
        Hasher { native: false, ..self }
    }

    /// A row's hash as an expression over `t`, of type bigint.
    #[must_use]
    pub fn row(&self, columns: &[Both]) -> String {
        let chains: Vec<String> = columns.chunks(LINKS).map(|part| self.chain(part, "0")).collect();
        match chains.as_slice() {
            [] => "0::int8".into(),
            [one] => one.clone(),
            many => self.one(&format!("concat_ws(',', {})", many.join(", ")), "0"),
        }
    }

    /// The hash of some columns of a row that are not null, other than the row's.
    #[must_use]
    pub fn key(&self, columns: &[String]) -> String {
        columns.iter().fold("7".to_owned(), |seed, name| self.one(&format!("{}::text", at(name)), &seed))
    }

    /// Each column's own hash, as an array.
    #[must_use]
    pub fn each(&self, columns: &[Both]) -> String {
        let each: Vec<String> =
            columns.iter().map(|column| self.chain(std::slice::from_ref(column), "0")).collect();
        format!("array[{}]::int8[]", each.join(", "))
    }

    /// A column's text as something that sorts by the bytes it has here.
    #[must_use]
    pub fn sortable(&self, text: &str) -> String {
        if self.foreign { format!("convert_to({text}, 'UTF8')") } else { format!("{text} collate \"C\"") }
    }

    fn chain(&self, columns: &[Both], seed: &str) -> String {
        columns.iter().fold(seed.to_owned(), |seed, column| {
            let name = at(&column.name);
            // `format` calls the type's output function; of NULL it makes empty text. A row of nulls is no NULL.
            let text = match (column.odd, column.nullable) {
                (false, _) => format!("{name}::text"),
                (true, false) => format!("format('%s', {name})"),
                (true, true) => {
                    format!("case when {name} is distinct from null then format('%s', {name}) end")
                }
            };
            // Nothing else than NULL may look like NULL.
            let text = match (column.nullable, column.never_empty && !column.odd) {
                (false, _) => text,
                (true, true) => format!("coalesce({text}, '')"),
                (true, false) => format!("coalesce('x' || {text}, '')"),
            };
            self.one(&text, &seed)
        })
    }

    fn one(&self, text: &str, seed: &str) -> String {
        let text =
            if self.convert { format!("encode(convert_to({text}, 'UTF8'), 'hex')") } else { text.into() };
        if self.native {
            // A collation that is not deterministic would make the hash depend on ICU.
            format!("hashtextextended({text} collate \"C\", {seed})")
        } else {
            format!("('x' || substr(md5(({seed})::text || ':' || {text}), 1, 16))::bit(64)::int8")
        }
    }
}

/// A column of the row at hand.
#[must_use]
pub fn at(column: &str) -> String {
    format!("t.{}", quote_ident(column))
}
