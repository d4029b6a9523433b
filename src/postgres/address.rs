//! Where a server is and how its certificate is checked: libpq's `sslmode` and `sslrootcert`, of which the
//! driver knows only a part. (<https://www.postgresql.org/docs/current/libpq-ssl.html>)

use crate::error::{Error, Result};
use crate::tls;
use crate::value::Secret;
use rustls::ClientConfig;
use std::path::PathBuf;
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

/// A parsed connection URL.
#[derive(Clone)]
pub struct Address {
    /// For the driver.
    pub config: Config,
    /// How to speak TLS, unless it is off.
    pub tls: Option<ClientConfig>,
}

impl Address {
    /// Reads a URL or a `key=value` string. `sslmode` is `prefer` unless given, as in libpq; `verify-ca` also
    /// checks the host name, which is stricter than libpq.
    ///
    /// # Errors
    /// A URL that cannot be read (its content is not shown), an unknown mode, an unreadable CA file.
    pub fn parse(url: &Secret) -> Result<Self> {
        let unreadable = |why: String| {
            Error::usage(format!("the URL is not a Postgres URL ({why})"))
                .hint("write postgres://user:password@host:5432/database?sslmode=verify-full")
        };
        let mut text = url.expose().to_owned();
        let (mut mode, mut ca) = (None, None);
        if let Ok(mut parsed) = url::Url::parse(url.expose()) {
            let mut kept = Vec::new();
            for (key, value) in parsed.query_pairs() {
                match key.as_ref() {
                    "sslmode" => mode = Some(value.into_owned()),
                    "sslrootcert" => ca = Some(PathBuf::from(value.as_ref())),
                    _ => kept.push((key.into_owned(), value.into_owned())),
                }
            }
            if mode.is_some() || ca.is_some() {
                parsed.set_query(None);
                if !kept.is_empty() {
                    parsed.query_pairs_mut().extend_pairs(kept);
                }
                text = parsed.into();
            }
        }
        // The driver's message names the parameter, never its value.
        let mut config: Config = text.parse().map_err(|e: tokio_postgres::Error| {
            use std::error::Error as _;
            unreadable(e.source().map_or_else(|| e.to_string(), ToString::to_string))
        })?;
        let mode = mode.unwrap_or_else(|| match config.get_ssl_mode() {
            SslMode::Disable => "disable".into(),
            SslMode::Require => "require".into(),
            _ => "prefer".into(),
        });
        let (ssl_mode, tls) = match (mode.as_str(), &ca) {
            ("disable" | "allow", _) => (SslMode::Disable, None),
            ("prefer", None) => (SslMode::Prefer, Some(tls::unverified()?)),
            ("require", None) => (SslMode::Require, Some(tls::unverified()?)),
            ("prefer" | "require" | "verify-ca" | "verify-full", _) => {
                (SslMode::Require, Some(tls::verifying(ca.as_deref())?))
            }
            _ => {
                return Err(Error::usage(format!("the URL has an unknown sslmode `{mode}`"))
                    .hint("use disable, prefer, require or verify-full"));
            }
        };
        config.ssl_mode(ssl_mode);
        Ok(Address { config, tls })
    }
}
