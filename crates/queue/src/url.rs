//! Queue URLs: which implementation they choose, and what of them may be shown.

use handover_core::error::{Error, Result};
use std::fmt;
use std::path::PathBuf;
use url::Url;

/// Which implementation a URL chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `amqp://` or `amqps://`.
    RabbitMq,
    /// `postgres://` or `postgresql://`: the embedded queue.
    Postgres,
}

/// A parsed queue URL. `Display` and `Debug` show where it leads and never who logs in.
#[derive(Clone)]
pub struct QueueUrl {
    kind: Kind,
    url: Url,
}

impl QueueUrl {
    /// Parses a URL.
    ///
    /// # Errors
    /// `Usage` when it is no URL, has another scheme, or names no host. The message never quotes the URL.
    pub fn parse(text: &str) -> Result<Self> {
        let hint = "write it as amqp://user:password@host:5672/vhost, amqps://…, or postgres://user@host/database \
                    for the embedded queue, with special characters of the password percent-encoded";
        if text.trim().is_empty() {
            return Err(Error::usage("the URL of `queue` is empty")
                .hint(format!("give the environment variable behind it a value; {hint}")));
        }
        let url = Url::parse(text)
            .map_err(|e| Error::usage(format!("the queue's URL cannot be read ({e})")).hint(hint))?;
        let kind = match url.scheme() {
            "amqp" | "amqps" => Kind::RabbitMq,
            "postgres" | "postgresql" => Kind::Postgres,
            other => {
                return Err(
                    Error::usage(format!("the queue's URL has the unknown scheme `{other}`")).hint(hint)
                );
            }
        };
        if url.host_str().is_none_or(str::is_empty) {
            return Err(Error::usage("the queue's URL names no host").hint(hint));
        }
        Ok(Self { kind, url })
    }

    /// The implementation it chooses.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The whole URL, credentials included: never to be shown.
    #[must_use]
    pub fn secret(&self) -> &str {
        self.url.as_str()
    }

    /// Whether AMQP is spoken over TLS, which then always verifies the server.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.url.scheme() == "amqps"
    }

    /// Whether it leads to the loopback interface.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let host = self.url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// `host:port`.
    #[must_use]
    pub fn authority(&self) -> String {
        let default = match self.url.scheme() {
            "amqps" => 5671,
            "amqp" => 5672,
            _ => 5432,
        };
        format!("{}:{}", self.url.host_str().unwrap_or_default(), self.url.port().unwrap_or(default))
    }

    /// The vhost or the database as the URL spells it, without the slash; empty if there is none.
    #[must_use]
    pub fn name(&self) -> &str {
        self.url.path().trim_start_matches('/')
    }

    /// A query parameter.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

    /// The same URL without the named query parameters, for drivers that refuse what they don't know.
    #[must_use]
    pub fn without(&self, names: &[&str]) -> Self {
        let mut url = self.url.clone();
        let kept: Vec<(String, String)> = self
            .url
            .query_pairs()
            .filter(|(key, _)| !names.contains(&key.as_ref()))
            .map(|(key, value)| (key.into_owned(), value.into_owned()))
            .collect();
        url.set_query(None);
        if !kept.is_empty() {
            url.query_pairs_mut().extend_pairs(kept);
        }
        Self { kind: self.kind, url }
    }

    /// The extra CA file: `cacertfile` for RabbitMQ, `sslrootcert` for Postgres, as their own clients call it.
    #[must_use]
    pub fn ca_file(&self) -> Option<PathBuf> {
        let key = match self.kind {
            Kind::RabbitMq => "cacertfile",
            Kind::Postgres => "sslrootcert",
        };
        self.parameter(key).map(PathBuf::from)
    }
}

impl fmt::Display for QueueUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/{}", self.url.scheme(), self.authority(), self.name())
    }
}

impl fmt::Debug for QueueUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueueUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_holds_no_credentials() {
        for (text, shown) in [
            ("amqp://me:p%40ss@broker.example/prod", "amqp://broker.example:5672/prod"),
            ("amqps://me:p%40ss@broker.example?cacertfile=/ca.pem", "amqps://broker.example:5671/"),
            ("postgres://me:p%40ss@db:6000/q?password=p%40ss", "postgres://db:6000/q"),
        ] {
            let url = QueueUrl::parse(text).unwrap();
            assert_eq!(url.to_string(), shown);
            assert!(!format!("{url:?}").contains("p%40ss") && !format!("{url:?}").contains("me:"));
        }
    }

    #[test]
    fn bad_urls_are_refused_without_being_quoted() {
        for text in [
            "redis://me:hunter2@h/0",
            "amqp:hunter2",
            "postgres:///hunter2",
            "hunter2",
            "amqp://me:hunter2@h:x/",
        ] {
            let error = QueueUrl::parse(text).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
            assert!(error.next_step().unwrap().contains("amqps://"));
        }
    }

    #[test]
    fn parameters_can_be_taken_out() {
        let url =
            QueueUrl::parse("postgres://u:p@h/db?sslmode=verify-full&sslrootcert=/ca&connect_timeout=3")
                .unwrap();
        assert_eq!(url.ca_file().unwrap(), PathBuf::from("/ca"));
        assert_eq!(
            url.without(&["sslmode", "sslrootcert"]).secret(),
            "postgres://u:p@h/db?connect_timeout=3"
        );
    }
}
