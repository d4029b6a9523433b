//! Columns of a sub-select that are not the sub-select's own.
//!
//! `order_id in (select order_id from archive)` is valid SQL when `archive` has no such column: the name then means that
//! of the outer query, and the condition holds for every row. The server says nothing, so it is asked again without
//! the outer query.

use super::Session;
use super::sql::{Token, tokens};
use handover_core::error::{Error, Result};

/// Words that end a FROM clause.
const AFTER_FROM: &[&str] = &[
    "where",
    "group",
    "having",
    "window",
    "order",
    "limit",
    "offset",
    "fetch",
    "for",
    "union",
    "intersect",
    "except",
];

/// A sub-select with a FROM clause, in pieces of its text.
#[derive(Debug, PartialEq, Eq)]
struct SubSelect<'a> {
    /// Its WITH clause, if it has one.
    with: &'a str,
    /// From `select` up to FROM.
    list: &'a str,
    /// What stands behind FROM.
    from: &'a str,
}

/// Refuses SQL in which a sub-select selects a column, without naming its table, that is in none of its own tables.
///
/// Each sub-select is prepared alone. So a session that is in a transaction must not be given. Columns of the outer
/// query that are written with their table are of no concern, nor is what stands in `exists (…)`.
///
/// # Errors
/// Such a column, with the sub-select; a lost connection.
pub async fn assert_bound(session: &Session, sql: &str, place: &str) -> Result<()> {
    for SubSelect { with, list, from } in subselects(sql) {
        let Err(error) = session.prepare(&format!("{with}{list} from {from}\n")).await else { continue };
        if error.sqlstate() != Some("42703") {
            if error.class().is_transient() {
                return Err(error);
            }
            continue;
        }
        // Something else that is not there alone, such as a table of a WITH clause outside.
        if session.prepare(&format!("{with}select 1 from {from}\n")).await.is_err() {
            continue;
        }
        let said = error.message();
        let said = said.rsplit_once(" [SQLSTATE").map_or(said, |(said, _)| said);
        return Err(Error::data(format!(
            "the SQL under `{place}` takes a column of the outer query in `{list} from {from}`: alone, {said}",
            list = list.trim(),
            from = from.trim()
        ))
        .on_database(session.database())
        .hint("name a column that the sub-select's own table has; if the outer query's is meant, write it with its table (`outer_table.column`)"));
    }
    Ok(())
}

/// Whether there is a sub-select in an expression.
#[must_use]
pub fn has_subselect(expression: &str) -> bool {
    pieces(expression).iter().any(|(_, piece)| *piece == Piece::Word("select".into()))
}

/// A word or a mark of the text outside of quotations and comments.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Word(String),
    Open,
    Close,
    Other,
}

fn pieces(sql: &str) -> Vec<(usize, Piece)> {
    let mut out = Vec::new();
    for token in tokens(sql) {
        let range = match token {
            Token::Code(range) => range,
            Token::Quoted(range) => {
                out.push((range.start, Piece::Other));
                continue;
            }
            Token::Comment(_) => continue,
            Token::Semicolon(at) => {
                out.push((at, Piece::Other));
                continue;
            }
        };
        let mut word: Option<usize> = None;
        let code = &sql[range.clone()];
        for (at, c) in code.char_indices() {
            if c.is_alphanumeric() || c == '_' || (c == '$' && word.is_some()) {
                word.get_or_insert(at);
                continue;
            }
            if let Some(start) = word.take() {
                out.push((range.start + start, Piece::Word(code[start..at].to_ascii_lowercase())));
            }
            match c {
                '(' => out.push((range.start + at, Piece::Open)),
                ')' => out.push((range.start + at, Piece::Close)),
                c if c.is_whitespace() => {}
                _ => out.push((range.start + at, Piece::Other)),
            }
        }
        if let Some(start) = word {
            out.push((range.start + start, Piece::Word(code[start..].to_ascii_lowercase())));
        }
    }
    out
}

fn subselects(sql: &str) -> Vec<SubSelect<'_>> {
    let pieces = pieces(sql);
    let word = |i: usize| match pieces.get(i) {
        Some((_, Piece::Word(word))) => word.as_str(),
        _ => "",
    };
    let mut out = Vec::new();
    for open in 0..pieces.len() {
        if pieces[open].1 != Piece::Open || !matches!(word(open + 1), "select" | "with") {
            continue;
        }
        if open > 0 && word(open - 1) == "exists" {
            continue;
        }
        // What stands in these parentheses and in none within them.
        let mut own = Vec::new();
        let mut depth = 0_usize;
        let mut close = None;
        for (i, (_, piece)) in pieces.iter().enumerate().skip(open) {
            match piece {
                Piece::Open => depth += 1,
                Piece::Close if depth == 1 => {
                    close = Some(i);
                    break;
                }
                Piece::Close => depth -= 1,
                _ if depth == 1 => own.push(i),
                _ => {}
            }
        }
        let Some(close) = close else { continue };
        let mut with = "";
        let mut select: Option<usize> = None;
        let mut from: Option<usize> = None;
        for (n, &i) in own.iter().enumerate() {
            let before = n.checked_sub(1).map_or("", |n| word(own[n]));
            match word(i) {
                "select" => {
                    if select.is_none() && word(open + 1) == "with" {
                        with = &sql[pieces[open + 1].0..pieces[i].0];
                    }
                    (select, from) = (Some(i), None);
                }
                // `is distinct from`
                "from" if before != "distinct" && select.is_some() && from.is_none() => from = Some(i),
                end if AFTER_FROM.contains(&end) => {
                    if let (Some(select), Some(from)) = (select.take(), from.take()) {
                        out.push(cut(sql, with, pieces[select].0, pieces[from].0, pieces[i].0));
                    }
                }
                _ => {}
            }
        }
        if let (Some(select), Some(from)) = (select, from) {
            out.push(cut(sql, with, pieces[select].0, pieces[from].0, pieces[close].0));
        }
    }
    out
}

fn cut<'a>(sql: &'a str, with: &'a str, select: usize, from: usize, end: usize) -> SubSelect<'a> {
    SubSelect { with, list: &sql[select..from], from: &sql[from + "from".len()..end] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_selects_are_found_in_any_place() {
        let found = |sql: &str| -> Vec<String> {
            subselects(sql).iter().map(|s| format!("{}{}|{}", s.with, s.list.trim(), s.from.trim())).collect()
        };
        for (sql, expected) in [
            ("a in (select b from c)", &["select b|c"][..]),
            ("a not in ( SELECT DISTINCT b FROM c d WHERE d.x = a)", &["SELECT DISTINCT b|c d"]),
            ("a = any (select b from c order by 1 limit 3)", &["select b|c"]),
            ("a in (select b from c union all select d from e)", &["select b|c", "select d|e"]),
            (
                "a in (select b from (select x as b from y) z)",
                &["select b|(select x as b from y) z", "select x as b|y"],
            ),
            ("a in (select b is distinct from d from c)", &["select b is distinct from d|c"]),
            ("a in (select extract(year from b) from c)", &["select extract(year from b)|c"]),
            (
                "a in (with w as (select q from r) select b from w)",
                &["with w as (select q from r) select b|w", "select q|r"],
            ),
            (
                "exists (select a from b) or a = (select ' from x' || \"from\" from c /* from */)",
                &["select ' from x' || \"from\"|c /* from */"],
            ),
            ("a in (select 1)", &[]),
            ("a in (select b from c", &[]),
            ("a = 'x in (select b from c)' or selected = (1)", &[]),
        ] {
            assert_eq!(found(sql), expected, "{sql}");
        }
    }
}
