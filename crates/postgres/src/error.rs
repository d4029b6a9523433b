//! What a Postgres error means to the engine, by its SQLSTATE
//! (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).

use super::ours::OURS;
use handover_core::error::{Class, Error};
use std::error::Error as _;
use tokio_postgres::error::{DbError, SqlState};

/// What helps when the server's table of locks is full.
const LOCKS_FULL: &str = "the server's table of locks is full, for everybody: `handover doctor` tells which max_locks_per_transaction it needs; set it there, restart that server, then `handover resume`";

/// Whether a server had no room for one more lock. The same code also says that there is no memory for a statement.
#[must_use]
pub fn is_out_of_locks(error: &Error) -> bool {
    error.sqlstate() == Some(SqlState::OUT_OF_MEMORY.code()) && error.next_step() == Some(LOCKS_FULL)
}

/// Classes of SQLSTATE that speak of the values a statement was given: more rows than one, data exceptions,
/// integrity constraints, a view's check option.
const OF_VALUES: [&str; 4] = ["21", "22", "23", "44"];
/// What functions and triggers of the application raise: an exception, no row, several rows, a failed assertion.
const RAISED: [&str; 4] = ["P0001", "P0002", "P0003", "P0004"];

/// What a message begins with that a block of ours passes on.
pub const PASSED_ON: &str = "handover: ";

/// Whether an error of this SQLSTATE is about the values that a statement was given or met, and not about the session,
/// the server, the role, the schema or the statement. Such values may be secrets, and its texts may quote them.
#[must_use]
pub fn is_about_values(sqlstate: &str) -> bool {
    RAISED.contains(&sqlstate) || OF_VALUES.iter().any(|class| sqlstate.starts_with(class))
}

/// Turns a driver error into ours. `database` is the name in the plan.
pub fn from_postgres(error: &tokio_postgres::Error, database: &str) -> Error {
    let mapped = match error.as_db_error() {
        Some(db) => from_db_error(db),
        None => from_driver(error),
    };
    mapped.on_database(database)
}

fn from_db_error(db: &DbError) -> Error {
    let code = db.code();
    let class = Class::of_sqlstate(code.code());
    // What speaks of data quotes it, and a row's values may be secrets (tokens, addresses): data exceptions in
    // their message, integrity and check-option violations in their detail, what a function raises anywhere.
    let of_values = is_about_values(code.code());
    let raised = raised_by(db);
    let mut message = match &raised {
        Some(place) => {
            format!("{place} raised an error, whose text may hold values of a row; the server's log has it")
        }
        _ if code.code().starts_with("22") => without_quotations(db.message()),
        _ => db.message().strip_prefix(PASSED_ON).unwrap_or(db.message()).to_owned(),
    };
    if !of_values
        && raised.is_none()
        && let Some(detail) = db.detail()
    {
        message = format!("{message} ({detail})");
    }
    if raised.is_none()
        && let Some(constraint) = db.constraint()
    {
        message = format!("{message} [constraint {constraint}]");
    }
    let message = format!("{message} [SQLSTATE {}]", code.code());
    let error = Error::new(class, message).with_sqlstate(code.code());
    // Only a person or another program asks for this; the text is the only thing that tells, and where it is
    // translated the general hint is still true.
    if code == &SqlState::QUERY_CANCELED && db.message().contains("user request") {
        return error.hint("somebody cancelled the statement (pg_cancel_backend); `handover resume` goes on");
    }
    // The same code says that there is no memory for a statement.
    if code == &SqlState::OUT_OF_MEMORY && db.hint().is_some_and(|h| h.contains("max_locks_per_transaction"))
    {
        return error.hint(LOCKS_FULL);
    }
    match (hint_for(class, code), db.hint()) {
        (Some(hint), _) => error.hint(hint),
        (None, Some(_)) if raised.is_some() => error,
        (None, Some(server)) => error.hint(format!("the server suggests: {server}")),
        (None, None) => error,
    }
}

/// Who raised an error, in words; none where the server itself did, or a routine of ours. The name of the server's function
/// that reports it is in every error, and is not translated.
/// (<https://www.postgresql.org/docs/current/protocol-error-fields.html>)
fn raised_by(db: &DbError) -> Option<String> {
    let code = db.code().code();
    let raised = db.routine() == Some("exec_stmt_raise") || RAISED.contains(&code) || code.starts_with("38");
    if !raised || db.message().starts_with(PASSED_ON) {
        return None;
    }
    place_of(db.where_().unwrap_or_default())
}

/// The routine of an error's context, `PL/pgSQL function name(arguments) line 3 at RAISE`: whatever the words around it are
/// in the server's language. None where it is one of ours.
fn place_of(context: &str) -> Option<String> {
    let first = context.lines().next().unwrap_or_default();
    let line = first.split(|c: char| !c.is_ascii_digit()).rfind(|number| !number.is_empty());
    if first.contains("inline_code_block") {
        return Some(format!("the statement's block (line {} of it)", line.unwrap_or("?")));
    }
    let ours = first.match_indices(&format!("{OURS}.")).any(|(at, _)| {
        !first[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '"'))
    });
    if ours {
        return None;
    }
    let name = first.split_once('(').and_then(|(before, _)| before.split_whitespace().last());
    Some(name.map_or_else(|| "a function".to_owned(), |name| format!("the function {name}")))
}

fn hint_for(class: Class, code: &SqlState) -> Option<&'static str> {
    Some(match (class, code) {
        (_, &SqlState::DISK_FULL) => {
            "the server's disk is full: free space or enlarge it, then `handover resume`"
        }
        // Of shared memory, which only the table of locks uses up.
        (_, &SqlState::OUT_OF_MEMORY) => {
            "if shared memory is out, the server's table of locks is full: raise max_locks_per_transaction there (it takes a restart), or lock fewer tables at once; then `handover resume`"
        }
        (_, &SqlState::TOO_MANY_CONNECTIONS) => {
            "raise max_connections or lower `jobs`, then `handover resume`"
        }
        (_, &SqlState::INVALID_PASSWORD | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION) => {
            "check user and password in the URL's environment variable, and the server's pg_hba.conf"
        }
        (_, &SqlState::INVALID_CATALOG_NAME) => "create the database, or correct its name in the URL",
        (Class::Privilege, _) => {
            "run scripts/grants.sql on this database; docs/grants.md says what each grant is for"
        }
        (Class::Contention, _) => "another session holds a lock; `handover resume` tries again",
        (Class::Timeout, _) => {
            "a timeout ended the statement; raise it in the plan, or find what blocked it, then `handover resume`"
        }
        (Class::Connection, _) => "see that the server is up, then `handover resume`",
        (Class::Resources, _) => "the server ran out of a resource; mend it, then `handover resume`",
        _ => return None,
    })
}

/// A message without what it quotes. Values are quoted as they are, so that only the first opening mark and
/// the last closing one are sure to be marks; translated servers use others than English ones.
fn without_quotations(message: &str) -> String {
    let Some(first) = message.find(['"', '\u{201e}', '\u{ab}']) else { return message.to_owned() };
    let last =
        message.char_indices().rev().find(|(_, c)| matches!(c, '"' | '\u{201c}' | '\u{201d}' | '\u{bb}'));
    let rest = match last {
        Some((last, mark)) if last > first => &message[last + mark.len_utf8()..],
        // Never closed: the server cut it off.
        _ => "",
    };
    format!("{}\"…\"{rest}", &message[..first])
}

fn from_driver(error: &tokio_postgres::Error) -> Error {
    let mut text = error.to_string();
    if let Some(source) = error.source() {
        text = format!("{text}: {source}");
    }
    if text.contains("certificate") {
        return Error::usage(text).hint(
            "connect by the name that the certificate was issued for, and name a private certificate authority \
             as `sslrootcert=/path/ca.pem` in the URL",
        );
    }
    if text.contains("password missing") {
        return Error::new(Class::Privilege, "the server asks for a password and the URL has none")
            .hint("put the password into the URL's environment variable");
    }
    if text.contains("does not support TLS") {
        return Error::usage("the server does not speak TLS, which the URL's sslmode asks for")
            .hint("switch TLS on in the server, or use sslmode=prefer or disable in the URL");
    }
    // The driver reports a bad value for a parameter or column without a server round trip.
    let connection = error.is_closed() || text.contains("connect") || text.contains("communicating");
    if connection {
        Error::new(Class::Connection, format!("no connection ({text})"))
            .hint("see that the server is up and reachable, then `handover resume`")
    } else {
        Error::data(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotations_are_left_out() {
        for (message, kept) in [
            (
                "invalid input syntax for type integer: \"s3cret\"",
                "invalid input syntax for type integer: \"…\"",
            ),
            (
                "value \"s3\"cret\" is out of range for type integer",
                "value \"…\" is out of range for type integer",
            ),
            (
                "ungültige Eingabesyntax für Typ integer: „s3cret“",
                "ungültige Eingabesyntax für Typ integer: \"…\"",
            ),
            ("open \"s3cret", "open \"…\""),
            ("division by zero", "division by zero"),
        ] {
            assert_eq!(without_quotations(message), kept);
        }
    }

    #[test]
    fn who_raised_an_error_is_told_in_any_language() {
        for (context, place) in [
            ("PL/pgSQL function refuse() line 3 at RAISE", Some("the function refuse")),
            (
                "PL/pgSQL function public.f(integer) line 1 at RAISE\nSQL statement",
                Some("the function public.f"),
            ),
            (
                "PL/pgSQL function inline_code_block line 7 at RAISE",
                Some("the statement's block (line 7 of it)"),
            ),
            (&format!("PL/pgSQL-Funktion {OURS}.refuse_1a() Zeile 3 bei RAISE"), None),
            ("PL/pgSQL関数handover.refuse_1a()の3行目のRAISE", None),
            ("PL/pgSQL function my_handover.f() line 3 at RAISE", Some("the function my_handover.f")),
            ("", Some("a function")),
        ] {
            assert_eq!(place_of(context).as_deref(), place, "{context}");
        }
    }
}
