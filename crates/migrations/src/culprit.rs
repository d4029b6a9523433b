//! The row at which a data migration failed.
//!
//! The server names a statement and sometimes a value, never a row. What a statement computes for each row is
//! computed again in SELECTs over ranges of the table's blocks, halving the range until one row is left. It is
//! only done where the rows are as the statement found them, that is, where no statement before it in its
//! transaction names the table.

use crate::options::Migrate;
use crate::script::Statement;
use handover_port::Port;
use handover_postgres::sql::{Token, tokens};
use handover_postgres::{Session, quote_ident, quote_literal};
use std::time::{Duration, Instant};
use tokio_postgres::error::SqlState;

/// How long is searched altogether.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a statement computes for the rows of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    /// The table, as SQL.
    table: String,
    /// What its rows are called.
    alias: String,
    /// What is computed for each of them.
    list: String,
    /// Which of them.
    condition: Option<String>,
    /// Whether the rows themselves are wrong that the condition finds, rather than what is computed.
    wrong: bool,
}

/// The first row at which statement `at` fails with `code`, in words; none where that cannot be told.
pub async fn find(
    port: &Port,
    step: &Migrate,
    statements: &[Statement],
    at: usize,
    code: &SqlState,
) -> Option<String> {
    let statement = statements.get(at)?;
    let look = look(&statement.sql, code)?;
    let last = look.table.rsplit('.').next().unwrap_or(&look.table);
    let mut before = statements.iter().take(at);
    if before.any(|s| s.words.has(&[last])) {
        return None;
    }
    let session = port.operator_reader(&step.on).await.ok()?;
    session.set("search_path", &step.path(port).ok()?.sql()).await.ok()?;
    session.set("statement_timeout", "10s").await.ok()?;
    let ctid = if look.wrong {
        let sql = format!("{} limit 1", look.rows("select", ""));
        session.query_opt(sql.as_str(), &[]).await.ok()??.get(0)
    } else {
        bisect(port, &session, &look, code).await?
    };
    name(&session, &look, &ctid).await
}

impl Look {
    /// A query of the rows' places.
    fn rows(&self, select: &str, range: &str) -> String {
        let mut all: Vec<&str> = self.condition.as_deref().into_iter().collect();
        all.extend((!range.is_empty()).then_some(range));
        let all: Vec<String> = all.iter().map(|c| format!("({c}\n)")).collect();
        let condition = if all.is_empty() { String::new() } else { format!(" where {}", all.join(" and ")) };
        let Look { table, alias, .. } = self;
        format!("{select} {alias}.ctid::text from {table} as {alias}{condition}")
    }

    /// A query that computes what the statement does, for the rows of a range.
    fn compute(&self, range: &str) -> String {
        let Look { table, alias, list, .. } = self;
        let condition = self.condition.as_ref().map_or(String::new(), |c| format!(" and ({c}\n)"));
        format!(
            "select count(s) from (select {list}\n from {table} as {alias} where {range}{condition} offset 0) s"
        )
    }
}

/// Whether computing fails in this range; none when it fails in another way.
async fn fails(session: &mut Session, look: &Look, range: &str, code: &SqlState) -> Option<bool> {
    match session.client().query(look.compute(range).as_str(), &[]).await {
        Ok(_) => Some(false),
        Err(e) if e.code() == Some(code) => Some(true),
        Err(_) => None,
    }
}

async fn bisect(port: &Port, session: &Session, look: &Look, code: &SqlState) -> Option<String> {
    let begun = Instant::now();
    let mut other = port.reader(session.database()).await.ok()?;
    let path: String = session.query_one("select current_setting('search_path')", &[]).await.ok()?.get(0);
    other.set("search_path", &path).await.ok()?;
    other.set("statement_timeout", "10s").await.ok()?;
    let size = "select pg_relation_size(c.oid) / current_setting('block_size')::int8 from pg_class c
                where c.oid = to_regclass($1) and c.relkind = 'r'";
    let blocks: i64 = session.query_opt(size, &[&look.table]).await.ok()??.get(0);
    let alias = &look.alias;
    let range = |low: i64, high: i64| {
        format!("{alias}.ctid >= '({low},0)'::tid and {alias}.ctid < '({high},0)'::tid")
    };
    let (mut low, mut high) = (0, blocks);
    while high - low > 1 {
        if begun.elapsed() > PATIENCE {
            return None;
        }
        let middle = low + (high - low) / 2;
        if fails(&mut other, look, &range(low, middle), code).await? {
            high = middle;
        } else {
            low = middle;
        }
    }
    let rows = other.query(look.rows("select", &range(low, high)).as_str(), &[]).await.ok()?;
    let mut places: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let among = |places: &[String]| {
        let list: Vec<String> = places.iter().map(|p| format!("{}::tid", quote_literal(p))).collect();
        format!("{alias}.ctid in ({})", list.join(", "))
    };
    while places.len() > 1 {
        let second = places.split_off(places.len() / 2);
        if !fails(&mut other, look, &among(&places), code).await? {
            places = second;
        }
    }
    let one = places.pop()?;
    fails(&mut other, look, &among(std::slice::from_ref(&one)), code).await?.then_some(one)
}

/// A row by its primary key, or by its place in the table.
async fn name(session: &Session, look: &Look, ctid: &str) -> Option<String> {
    let columns =
        "select a.attname::text from pg_index i cross join unnest(i.indkey) with ordinality k (n, at)
                   join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.n
                   where i.indrelid = to_regclass($1) and i.indisprimary order by k.at";
    let rows = session.query(columns, &[&look.table]).await.ok()?;
    let key: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if key.is_empty() {
        return Some(format!("{} where ctid = '{ctid}'", look.table));
    }
    let parts: Vec<String> = key
        .iter()
        .map(|column| {
            let name = quote_ident(column);
            format!("format('%s = %L', {}, t.{name}::text)", quote_literal(&name))
        })
        .collect();
    let sql = format!(
        "select concat_ws(' and ', {}) from {} t where t.ctid = {}::tid",
        parts.join(", "),
        look.table,
        quote_literal(ctid)
    );
    let row = session.query_opt(sql.as_str(), &[]).await.ok()??;
    Some(format!("{} where {}", look.table, row.get::<_, String>(0)))
}

/// A word, sign, or quoted stretch outside parentheses; what stands in parentheses is one `(`.
struct Piece {
    word: String,
    start: usize,
    end: usize,
}

fn pieces(sql: &str) -> Vec<Piece> {
    let mut out: Vec<Piece> = Vec::new();
    let mut depth = 0_usize;
    for token in tokens(sql) {
        match token {
            Token::Comment(_) => {}
            Token::Semicolon(at) => out.push(Piece { word: ";".into(), start: at, end: at + 1 }),
            Token::Quoted(range) => {
                if depth == 0 {
                    let text = &sql[range.clone()];
                    let word = if text.starts_with('"') { text.to_owned() } else { "'".to_owned() };
                    out.push(Piece { word, start: range.start, end: range.end });
                }
            }
            Token::Code(range) => {
                let mut inside = false;
                for (n, c) in sql[range.clone()].char_indices() {
                    let (start, end) = (range.start + n, range.start + n + c.len_utf8());
                    let is_word = c.is_alphanumeric() || c == '_' || c == '$';
                    match c {
                        '(' | '[' => {
                            if depth == 0 {
                                out.push(Piece { word: "(".into(), start, end });
                            }
                            depth += 1;
                        }
                        ')' | ']' => {
                            depth = depth.saturating_sub(1);
                            if let (0, Some(last)) = (depth, out.last_mut()) {
                                last.end = end;
                            }
                        }
                        _ if depth > 0 || c.is_whitespace() => {}
                        _ if is_word && inside => {
                            if let Some(last) = out.last_mut() {
                                last.word.extend(c.to_lowercase());
                                last.end = end;
                            }
                        }
                        _ => out.push(Piece { word: c.to_lowercase().collect(), start, end }),
                    }
                    inside = is_word && depth == 0;
                }
            }
        }
    }
    out
}

fn is_name(piece: &Piece) -> bool {
    piece.word.starts_with(|c: char| c.is_alphabetic() || c == '_' || c == '"')
}

/// The name at `i`, perhaps with its schema; where it ends.
fn table(sql: &str, list: &[Piece], i: usize) -> Option<(String, usize)> {
    let first = list.get(i).filter(|p| is_name(p))?;
    let (mut end, mut next) = (first.end, i + 1);
    while list.get(next).is_some_and(|p| p.word == ".") {
        end = list.get(next + 1).filter(|p| is_name(p))?.end;
        next += 2;
    }
    Some((sql[first.start..end].to_owned(), next))
}

/// An alias at `i`, unless one of `not` stands there; where it ends.
fn alias(list: &[Piece], i: usize, not: &[&str]) -> (Option<String>, usize) {
    let as_word = list.get(i).is_some_and(|p| p.word == "as");
    let at = i + usize::from(as_word);
    match list.get(at).filter(|p| is_name(p) && !not.contains(&p.word.as_str())) {
        Some(piece) => (Some(piece.word.clone()), at + 1),
        None => (None, i),
    }
}

/// Where the first of these words stands, from `i` on.
fn position(list: &[Piece], i: usize, words: &[&str]) -> Option<usize> {
    (i..list.len()).find(|at| words.contains(&list[*at].word.as_str()))
}

fn look(sql: &str, code: &SqlState) -> Option<Look> {
    let list = pieces(sql);
    let word = |i: usize| list.get(i).map_or("", |p| p.word.as_str());
    let text = |from: usize, to: usize| {
        let start = list.get(from).map_or(sql.len(), |p| p.start);
        let end = if to == 0 { 0 } else { list.get(to - 1).map_or(0, |p| p.end) };
        (start < end).then(|| sql[start..end].to_owned())
    };
    let value = code.code().starts_with("22");
    let call = |table: &str, alias: Option<String>| {
        alias.unwrap_or_else(|| table.rsplit('.').next().unwrap_or(table).to_owned())
    };
    match (word(0), word(1)) {
        ("update", _) if value => {
            let (name, next) = table(sql, &list, 1 + usize::from(word(1) == "only"))?;
            let (alias, set) = alias(&list, next, &["set"]);
            if word(set) != "set" || position(&list, set, &["from"]).is_some() {
                return None;
            }
            let end = position(&list, set, &["where", "returning"]).unwrap_or(list.len());
            let mut exprs = Vec::new();
            let mut from = set + 1;
            while from < end {
                let to = position(&list, from, &[","]).filter(|at| *at < end).unwrap_or(end);
                let equals = position(&list, from, &["="]).filter(|at| *at < to)?;
                exprs.extend(text(equals + 1, to).filter(|e| e != "default"));
                from = to + 1;
            }
            let condition = position(&list, set, &["where"])
                .and_then(|at| text(at + 1, position(&list, at, &["returning"]).unwrap_or(list.len())));
            (!exprs.is_empty()).then(|| Look {
                alias: call(&name, alias),
                table: name,
                list: exprs.join(", "),
                condition,
                wrong: false,
            })
        }
        ("insert", _) if value => {
            let select = position(&list, 1, &["select"])?;
            let from = position(&list, select, &["from"])?;
            let (name, next) = table(sql, &list, from + 1)?;
            let (alias, rest) = alias(&list, next, &["where", "on", "returning"]);
            let end = (rest..list.len())
                .find(|at| word(*at) == "returning" || (word(*at) == "on" && word(*at + 1) == "conflict"))
                .unwrap_or(list.len());
            let other =
                ["join", ",", "group", "order", "limit", "union", "having", "distinct", "window", "offset"];
            if position(&list, select, &other).is_some_and(|at| at > from || word(at) == "distinct")
                || (rest < end && word(rest) != "where")
            {
                return None;
            }
            Some(Look {
                alias: call(&name, alias),
                table: name,
                list: text(select + 1, from)?,
                condition: (rest < end).then(|| text(rest + 1, end)).flatten(),
                wrong: false,
            })
        }
        ("alter", "table") => {
            let at = 2 + if word(2) == "if" { 2 } else { 0 };
            let (name, mut from) = table(sql, &list, at + usize::from(word(at) == "only"))?;
            let mut exprs = Vec::new();
            let mut wrong = Vec::new();
            while from < list.len() {
                let to = position(&list, from, &[","]).unwrap_or(list.len());
                let column = from + 1 + usize::from(word(from + 1) == "column");
                let kind =
                    column + 1 + if word(column + 1) == "set" && word(column + 2) == "data" { 2 } else { 0 };
                if word(from) == "alter" && word(kind) == "type" {
                    let using = position(&list, kind, &["using"]).filter(|at| *at < to);
                    let ends =
                        position(&list, kind, &["using", "collate"]).filter(|at| *at < to).unwrap_or(to);
                    exprs.extend(match using {
                        Some(using) => text(using + 1, to),
                        None => text(kind + 1, ends)
                            .and_then(|of| Some(format!("{}::{of}", text(column, column + 1)?))),
                    });
                } else if word(from) == "alter" && word(column + 1) == "set" && word(column + 2) == "not" {
                    wrong.extend(text(column, column + 1).map(|c| format!("{c} is null")));
                } else if let Some(check) = position(&list, from, &["check"]).filter(|at| *at < to)
                    && word(from) == "add"
                {
                    wrong.extend(text(check + 1, check + 2).map(|e| format!("not {e}")));
                }
                from = to + 1;
            }
            let wrong = (code == &SqlState::NOT_NULL_VIOLATION || code == &SqlState::CHECK_VIOLATION)
                .then(|| wrong.join(" or "))
                .filter(|w| !w.is_empty());
            let computed = value && !exprs.is_empty();
            (computed || wrong.is_some()).then(|| Look {
                alias: call(&name, None),
                table: name,
                list: exprs.join(", "),
                wrong: wrong.is_some(),
                condition: wrong,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_statements_compute_is_read_from_their_text() {
        let of =
            |sql: &str, code: &SqlState| look(sql, code).map(|l| (l.table, l.alias, l.list, l.condition));
        let value = SqlState::INVALID_TEXT_REPRESENTATION;
        let some = |table: &str, alias: &str, list: &str, condition: Option<&str>| {
            Some((table.to_owned(), alias.to_owned(), list.to_owned(), condition.map(str::to_owned)))
        };
        assert_eq!(
            of("update s.t set a = (raw)::jsonb, b = f(x, y) where raw <> ',' returning a", &value),
            some("s.t", "t", "(raw)::jsonb, f(x, y)", Some("raw <> ','"))
        );
        assert_eq!(of("update only t as u set a = u.b::int", &value), some("t", "u", "u.b::int", None));
        assert_eq!(of("update t set a = b.c from b", &value), None);
        assert_eq!(
            of(
                "alter table t alter column a set data type numeric(3,1), alter b type int using trim(b)::int",
                &value
            ),
            some("t", "t", "a::numeric(3,1), trim(b)::int", None)
        );
        assert_eq!(
            of(
                "insert into u (x) select a::int as x from s.t v where a > 'b' on conflict do nothing",
                &value
            ),
            some("s.t", "v", "a::int as x", Some("a > 'b'"))
        );
        assert_eq!(of("insert into u select a from t join v on true", &value), None);
        assert_eq!(
            of("alter table t alter a set not null", &SqlState::NOT_NULL_VIOLATION),
            some("t", "t", "", Some("a is null"))
        );
        assert_eq!(
            of("alter table t add constraint c check (a > 0)", &SqlState::CHECK_VIOLATION),
            some("t", "t", "", Some("not (a > 0)"))
        );
        assert_eq!(of("drop table t", &value), None);
    }
}
