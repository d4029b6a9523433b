//! The roles on a local server: the same as in production, made by the same script.

use super::postgres::PostgresServer;
use super::volume::Volume;
use handover_core::{Error, Result};

/// The documented script that gives Handover what it needs in one database (see `docs/grants.md`).
pub const GRANTS: &str = include_str!("../../../scripts/grants.sql");

/// The role that Handover works as.
pub const ENGINE_ROLE: &str = "handover";
/// The role that may only read, for dry runs.
pub const READER_ROLE: &str = "handover_reader";
/// The role that owns the tables of local databases, as an application's role would.
pub const OWNER_ROLE: &str = "app";

impl PostgresServer {
    /// Creates a database that [`OWNER_ROLE`] owns, as a copy of `template` if one is named, and
    /// [grants](Self::grant) what Handover needs. Nobody may be connected to the template meanwhile.
    ///
    /// # Errors
    /// When the database exists, or the template does not or is in use.
    pub async fn create_database(&self, name: &str, template: Option<&str>) -> Result<()> {
        self.set_password(OWNER_ROLE, &self.inner.passwords.owner).await?;
        let mut sql = format!("create database {} owner {OWNER_ROLE}", identifier(name));
        if self.inner.limited {
            sql.push_str(&format!(" tablespace {}", Volume::TABLESPACE));
        }
        if let Some(template) = template {
            sql.push_str(&format!(" template {}", identifier(template)));
        }
        self.admin("postgres")
            .await?
            .batch_execute(&sql)
            .await
            .map_err(|e| self.failed("creating a database", &e))?;
        self.grant(name, Some(OWNER_ROLE)).await
    }

    /// Drops a database, disconnecting whoever uses it.
    ///
    /// # Errors
    /// When the server refuses, for instance because a replication slot belongs to the database.
    pub async fn drop_database(&self, name: &str) -> Result<()> {
        let sql = format!("drop database if exists {} with (force)", identifier(name));
        self.admin("postgres")
            .await?
            .batch_execute(&sql)
            .await
            .map_err(|e| self.failed("dropping a database", &e))
    }

    /// Applies the grant script to `database`, whose tables belong to `owner` (`None` for a control database,
    /// which has no tables but Handover's), and gives the roles their passwords.
    ///
    /// # Errors
    /// When the owner does not exist, or the database does not.
    pub async fn grant(&self, database: &str, owner: Option<&str>) -> Result<()> {
        let client = self.admin(database).await?;
        let one_at_a_time = self.inner.roles.lock().await;
        let settings = [
            ("role", ENGINE_ROLE),
            ("reader", READER_ROLE),
            ("owner", owner.unwrap_or("none")),
            ("replicate", "on"),
        ];
        for (name, value) in settings {
            client
                .execute("select set_config('handover.grant_' || $1, $2, false)", &[&name, &value])
                .await
                .map_err(|e| self.failed("granting", &e))?;
        }
        client.batch_execute(GRANTS).await.map_err(|e| self.failed("granting", &e))?;
        drop(one_at_a_time);
        self.set_password(ENGINE_ROLE, &self.inner.passwords.engine).await?;
        self.set_password(READER_ROLE, &self.inner.passwords.reader).await
    }

    /// Makes sure that a role exists and may log in with this password.
    async fn set_password(&self, role: &str, password: &str) -> Result<()> {
        let mut done = self.inner.roles.lock().await;
        if done.contains(role) {
            return Ok(());
        }
        let client = self.admin("postgres").await?;
        let exists = client
            .query_one("select exists (select from pg_roles where rolname = $1)", &[&role])
            .await
            .and_then(|row| row.try_get::<_, bool>(0))
            .map_err(|e| self.failed("looking for a role", &e))?;
        let verb = if exists { "alter" } else { "create" };
        // Generated passwords are letters and digits.
        client
            .batch_execute(&format!("{verb} role {} login password '{password}'", identifier(role)))
            .await
            .map_err(|e| self.failed("setting a password", &e))?;
        done.insert(role.to_owned());
        Ok(())
    }

    /// The URL of `database` for [`ENGINE_ROLE`]. Holds a password.
    #[must_use]
    pub fn handover_url(&self, database: &str) -> String {
        self.url_for(ENGINE_ROLE, &self.inner.passwords.engine, database)
    }

    /// The URL of `database` for [`READER_ROLE`]. Holds a password.
    #[must_use]
    pub fn reader_url(&self, database: &str) -> String {
        self.url_for(READER_ROLE, &self.inner.passwords.reader, database)
    }

    /// The URL of `database` for [`OWNER_ROLE`]. Holds a password.
    #[must_use]
    pub fn owner_url(&self, database: &str) -> String {
        self.url_for(OWNER_ROLE, &self.inner.passwords.owner, database)
    }

    /// Runs `sql` in `database` as [`OWNER_ROLE`], as the application would.
    ///
    /// # Errors
    /// When Postgres refuses it.
    pub async fn execute_as_owner(&self, database: &str, sql: &str) -> Result<()> {
        let (client, connection) = tokio_postgres::connect(&self.owner_url(database), tokio_postgres::NoTls)
            .await
            .map_err(|e| self.failed("connecting", &e))?;
        let connection = tokio::spawn(connection);
        client.batch_execute(sql).await.map_err(|e| self.failed("executing", &e))?;
        drop(client);
        // Waits for the goodbye, so that the database can serve as a template right away.
        connection
            .await
            .map_err(|e| Error::internal(format!("a connection broke off: {e}")))?
            .map_err(|e| self.failed("closing", &e))
    }
}

/// A quoted identifier.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
