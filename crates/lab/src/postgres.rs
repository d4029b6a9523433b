//! One local Postgres server.

use super::account::Account;
use super::blocking::blocking;
use super::guardian::{Guardian, Verb};
use super::password::password;
use super::port;
use super::programs::{Programs, Version};
use super::volume::Volume;
use handover_core::{Error, Result};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FUNCTIONS: &str = include_str!("postgres.sh");

/// How to start a server.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    programs: Programs,
    durable: bool,
    settings: Vec<(String, String)>,
    volume: Option<Volume>,
}

impl PostgresOptions {
    /// A server of this version, fast rather than durable.
    #[must_use]
    pub fn new(programs: Programs) -> Self {
        PostgresOptions { programs, durable: false, settings: Vec::new(), volume: None }
    }

    /// Whether commits survive a loss of power (`fsync`). They survive `kill` either way.
    #[must_use]
    pub fn durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    /// One setting of `postgresql.conf`; the last of a name wins, over ours too.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Puts the server's databases (not its WAL, nor its catalogs of roles) on a volume of this many bytes, so
    /// that the disk can be seen full. An empty database takes 8 MB. Needs Linux with
    /// util-linux, and root or user namespaces.
    #[must_use]
    pub fn limited_space(mut self, bytes: u64) -> Self {
        self.volume = Some(Volume::new(bytes));
        self
    }

    fn configuration(&self, port: u16) -> String {
        let mut lines = vec![("listen_addresses", "127.0.0.1"), ("unix_socket_directories", "")];
        lines.extend([
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
            ("max_connections", "200"),
            ("shared_buffers", "128MB"),
            ("max_wal_size", "2GB"),
            ("wal_level", "logical"),
            ("max_wal_senders", "20"),
            ("max_replication_slots", "20"),
            ("max_slot_wal_keep_size", "2GB"),
            ("max_worker_processes", "32"),
            ("max_logical_replication_workers", "16"),
            ("max_sync_workers_per_subscription", "4"),
            ("max_prepared_transactions", "50"),
            ("max_locks_per_transaction", "256"),
            ("log_lock_waits", "on"),
            ("log_line_prefix", "%m [%p] %u@%d "),
        ]);
        if !self.durable {
            // A crash of the server alone loses nothing with these; only one of the machine does.
            lines.extend([("fsync", "off"), ("full_page_writes", "off")]);
        }
        lines.extend(self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let mut text = format!("port = {port}\n");
        for (name, value) in lines {
            text.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        text
    }
}

/// A running server. Clones are handles to the same one; when the last is dropped, or this process ends in
/// whatever way, the server is stopped and its data removed.
#[derive(Debug, Clone)]
pub struct PostgresServer {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    guardian: Guardian,
    programs: Programs,
    port: u16,
    pub(super) passwords: Passwords,
    /// Roles whose password is set. Its lock also keeps changes of roles apart, which Postgres answers with
    /// "tuple concurrently updated".
    pub(super) roles: tokio::sync::Mutex<HashSet<String>>,
    /// Whether databases go to a volume of limited size.
    pub(super) limited: bool,
}

/// One generated password for each role.
pub(super) struct Passwords {
    pub(super) admin: String,
    pub(super) engine: String,
    pub(super) reader: String,
    pub(super) owner: String,
}

impl std::fmt::Debug for Passwords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passwords")
    }
}

impl PostgresServer {
    /// Creates a server in a new folder, starts it and waits until it answers.
    ///
    /// # Errors
    /// When there is no account to run it as, or `initdb` or `pg_ctl` fails; the hint holds the end of the log.
    pub async fn start(options: PostgresOptions) -> Result<Self> {
        let server = blocking({
            let options = options.clone();
            move || Self::start_blocking(&options)
        })
        .await?;
        if let Some(volume) = &options.volume {
            let sql = format!("create tablespace {} location '{}'", Volume::TABLESPACE, volume.mount_point());
            let client = server.admin("postgres").await?;
            client.batch_execute(&sql).await.map_err(|e| server.failed("creating a tablespace", &e))?;
        }
        Ok(server)
    }

    fn start_blocking(options: &PostgresOptions) -> Result<Self> {
        let account = Account::choose(&["postgres"])?;
        let folder = account.folder(&format!("postgres-{}", options.programs.version().major))?;
        let bin = options.programs.folder().display().to_string();
        let guardian =
            Guardian::start(&account, &folder, &[("bin", &bin)], FUNCTIONS, options.volume.as_ref())?;
        let passwords =
            Passwords { admin: password(), engine: password(), reader: password(), owner: password() };
        account.write(&folder.join("password"), &passwords.admin)?;
        guardian.ask(Verb::Prepare).map_err(|e| e.context("cannot create a Postgres server"))?;

        let mut attempt = 1;
        let port = loop {
            let port = port::free()?;
            account.write(&folder.join("handover.conf"), &options.configuration(port))?;
            match guardian.ask(Verb::Start) {
                Ok(()) => break port,
                // Somebody was faster to take the port.
                Err(_) if attempt < 5 && guardian.log_tail().contains("Address already in use") => {
                    attempt += 1
                }
                Err(e) => return Err(e.context("cannot start a Postgres server")),
            }
        };
        let inner = Inner {
            guardian,
            programs: options.programs.clone(),
            port,
            passwords,
            roles: Default::default(),
            limited: options.volume.is_some(),
        };
        Ok(PostgresServer { inner: Arc::new(inner) })
    }

    /// Stops the server in good order, keeping its data; clients are disconnected.
    ///
    /// # Errors
    /// When it cannot be stopped, for instance because it is not running.
    pub async fn stop(&self) -> Result<()> {
        self.ask(Verb::Stop).await
    }

    /// Stops the server as a crash would: no checkpoint, and recovery at the next start.
    ///
    /// # Errors
    /// When it cannot be stopped, for instance because it is not running.
    pub async fn kill(&self) -> Result<()> {
        self.ask(Verb::Kill).await
    }

    /// Starts the server again after [`stop`](Self::stop) or [`kill`](Self::kill), on the same port.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_again(&self) -> Result<()> {
        self.ask(Verb::Start).await
    }

    /// Stops the server in good order and starts it again.
    ///
    /// # Errors
    /// When either fails.
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.start_again().await
    }

    /// Leaves the server running, and its data in place, when this process ends. Gives the command that stops
    /// it and removes its data.
    ///
    /// # Errors
    /// When the guardian is gone.
    pub async fn keep(&self) -> Result<String> {
        self.ask(Verb::Keep).await?;
        Ok(self.inner.guardian.remove_command())
    }

    async fn ask(&self, verb: Verb) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.guardian.ask(verb)).await
    }

    /// The URL of `database` for the superuser. Holds a password.
    #[must_use]
    pub fn admin_url(&self, database: &str) -> String {
        self.url_for("postgres", &self.inner.passwords.admin, database)
    }

    pub(super) fn url_for(&self, role: &str, password: &str, database: &str) -> String {
        format!("postgres://{role}:{password}@127.0.0.1:{}/{database}", self.inner.port)
    }

    /// A connection of the superuser's to `database`, run by the current tokio runtime.
    ///
    /// # Errors
    /// When the server does not let it in.
    pub async fn admin(&self, database: &str) -> Result<tokio_postgres::Client> {
        let (client, connection) = tokio_postgres::connect(&self.admin_url(database), tokio_postgres::NoTls)
            .await
            .map_err(|e| self.failed("connecting", &e))?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub(super) fn failed(&self, doing: &str, error: &tokio_postgres::Error) -> Error {
        let detail = error
            .as_db_error()
            .map_or_else(|| error.to_string(), |e| format!("{} ({})", e.message(), e.code().code()));
        Error::external(format!("{doing} on the local Postgres {}: {detail}", self.version()))
            .hint(self.inner.guardian.log_tail())
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.inner.port
    }

    /// The server's version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.inner.programs.version()
    }

    /// The programs that the server runs from, `psql` and `pg_dump` among them.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.inner.programs
    }

    /// The folder of everything that belongs to the server.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.inner.guardian.folder()
    }

    /// The data folder.
    #[must_use]
    pub fn data_folder(&self) -> PathBuf {
        self.folder().join("data")
    }

    /// What the server has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.folder().join("server.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The guardian's process id.
    #[must_use]
    pub fn guardian_pid(&self) -> u32 {
        self.inner.guardian.pid()
    }
}
