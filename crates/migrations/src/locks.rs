//! The tables that a file locks against writers, so that it can take all those locks at its beginning.
//!
//! A file that holds one hot table and then wants another, which the application locks in the other order, makes
//! the application's statements the victims of a deadlock. What statements say of their tables is read here; a
//! statement that says nothing (a DO block) waits for a moment only, and what it waited for in vain is locked with
//! the others in the next attempt.

use crate::lex::Words;
use crate::script::Statement;
use handover_core::Result;
use handover_postgres::Session;
use handover_postgres::patience::Mode;
use handover_postgres::{TableName, Tx};

/// A lock that a statement takes on what a name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The table or index, as SQL.
    pub name: String,
    /// How strongly.
    pub mode: Mode,
    /// The statement's line.
    pub line: usize,
    /// Whether it is dropped, and foreign keys with it: the tables at their other ends are locked too.
    pub dropped: bool,
}

/// A table that is there, and how strongly a file locks it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lock {
    /// The table.
    pub table: TableName,
    /// How strongly.
    pub mode: Mode,
    /// The first statement's line.
    pub line: usize,
}

/// What the names mean: tables that are there, or those of indexes; and, where one is dropped, those at the other
/// ends of its foreign keys. Only what the current role may lock.
const RESOLVE: &str = "
    with w as (
        select c.oid, coalesce(i.indrelid, c.oid) as rel, u.mode, u.line, u.dropped
        from unnest($1::text[], $2::int[], $3::int[], $4::bool[]) u (name, mode, line, dropped)
        join pg_class c on c.oid = to_regclass(u.name) left join pg_index i on i.indexrelid = c.oid
    ), every as (
        select rel, mode, line from w
        union all
        select case f.conrelid when w.rel then f.confrelid else f.conrelid end, w.mode, w.line
        from w join pg_constraint f on f.contype = 'f' and w.rel in (f.conrelid, f.confrelid) where w.dropped
    )
    select n.nspname::text, c.relname::text, max(e.mode), min(e.line)
    from every e join pg_class c on c.oid = e.rel join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p') and c.relpersistence <> 't'
      and (pg_has_role(c.relowner, 'USAGE') or has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE'))
    group by 1, 2 order by 1, 2";

const MODES: [Mode; 3] = [Mode::Share, Mode::ShareRowExclusive, Mode::AccessExclusive];

type Arguments = (Vec<String>, Vec<i32>, Vec<i32>, Vec<bool>);

fn arguments<'s>(statements: impl Iterator<Item = &'s Statement>) -> Arguments {
    let mut out: Arguments = Default::default();
    for lock in statements.flat_map(|s| wanted(&s.words, s.line)) {
        let mode = MODES.iter().position(|mode| *mode == lock.mode).unwrap_or(0);
        out.0.push(lock.name);
        out.1.push(i32::try_from(mode).unwrap_or(0));
        out.2.push(i32::try_from(lock.line).unwrap_or(i32::MAX));
        out.3.push(lock.dropped);
    }
    out
}

fn locks(rows: &[tokio_postgres::Row]) -> Vec<Lock> {
    let lock = |row: &tokio_postgres::Row| Lock {
        table: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        mode: usize::try_from(row.get::<_, i32>(2))
            .ok()
            .and_then(|i| MODES.get(i).copied())
            .unwrap_or(Mode::Share),
        line: usize::try_from(row.get::<_, i32>(3)).unwrap_or(0),
    };
    rows.iter().map(lock).collect()
}

/// The tables that these statements lock and that are there already, by name.
pub async fn of(tx: &Tx<'_>, statements: &[Statement]) -> Result<Vec<Lock>> {
    let (names, modes, lines, dropped) = arguments(statements.iter());
    if names.is_empty() {
        return Ok(Vec::new());
    }
    Ok(locks(&tx.query(RESOLVE, &[&names, &modes, &lines, &dropped]).await?))
}

/// The same for a look from outside.
pub async fn seen<'s>(
    session: &Session,
    statements: impl Iterator<Item = &'s Statement>,
) -> Result<Vec<Lock>> {
    let (names, modes, lines, dropped) = arguments(statements);
    if names.is_empty() {
        return Ok(Vec::new());
    }
    // The role of a dry run may lock nothing, and need not.
    let sql = RESOLVE.replace(
        "and (pg_has_role(c.relowner, 'USAGE') or has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE'))",
        "",
    );
    Ok(locks(&session.query(sql.as_str(), &[&names, &modes, &lines, &dropped]).await?))
}

/// Whether a statement may lock anything without saying so.
#[must_use]
pub fn is_opaque(words: &Words) -> bool {
    ["do", "call", "select", "with", "perform", "execute"].contains(&words.get(0))
}

/// What one statement locks against writers, by its words.
#[must_use]
pub fn wanted(words: &Words, line: usize) -> Vec<Wanted> {
    let mut out = Vec::new();
    let mut add = |name: Option<(String, usize)>, mode: Mode, dropped: bool| {
        // A name of more parts is another database's, which the server would refuse.
        if let Some((name, _)) = name.filter(|(name, _)| name.matches('.').count() < 2) {
            out.push(Wanted { name, mode, line, dropped });
        }
    };
    let if_exists: &[&[&str]] = &[&["if", "exists"], &["only"]];
    match (words.get(0), words.get(1)) {
        ("alter", "table") => {
            let at = words.skip(2, if_exists);
            if let Some(mode) = words.name(at).and_then(|(_, end)| altered(words, end)) {
                add(words.name(at), mode, words.has(&["drop", "constraint"]));
            }
            for (i, _) in (at..words.len()).filter_map(|i| words.at(i, &["partition"]).then_some((i, ()))) {
                if matches!(words.get(i.wrapping_sub(1)), "attach" | "detach")
                    && !words.has(&["concurrently"])
                {
                    add(words.name(i + 1), Mode::AccessExclusive, false);
                }
            }
        }
        ("create", "index" | "unique") if !words.has(&["concurrently"]) => {
            if let Some(on) = words.find(&["on"]) {
                add(words.name(words.skip(on + 1, &[&["only"]])), Mode::Share, false);
            }
        }
        ("create", "trigger" | "constraint") => triggered(words, Mode::ShareRowExclusive, &mut add),
        ("create", "or") if words.get(3) == "trigger" => {
            triggered(words, Mode::ShareRowExclusive, &mut add);
        }
        ("create", "or") if words.get(3) == "rule" => ruled(words, &mut add),
        ("create", "rule") => ruled(words, &mut add),
        ("create" | "alter" | "drop", "policy") | ("alter" | "drop", "trigger") | ("drop", "rule") => {
            triggered(words, Mode::AccessExclusive, &mut add);
        }
        ("alter", "index") => add(words.name(words.skip(2, &[&["if", "exists"]])), Mode::Share, false),
        ("drop", "index") if !words.has(&["concurrently"]) => {
            list(words, words.skip(2, &[&["if", "exists"]]), false, &mut add);
        }
        ("drop", "table") => list(words, words.skip(2, &[&["if", "exists"]]), true, &mut add),
        ("truncate", _) => list(words, words.skip(1, &[&["table"], &["only"]]), false, &mut add),
        ("cluster", _) => add(words.name(1), Mode::AccessExclusive, false),
        _ => {}
    }
    // Both ends of a new foreign key are locked, also for a new table's.
    if (words.starts(&["alter", "table"]) && words.has(&["add"])) || words.starts(&["create", "table"]) {
        for i in (0..words.len()).filter(|i| words.get(*i) == "references") {
            add(words.name(i + 1), Mode::ShareRowExclusive, false);
        }
    }
    out
}

/// How strongly ALTER TABLE locks. (<https://www.postgresql.org/docs/current/sql-altertable.html>)
fn altered(words: &Words, from: usize) -> Option<Mode> {
    let has = |w: &[&str]| (from..words.len()).any(|i| words.at(i, w));
    let one = !commas(words, from);
    if one && (words.at(from, &["validate"]) || words.at(from, &["attach"]) || has(&["statistics"])) {
        return None;
    }
    let foreign = has(&["foreign", "key"]) && words.at(from, &["add"]);
    let triggers = matches!(words.get(from), "enable" | "disable") && has(&["trigger"]);
    Some(if one && (foreign || triggers) { Mode::ShareRowExclusive } else { Mode::AccessExclusive })
}

/// Whether there are several actions: commas outside parentheses.
fn commas(words: &Words, from: usize) -> bool {
    let mut depth = 0_i32;
    (from..words.len()).any(|i| {
        match words.get(i) {
            "(" => depth += 1,
            ")" => depth -= 1,
            _ => {}
        }
        depth == 0 && words.get(i) == ","
    })
}

type Add<'a> = dyn FnMut(Option<(String, usize)>, Mode, bool) + 'a;

/// `… NAME … ON TABLE`: the last ON before a clause is the table's.
fn triggered(words: &Words, mode: Mode, add: &mut Add<'_>) {
    if let Some(on) = words.find(&["on"]) {
        add(words.name(words.skip(on + 1, &[&["only"]])), mode, false);
    }
}

/// `CREATE RULE … AS ON EVENT TO TABLE`.
fn ruled(words: &Words, add: &mut Add<'_>) {
    if let Some(to) = words.find(&["to"]) {
        add(words.name(to + 1), Mode::AccessExclusive, false);
    }
}

/// Names with commas between them.
fn list(words: &Words, mut at: usize, dropped: bool, add: &mut Add<'_>) {
    while let Some((name, end)) = words.name(at) {
        add(Some((name, end)), Mode::AccessExclusive, dropped);
        if words.get(end) != "," {
            break;
        }
        at = words.skip(end + 1, &[&["only"]]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_locks_of_statements_are_known() {
        use Mode::{AccessExclusive as All, Share, ShareRowExclusive as Writers};
        let table: &[(&str, &[(&str, Mode)])] = &[
            ("alter table if exists only s.a add column b int, drop column c", &[("s.a", All)]),
            (
                "alter table a add constraint f foreign key (x) references b (y)",
                &[("a", Writers), ("b", Writers)],
            ),
            ("alter table a add column x int references b", &[("a", All), ("b", Writers)]),
            ("alter table a validate constraint f", &[]),
            ("alter table a disable trigger user", &[("a", Writers)]),
            ("alter table a attach partition b for values in (1)", &[("b", All)]),
            ("alter table a detach partition b", &[("a", All), ("b", All)]),
            ("create unique index i on only a (x)", &[("a", Share)]),
            ("create index concurrently i on a (x)", &[]),
            (
                "create or replace trigger t before insert or update of x on a execute function f()",
                &[("a", Writers)],
            ),
            ("drop trigger if exists t on a", &[("a", All)]),
            ("create policy p on a using (true)", &[("a", All)]),
            ("create rule r as on insert to a do also nothing", &[("a", All)]),
            ("drop index if exists i, j", &[("i", All), ("j", All)]),
            ("drop table a, b cascade", &[("a", All), ("b", All)]),
            ("truncate only a, b", &[("a", All), ("b", All)]),
            ("create table c (x int references a)", &[("a", Writers)]),
            ("update a set x = 1", &[]),
            ("comment on table a is 'x'", &[]),
        ];
        for (sql, expected) in table {
            let found = wanted(&Words::of(sql), 1);
            let found: Vec<(&str, Mode)> = found.iter().map(|w| (w.name.as_str(), w.mode)).collect();
            assert_eq!(found, *expected, "{sql}");
        }
    }
}
