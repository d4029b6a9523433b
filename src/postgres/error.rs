//! What a Postgres error means to the engine, by its SQLSTATE
//! (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).

use crate::error::{Class, Error};
use std::error::Error as _;
use tokio_postgres::error::{DbError, SqlState};

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
    let class = class_of(code);
    let mut message = db.message().to_owned();
    // The detail of an integrity violation quotes row values, which may be secrets (tokens, addresses).
    if !code.code().starts_with("23")
        && let Some(detail) = db.detail()
    {
        message = format!("{message} ({detail})");
    }
    if let Some(constraint) = db.constraint() {
        message = format!("{message} [constraint {constraint}]");
    }
    let message = format!("{message} [SQLSTATE {}]", code.code());
    let error = Error::new(class, message);
    match (hint_for(class, code), db.hint()) {
        (Some(hint), _) => error.hint(hint),
        (None, Some(server)) => error.hint(format!("the server suggests: {server}")),
        (None, None) => error,
    }
}

/// The class an SQLSTATE belongs to.
#[must_use]
pub fn class_of(code: &SqlState) -> Class {
    let text = code.code();
    match code {
        &SqlState::LOCK_NOT_AVAILABLE
        | &SqlState::T_R_DEADLOCK_DETECTED
        | &SqlState::T_R_SERIALIZATION_FAILURE
        | &SqlState::OBJECT_IN_USE => Class::Contention,
        &SqlState::QUERY_CANCELED => Class::Timeout,
        &SqlState::ADMIN_SHUTDOWN
        | &SqlState::CRASH_SHUTDOWN
        | &SqlState::CANNOT_CONNECT_NOW
        | &SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT => Class::Connection,
        &SqlState::INSUFFICIENT_PRIVILEGE
        | &SqlState::INVALID_PASSWORD
        | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION => Class::Privilege,
        _ if text.starts_with("08") => Class::Connection,
        _ if text.starts_with("53") || text.starts_with("58") => Class::Resources,
        _ => Class::Data,
    }
}

fn hint_for(class: Class, code: &SqlState) -> Option<&'static str> {
    Some(match (class, code) {
        (_, &SqlState::DISK_FULL) => {
            "the server's disk is full: free space or enlarge it, then `handover resume`"
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
    // The driver reports a bad value for a parameter or column without a server round trip.
    let connection = error.is_closed() || text.contains("connect") || text.contains("communicating");
    if connection {
        Error::new(Class::Connection, format!("no connection ({text})"))
            .hint("see that the server is up and reachable, then `handover resume`")
    } else {
        Error::data(text)
    }
}
