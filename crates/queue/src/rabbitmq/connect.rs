//! Reaching a broker: first a look at who answers, then lapin's connection.

use super::error;
use crate::stream::Options;
use crate::url::QueueUrl;
use futures_util::{AsyncReadExt, AsyncWriteExt};
use handover_core::error::{Class, Error, Result};
use handover_postgres::tls;
use lapin::tcp::{AMQPUriTcpExt, OwnedTLSConfig};
use lapin::types::{AMQPValue, FieldTable, parsing::parse_field_table};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};
use std::io;
use std::time::Duration;

/// Seconds between heartbeats unless the URL says otherwise: a broker that vanished without a word is noticed
/// after about two of them, so within 15 s. The broker's own default of 60 s is long for a cutover.
const HEARTBEAT: u16 = 6;

/// Where a broker is and how to get in.
pub struct Target {
    uri: AMQPUri,
    tls: OwnedTLSConfig,
    place: String,
    options: Options,
}

/// What a broker says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub product: String,
    pub version: String,
}

impl Server {
    /// The first number of the version, if it is one.
    pub fn major(&self) -> Option<u32> {
        self.version.split('.').next()?.parse().ok()
    }
}

impl Target {
    pub fn new(url: &QueueUrl, options: Options) -> Result<Self> {
        let mut uri: AMQPUri = url.without(&["cacertfile"]).secret().parse().map_err(|_| {
            Error::usage(format!("the queue's URL to {} cannot be read", url.authority())).hint(
                "write it as amqp://user:password@host:5672/vhost, with `/` in the vhost as %2f; known parameters \
                 are cacertfile, heartbeat, frame_max, channel_max, connection_timeout and auth_mechanism",
            )
        })?;
        // By the AMQP URI rules `amqp://host/` means a virtual host with an empty name. Nobody has one, and
        // many write the slash.
        if uri.vhost.is_empty() {
            "/".clone_into(&mut uri.vhost);
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        let cert_chain = url.ca_file().map(|path| tls::ca_text(&path)).transpose()?;
        tls::install();
        Ok(Self { place: url.authority(), uri, tls: OwnedTLSConfig { identity: None, cert_chain }, options })
    }

    /// `host:port`.
    pub fn place(&self) -> &str {
        &self.place
    }

    pub fn vhost(&self) -> &str {
        &self.uri.vhost
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Logs in.
    pub async fn connect(&self) -> Result<Connection> {
        let properties =
            ConnectionProperties::default().with_connection_name(self.options.name.as_str().into());
        let runtime = lapin::runtime::default_runtime().map_err(|e| Error::internal(e.to_string()))?;
        let place = format!("RabbitMQ at {}", self.place);
        let connecting =
            Connection::connect_uri_with_config(self.uri.clone(), properties, self.tls.clone(), runtime);
        match tokio::time::timeout(self.options.connect_timeout, connecting).await {
            Err(_) => Err(self.silent()),
            Ok(Err(e)) => Err(match e.kind() {
                lapin::ErrorKind::IOError(io) => self.unreachable(io),
                _ => error::login(&e, &place, self.vhost()),
            }),
            Ok(Ok(connection)) => Ok(connection),
        }
    }

    /// Asks the broker for its name and version, without logging in. lapin keeps what the broker says of itself
    /// to itself, and the right settings of a queue depend on it.
    pub async fn identify(&self) -> Result<Server> {
        match tokio::time::timeout(self.options.connect_timeout, self.read_start()).await {
            Err(_) => Err(self.silent()),
            Ok(Err(e)) => Err(self.unreachable(&e)),
            Ok(Ok(Some(server))) => Ok(server),
            Ok(Ok(None)) => Err(Error::usage(format!(
                "what answers at {} does not speak AMQP 0-9-1",
                self.place
            ))
            .hint(
                "check host and port of the queue's URL: RabbitMQ listens on 5672, with TLS (amqps) on 5671",
            )),
        }
    }

    async fn read_start(&self) -> io::Result<Option<Server>> {
        let runtime = lapin::runtime::default_runtime().map_err(io::Error::other)?;
        let mut stream = self.uri.connect_with_config_async(self.tls.as_ref(), &runtime).await?;
        stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
        stream.flush().await?;
        // A method frame: type, channel, size; then class and method 10.10 (connection.start), two bytes of
        // protocol version, and the table of server properties.
        let mut head = [0_u8; 7];
        match stream.read_exact(&mut head).await {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(e),
        }
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        if head[0] != 1 || size > 1 << 20 {
            return Ok(None);
        }
        let mut body = vec![0_u8; size];
        stream.read_exact(&mut body).await?;
        let Some((&[0, 10, 0, 10, 0, 9], table)) = body.split_first_chunk::<6>() else { return Ok(None) };
        let Ok((_, properties)) = parse_field_table(table) else { return Ok(None) };
        Ok(Some(Server { product: text(&properties, "product"), version: text(&properties, "version") }))
    }

    fn silent(&self) -> Error {
        let patience = self.options.connect_timeout.as_secs_f64();
        Error::new(
            Class::Connection,
            format!("RabbitMQ at {} did not answer within {patience} s", self.place),
        )
        .hint("check host and port of the queue's URL, firewalls, and that amqps:// is used for a TLS port")
    }

    fn unreachable(&self, error: &io::Error) -> Error {
        let text = error.to_string();
        if text.contains("certificate") {
            return Error::usage(format!(
                "the certificate of RabbitMQ at {} is not accepted: {text}",
                self.place
            ))
            .hint(
                "connect by the name that the certificate was issued for, and name a private certificate \
                       authority as `?cacertfile=/path/ca.pem` in the queue's URL",
            );
        }
        Error::new(Class::Connection, format!("cannot reach RabbitMQ at {}: {text}", self.place)).hint(
            "check host and port of the queue's URL, that the broker runs, and that amqps:// is used for a TLS port",
        )
    }
}

fn text(table: &FieldTable, key: &str) -> String {
    match table.inner().get(key) {
        Some(AMQPValue::LongString(value)) => value.to_string(),
        _ => "unknown".to_owned(),
    }
}

/// Seconds for a message, e.g. `30` or `0.5`.
pub fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
