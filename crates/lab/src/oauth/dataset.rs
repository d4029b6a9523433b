//! Blue's data: an OAuth engine's 1.x tables, filled on the server, the same at every run.
//!
//! The rules by which `sql/fill.sql` makes a token from its number are repeated here, because the traffic's
//! client knows its tokens without ever reading the database.

use crate::PostgresServer;
use handover_core::error::Result;
use sha2::{Digest, Sha256};

const SCHEMA: &str = include_str!("sql/schema.sql");
const FILL: &str = include_str!("sql/fill.sql");

/// The database's name on both servers.
pub const DATABASE: &str = "oauth";

/// How much data there is, and which of it is sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dataset {
    /// Access tokens.
    pub rows: u64,
}

impl Dataset {
    /// That many access tokens; at least 1000, so that every kind of trouble is among them.
    #[must_use]
    pub fn new(rows: u64) -> Self {
        Dataset { rows: rows.max(1000) }
    }

    /// Applications that ask for tokens.
    #[must_use]
    pub fn clients(self) -> u64 {
        (self.rows / 400).clamp(20, 2000)
    }

    /// People.
    #[must_use]
    pub fn subjects(self) -> u64 {
        (self.rows / 10).max(100)
    }

    fn consents(self) -> u64 {
        (self.rows / 4).max(500) / 2 * 2
    }

    /// Creates the tables in a database of `server` and fills them, as the application's role.
    pub async fn load(self, server: &PostgresServer, database: &str) -> Result<()> {
        server.execute_as_owner(database, SCHEMA).await?;
        let fill = FILL
            .replace("$rows", &self.rows.to_string())
            .replace("$clients", &self.clients().to_string())
            .replace("$subjects", &self.subjects().to_string())
            .replace("$consents", &self.consents().to_string());
        server.execute_as_owner(database, &fill).await
    }

    /// The `i`th token, if it is sound: its client and consent exist, it was not revoked and has not expired.
    #[must_use]
    pub fn token(self, i: u64) -> Option<Preloaded> {
        let j = i % self.consents();
        if i >= self.rows || j % 100 == 8 || i % 1000 == 14 || i % 10 == 3 || i % 50 == 21 {
            return None;
        }
        Some(Preloaded {
            access: format!("access-{i}"),
            refresh: i.is_multiple_of(2).then(|| format!("refresh-{i}")),
            subject: format!("user-{}", j % self.subjects()),
            tenant: format!("tenant-{}", j % 97),
        })
    }
}

/// A token that was there before the traffic began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preloaded {
    /// The access token.
    pub access: String,
    /// The refresh token, which every other one has.
    pub refresh: Option<String>,
    /// Whose it is.
    pub subject: String,
    /// A claim of its consent.
    pub tenant: String,
}

/// What a database knows of a token instead of its text.
#[must_use]
pub fn signature(token: &str) -> String {
    Sha256::digest(token.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_tokens_are_sound_and_every_kind_of_trouble_is_there() {
        let data = Dataset::new(1000);
        let sound = (0..1000).filter(|i| data.token(*i).is_some()).count();
        assert!((850..880).contains(&sound), "{sound}");
        for trouble in [8, 14, 3, 21] {
            assert_eq!(data.token(trouble), None);
        }
        assert_eq!(data.token(1000), None, "there are only so many");
    }
}
