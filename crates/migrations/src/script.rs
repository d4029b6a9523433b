//! A migration file as units of work: what runs in one transaction, and what cannot run in any.
//!
//! Unless something says otherwise a file is one transaction. A file that vendors wrapped in `BEGIN … COMMIT`
//! themselves (golang-migrate adds no transaction) is too: we put ours in its place, so that the history's
//! row commits with it. Everything else runs step by step: each of its statements, or each of its own
//! `BEGIN … COMMIT` groups, in a transaction that also notes how far the file has come, and only those that
//! Postgres refuses to run in a transaction outside of one.

use crate::lex::{Words, leading_comments};
use handover_core::error::{Error, Result};
use handover_postgres::sql::{self, Token};

/// One statement of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Its text, without the comments before it.
    pub sql: String,
    /// Where its text starts in the file, in bytes.
    pub start: usize,
    /// The line it starts on, from 1.
    pub line: usize,
    /// Its words.
    pub words: Words,
    /// `-- handover: repeatable` before it: it may run twice.
    pub repeatable: bool,
    /// `-- handover: done-if QUERY` before it: a query whose one value says whether its effect is there.
    pub done_if: Option<String>,
}

/// What is executed and recorded as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unit {
    /// Statements in one transaction.
    Together(Vec<Statement>),
    /// One that cannot run in a transaction.
    Alone(Statement),
}

impl Unit {
    /// Its statements.
    #[must_use]
    pub fn statements(&self) -> &[Statement] {
        match self {
            Unit::Together(list) => list,
            Unit::Alone(one) => std::slice::from_ref(one),
        }
    }

    /// Whether it only changes settings of the session, so that it has to be repeated in a new one.
    #[must_use]
    pub fn is_setting(&self) -> bool {
        matches!(self.statements(), [one] if one.words.starts(&["set"]) || one.words.starts(&["reset"]))
    }
}

/// A file, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Where it is, for messages.
    pub path: String,
    /// Its text, exactly; the checksum is over it.
    pub sql: String,
    /// What it does, in order. None: it is blank.
    pub units: Vec<Unit>,
    /// Why it does not run as one transaction, if so.
    pub stepwise: Option<String>,
}

impl Script {
    /// Reads a file's text. `autocommit`: its name says that it must not run in a transaction.
    ///
    /// # Errors
    /// What cannot be executed, with its line.
    pub fn parse(path: &str, sql: &str, autocommit: bool) -> Result<Script> {
        let at = |line: usize, message: String| Error::usage(message).in_file(path, Some(line));
        refuse_other_languages(sql, &at)?;
        let marked = autocommit || is_marked(sql);
        let mut units: Vec<Unit> = Vec::new();
        let mut open: Option<(usize, Vec<Statement>)> = None;
        let mut groups = 0;
        let mut refuses: Option<(usize, &'static str)> = None;
        for statement in statements(sql) {
            let (words, line) = (&statement.words, statement.line);
            if words.starts(&["begin"]) || words.starts(&["start", "transaction"]) {
                if open.is_some() {
                    return Err(at(line, "BEGIN inside a transaction of this file".into()).hint(
                        "a file's transactions cannot be nested; put a corrected copy into `override:`",
                    ));
                }
                open = Some((line, Vec::new()));
            } else if is_commit(words) {
                let Some((_, list)) = open.take() else {
                    return Err(at(line, "COMMIT without a BEGIN before it in this file".into())
                        .hint("each file runs in a transaction of its own; put a copy without COMMIT into `override:`"));
                };
                groups += 1;
                units.push(Unit::Together(list));
            } else if (words.starts(&["rollback"]) || words.starts(&["abort"])) && !words.has(&["to"]) {
                return Err(at(line, "a migration cannot end with ROLLBACK".into())
                    .hint("put a copy without it into `override:`"));
            } else {
                let reason = refuses_transactions(words);
                if let (Some((begun, _)), Some(what)) = (&open, reason) {
                    return Err(at(
                        line,
                        format!("{what} cannot run in the transaction begun on line {begun}"),
                    )
                    .hint("put a copy into `override:` with this statement after COMMIT"));
                }
                refuses = refuses.or(reason.map(|what| (line, what)));
                match &mut open {
                    Some((_, list)) => list.push(statement),
                    None if reason.is_some() || (marked && commits_inside(words)) => {
                        units.push(Unit::Alone(statement));
                    }
                    None => units.push(Unit::Together(vec![statement])),
                }
            }
        }
        if let Some((line, _)) = open {
            return Err(at(line, "BEGIN without a COMMIT in this file".into())
                .hint("remove it: each file runs in a transaction of its own"));
        }
        units.retain(|unit| !unit.statements().is_empty());
        let stepwise = match refuses {
            Some((line, what)) => Some(format!("{what} on line {line}")),
            None if marked => Some("marked as no-transaction".to_owned()),
            None if groups > 1 || (groups == 1 && units.len() > 1) => {
                Some("transactions of its own".to_owned())
            }
            None => None,
        };
        if stepwise.is_none() {
            let all: Vec<Statement> = units.iter().flat_map(|u| u.statements().iter().cloned()).collect();
            units = if all.is_empty() { Vec::new() } else { vec![Unit::Together(all)] };
        } else if let Some(role) = units.iter().flat_map(Unit::statements).find(|s| changes_role(&s.words)) {
            return Err(at(
                role.line,
                "a file that runs outside a transaction cannot change the role".into(),
            )
            .hint("remove it and set `role:` in the plan"));
        }
        Ok(Script { path: path.to_owned(), sql: sql.to_owned(), units, stepwise })
    }

    /// Refuses `${name}`, which Flyway fills in wherever it stands.
    ///
    /// # Errors
    /// The first one, with its line.
    pub fn refuse_placeholders(&self) -> Result<()> {
        for token in sql::tokens(&self.sql) {
            let (Token::Code(range) | Token::Quoted(range)) = token else { continue };
            let text = &self.sql[range.clone()];
            let Some(n) = text.find("${") else { continue };
            let name: String = text[n..].chars().take_while(|c| *c != '}').chain(['}']).take(60).collect();
            return Err(Error::usage(format!("`{name}` is a placeholder that Flyway fills in"))
                .in_file(&self.path, Some(line_of(&self.sql, range.start + n)))
                .hint("put the file as it is after filling in into `override:`"));
        }
        Ok(())
    }

    /// Whether it contains no statement.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.units.is_empty()
    }

    /// All its statements.
    pub fn statements(&self) -> impl Iterator<Item = &Statement> {
        self.units.iter().flat_map(Unit::statements)
    }

    /// Whether it may leave the session with other settings than it found.
    #[must_use]
    pub fn changes_session(&self) -> bool {
        self.statements().any(|s| {
            ["set", "reset", "discard", "listen", "load", "prepare"].contains(&s.words.get(0))
                || s.words.has(&["set_config"])
        })
    }

    /// The text up to the end of unit `n - 1`: what has been executed once `n` units are done.
    #[must_use]
    pub fn prefix(&self, n: usize) -> &str {
        let end = n.checked_sub(1).and_then(|i| self.units.get(i)).and_then(|u| u.statements().last());
        end.map_or("", |s| &self.sql[..s.start + s.sql.len()])
    }
}

/// The line on which byte `offset` stands, from 1.
#[must_use]
pub fn line_of(sql: &str, offset: usize) -> usize {
    sql.as_bytes().iter().take(offset).filter(|b| **b == b'\n').count() + 1
}

fn statements(text: &str) -> Vec<Statement> {
    sql::statement_ranges(text)
        .into_iter()
        .map(|range| {
            let whole = &text[range.clone()];
            let comments = leading_comments(whole);
            let start = range.start + comments;
            let marks: Vec<&str> = whole[..comments].lines().filter_map(mark).collect();
            Statement {
                sql: text[start..range.end].to_owned(),
                start,
                line: line_of(text, start),
                words: Words::of(&text[start..range.end]),
                repeatable: marks.contains(&"repeatable"),
                done_if: marks.iter().find_map(|m| m.strip_prefix("done-if ")).map(|q| q.trim().to_owned()),
            }
        })
        .collect()
}

/// What a comment line asks of us.
fn mark(line: &str) -> Option<&str> {
    line.trim().strip_prefix("--")?.trim_start().strip_prefix("handover:").map(str::trim)
}

/// Whether the comments at the top say that the file must not run in a transaction: our own mark, or sqlx's.
fn is_marked(text: &str) -> bool {
    let top = &text[..leading_comments(text)];
    text.starts_with("-- no-transaction") || top.lines().filter_map(mark).any(|m| m == "no-transaction")
}

fn is_commit(words: &Words) -> bool {
    (words.starts(&["commit"]) && !words.starts(&["commit", "prepared"])) || words.starts(&["end"])
}

fn changes_role(words: &Words) -> bool {
    words.starts(&["set", "role"])
        || words.starts(&["set", "session", "authorization"])
        || words.starts(&["reset", "role"])
}

/// Procedures and anonymous blocks may commit inside, which Postgres allows outside a transaction only.
fn commits_inside(words: &Words) -> bool {
    words.starts(&["call"]) || words.starts(&["do"])
}

/// The statements that Postgres refuses in a transaction block, by each one's reference page.
#[must_use]
pub fn refuses_transactions(words: &Words) -> Option<&'static str> {
    let concurrently = words.has(&["concurrently"]);
    Some(match (words.get(0), words.get(1)) {
        ("create", "index" | "unique") if concurrently => "CREATE INDEX CONCURRENTLY",
        ("drop", "index") if concurrently => "DROP INDEX CONCURRENTLY",
        ("reindex", _) if concurrently => "REINDEX CONCURRENTLY",
        ("reindex", "database" | "system" | "schema") => "REINDEX",
        ("alter", "table") if words.has(&["detach"]) && concurrently => "DETACH PARTITION CONCURRENTLY",
        ("vacuum", _) => "VACUUM",
        ("cluster", "") => "CLUSTER",
        ("create" | "drop", "database") => "CREATE or DROP DATABASE",
        ("create" | "drop", "tablespace") => "CREATE or DROP TABLESPACE",
        ("alter", "database") if words.has(&["set", "tablespace"]) => "ALTER DATABASE SET TABLESPACE",
        ("alter", "system") => "ALTER SYSTEM",
        ("create", "subscription") => "CREATE SUBSCRIPTION",
        ("drop", "subscription") => "DROP SUBSCRIPTION",
        ("alter", "subscription") if words.has(&["refresh"]) || words.has(&["set", "publication"]) => {
            "ALTER SUBSCRIPTION"
        }
        ("discard", "all") => "DISCARD ALL",
        ("commit" | "rollback", "prepared") => "COMMIT PREPARED",
        _ => return None,
    })
}

/// What looks like SQL but needs another program: psql's commands, variables and inline data, goose's and
/// dbmate's sections in a folder that is not theirs, templates.
fn refuse_other_languages(text: &str, at: &dyn Fn(usize, String) -> Error) -> Result<()> {
    let mut colon = false;
    for token in sql::tokens(text) {
        let after_colon = std::mem::take(&mut colon);
        match token {
            Token::Code(range) => {
                let code = &text[range.clone()];
                colon = code.ends_with(':') && !code.ends_with("::");
                let mut offset = range.start;
                for line in text[range].split_inclusive('\n') {
                    let start_of_line = text[..offset].rfind('\n').map_or(0, |n| n + 1);
                    let command =
                        line.trim_start().starts_with('\\') && text[start_of_line..offset].trim().is_empty();
                    if command {
                        let what = line.trim();
                        return Err(at(line_of(text, offset), format!("`{what}` is a command of psql, not SQL"))
                            .hint("put a copy without psql's commands into `override:` (pg_dump: --inserts instead of COPY)"));
                    }
                    if let Some(n) = line.find("{{") {
                        return Err(at(
                            line_of(text, offset + n),
                            "`{{` begins a template that the vendor's tool fills in".into(),
                        )
                        .hint("put the file as it is after filling in into `override:`"));
                    }
                    offset += line.len();
                }
            }
            Token::Comment(range) => {
                let comment = text[range.clone()].trim_start_matches('-').trim_start();
                if comment.starts_with("+goose ") || comment.starts_with("migrate:") {
                    return Err(at(
                        line_of(text, range.start),
                        "this file holds both directions, as goose and dbmate write them".into(),
                    )
                    .hint("say `names: goose` or `names: dbmate` if the whole folder is written so, or split it into NAME.up.sql and NAME.down.sql"));
                }
            }
            Token::Quoted(range) => {
                let quoted = &text[range.clone()];
                if after_colon && quoted.starts_with('\'') {
                    return Err(at(
                        line_of(text, range.start),
                        format!("`:{quoted}` is a variable of psql, not SQL"),
                    )
                    .hint("put a copy with its value into `override:`"));
                }
                if let Some(n) = template(quoted) {
                    return Err(at(
                        line_of(text, range.start + n),
                        "`/* TEMPLATE` inside a string is text to the server; the vendor's tool puts a name in its place"
                            .into(),
                    )
                    .hint("put the file as it is after filling in into `override:`"));
                }
            }
            Token::Semicolon(_) => {}
        }
    }
    if let Some(copy) =
        statements(text).iter().find(|s| s.words.starts(&["copy"]) && s.words.has(&["from", "stdin"]))
    {
        return Err(at(copy.line, "COPY FROM STDIN needs data that a migration file cannot carry".into())
            .hint("use INSERT, or a `copy` step"));
    }
    Ok(())
}

/// Where a mark for a vendor's template stands in a string, where it is no comment. In the body of a function
/// it is one, unless a string of the body begins with it: what is executed there may hold comments.
fn template(quoted: &str) -> Option<usize> {
    const MARK: &str = "/* TEMPLATE";
    if !quoted.contains(MARK) || quoted.starts_with('"') {
        return None;
    }
    if !quoted.starts_with('$') {
        return quoted.find(MARK);
    }
    let start = quoted[1..].find('$').map_or(0, |n| n + 2);
    let body = quoted.get(start..quoted.len().saturating_sub(start)).unwrap_or("");
    sql::tokens(body).into_iter().find_map(|token| match token {
        Token::Quoted(range) if body[range.start..].get(1..).is_some_and(|s| s.starts_with(MARK)) => {
            Some(start + range.start)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(sql: &str) -> Script {
        Script::parse("f.sql", sql, false).unwrap()
    }

    #[test]
    fn a_plain_file_is_one_transaction() {
        let script = parse("-- hello\ncreate table a (x int);\n\nalter table a add y int;");
        assert!(script.stepwise.is_none());
        assert_eq!(script.units.len(), 1);
        assert_eq!(script.statements().map(|s| s.line).collect::<Vec<_>>(), [2, 4]);
        assert!(parse(" -- nothing\n;\n").is_blank());
    }

    #[test]
    fn a_file_wrapped_by_its_author_is_one_transaction() {
        let script = parse("BEGIN;\ncreate table a ();\ncreate table b ();\nCOMMIT;");
        assert!(script.stepwise.is_none());
        assert_eq!(script.units[0].statements().len(), 2);
    }

    #[test]
    fn several_transactions_run_step_by_step() {
        let script =
            parse("set x.y = '1'; begin; create table a (); select 1; commit; begin; select 2; end;");
        assert_eq!(script.units.len(), 3);
        assert!(script.stepwise.is_some() && script.units[0].is_setting());
        assert!(script.prefix(2).ends_with("select 1") && script.prefix(0).is_empty());
    }

    #[test]
    fn what_refuses_transactions_is_found() {
        for sql in [
            "create unique index concurrently a on b (c)",
            "drop index concurrently if exists a",
            "reindex (verbose) table concurrently a",
            "vacuum full a",
            "alter system set work_mem = '1MB'",
            "alter table a detach partition b concurrently",
        ] {
            assert!(matches!(parse(sql).units[..], [Unit::Alone(_)]), "{sql}");
        }
        for sql in [
            "create index a on b (c)",
            "select 'create index concurrently'",
            "cluster a using b",
            "do $$ vacuum $$",
        ] {
            assert!(parse(sql).stepwise.is_none(), "{sql}");
        }
        let marked = parse("-- sqlx\n-- handover: no-transaction\ncall p();\nalter table a add b int");
        assert!(matches!(marked.units[..], [Unit::Alone(_), Unit::Together(_)]));
        assert!(parse("-- no-transaction\nselect 1").stepwise.is_some());
        assert!(Script::parse("f", "select 1", true).unwrap().stepwise.is_some());
    }

    #[test]
    fn marks_belong_to_their_statement() {
        let script = parse("vacuum a;\n-- handover: repeatable\n-- handover: done-if select true\nvacuum b;");
        let Unit::Alone(second) = &script.units[1] else { panic!("{script:?}") };
        assert!(second.repeatable && second.done_if.as_deref() == Some("select true") && second.line == 4);
    }

    #[test]
    fn what_cannot_run_is_refused_with_its_line() {
        for (sql, line) in [
            ("select 1;\ncommit;", 2),
            ("begin;\nselect 1;", 1),
            ("begin;\nbegin;", 2),
            ("begin;\nvacuum a;\ncommit;", 2),
            ("select 1;\nrollback;", 2),
            ("select 1;\n\\connect other\n", 2),
            ("\ncopy a from stdin;", 2),
            ("-- +goose Up\nselect 1", 1),
            ("select 1;\ninsert into a values ({{ .X }})", 2),
            ("vacuum a;\nset role b;", 2),
            ("select 1;\nselect nextval('/* TEMPLATE: schema */river_job_id_seq')", 2),
            ("do $$ begin\n perform '/* TEMPLATE: schema */a'::regclass; end $$", 2),
            ("create role a\npassword :'secret'", 2),
        ] {
            let error = Script::parse("f.sql", sql, false).unwrap_err();
            assert_eq!(error.place().line, Some(line), "{sql}: {error}");
            assert!(error.next_step().is_some());
        }
        assert!(parse("savepoint a; rollback to a").stepwise.is_none());
        for fine in [
            "create table /* TEMPLATE: schema */a (x int)",
            "do $$ begin\n execute 'drop table /* TEMPLATE: schema */a'; end $$",
            "select '1'::\"char\", a[1:2], '{{1},{2}}'::int[]",
        ] {
            assert!(!parse(fine).is_blank(), "{fine}");
        }
    }
}
