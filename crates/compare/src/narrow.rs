//! From a piece that differs to the rows that do: both sides' keys and hashes, sorted by the servers, merged as
//! they arrive.

use crate::found::{Kind, RowFound};
use crate::hash::{Hasher, at};
use crate::split::Table;
use futures_util::{Stream, StreamExt};
use handover_core::error::{Error, Result};
use handover_postgres::Session;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::pin::Pin;
use tokio_postgres::ToStatement;
use tokio_postgres::types::ToSql;

/// What a side says of a row: its hash; of a table without a key how many such rows there are; None without it.
pub type Content = Option<i64>;

/// A row that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its key; without one, its hash.
    pub key: Vec<String>,
    /// Before and after.
    pub contents: (Content, Content),
}

impl Candidate {
    /// How it differs, and how many rows that is.
    #[must_use]
    pub fn kind(&self, keyed: bool) -> (Kind, u64) {
        match self.contents {
            (Some(_), None) if keyed => (Kind::OnlyBefore, 1),
            (None, Some(_)) if keyed => (Kind::OnlyAfter, 1),
            _ if keyed => (Kind::Changed, 1),
            (before, after) => {
                let more = before.unwrap_or(0) - after.unwrap_or(0);
                (if more > 0 { Kind::OnlyBefore } else { Kind::OnlyAfter }, more.unsigned_abs())
            }
        }
    }
}

/// What was found in a piece.
#[derive(Debug, Default)]
pub struct Differing {
    /// The first rows that differ.
    pub candidates: Vec<Candidate>,
    /// How many rows differ in which way.
    pub counts: BTreeMap<&'static str, u64>,
    /// Whether some are only counted.
    pub more: bool,
}

/// The rows of a piece that differ, given the FROM item and condition of both sides. Those after the first
/// `keep` are only counted.
///
/// # Errors
/// What either server says.
pub async fn rows(
    (before, after): (&Session, &Session),
    table: &Table,
    hasher: &Hasher,
    sources: (&str, &str),
    keep: usize,
) -> Result<Differing> {
    let (one, two) = (listing(table, hasher, sources.0), listing(table, hasher, sources.1));
    let (mut one, mut two) = tokio::try_join!(stream(before, &one), stream(after, &two))?;
    let (mut left, mut right) = (next(&mut one).await?, next(&mut two).await?);
    let mut out = Differing::default();
    let keyed = !table.key.is_empty();
    loop {
        let order = match (&left, &right) {
            (None, None) => return Ok(out),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((l, _)), Some((r, _))) => l.cmp(r),
        };
        let mut taken = (None, None);
        if order.is_le() {
            taken.0 = left.take();
            left = next(&mut one).await?;
        }
        if order.is_ge() {
            taken.1 = right.take();
            right = next(&mut two).await?;
        }
        let contents = (taken.0.as_ref().map(|t| t.1), taken.1.as_ref().map(|t| t.1));
        if contents.0 == contents.1 {
            continue;
        }
        let Some((key, _)) = taken.0.or(taken.1) else { continue };
        let candidate = Candidate { key, contents };
        let (kind, n) = candidate.kind(keyed);
        *out.counts.entry(count_name(kind)).or_insert(0) += n;
        if out.candidates.len() < keep {
            out.candidates.push(candidate);
        } else {
            out.more = true;
        }
    }
}

/// Under which name rows of a kind are counted.
#[must_use]
pub fn count_name(kind: Kind) -> &'static str {
    match kind {
        Kind::OnlyBefore => "only_before",
        Kind::OnlyAfter => "only_after",
        Kind::Changed => "changed",
        Kind::Unsettled => "unsettled",
    }
}

type Line = (Vec<String>, i64);
type Lines<'a> = Pin<Box<dyn Stream<Item = Result<Line>> + Send + 'a>>;

fn listing(table: &Table, hasher: &Hasher, source: &str) -> String {
    let row = hasher.row(&table.columns);
    if table.key.is_empty() {
        return format!(
            "select array[h::text], count(*) from (select {row} as h from {source} offset 0) s
             group by h order by h::text collate \"C\""
        );
    }
    let texts: Vec<String> = table.key.iter().map(|c| format!("{}::text", at(c))).collect();
    let order: Vec<String> = texts.iter().map(|text| hasher.sortable(text)).collect();
    format!("select array[{}]::text[], {row} from {source} order by {}", texts.join(", "), order.join(", "))
}

async fn stream<'a>(session: &'a Session, sql: &str) -> Result<Lines<'a>> {
    let rows = session.query_stream(sql).await?;
    Ok(Box::pin(rows.map(move |row| match row {
        Ok(row) => Ok((
            row.try_get(0).map_err(|e| Error::internal(e.to_string()))?,
            row.try_get(1).map_err(|e| Error::internal(e.to_string()))?,
        )),
        Err(e) => Err(session.error(&e)),
    })))
}

async fn next(lines: &mut Lines<'_>) -> Result<Option<Line>> {
    lines.next().await.transpose()
}

/// What a side says of some rows now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Now {
    /// Its content.
    pub content: Content,
    /// Which version of the row it is (`xmin`), to see that it was written in between.
    pub version: Option<String>,
    /// Hashes of its columns, in order, when they were asked for.
    pub columns: Vec<i64>,
}

/// The query for [`look`]; its parameters are the keys.
#[must_use]
pub fn looking(table: &Table, hasher: &Hasher, before: bool, columns: bool) -> String {
    let row = hasher.row(&table.columns);
    if table.key.is_empty() {
        // No index leads to them: the table is read whole.
        return format!(
            "select h, count(*), max(xmin::text::int8)::text, null::int8[]
             from (select {row} as h, t.xmin from {} offset 0) s where h = any($1) group by h",
            table.from(before)
        );
    }
    let shape = if before { &table.shapes.0 } else { &table.shapes.1 };
    let (mut names, mut params, mut on) = (Vec::new(), Vec::new(), Vec::new());
    for (i, name) in table.key.iter().enumerate() {
        let sql_type = shape.columns.get(name).map_or("text", |c| c.sql_type.as_str());
        names.push(format!("c{i}"));
        params.push(format!("${}::text[]", i + 1));
        on.push(format!("{} = u.c{i}::{sql_type}", at(name)));
    }
    let each = if columns { hasher.each(&table.columns) } else { "null::int8[]".into() };
    format!(
        "select u.n, {row}, t.xmin::text, {each} from unnest({}) with ordinality u ({}, n) join {} on {}",
        params.join(", "),
        names.join(", "),
        table.from(before),
        on.join(" and ")
    )
}

/// Reads rows by their keys, in the order of `keys`, by a query of [`looking`] or such a one prepared.
pub async fn look<T: ?Sized + ToStatement>(
    session: &Session,
    query: &T,
    table: &Table,
    keys: &[Vec<String>],
) -> Result<Vec<Now>> {
    let mut out = vec![Now::default(); keys.len()];
    if table.key.is_empty() {
        let hashes: Vec<i64> = keys.iter().filter_map(|key| key.first()?.parse().ok()).collect();
        for row in session.query(query, &[&hashes]).await? {
            let hash = row.get::<_, i64>(0).to_string();
            for (key, now) in keys.iter().zip(&mut out) {
                if key.first() == Some(&hash) {
                    *now = Now { content: Some(row.get(1)), version: row.get(2), columns: Vec::new() };
                }
            }
        }
        return Ok(out);
    }
    let values: Vec<Vec<&str>> = (0..table.key.len())
        .map(|i| keys.iter().map(|key| key.get(i).map_or("", String::as_str)).collect())
        .collect();
    let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|v| v as &(dyn ToSql + Sync)).collect();
    for row in session.query(query, &values).await? {
        let Some(now) = usize::try_from(row.get::<_, i64>(0) - 1).ok().and_then(|n| out.get_mut(n)) else {
            continue;
        };
        let hash: i64 = row.get(1);
        // Where a key is not unique after all, the rows together are the content.
        now.content = Some(now.content.map_or(hash, |other| other.wrapping_mul(31).wrapping_add(hash)));
        now.version = row.get(2);
        now.columns = row.get::<_, Option<Vec<i64>>>(3).unwrap_or_default();
    }
    Ok(out)
}

/// A candidate in the form that is shown: with the columns that differ, or the place of one without a key.
///
/// # Errors
/// What either server says.
pub async fn show(
    (before, after): (&Session, &Session),
    table: &Table,
    hasher: &Hasher,
    candidates: &[(Candidate, Kind)],
) -> Result<Vec<RowFound>> {
    let keys: Vec<Vec<String>> = candidates.iter().map(|(c, _)| c.key.clone()).collect();
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    if table.key.is_empty() {
        let (one, two) = tokio::try_join!(
            places(before, table, hasher, true, &keys),
            places(after, table, hasher, false, &keys)
        )?;
        let found = candidates.iter().map(|(candidate, kind)| {
            let place = candidate.key.first().and_then(|key| match kind {
                Kind::OnlyAfter => two.get(key),
                _ => one.get(key).or_else(|| two.get(key)),
            });
            RowFound { kind: *kind, key: Vec::new(), columns: Vec::new(), lies_at: place.cloned() }
        });
        return Ok(found.collect());
    }
    let queries = (looking(table, hasher, true, true), looking(table, hasher, false, true));
    let (one, two) = tokio::try_join!(
        look(before, queries.0.as_str(), table, &keys),
        look(after, queries.1.as_str(), table, &keys)
    )?;
    let found = candidates.iter().zip(one.iter().zip(&two)).map(|((candidate, kind), (one, two))| {
        let mut columns = Vec::new();
        if *kind == Kind::Changed {
            let pairs = one.columns.iter().zip(&two.columns).zip(&table.columns);
            columns.extend(pairs.filter(|((l, r), _)| l != r).map(|(_, column)| column.name.clone()));
        }
        RowFound { kind: *kind, key: candidate.key.clone(), columns, lies_at: None }
    });
    Ok(found.collect())
}

async fn places(
    session: &Session,
    table: &Table,
    hasher: &Hasher,
    before: bool,
    keys: &[Vec<String>],
) -> Result<BTreeMap<String, String>> {
    let hashes: Vec<i64> = keys.iter().filter_map(|key| key.first()?.parse().ok()).collect();
    let sql = format!(
        "select h::text, min(place) from (select {} as h, format('%s %s', t.tableoid::regclass, t.ctid) as place from {} offset 0) s
         where h = any($1) group by h",
        hasher.row(&table.columns),
        table.from(before)
    );
    let rows = session.query(&sql, &[&hashes]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
