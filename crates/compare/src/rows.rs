//! Results as streams of rows that can be compared: sorted by the server, never all in memory.

use futures_util::stream::{BoxStream, StreamExt, TryStreamExt};
use handover_core::error::{Error, Result};
use handover_postgres::{Session, quote_ident};
use serde::{Deserialize, Serialize};
use tokio_postgres::types::Json;

/// One row of a result: its key (empty without one) and its values as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row(pub Vec<Option<String>>, pub Vec<Option<String>>);

/// Rows as they arrive.
pub type Rows<'a> = BoxStream<'a, Result<Row>>;

/// How rows of two results find each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matching {
    /// By their place in the result.
    Place,
    /// By all their values, as multisets.
    Values,
    /// By their key.
    Key,
}

/// A query that gives the rows of `sql` in comparable form and order. Being a subquery, `sql` can only be a
/// SELECT; `COLLATE "C"` because both sides must sort alike whatever their collations.
#[must_use]
pub fn wrap(sql: &str, key: &[String], matching: Matching) -> String {
    let keys: Vec<String> = key.iter().map(|k| format!("q.{}::text", quote_ident(k))).collect();
    let order = if matching == Matching::Place {
        ""
    } else {
        "order by k::text collate \"C\", v::text collate \"C\""
    };
    format!(
        "select k, v from (select array[{}]::text[] as k,
             array(select e.value from json_each_text(row_to_json(q)) with ordinality e (key, value, n) order by e.n) as v
         from (\n{}\n) q) r {order}",
        keys.join(", "),
        sql.trim().trim_end_matches(';')
    )
}

/// The rows of a wrapped query.
pub async fn fetch<'a>(session: &'a Session, wrapped: &str) -> Result<Rows<'a>> {
    let stream = session.query_stream(wrapped).await?;
    Ok(stream
        .map(move |row| row.map(|row| Row(row.get(0), row.get(1))).map_err(|e| session.error(&e)))
        .boxed())
}

/// Rows that an earlier step recorded in pieces, in order.
pub async fn recorded<'a>(session: &'a Session, sql: &str) -> Result<Rows<'a>> {
    let stream = session.query_stream(sql).await?;
    let pieces = stream.map(move |row| {
        let row = row.map_err(|e| session.error(&e))?;
        let Json(rows) = row
            .try_get::<_, Json<Vec<Row>>>(0)
            .map_err(|e| Error::internal(format!("a recorded result cannot be read ({e})")))?;
        Ok::<_, Error>(futures_util::stream::iter(rows.into_iter().map(Ok::<Row, Error>)))
    });
    Ok(pieces.try_flatten().boxed())
}

/// What a comparison found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Rows before.
    pub before: u64,
    /// Rows after.
    pub after: u64,
    /// Rows that differ.
    pub differing: u64,
    /// The first of them, in words.
    pub shown: Vec<String>,
}

impl Outcome {
    fn differ(&mut self, text: impl FnOnce() -> String) {
        self.differing += 1;
        if self.shown.len() < 5 {
            self.shown.push(text());
        }
    }
}

/// Compares two results.
///
/// # Errors
/// What either server says.
pub async fn compare(
    mut before: Rows<'_>,
    mut after: Rows<'_>,
    matching: Matching,
    tolerance: Option<f64>,
) -> Result<Outcome> {
    let mut out = Outcome::default();
    let mut left = next(&mut before, &mut out.before).await?;
    let mut right = next(&mut after, &mut out.after).await?;
    loop {
        let order = match (&left, &right) {
            (None, None) => return Ok(out),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(l), Some(r)) => match matching {
                Matching::Place => std::cmp::Ordering::Equal,
                Matching::Key => array_text(&l.0).cmp(&array_text(&r.0)),
                Matching::Values => array_text(&l.1).cmp(&array_text(&r.1)),
            },
        };
        match order {
            std::cmp::Ordering::Less => {
                if let Some(row) = &left {
                    out.differ(|| format!("only before: {}", name(row)));
                }
                left = next(&mut before, &mut out.before).await?;
            }
            std::cmp::Ordering::Greater => {
                if let Some(row) = &right {
                    out.differ(|| format!("only after: {}", name(row)));
                }
                right = next(&mut after, &mut out.after).await?;
            }
            std::cmp::Ordering::Equal => {
                if let (Some(l), Some(r)) = (&left, &right)
                    && !same(&l.1, &r.1, tolerance)
                {
                    out.differ(|| format!("{} became {}", name(l), values(&r.1)));
                }
                left = next(&mut before, &mut out.before).await?;
                right = next(&mut after, &mut out.after).await?;
            }
        }
    }
}

async fn next(rows: &mut Rows<'_>, count: &mut u64) -> Result<Option<Row>> {
    let row = rows.try_next().await?;
    *count += u64::from(row.is_some());
    Ok(row)
}

/// A row in words: its key if it has one, then its values.
fn name(row: &Row) -> String {
    if row.0.is_empty() { values(&row.1) } else { format!("{}: {}", values(&row.0), values(&row.1)) }
}

fn values(row: &[Option<String>]) -> String {
    let text = row.iter().map(|v| v.as_deref().unwrap_or("null")).collect::<Vec<_>>().join(", ");
    let mut short: String = text.chars().take(120).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("({short})")
}

fn same(left: &[Option<String>], right: &[Option<String>], tolerance: Option<f64>) -> bool {
    left.len() == right.len()
        && left.iter().zip(right).all(|(l, r)| {
            l == r
                || match (tolerance, l, r) {
                    (Some(tolerance), Some(l), Some(r)) => match (l.parse::<f64>(), r.parse::<f64>()) {
                        (Ok(l), Ok(r)) => (l - r).abs() <= tolerance,
                        _ => false,
                    },
                    _ => false,
                }
        })
}

/// The text of a `text[]` as the server writes it, because that is what it sorted by.
/// (<https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO>)
fn array_text(values: &[Option<String>]) -> String {
    let mut out = String::from("{");
    for (i, value) in values.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        match value {
            None => out.push_str("NULL"),
            Some(text) => {
                let space = |c: char| matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}');
                let quote = text.is_empty()
                    || text.eq_ignore_ascii_case("null")
                    || text.chars().any(|c| space(c) || matches!(c, '{' | '}' | '"' | '\\' | ','));
                if quote {
                    out.push('"');
                    for c in text.chars() {
                        if matches!(c, '"' | '\\') {
                            out.push('\\');
                        }
                        out.push(c);
                    }
                    out.push('"');
                } else {
                    out.push_str(text);
                }
            }
        }
    }
    out.push('}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(list: &[(&str, &str)]) -> Rows<'static> {
        let text = |s: &str| Some(s.to_owned());
        let rows: Vec<Row> = list.iter().map(|(k, v)| Row(vec![text(k)], vec![text(k), text(v)])).collect();
        futures_util::stream::iter(rows.into_iter().map(Ok)).boxed()
    }

    #[tokio::test]
    async fn rows_find_each_other_by_key() {
        let before = rows(&[("a", "1"), ("b", "2"), ("c", "3")]);
        let after = rows(&[("a", "1.4"), ("c", "9"), ("d", "4")]);
        let out = compare(before, after, Matching::Key, Some(0.5)).await.unwrap();
        assert_eq!((out.before, out.after, out.differing), (3, 3, 3));
        assert_eq!(
            out.shown,
            ["only before: (b): (b, 2)", "(c): (c, 3) became (c, 9)", "only after: (d): (d, 4)"]
        );
    }

    #[tokio::test]
    async fn equal_multisets_are_equal_and_a_duplicate_is_not() {
        let twice = || rows(&[("a", "1"), ("a", "1")]);
        assert_eq!(compare(twice(), twice(), Matching::Values, None).await.unwrap().differing, 0);
        let out = compare(twice(), rows(&[("a", "1")]), Matching::Values, None).await.unwrap();
        assert_eq!(out.differing, 1);
    }
}
