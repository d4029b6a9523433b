//! Where in a file something failed, and what to do about it.

use crate::script::{Script, Statement, line_of};
use handover_core::error::{Class, Error};
use handover_postgres::quote_ident;
use tokio_postgres::error::{ErrorPosition, SqlState};

/// Puts an error at its line of the file. The server's position counts characters of the statement we sent.
pub fn place(
    script: &Script,
    statement: &Statement,
    error: &tokio_postgres::Error,
    ours: Error,
    together: bool,
) -> Error {
    let line = match error.as_db_error().and_then(|db| db.position()) {
        Some(ErrorPosition::Original(position)) => {
            let before = statement
                .sql
                .chars()
                .take((*position as usize).saturating_sub(1))
                .map(char::len_utf8)
                .sum::<usize>();
            line_of(&script.sql, statement.start + before)
        }
        _ => statement.line,
    };
    let hint = match error.code() {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Some(
            "let the statement run as the owner of what it changes: set `role:` to that role, and grant it to the plan's user",
        ),
        Some(&SqlState::ACTIVE_SQL_TRANSACTION) => Some(
            "put `-- handover: no-transaction` on the file's first line (in a copy under `override:` if it is a vendor's)",
        ),
        _ => None,
    };
    let ours = match hint {
        Some(hint) => Error::new(ours.class(), ours.message())
            .on_database(ours.place().database.as_deref().unwrap_or(""))
            .hint(hint),
        None => ours,
    };
    let next = if together {
        "nothing of it was kept; mend the file, or put a corrected copy into `override:`, then `handover resume`"
    } else {
        "the statements before it stay done; mend this one (in a copy under `override:` if it is a vendor's), then `handover resume`"
    };
    // What the server suggests says what is wrong, and not how the run goes on.
    let both = match ours.next_step() {
        Some(first) => format!("{first}; {next}"),
        None => next.to_owned(),
    };
    Error::new(ours.class(), ours.message())
        .in_file(&script.path, Some(line))
        .on_database(ours.place().database.as_deref().unwrap_or(""))
        .hint(both)
}

/// A role that cannot be taken on.
pub fn role_error(error: &Error, role: &str) -> Error {
    Error::new(Class::Privilege, format!("cannot act as role `{role}`: {}", error.message()))
        .on_database(error.place().database.as_deref().unwrap_or(""))
        .hint(format!("grant it to the plan's user: grant {} to …", quote_ident(role)))
}

/// A statement of which nobody can tell whether it took effect.
pub fn unknown(script: &Script, statement: &Statement, why: &str, database: &str) -> Error {
    Error::data(format!("this statement was interrupted, and it cannot be told whether it took effect ({why})"))
        .in_file(&script.path, Some(statement.line))
        .on_database(database)
        .hint("look at the database; then put `-- handover: repeatable` on the line before the statement if it may run again, or `-- handover: done-if select …` with a query that is true when its effect is there, and `handover resume`")
}
