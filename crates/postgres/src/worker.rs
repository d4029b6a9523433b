//! Whose rights count. Who looks may be another role than the one that executes the plan, and what the one may do says
//! nothing about the other.

use super::Session;
use handover_core::error::Result;

/// The role that executes the plan in a database, as far as a session there tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Worker {
    /// It is the session's own.
    Own,
    /// It is another, known by the URL that it logs in with.
    Named(String),
    /// It is another, and nothing says which: the variable of its URL is not set, or the URL names no role.
    Unknown,
}

impl Worker {
    /// Its name, where it is not the session's own; for SQL that says `coalesce($1, current_user::text)`. None of
    /// [`Worker::Unknown`], too, which such SQL must not be asked for.
    #[must_use]
    pub fn named(&self) -> Option<&str> {
        match self {
            Worker::Named(role) => Some(role),
            Worker::Own | Worker::Unknown => None,
        }
    }

    /// Its name; none when it is not known.
    ///
    /// # Errors
    /// What the server says.
    pub async fn role(&self, session: &Session) -> Result<Option<String>> {
        Ok(match self {
            Worker::Own => Some(session.query_one("select current_user::text", &[]).await?.get(0)),
            Worker::Named(role) => Some(role.clone()),
            Worker::Unknown => None,
        })
    }
}
