//! Sessions of the embedded queue.

use crate::stream::Options;
use crate::url::QueueUrl;
use handover_core::error::{Class, Error, Result};
use handover_core::value::Secret;
use handover_postgres::address::{Address, Wire};
use handover_postgres::ours::OURS;
use handover_postgres::profile::{self, Profile};
use std::error::Error as _;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client};

/// Where the database is and how to get in.
#[derive(Clone)]
pub struct Target {
    address: Address,
    place: String,
    pub options: Options,
}

/// One session, with the task that drives it.
pub struct Session {
    pub client: Client,
    /// Wakes up when a message was published, in any stream.
    pub published: Arc<Notify>,
}

impl Target {
    pub fn new(url: &QueueUrl, options: Options) -> Result<Self> {
        let place = format!("{}/{}", url.authority(), url.name());
        let mut address = Address::parse(&Secret::new(url.secret()))
            .map_err(|e| e.context(format!("the queue at {place}")))?;
        let settings =
            Profile::Catalog.options(address.config.get_options().unwrap_or_default(), false, None);
        address
            .config
            .options(settings)
            .connect_timeout(options.connect_timeout)
            .application_name(&options.name);
        Ok(Self { address, place, options })
    }

    /// `host:port/database`.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Logs in and sets the session up.
    pub async fn connect(&self) -> Result<Session> {
        let limit = self.options.connect_timeout;
        let session = match tokio::time::timeout(limit, self.address.dial()).await {
            Err(_) => {
                return Err(Error::new(
                    Class::Connection,
                    format!(
                        "the queue's Postgres at {} did not answer within {} s",
                        self.place,
                        limit.as_secs_f64()
                    ),
                )
                .hint("check host and port of the queue's URL, and firewalls"));
            }
            Ok(Ok((client, wire))) => drive(client, wire),
            Ok(Err(refused)) => return Err(refused.into_error(|e| self.error(e, "connect"))),
        };
        profile::begin(&session.client).await.map_err(|e| self.error(&e, "set the session up"))?;
        // A client that vanished must give up its partition soon.
        let timeout = self.options.operation_timeout.as_millis();
        let setup = format!(
            "set statement_timeout = {timeout};
             set idle_in_transaction_session_timeout = '60s';
             set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 5; set tcp_keepalives_count = 3;"
        );
        session.client.batch_execute(&setup).await.map_err(|e| self.error(&e, "set the session up"))?;
        Ok(session)
    }

    /// Turns a driver error into ours. `doing` says what failed.
    pub fn error(&self, error: &tokio_postgres::Error, doing: &str) -> Error {
        let text = format!("the queue's Postgres at {}: could not {doing}: {}", self.place, describe(error));
        let Some(code) = error.code() else {
            if text.contains("certificate") {
                return Error::usage(text).hint(
                    "connect by the name that the certificate was issued for, and name a private certificate \
                     authority as `sslrootcert=/path/ca.pem` in the queue's URL",
                );
            }
            return Error::new(Class::Connection, text)
                .hint("see that the server is up and reachable, then `handover resume`");
        };
        let schema = format!(
            "the queue's role needs CREATE on the database to set the queue up, and to own schema {OURS}_queue"
        );
        let (class, hint) = match code.code() {
            "28P01" | "28000" => (
                Class::Privilege,
                "check user and password in the URL's environment variable, and the server's pg_hba.conf",
            ),
            "42501" => (Class::Privilege, schema.as_str()),
            "3D000" => (Class::Usage, "create the database, or correct its name in the queue's URL"),
            "57014" => (
                Class::Connection,
                "the statement took too long: see what it waits for in pg_stat_activity, then `handover resume`",
            ),
            "40001" | "40P01" | "55P03" => (Class::Contention, "`handover resume` tries again"),
            c if c.starts_with("08") || c.starts_with("57P") => {
                (Class::Connection, "see that the server is up, then `handover resume`")
            }
            c if c.starts_with("53") || c.starts_with("58") => (
                Class::Resources,
                "the server is out of disk, memory or connections: mend that, then `handover resume`",
            ),
            _ => (Class::Data, "see the server's log for the statement"),
        };
        Error::new(class, text).hint(hint)
    }
}

/// The driver's text with its cause; the detail of a violated constraint quotes values and is left out.
fn describe(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), error.source()) {
        (Some(db), _) => db.message().to_owned(),
        (None, Some(cause)) => format!("{error}: {cause}"),
        (None, None) => error.to_string(),
    }
}

/// Whether the queue's tables are not there at all.
pub fn is_missing(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|c| matches!(c, &SqlState::UNDEFINED_TABLE | &SqlState::INVALID_SCHEMA_NAME))
}

fn drive(client: Client, mut connection: Wire) -> Session {
    let published = Arc::new(Notify::new());
    let notify = published.clone();
    tokio::spawn(async move {
        // Ends when the client is dropped or the connection breaks; the client's calls then fail.
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if matches!(message, AsyncMessage::Notification(_)) {
                notify.notify_one();
            }
        }
        notify.notify_one();
    });
    Session { client, published }
}
