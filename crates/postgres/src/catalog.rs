//! What belongs to whom in a database: the one definition of the application's tables and sequences, and of what is
//! ours. Everything that copies, captures, freezes, replicates, compares or counts them asks here, so that no two
//! steps of a plan can mean different tables.
//!
//! The application's are the relations that are not temporary, not in a schema of the server's or ours, and not
//! members of an extension: those come with `CREATE EXTENSION` and belong to whoever installed it, so that we may
//! neither lock them nor load them. (The rows of an extension's configuration tables, `pg_extension.extconfig`,
//! are the application's all the same; `pg_dump` carries them, and no lock of ours covers them.) Foreign tables
//! have their rows elsewhere: no kind of ours that names `'r', 'p'` sees them.

use super::ours::OURS;
use super::{Session, TableName};
use handover_core::error::Result;
use std::fmt;

/// A condition on a schema `n` of `pg_namespace`, for a place in `format!`.
#[derive(Debug, Clone, Copy)]
pub enum Schemas {
    /// It is ours.
    Ours,
    /// It is the application's.
    User,
}

/// Whether a schema `n` of `pg_namespace` is ours.
pub const OUR_SCHEMAS: Schemas = Schemas::Ours;

/// Whether a schema `n` of `pg_namespace` is the application's.
pub const USER_SCHEMAS: Schemas = Schemas::User;

impl fmt::Display for Schemas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ours = is_ours("n");
        match self {
            Schemas::Ours => f.write_str(&ours),
            Schemas::User => {
                write!(f, "n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and not ({ours})")
            }
        }
    }
}

/// Whether a schema is ours, by another alias of `pg_namespace` than `n`.
#[must_use]
pub fn is_ours(alias: &str) -> String {
    format!("{alias}.nspname in ('{OURS}', '{OURS}_queue')")
}

/// Not a member of an extension: condition on `(class, oid)`.
#[must_use]
pub fn no_member(class: &str, oid: &str) -> String {
    format!(
        "not exists (select from pg_depend e where e.classid = '{class}'::regclass and e.objid = {oid} and e.deptype = 'e')"
    )
}

/// Whether a relation `c` in a schema `n` is the application's and of one of the kinds (`'r', 'p'`), as a condition.
#[must_use]
pub fn is_application(kinds: &str) -> String {
    format!(
        "c.relkind in ({kinds}) and c.relpersistence <> 't' and {USER_SCHEMAS} and {}",
        no_member("pg_class", "c.oid")
    )
}

/// The application's relations of some kinds: what follows FROM, with a WHERE that can be gone on with `and`.
#[must_use]
pub fn application(kinds: &str) -> String {
    format!("pg_class c join pg_namespace n on n.oid = c.relnamespace where {}", is_application(kinds))
}

/// The application's tables with rows of their own, and those that are partitioned: in the order of their names.
pub async fn tables(session: &Session) -> Result<Vec<TableName>> {
    names(session, "'r', 'p'").await
}

/// The application's sequences, in the order of their names.
pub async fn sequences(session: &Session) -> Result<Vec<TableName>> {
    names(session, "'S'").await
}

async fn names(session: &Session, kinds: &str) -> Result<Vec<TableName>> {
    let sql = format!(
        "select n.nspname::text, c.relname::text from {}
         order by n.nspname::text collate \"C\", c.relname::text collate \"C\"",
        application(kinds)
    );
    let rows = session.query(&sql, &[]).await?;
    Ok(rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}
