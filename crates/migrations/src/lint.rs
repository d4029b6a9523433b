//! Statements that lock out other sessions for long, with the safer way. A dry run warns about them when the
//! table exists already.
//! (<https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES>)

use crate::lex::Words;

/// What a statement does to others while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lint {
    /// The table (or index, for a dropped one), as SQL.
    pub relation: String,
    /// What happens, in words that follow the table's name.
    pub what: &'static str,
    /// How to do without.
    pub instead: &'static str,
    /// It is only so if one of these functions is volatile, which the server knows.
    pub if_volatile: Vec<String>,
}

/// The table that a statement creates, as SQL: what is done to it afterwards locks nobody out.
#[must_use]
pub fn created_table(words: &Words) -> Option<String> {
    let at = words.skip(1, &[&["unlogged"], &["temporary"], &["temp"], &["foreign"]]);
    if words.get(0) != "create" || words.get(at) != "table" {
        return None;
    }
    Some(words.name(words.skip(at + 1, &[&["if", "not", "exists"]]))?.0)
}

/// What is heavy about a statement.
#[must_use]
pub fn heavy(words: &Words) -> Vec<Lint> {
    match (words.get(0), words.get(1)) {
        ("alter", "table") => alter_table(words),
        ("create", _) => create_index(words).into_iter().collect(),
        ("drop", "index") if !words.has(&["concurrently"]) => {
            let at = words.skip(2, &[&["if", "exists"]]);
            one(
                words,
                at,
                "is dropped while its table is locked against reads and writes",
                "DROP INDEX CONCURRENTLY",
            )
        }
        ("vacuum", _) if words.has(&["full"]) => {
            let at = (1..words.len()).find(|i| words.get(*i) == "full").map_or(2, |i| i + 1);
            let at = words.skip(at, &[&[")"], &["analyze"]]);
            one(
                words,
                at,
                "is rewritten while locked against reads and writes",
                "VACUUM without FULL, or pg_repack",
            )
        }
        ("cluster", _) => one(words, 1, "is rewritten while locked against reads and writes", "pg_repack"),
        ("reindex", _) if !words.has(&["concurrently"]) => match words.find(&["table"]) {
            Some(at) => one(
                words,
                at + 1,
                "is locked against writes while its indexes are built",
                "REINDEX … CONCURRENTLY",
            ),
            None => Vec::new(),
        },
        ("lock", _) => one(
            words,
            words.skip(1, &[&["table"], &["only"]]),
            "is locked explicitly",
            "a lock only as strong and long as needed",
        ),
        ("truncate", _) => one(
            words,
            words.skip(1, &[&["table"], &["only"]]),
            "loses all rows, for other sessions' snapshots too",
            "DELETE in batches, if its rows are still read",
        ),
        ("refresh", _) if !words.has(&["concurrently"]) => one(
            words,
            3,
            "is locked against reads while it is refreshed",
            "REFRESH MATERIALIZED VIEW CONCURRENTLY",
        ),
        ("update" | "delete", _) if !words.has(&["where"]) => {
            let at = words.skip(1, &[&["from"], &["only"]]);
            one(
                words,
                at,
                "is changed in every row by one transaction",
                "a `cleanup` step, which works in batches",
            )
        }
        _ => Vec::new(),
    }
}

fn one(words: &Words, at: usize, what: &'static str, instead: &'static str) -> Vec<Lint> {
    words
        .name(at)
        .map(|(relation, _)| Lint { relation, what, instead, if_volatile: Vec::new() })
        .into_iter()
        .collect()
}

fn create_index(words: &Words) -> Option<Lint> {
    let at = words.skip(1, &[&["unique"]]);
    if words.get(at) != "index" || words.get(at + 1) == "concurrently" {
        return None;
    }
    let on = words.find(&["on"])?;
    let (relation, _) = words.name(words.skip(on + 1, &[&["only"]]))?;
    Some(Lint {
        relation,
        what: "is locked against writes while the index is built",
        instead: "CREATE INDEX CONCURRENTLY, or a `create_index` step",
        if_volatile: Vec::new(),
    })
}

fn alter_table(words: &Words) -> Vec<Lint> {
    let at = words.skip(2, &[&["if", "exists"], &["only"]]);
    let Some((relation, from)) = words.name(at) else { return Vec::new() };
    let mut out = Vec::new();
    let mut add =
        |what, instead| out.push(Lint { relation: relation.clone(), what, instead, if_volatile: Vec::new() });
    let has = |w: &[&str]| (from..words.len()).any(|i| words.at(i, w));
    if has(&["type"]) && has(&["alter"]) {
        add(
            "is rewritten while locked against reads and writes, unless the new type is binary the same",
            "a new column, filled by a `cleanup` step with its sync trigger, then swapped",
        );
    }
    if has(&["set", "not", "null"]) {
        add(
            "is read whole while locked against reads and writes",
            "a CHECK (… IS NOT NULL) NOT VALID, VALIDATE CONSTRAINT, and then SET NOT NULL, which trusts it",
        );
    }
    if has(&["add"]) && !has(&["not", "valid"]) && !has(&["using", "index"]) {
        if has(&["foreign", "key"]) || (has(&["references"]) && has(&["constraint"])) {
            add(
                "is read whole while it and the referenced table are locked against writes",
                "ADD CONSTRAINT … NOT VALID, then VALIDATE CONSTRAINT in a later file",
            );
        } else if has(&["check"]) {
            add(
                "is read whole while locked against reads and writes",
                "ADD CONSTRAINT … NOT VALID, then VALIDATE CONSTRAINT in a later file",
            );
        } else if has(&["unique"]) || has(&["primary", "key"]) {
            add(
                "is locked against reads and writes while an index is built",
                "a `create_index` step, then ADD CONSTRAINT … USING INDEX",
            );
        }
    }
    let rewritten = "is rewritten while locked against reads and writes";
    let later = "the column without a default, the default for new rows, and a `cleanup` step for old ones";
    let if_volatile = default_functions(words, from);
    if has(&["add"]) && (has(&["serial"]) || has(&["bigserial"]) || has(&["generated"])) {
        add(rewritten, later);
    } else if has(&["add"]) && !if_volatile.is_empty() {
        out.push(Lint { relation: relation.clone(), what: rewritten, instead: later, if_volatile });
        return out.into_iter().chain(moved(words, from, &relation)).collect();
    }
    out.extend(moved(words, from, &relation));
    out
}

/// A table whose file is written anew.
fn moved(words: &Words, from: usize, relation: &str) -> Option<Lint> {
    let has = |w: &[&str]| (from..words.len()).any(|i| words.at(i, w));
    (has(&["set", "tablespace"]) || has(&["set", "logged"]) || has(&["set", "unlogged"])).then(|| Lint {
        relation: relation.to_owned(),
        what: "is rewritten while locked against reads and writes",
        instead: "a new table, filled and swapped",
        if_volatile: Vec::new(),
    })
}

/// The functions that defaults of new columns call, at any depth: if one is volatile, Postgres computes the default
/// for each row, and the table is rewritten.
fn default_functions(words: &Words, from: usize) -> Vec<String> {
    /// Written like functions, and none; a type's length is written so too.
    const NONE: [&str; 22] = [
        "coalesce",
        "nullif",
        "greatest",
        "least",
        "cast",
        "array",
        "row",
        "in",
        "any",
        "all",
        "values",
        "and",
        "or",
        "not",
        "varchar",
        "varying",
        "char",
        "character",
        "numeric",
        "decimal",
        "timestamp",
        "bit",
    ];
    let mut out = Vec::new();
    let mut at = from;
    while let Some(start) = (at..words.len()).find(|i| words.get(*i) == "default") {
        let mut depth = 0_i32;
        at = start + 1;
        // What comes behind the expression: the next action, or a constraint of the column's.
        while at < words.len()
            && (depth > 0
                || !matches!(
                    words.get(at),
                    "," | "check" | "constraint" | "references" | "unique" | "primary" | "generated"
                ))
        {
            match words.get(at) {
                "(" => {
                    let name = words.get(at - 1).trim_matches('"');
                    let word = name.starts_with(|c: char| c.is_alphabetic() || c == '_');
                    if word && name != "default" && !NONE.contains(&name) {
                        out.push(name.to_owned());
                    }
                    depth += 1;
                }
                ")" => depth -= 1,
                _ => {}
            }
            at += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heavy_statements_are_known() {
        let table = [
            ("alter table only a.b alter column c type bigint", 1),
            ("alter table b alter c set data type bigint, alter d set not null", 2),
            ("alter table b add constraint x foreign key (c) references d (e)", 1),
            ("alter table b add constraint x check (c > 0)", 1),
            ("alter table b add primary key (c)", 1),
            ("alter table b add column c uuid default gen_random_uuid()", 1),
            ("alter table b add column c text default coalesce(md5(random()::text), 'x')", 1),
            ("alter table b add column c varchar(3) default 'x(y)' check (f(c)) not valid", 0),
            ("create index on b (c)", 1),
            ("create unique index a on b (c)", 1),
            ("vacuum (full, analyze) b", 0),
            ("vacuum full b", 1),
            ("cluster b using i", 1),
            ("drop index i", 1),
            ("update b set c = 1", 1),
            ("refresh materialized view b", 1),
            ("alter table b add constraint x check (c > 0) not valid", 0),
            ("alter table b add constraint x unique using index i", 0),
            ("alter table b add column c int default 0", 0),
            ("alter table b validate constraint x", 0),
            ("create index concurrently a on b (c)", 0),
            ("update b set c = 1 where d", 0),
            ("create table b (c int references d (e))", 0),
            ("select 'vacuum full'", 0),
        ];
        for (sql, n) in table {
            let found = heavy(&Words::of(sql));
            assert_eq!(found.len(), n, "{sql}: {found:?}");
            assert!(found.iter().all(|l| l.relation.ends_with('b') || l.relation == "i"), "{found:?}");
        }
        let nested =
            heavy(&Words::of("alter table b add c text default lower(coalesce(f(1), 'x')), add d int"));
        assert_eq!(nested[0].if_volatile, ["lower", "f"]);
        assert_eq!(
            created_table(&Words::of("create unlogged table if not exists a.b (c int)")),
            Some("a.b".into())
        );
    }
}
