//! The schema, as pg_dump writes it, split into the entries of its table of contents.
//!
//! pg_dump runs in the copy's own snapshot and writes plain SQL, which we execute through fenced sessions, each
//! piece in one transaction with its checkpoint: pg_restore's own connections could be neither fenced nor
//! checkpointed. Plain output holds psql commands only for data (which we do not ask for) and `\restrict`,
//! which is taken out. With `--verbose` each entry begins with a comment that gives its identity.
//! (<https://www.postgresql.org/docs/current/app-pgdump.html>)

use handover_core::child;
use handover_core::error::{Error, Result};
use handover_core::value::Secret;
use handover_postgres::programs;
use handover_postgres::sql::{Token, tokens};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// One entry of a dump's table of contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number in the dump.
    pub id: i64,
    /// The catalog it is from, and its row there (0, 0 for comments and the like).
    pub class: u32,
    /// See `class`.
    pub oid: u32,
    /// Entries it hangs on, as far as pg_dump says.
    pub depends: Vec<i64>,
    /// E.g. `TABLE`, `INDEX`, `FK CONSTRAINT`.
    pub kind: String,
    /// Its name for people.
    pub name: String,
    /// The statements.
    pub sql: String,
}

/// A dump in two halves: what rows need, and what comes after them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dump {
    /// Settings that each session makes before it executes an entry.
    pub settings: String,
    /// In order.
    pub entries: Vec<Entry>,
}

/// pg_dump of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Its major version.
    pub major: u32,
}

impl Program {
    /// The newest pg_dump that is at least as new as blue and not newer than green: an older one cannot read
    /// blue, and a newer one writes what green may not know. One that was built without TLS only where there is
    /// no other.
    ///
    /// # Errors
    /// None of that version in `folder`, or on this machine when no folder is given.
    pub async fn find(folder: Option<&Path>, blue: u32, green: u32) -> Result<Self> {
        let mut seen = Vec::new();
        let mut best: Option<((bool, u32), Program)> = None;
        for programs::Program { path, major } in programs::find("pg_dump", folder).await {
            seen.push(format!("{major} ({})", path.display()));
            if (blue..=green).contains(&major) {
                let rank = (speaks_tls(&path).await, major);
                if best.as_ref().is_none_or(|(other, _)| rank > *other) {
                    best = Some((rank, Program { path, major }));
                }
            }
        }
        best.map(|(_, program)| program).ok_or_else(|| {
            let found = if seen.is_empty() { "none was found".into() } else { format!("found: {}", seen.join(", ")) };
            Error::external(format!("no pg_dump of version {blue} to {green} is on this machine; {found}")).hint(
                format!("install the client programs of Postgres {green} (Debian: postgresql-client-{green}), or name their folder with `programs:`"),
            )
        })
    }

    /// The schema in `snapshot` (or as it is now) of a server of version `major`, without the rows.
    ///
    /// # Errors
    /// What pg_dump says.
    pub async fn dump(
        &self,
        url: &Secret,
        (database, major): (&str, u32),
        snapshot: Option<&str>,
        options: &[String],
    ) -> Result<Dump> {
        let mut command = child::command(&self.path);
        command
            .args(["--verbose", "--section=pre-data", "--section=post-data", "--encoding=UTF8"])
            .args(["--no-tablespaces", "--no-subscriptions", "--no-password"])
            // A column's name on an older server may be a keyword on a newer one.
            .arg("--quote-all-identifiers")
            .args(snapshot.map(|snapshot| format!("--snapshot={snapshot}")))
            .arg(format!("--dbname={}", programs::dbname(url, database, "")?))
            .args(options)
            .stdin(Stdio::null())
            .env("LC_ALL", "C")
            .kill_on_drop(true);
        programs::connect_through_environment(&mut command, url, database, "handover/pg_dump", major)?;
        let output = command
            .output()
            .await
            .map_err(|e| Error::external(format!("cannot run {} ({e})", self.path.display())))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let said: Vec<&str> =
                text.lines().filter(|l| l.contains("error:") || l.contains("detail:")).collect();
            let failed =
                Error::external(format!("pg_dump failed: {}", said.join("; "))).on_database(database);
            return Err(failed.hint(next_step(&text)));
        }
        let text = String::from_utf8(output.stdout).map_err(|_| {
            Error::external("pg_dump wrote text that is not UTF-8")
                .on_database(database)
                .hint("a name or comment in the source is not valid in its encoding")
        })?;
        parse(&text)
    }
}

/// What helps against what pg_dump said.
fn next_step(said: &str) -> &'static str {
    const KNOWN: &[(&[&str], &str)] = &[
        (
            &[WITHOUT_TLS],
            "this pg_dump was built without TLS, which the URL asks for: install the client programs of a distribution, or name their folder with `programs:`",
        ),
        (
            &["out of shared memory"],
            "the server's table of locks is full: raise max_locks_per_transaction there (it takes a restart) to the number of tables divided by max_connections, or exclude tables; then `handover resume`",
        ),
        (
            &["permission denied", "must be owner", "must be superuser"],
            "the role must be able to read every table (pg_read_all_data) and use every schema (scripts/grants.sql); then `handover resume`",
        ),
        (
            &["server version mismatch"],
            "name the folder of client programs that are as new as that server with `programs:`, then `handover resume`",
        ),
        (
            &["lock timeout", "could not obtain lock", "deadlock detected"],
            "somebody alters tables there: wait for that, or stop it, then `handover resume`",
        ),
        (
            &["does not exist", "cache lookup failed", "could not open relation"],
            "somebody dropped or altered something there meanwhile: stop schema changes for a moment, then `handover resume`",
        ),
        (
            &["byte sequence", "has no equivalent in encoding", "invalid memory alloc"],
            "a name, comment or expression there is no text in the database's encoding: correct that object, then `handover resume`",
        ),
        (&["snapshot"], "the copy's point in time is gone; `handover resume` takes another"),
        (
            &[
                "could not connect",
                "connection to server",
                "terminating connection",
                "server closed the connection",
                "too many clients",
                "remaining connection slots",
            ],
            "see that the server is up and has a connection to spare, then `handover resume`",
        ),
        (&["No space left", "could not write"], "free space on this machine, then `handover resume`"),
    ];
    KNOWN.iter().find(|(words, _)| words.iter().any(|word| said.contains(word))).map_or(
        "mend what pg_dump names (run it by hand against that database to see more), then `handover resume`",
        |(_, hint)| hint,
    )
}

/// What a libpq that was built without TLS says of an `sslmode` that asks for it.
const WITHOUT_TLS: &str = "SSL support is not compiled in";

/// Whether a program can connect over TLS. libpq says that it cannot before it looks for the server.
async fn speaks_tls(program: &Path) -> bool {
    let output = child::command(program)
        .env("LC_ALL", "C")
        .env("PGSSLMODE", "require")
        .args(["--no-password", "--host=/nonexistent", "--dbname=none"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    output.is_ok_and(|o| !String::from_utf8_lossy(&o.stderr).contains(WITHOUT_TLS))
}

/// Splits a plain dump into its entries.
fn parse(text: &str) -> Result<Dump> {
    let odd = |what: &str| {
        Error::external(format!("pg_dump's output is not understood: {what}"))
            .hint("name the folder of another version's client programs with `programs:`")
    };
    // Only comments outside of quotes count: a function's body may contain anything.
    let mut starts = Vec::new();
    let mut headers: Vec<Vec<&str>> = Vec::new();
    let mut open = false;
    for token in tokens(text) {
        match token {
            Token::Comment(range) => {
                let line = text[range.clone()].trim_end();
                if line.starts_with("-- TOC entry ") {
                    starts.push(range.start);
                    headers.push(vec![line]);
                    open = true;
                } else if open && let Some(header) = headers.last_mut() {
                    header.push(line);
                }
            }
            Token::Code(range) if text[range.clone()].trim().is_empty() => {}
            _ => open = false,
        }
    }
    let first = starts.first().copied().unwrap_or(text.len());
    let settings = text[..first].lines().filter(|l| !l.starts_with('\\')).collect::<Vec<_>>().join("\n");
    let mut entries = Vec::new();
    for (i, header) in headers.iter().enumerate() {
        let end = starts.get(i + 1).copied().unwrap_or(text.len());
        let mut sql = &text[starts[i]..end];
        if i + 1 == headers.len()
            && let Some(at) = sql.rfind("\n\\unrestrict ")
        {
            sql = &sql[..at];
        }
        entries.push(entry(header, sql).ok_or_else(|| odd(header.first().copied().unwrap_or_default()))?);
    }
    Ok(Dump { settings, entries: arranged(entries) })
}

/// Puts each schema's grants right after the schema: pg_dump has grants last, but a role that is no superuser
/// may give a table to its owner only when that owner may create in the schema already. And who granted is acted
/// as by SET ROLE, which a member may do; SET SESSION AUTHORIZATION is for superusers.
fn arranged(entries: Vec<Entry>) -> Vec<Entry> {
    let of_schema = |e: &Entry| e.kind == "ACL" && e.name.starts_with("SCHEMA ");
    let (mut grants, others): (Vec<Entry>, Vec<Entry>) = entries
        .into_iter()
        .map(|mut e| {
            if e.kind.ends_with("ACL") {
                e.sql = e
                    .sql
                    .lines()
                    .map(|line| match line.strip_prefix("SET SESSION AUTHORIZATION ") {
                        Some(role) => format!("SET ROLE {role}"),
                        None if line == "RESET SESSION AUTHORIZATION;" => "RESET ROLE;".into(),
                        None => line.into(),
                    })
                    .collect::<Vec<_>>()
                    .join("\n");
            }
            e
        })
        .partition(of_schema);
    let mut out = Vec::with_capacity(grants.len() + others.len());
    // Grants on a schema that the dump does not create (`public`) can come first.
    let created = |id: &i64| others.iter().any(|e| e.id == *id && e.kind == "SCHEMA");
    let (later, first) = grants.drain(..).partition(|e| e.depends.iter().any(created));
    out.extend::<Vec<Entry>>(first);
    grants = later;
    for entry in others {
        let id = entry.id;
        out.push(entry);
        out.extend(grants.extract_if(.., |e| e.depends.contains(&id)));
    }
    out.extend(grants);
    out
}

fn entry(header: &[&str], sql: &str) -> Option<Entry> {
    // -- TOC entry 215 (class 1259 OID 16390)
    let mut words = header.first()?.strip_prefix("-- TOC entry ")?.split_whitespace();
    let id = words.next()?.parse().ok()?;
    let mut numbers = words.filter_map(|w| w.trim_end_matches(')').parse::<u32>().ok());
    let (class, oid) = (numbers.next()?, numbers.next()?);
    let depends = header
        .iter()
        .find_map(|line| line.strip_prefix("-- Dependencies: "))
        .map(|ids| ids.split_whitespace().filter_map(|id| id.parse().ok()).collect())
        .unwrap_or_default();
    let named = header.iter().find_map(|line| line.strip_prefix("-- Name: "))?;
    // Names may contain anything; the fields after them are read from the end.
    let (front, _) = named.rsplit_once("; Schema: ")?;
    let (name, kind) = front.rsplit_once("; Type: ")?;
    // Entries with the header's tail, as it stands before the next one's comment.
    Some(Entry {
        id,
        class,
        oid,
        depends,
        kind: kind.into(),
        name: name.into(),
        sql: sql.trim_end().trim_end_matches("--").into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_a_hint_of_its_own() {
        for (said, hint) in [
            (
                "pg_dump: error: query failed: ERROR:  out of shared memory\nHINT:  You might need to increase",
                "max_locks_per_transaction",
            ),
            ("pg_dump: error: query failed: ERROR:  permission denied for schema closed", "pg_read_all_data"),
            ("pg_dump: error: aborting because of server version mismatch", "as new as that server"),
            (
                "pg_dump: error: query failed: ERROR:  canceling statement due to lock timeout",
                "alters tables",
            ),
            ("pg_dump: error: query failed: ERROR:  cache lookup failed for index 5", "schema changes"),
            (
                "pg_dump: error: query failed: ERROR:  invalid byte sequence for encoding \"UTF8\": 0xff",
                "no text",
            ),
            (
                "pg_dump: error: connection to server at \"x\" failed: FATAL: sorry, too many clients already",
                "connection to spare",
            ),
            ("pg_dump: error: odd", "by hand"),
        ] {
            assert!(next_step(said).contains(hint), "{said}: {}", next_step(said));
        }
    }

    const TEXT: &str = "--\n-- PostgreSQL database dump\n--\n\n\\restrict abc\n\nSET a = 1;\n\n--\n-- TOC entry 7 (class 1255 OID 12)\n-- Name: f(); Type: FUNCTION; Schema: odd; Type: X; Owner: app\n--\n\nCREATE FUNCTION f() AS $$\n--\n-- TOC entry 9 (class 1 OID 1)\n-- Name: no; Type: TABLE; Schema: -; Owner: -\n--\n\\unrestrict x\n$$;\n\n--\n-- TOC entry 8 (class 0 OID 0)\n-- Dependencies: 7 12\n-- Name: FUNCTION f(); Type: COMMENT; Schema: public; Owner: \n--\n\nCOMMENT ON FUNCTION f() IS 'x';\n\n-- Completed on x\n\n--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict abc\n";

    #[test]
    fn a_dump_is_cut_at_its_own_comments_only() {
        let dump = parse(TEXT).unwrap();
        assert!(dump.settings.contains("SET a = 1;") && !dump.settings.contains('\\'));
        let kinds: Vec<_> = dump.entries.iter().map(|e| (e.id, e.kind.as_str(), e.name.as_str())).collect();
        assert_eq!(kinds, [(7, "FUNCTION", "f()"), (8, "COMMENT", "FUNCTION f()")]);
        assert!(dump.entries[0].sql.contains("\\unrestrict x\n$$;"));
        assert_eq!(dump.entries[1].depends, [7, 12]);
        assert!(dump.entries[1].sql.contains("COMMENT ON") && !dump.entries[1].sql.contains("unrestrict"));
        assert_eq!((dump.entries[0].class, dump.entries[0].oid), (1255, 12));
    }
}
