//! Where a server is, how its certificate is checked, and how soon a dead peer is noticed: libpq's parameters,
//! of which the driver knows only a part. Every connection of ours is opened by [`Address::dial`].
//! (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS>)

use crate::connection_string::split;
pub use crate::refused::Refused;
use crate::tls;
use handover_core::error::{Error, Result};
use handover_core::value::Secret;
use rustls::ClientConfig;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, Connection, SimpleQueryMessage, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How long one address may take to let us in.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long sent data may go unacknowledged, and a silent connection unanswered, before it counts as dead. A
/// network that swallows everything is noticed within this, whatever a statement waits for.
pub const DEAD_AFTER: Duration = Duration::from_secs(12);

/// Probes of a silent connection begin after this long…
const KEEPALIVE_IDLE: Duration = Duration::from_secs(4);
/// …come this often…
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// …and this many in vain end it. `tcp_user_timeout` overrules the number on Linux, so all agree.
const KEEPALIVE_COUNT: u32 = 4;

/// What drives a connection; TLS or not, it has one type.
pub type Wire = Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// Which of several hosts is wanted: `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Any,
    /// `read-write` and `primary`. Ours is about the server, not the session: a session that only looks is
    /// read-only wherever it is.
    Primary,
    /// `read-only` and `standby`.
    Standby,
    /// `prefer-standby`.
    PreferStandby,
}

/// A parsed connection URL.
#[derive(Clone)]
pub struct Address {
    /// For the driver.
    pub config: Config,
    /// How to speak TLS; unused where the mode says `disable`.
    tls: ClientConfig,
    /// `sslmode` as libpq is to be told.
    mode: String,
    /// `sslrootcert`.
    ca: Option<PathBuf>,
    wanted: Wanted,
}

/// Parameters that are ours to interpret, because the driver does not know them, or not as libpq does.
const OURS: &[&str] = &[
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
    "tcp_user_timeout",
    "keepalives_count",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
];

impl Address {
    /// Reads a URL or a `key=value` string. `sslmode` is `prefer` unless given, as in libpq; `verify-ca` also
    /// checks the host name, which is stricter than libpq.
    ///
    /// # Errors
    /// Nothing in it, a URL that cannot be read (its content is not shown), an unknown mode, an unreadable CA file.
    pub fn parse(url: &Secret) -> Result<Self> {
        const HINT: &str = "write postgres://user:password@host:5432/database?sslmode=verify-full";
        let unreadable =
            |why: String| Error::usage(format!("the URL is not a Postgres URL ({why})")).hint(HINT);
        if url.expose().trim().is_empty() {
            return Err(Error::usage("the URL is empty")
                .hint(format!("give the environment variable behind it a value; {HINT}")));
        }
        let (text, ours) = split(url.expose(), OURS).map_err(unreadable)?;
        // The driver's message names the parameter, never its value.
        let mut config: Config = text.parse().map_err(|e: tokio_postgres::Error| {
            use std::error::Error as _;
            unreadable(e.source().map_or_else(|| e.to_string(), ToString::to_string))
        })?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(Error::usage("the URL names no host").hint(HINT));
        }
        let given = |key: &str| ours.iter().rfind(|(name, _)| name == key).map(|(_, value)| value.as_str());
        let seconds = |key: &str, default: Duration| match given(key).map(str::parse::<i64>) {
            None => Ok(default),
            Some(Ok(n)) if n > 0 => Ok(Duration::from_secs(n.unsigned_abs())),
            // Zero and less mean the system's default to libpq; ours is what every connection must have.
            Some(Ok(_)) => Ok(default),
            Some(Err(_)) => Err(unreadable(format!("invalid value for option `{key}`"))),
        };
        config
            .keepalives(true)
            .keepalives_idle(seconds("keepalives_idle", KEEPALIVE_IDLE)?)
            .keepalives_interval(seconds("keepalives_interval", KEEPALIVE_INTERVAL)?)
            .keepalives_retries(
                u32::try_from(
                    seconds("keepalives_count", Duration::from_secs(u64::from(KEEPALIVE_COUNT)))?.as_secs(),
                )
                .unwrap_or(KEEPALIVE_COUNT),
            )
            .tcp_user_timeout(match given("tcp_user_timeout").map(str::parse::<u64>) {
                Some(Ok(ms)) if ms > 0 => Duration::from_millis(ms),
                Some(Err(_)) => {
                    return Err(unreadable("invalid value for option `tcp_user_timeout`".into()));
                }
                _ => DEAD_AFTER,
            });
        if config.get_connect_timeout().is_none_or(Duration::is_zero) {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        let wanted = match given("target_session_attrs").unwrap_or("any") {
            "any" => Wanted::Any,
            "read-write" | "primary" => Wanted::Primary,
            "read-only" | "standby" => Wanted::Standby,
            "prefer-standby" => Wanted::PreferStandby,
            _ => {
                return Err(Error::usage("the URL has an unknown target_session_attrs")
                    .hint("use any, read-write, primary, read-only, standby or prefer-standby"));
            }
        };
        config.target_session_attrs(TargetSessionAttrs::Any);
        let mode = given("sslmode").unwrap_or("prefer").to_owned();
        // `system` is libpq's word for the trust store, which we ask anyway.
        let ca = given("sslrootcert").filter(|file| *file != "system").map(PathBuf::from);
        let asks = ca.is_some() || given("sslrootcert") == Some("system");
        let (ssl_mode, tls) = match mode.as_str() {
            "disable" | "allow" => (SslMode::Disable, tls::unverified()?),
            "prefer" if !asks => (SslMode::Prefer, tls::unverified()?),
            "require" if !asks => (SslMode::Require, tls::unverified()?),
            "prefer" | "require" | "verify-ca" | "verify-full" => {
                (SslMode::Require, tls::verifying(ca.as_deref())?)
            }
            _ => {
                return Err(Error::usage(format!("the URL has an unknown sslmode `{mode}`"))
                    .hint("use disable, prefer, require or verify-full"));
            }
        };
        config.ssl_mode(ssl_mode);
        // What asks for a certificate here asks for it there: libpq would not check the name, or not at all.
        let mode = if asks && mode != "disable" && mode != "allow" { "verify-full".into() } else { mode };
        Ok(Address { config, tls, mode, ca, wanted })
    }

    /// `sslmode` and `sslrootcert`, as a program of Postgres's is to be told so that it checks what we check.
    #[must_use]
    pub fn certificates(&self) -> (&str, Option<String>) {
        let ca = match &self.ca {
            Some(file) => Some(file.display().to_string()),
            // Otherwise libpq would look for a file in the home folder.
            None => self.verifies().then(|| "system".to_owned()),
        };
        (&self.mode, ca)
    }

    /// libpq's words for how soon a dead peer is noticed.
    #[must_use]
    pub fn liveness(&self) -> Vec<(&'static str, String)> {
        let config = &self.config;
        let seconds = |time: Duration| time.as_secs().to_string();
        vec![
            ("connect_timeout", seconds(config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT))),
            ("keepalives", "1".into()),
            ("keepalives_idle", seconds(config.get_keepalives_idle())),
            ("keepalives_interval", seconds(config.get_keepalives_interval().unwrap_or(KEEPALIVE_INTERVAL))),
            ("keepalives_count", config.get_keepalives_retries().unwrap_or(KEEPALIVE_COUNT).to_string()),
            (
                "tcp_user_timeout",
                config.get_tcp_user_timeout().copied().unwrap_or(DEAD_AFTER).as_millis().to_string(),
            ),
        ]
    }

    /// Which of several hosts is wanted, in libpq's words (since 14; before, only the first two are known).
    #[must_use]
    pub fn wanted(&self) -> Option<&'static str> {
        match self.wanted {
            Wanted::Any => None,
            Wanted::Primary => Some("read-write"),
            Wanted::Standby => Some("standby"),
            Wanted::PreferStandby => Some("prefer-standby"),
        }
    }

    /// Whether the server must prove who it is.
    #[must_use]
    pub fn verifies(&self) -> bool {
        self.mode.starts_with("verify")
    }

    /// Whether no packet leaves this machine: a socket, or the loopback interface by number or as `localhost`.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let addresses = self.config.get_hostaddrs();
        if !addresses.is_empty() {
            return addresses.iter().all(std::net::IpAddr::is_loopback);
        }
        self.config.get_hosts().iter().all(|host| match host {
            Host::Unix(_) => true,
            Host::Tcp(name) => {
                name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        })
    }

    /// Where it leads, for messages: `host:port/database`, several hosts with commas, and never who logs in.
    #[must_use]
    pub fn place(&self) -> String {
        let (hosts, ports) = (self.config.get_hosts(), self.config.get_ports());
        let addresses = self.config.get_hostaddrs();
        let mut out = String::new();
        for i in 0..hosts.len().max(addresses.len()) {
            let port = ports.get(i).or(ports.first()).copied().unwrap_or(5432);
            let host = match (hosts.get(i), addresses.get(i)) {
                (Some(Host::Tcp(name)), _) => name.clone(),
                (Some(Host::Unix(path)), _) => path.display().to_string(),
                (None, Some(address)) => address.to_string(),
                (None, None) => continue,
            };
            let _ = write!(out, "{}{host}:{port}", if out.is_empty() { "" } else { "," });
        }
        if let Some(database) = self.config.get_dbname().or(self.config.get_user()) {
            let _ = write!(out, "/{database}");
        }
        out
    }

    /// Logs in, and chooses among several hosts as the URL asks. The caller drives the connection.
    ///
    /// # Errors
    /// What the driver says, with the place; what it knows of the failure decides the class.
    pub async fn dial(&self) -> Result<(Client, Wire), Refused> {
        let hosts = self.config.get_hosts().len().max(self.config.get_hostaddrs().len());
        // One attempt each, with what the handshake takes beside the connection itself.
        let each = self.config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT) * 2;
        let limit = each * u32::try_from(hosts).unwrap_or(1);
        tokio::time::timeout(limit, self.choose()).await.unwrap_or(Err(Refused::Silent(limit)))
    }

    /// How to speak TLS to it.
    #[must_use]
    pub fn connector(&self) -> MakeRustlsConnect {
        MakeRustlsConnect::new(self.tls.clone())
    }

    async fn choose(&self) -> Result<(Client, Wire), Refused> {
        let connect = async |config: &Config| {
            config.connect(MakeRustlsConnect::new(self.tls.clone())).await.map_err(Refused::Driver)
        };
        if self.wanted == Wanted::Any {
            return connect(&self.config).await;
        }
        let (mut failed, mut second) = (None, None);
        for config in self.each_host(true) {
            let (client, mut wire) = match connect(&config).await {
                Ok(pair) => pair,
                Err(error) => {
                    failed = Some(error);
                    continue;
                }
            };
            match (self.wanted, in_recovery(&client, &mut wire).await) {
                (Wanted::Primary, Ok(false)) | (Wanted::Standby | Wanted::PreferStandby, Ok(true)) => {
                    return Ok((client, wire));
                }
                (Wanted::PreferStandby, Ok(false)) => second = Some((client, wire)),
                (_, Ok(_)) => {}
                (_, Err(error)) => failed = Some(Refused::Driver(error)),
            }
        }
        match (second, failed) {
            (Some(pair), _) => Ok(pair),
            (None, Some(error)) => Err(error),
            (None, None) => {
                Err(Refused::Unwanted(if self.wanted == Wanted::Primary { "primary" } else { "standby" }))
            }
        }
    }

    /// Whether the server lets the role in from here without asking for a password, as its pg_hba.conf may say. The
    /// password is not sent.
    pub async fn trusts(&self) -> bool {
        for config in self.each_host(false) {
            let attempt = config.connect(MakeRustlsConnect::new(self.tls.clone()));
            if let Ok(Ok(_)) = tokio::time::timeout(CONNECT_TIMEOUT, attempt).await {
                return true;
            }
        }
        false
    }

    /// One configuration a host.
    fn each_host(&self, with_password: bool) -> Vec<Config> {
        let config = &self.config;
        let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
        (0..hosts.len().max(addresses.len()))
            .map(|i| {
                let mut one = Config::new();
                match hosts.get(i) {
                    Some(Host::Tcp(name)) => drop(one.host(name)),
                    Some(Host::Unix(path)) => drop(one.host_path(path)),
                    None => {}
                }
                if let Some(address) = addresses.get(i) {
                    one.hostaddr(*address);
                }
                one.port(ports.get(i).or(ports.first()).copied().unwrap_or(5432));
                if let Some(user) = config.get_user() {
                    one.user(user);
                }
                if let Some(password) = config.get_password().filter(|_| with_password) {
                    one.password(password);
                }
                if let Some(database) = config.get_dbname() {
                    one.dbname(database);
                }
                if let Some(options) = config.get_options() {
                    one.options(options);
                }
                if let Some(name) = config.get_application_name() {
                    one.application_name(name);
                }
                if let Some(limit) = config.get_connect_timeout() {
                    one.connect_timeout(*limit);
                }
                if let Some(limit) = config.get_tcp_user_timeout() {
                    one.tcp_user_timeout(*limit);
                }
                one.keepalives(true)
                    .keepalives_idle(config.get_keepalives_idle())
                    .keepalives_interval(config.get_keepalives_interval().unwrap_or(KEEPALIVE_INTERVAL))
                    .keepalives_retries(config.get_keepalives_retries().unwrap_or(KEEPALIVE_COUNT))
                    .ssl_mode(config.get_ssl_mode())
                    .ssl_negotiation(config.get_ssl_negotiation())
                    .channel_binding(config.get_channel_binding());
                one
            })
            .collect()
    }
}

async fn in_recovery(client: &Client, wire: &mut Wire) -> Result<bool, tokio_postgres::Error> {
    let asking = client.simple_query("select pg_catalog.pg_is_in_recovery()");
    let answer = tokio::select! {
        answer = asking => answer?,
        // It only ends by breaking, and the question with it.
        broken = wire => {
            broken?;
            return Ok(false);
        }
    };
    Ok(answer.iter().any(|m| matches!(m, SimpleQueryMessage::Row(row) if row.get(0) == Some("t"))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Address> {
        Address::parse(&Secret::new(text))
    }

    #[test]
    fn both_forms_say_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("a b.pem");
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        std::fs::write(&ca, made.cert.pem()).unwrap();
        let shown = ca.display().to_string();
        for text in [
            format!(
                "postgres://me:s3%20x@db.example:6432/shop?sslmode=verify-full&sslrootcert={}",
                shown.replace(' ', "%20")
            ),
            format!(
                "host=db.example port=6432 user=me password='s3 x' dbname=shop sslmode = verify-full sslrootcert='{shown}'"
            ),
            format!("host=db.example port=6432 user=me password=s3\\ x dbname=shop sslrootcert='{shown}'"),
        ] {
            let address = parse(&text).unwrap();
            assert_eq!(address.place(), "db.example:6432/shop");
            assert_eq!(address.certificates(), ("verify-full", Some(shown.clone())), "{text}");
            assert_eq!(address.config.get_password(), Some(&b"s3 x"[..]));
            assert_eq!(address.config.get_ssl_mode(), SslMode::Require);
            assert!(address.verifies() && !address.is_local());
        }
        let missing = parse("host=h sslmode=verify-full sslrootcert=/nonexistent/ca.pem").err().unwrap();
        assert!(missing.message().contains("/nonexistent/ca.pem"), "{missing}");
        assert_eq!(parse("host=h sslmode=verify-full").unwrap().certificates().1.as_deref(), Some("system"));
    }

    #[test]
    fn a_dead_peer_is_noticed_on_every_connection() {
        for text in ["postgres://u@h/d", "host=h user=u keepalives=0 tcp_user_timeout=0 connect_timeout=0"] {
            let config = parse(text).unwrap().config;
            assert!(config.get_keepalives(), "{text}");
            assert!(config.get_tcp_user_timeout().unwrap() <= &Duration::from_secs(15));
            let silent = config.get_keepalives_idle()
                + config.get_keepalives_interval().unwrap() * config.get_keepalives_retries().unwrap();
            assert!(silent <= Duration::from_secs(15), "{silent:?}");
            assert!(!config.get_connect_timeout().unwrap().is_zero());
        }
        // libpq's units and names, which are not the driver's.
        let own = parse("postgres://u@h/d?tcp_user_timeout=3000&keepalives_count=7").unwrap();
        assert_eq!(own.config.get_tcp_user_timeout(), Some(&Duration::from_secs(3)));
        assert_eq!(own.config.get_keepalives_retries(), Some(7));
        assert!(own.liveness().contains(&("tcp_user_timeout", "3000".into())));
    }

    #[test]
    fn what_leads_nowhere_is_said_to() {
        for text in ["", " \n"] {
            assert_eq!(parse(text).err().unwrap().message(), "the URL is empty");
        }
        for text in ["user=me dbname=d", "postgres:///d"] {
            assert_eq!(parse(text).err().unwrap().message(), "the URL names no host", "{text}");
        }
        for text in [
            "host=h hunter2",
            "host=h password='hunter2",
            "postgres://u:hunter2@h:x/d",
            "postgres://u@h/d?hunter2",
        ] {
            let error = parse(text).err().unwrap();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn several_hosts_and_sockets_have_a_place() {
        assert_eq!(
            parse("postgres://u@a:1,b:2/d?target_session_attrs=read-write").unwrap().place(),
            "a:1,b:2/d"
        );
        let socket = parse("host=/run/postgresql user=u").unwrap();
        assert!(socket.is_local());
        assert_eq!(socket.place(), "/run/postgresql:5432/u");
        assert!(parse("postgres://u@localhost/d").unwrap().is_local());
        assert!(parse("postgres://u@127.0.0.1/d").unwrap().is_local());
        assert!(!parse("postgres://u@127.0.0.1,h/d").unwrap().is_local());
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "(://|:|@|/|\\?|&|=|host=|sslmode=|%4|%|'|\\\\|é| |a){0,20}") {
            let _ = parse(&text);
        }
    }
}
