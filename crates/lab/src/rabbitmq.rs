//! One local RabbitMQ node.

use super::account::Account;
use super::blocking::blocking;
use super::guardian::{Guardian, Verb};
use super::password::password;
use super::port;
use handover_core::{Error, Result};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Names the `rabbitmq-server` script to use.
pub const RABBITMQ_VARIABLE: &str = "HANDOVER_RABBITMQ_SERVER";

const FUNCTIONS: &str = include_str!("rabbitmq.sh");
/// A cold start takes 5 seconds on an idle machine; this is for one with much else to do.
const START_LIMIT: Duration = Duration::from_secs(120);
const USER: &str = "handover";

/// A running node, on its own ports and with its own Erlang port mapper. Clones are handles to the same one;
/// when the last is dropped, or this process ends in whatever way, the node is stopped and its data removed.
#[derive(Debug, Clone)]
pub struct RabbitServer {
    inner: Arc<Inner>,
}

struct Inner {
    guardian: Guardian,
    port: u16,
    password: String,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RabbitServer").field("port", &self.port).finish_non_exhaustive()
    }
}

impl RabbitServer {
    /// The `rabbitmq-server` script of this machine, if there is one: the one that the environment names,
    /// that of a package, or one on PATH.
    #[must_use]
    pub fn installed() -> Option<PathBuf> {
        if let Some(named) = std::env::var_os(RABBITMQ_VARIABLE).filter(|v| !v.is_empty()) {
            return Some(PathBuf::from(named)).filter(|p| p.is_file());
        }
        // Debian's script on PATH insists on the account `rabbitmq` and on the system's log folder; the one
        // that it wraps does not.
        let mut candidates = vec![PathBuf::from("/usr/lib/rabbitmq/bin/rabbitmq-server")];
        for prefix in ["/opt/homebrew", "/usr/local", "/home/linuxbrew/.linuxbrew"] {
            candidates.push(Path::new(prefix).join("opt/rabbitmq/sbin/rabbitmq-server"));
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        candidates.extend(std::env::split_paths(&path).map(|f| f.join("rabbitmq-server")));
        candidates.into_iter().find(|p| p.is_file())
    }

    /// Starts a node in a new folder and waits until it speaks AMQP, which takes seconds.
    ///
    /// # Errors
    /// When RabbitMQ or Erlang's port mapper is not installed, or the node does not come up; the hint holds
    /// the end of its log.
    pub async fn start() -> Result<Self> {
        blocking(Self::start_blocking).await
    }

    fn start_blocking() -> Result<Self> {
        let install = "install RabbitMQ (Debian: apt-get install rabbitmq-server)";
        let server =
            Self::installed().ok_or_else(|| Error::external("RabbitMQ is not installed").hint(install))?;
        let epmd =
            find_epmd().ok_or_else(|| Error::external("Erlang's epmd is not installed").hint(install))?;
        let account = Account::choose(&["rabbitmq"])?;
        let folder = account.folder("rabbitmq")?;
        let (node, distribution, mapper) = (port::free()?, port::free()?, port::free()?);
        let password = password();
        // Small limits, since test machines are small; the disk alarm would stop all publishing.
        account.write(
            &folder.join("rabbitmq.conf"),
            &format!(
                "listeners.tcp.default = 127.0.0.1:{node}\n\
                 default_user = {USER}\ndefault_pass = {password}\n\
                 default_user_tags.administrator = true\n\
                 default_permissions.configure = .*\ndefault_permissions.read = .*\ndefault_permissions.write = .*\n\
                 disk_free_limit.absolute = 50MB\nlog.file.level = warning\n"
            ),
        )?;
        account.write(&folder.join("enabled_plugins"), "[].\n")?;
        let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let variables = [
            ("server", server.display().to_string()),
            ("epmd", epmd.display().to_string()),
            (
                "RABBITMQ_NODENAME",
                format!("{}@localhost", name.replace(|c: char| !c.is_ascii_alphanumeric(), "_")),
            ),
            ("RABBITMQ_DIST_PORT", distribution.to_string()),
            ("RABBITMQ_NODE_PORT", node.to_string()),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}".to_owned()),
            ("ERL_EPMD_PORT", mapper.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
        ];
        let variables = variables.iter().map(|(name, value)| (*name, value.as_str())).collect::<Vec<_>>();
        let guardian = Guardian::start(&account, &folder, &variables, FUNCTIONS, None)?;
        guardian.ask(Verb::Prepare)?;
        let inner = Inner { guardian, port: node, password };
        inner.start()?;
        Ok(RabbitServer { inner: Arc::new(inner) })
    }

    /// Stops the node in good order, keeping its data.
    ///
    /// # Errors
    /// When it does not stop.
    pub async fn stop(&self) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.guardian.ask(Verb::Stop)).await
    }

    /// Kills the node with SIGKILL, keeping its data.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill(&self) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.guardian.ask(Verb::Kill)).await
    }

    /// Starts the node again after [`stop`](Self::stop) or [`kill`](Self::kill), on the same port.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_again(&self) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.start()).await
    }

    /// Stops the node in good order and starts it again.
    ///
    /// # Errors
    /// When either fails.
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        self.start_again().await
    }

    /// Leaves the node running, and its data in place, when this process ends. Gives the command that stops it
    /// and removes its data.
    ///
    /// # Errors
    /// When the guardian is gone.
    pub async fn keep(&self) -> Result<String> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.guardian.ask(Verb::Keep)).await?;
        Ok(self.inner.guardian.remove_command())
    }

    /// The URL of the node's default virtual host. Holds a password.
    #[must_use]
    pub fn url(&self) -> String {
        format!("amqp://{USER}:{}@127.0.0.1:{}/%2f", self.inner.password, self.inner.port)
    }

    /// The AMQP port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.inner.port
    }

    /// The folder of everything that belongs to the node.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.inner.guardian.folder()
    }
}

impl Inner {
    fn start(&self) -> Result<()> {
        self.guardian.ask(Verb::Start).map_err(|e| e.context("cannot start RabbitMQ"))?;
        let begun = Instant::now();
        let exited = self.guardian.folder().join("exited");
        while !speaks_amqp(self.port) {
            let problem = if exited.exists() {
                "RabbitMQ ended while it started".to_owned()
            } else if begun.elapsed() > START_LIMIT {
                format!("RabbitMQ did not answer within {} s", START_LIMIT.as_secs())
            } else {
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            return Err(Error::external(problem).hint(self.guardian.log_tail()));
        }
        Ok(())
    }
}

/// Whether something on `port` answers an AMQP 0-9-1 protocol header with a method frame (its
/// `Connection.Start`), as section 4.2.2 of the protocol's specification has it.
fn speaks_amqp(port: u16) -> bool {
    let limit = Duration::from_secs(2);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let Ok(mut stream) = TcpStream::connect_timeout(&address, limit) else { return false };
    let mut frame = [0_u8; 1];
    stream.set_read_timeout(Some(limit)).is_ok()
        && stream.write_all(b"AMQP\x00\x00\x09\x01").is_ok()
        && stream.read_exact(&mut frame).is_ok()
        && frame == [1]
}

/// Erlang's port mapper: on PATH, or in the runtime's own folder.
fn find_epmd() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = std::env::split_paths(&path).map(|f| f.join("epmd")).collect::<Vec<_>>();
    for root in ["/usr/lib/erlang", "/usr/lib64/erlang", "/usr/local/lib/erlang", "/opt/homebrew/lib/erlang"]
    {
        let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
        let versions = entries.filter(|e| e.file_name().to_string_lossy().starts_with("erts-"));
        candidates.extend(versions.map(|e| e.path().join("bin/epmd")));
    }
    candidates.into_iter().find(|p| p.is_file())
}
