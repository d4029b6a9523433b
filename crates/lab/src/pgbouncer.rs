//! One local PgBouncer.

use super::account::Account;
use super::blocking::blocking;
use super::guardian::{Guardian, Verb};
use super::password::password;
use super::port;
use handover_core::{Error, Result};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Names the `pgbouncer` program to use.
pub const PGBOUNCER_VARIABLE: &str = "HANDOVER_PGBOUNCER";

const FUNCTIONS: &str = include_str!("pgbouncer.sh");
const START_LIMIT: Duration = Duration::from_secs(20);
/// Who may use the console.
const ADMIN: &str = "admin";

/// How a PgBouncer is to be.
#[derive(Debug, Clone)]
pub struct PgBouncerOptions {
    /// Its `[databases]`: lines of the file that a cutover rewrites.
    pub entries: String,
    /// `session` or `transaction`.
    pub mode: &'static str,
    /// Who may log in through it, with which password; the servers are told the same.
    pub users: Vec<(String, String)>,
    /// The file of another one, to be shared; else it has its own.
    pub config: Option<PathBuf>,
}

/// A running PgBouncer on a port of its own. Clones are handles to the same one; when the last is dropped, or this process
/// ends in whatever way, it is stopped and its folder removed.
#[derive(Debug, Clone)]
pub struct PgBouncer {
    inner: Arc<Inner>,
}

struct Inner {
    guardian: Guardian,
    port: u16,
    password: String,
    config: PathBuf,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PgBouncer").field("port", &self.port).finish_non_exhaustive()
    }
}

impl PgBouncer {
    /// The program of this machine, if there is one.
    #[must_use]
    pub fn installed() -> Option<PathBuf> {
        if let Some(named) = std::env::var_os(PGBOUNCER_VARIABLE).filter(|v| !v.is_empty()) {
            return Some(PathBuf::from(named)).filter(|p| p.is_file());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
        folders.map(|f| f.join("pgbouncer")).find(|p| p.is_file())
    }

    /// Starts one in a new folder and waits until it listens.
    ///
    /// # Errors
    /// When PgBouncer is not installed or does not come up; the hint holds the end of its log.
    pub async fn start(options: PgBouncerOptions) -> Result<Self> {
        blocking(move || Self::start_blocking(&options)).await
    }

    fn start_blocking(options: &PgBouncerOptions) -> Result<Self> {
        let program = Self::installed().ok_or_else(|| {
            Error::external("PgBouncer is not installed").hint(
                "install it (Debian: apt-get install pgbouncer), or name the program in HANDOVER_PGBOUNCER",
            )
        })?;
        // The account of the servers, so that several share a file.
        let account = Account::choose(&["postgres"])?;
        let folder = account.folder("pgbouncer")?;
        let password = password();
        let port = port::free()?;
        let config = options.config.clone().unwrap_or_else(|| folder.join("databases.ini"));
        if options.config.is_none() {
            account.write(&config, &format!("[databases]\n{}\n", options.entries))?;
        }
        let users: String = options
            .users
            .iter()
            .map(|(user, password)| format!("\"{user}\" \"{password}\"\n"))
            .chain([format!("\"{ADMIN}\" \"{password}\"\n")])
            .collect();
        account.write(&folder.join("users.txt"), &users)?;
        account.write(
            &folder.join("pgbouncer.ini"),
            &format!(
                "[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
                 auth_type = plain\nauth_file = {}\nadmin_users = {ADMIN}\npool_mode = {}\n\
                 server_login_retry = 0.2\nignore_startup_parameters = extra_float_digits\n%include {}\n",
                folder.join("users.txt").display(),
                options.mode,
                config.display()
            ),
        )?;
        let program = program.display().to_string();
        let guardian = Guardian::start(&account, &folder, &[("pgbouncer", &program)], FUNCTIONS, None)?;
        guardian.ask(Verb::Prepare)?;
        let inner = Inner { guardian, port, password, config };
        inner.start()?;
        Ok(PgBouncer { inner: Arc::new(inner) })
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill(&self) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.guardian.ask(Verb::Kill)).await
    }

    /// Starts it again after [`kill`](Self::kill), on the same port.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_again(&self) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.start()).await
    }

    /// The URL of its console. Holds a password.
    #[must_use]
    pub fn admin_url(&self) -> String {
        format!("postgres://{ADMIN}:{}@127.0.0.1:{}/pgbouncer", self.inner.password, self.inner.port)
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.inner.port
    }

    /// The file with its `[databases]`.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.inner.config
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.inner.guardian.folder().join("server.log")).unwrap_or_default()
    }
}

impl Inner {
    fn start(&self) -> Result<()> {
        self.guardian.ask(Verb::Start).map_err(|e| e.context("cannot start PgBouncer"))?;
        let begun = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            if begun.elapsed() > START_LIMIT {
                return Err(Error::external("PgBouncer does not listen").hint(self.guardian.log_tail()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}
