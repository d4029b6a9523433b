//! PgBouncer's admin console: a database of its own that speaks the simple query protocol only.

use handover_core::error::{Class, Error, Result};
use handover_core::value::{EnvString, Secret};
use handover_postgres::address::{Address, Refused};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, SimpleQueryMessage};

/// How long the console may take to answer what it answers at once.
const ANSWER: Duration = Duration::from_secs(5);
/// The database that is the console.
const CONSOLE: &str = "pgbouncer";

/// One row of an answer, by column: versions of PgBouncer differ in what stands where.
#[derive(Debug)]
pub struct Row(BTreeMap<String, String>);

impl Row {
    /// A column's text; none where it is null, or this version has no such column.
    #[must_use]
    pub fn get(&self, column: &str) -> Option<&str> {
        self.0.get(column).map(String::as_str)
    }

    /// Whether a column says so.
    #[must_use]
    pub fn is(&self, column: &str) -> bool {
        self.get(column).is_some_and(|text| !matches!(text, "0" | "no" | "f" | ""))
    }
}

/// A connection to a console, or through a pooler. Dropping it closes it.
pub struct Console {
    client: Client,
    wire: JoinHandle<()>,
    /// Where it leads, without who logs in.
    pub place: String,
    /// Who logs in.
    pub user: String,
}

impl Drop for Console {
    fn drop(&mut self) {
        // Also what was asked and not sent yet must not be sent any more.
        self.wire.abort();
    }
}

impl Console {
    /// Opens an instance's console. `key` is where its URL stands in the plan or on the command line.
    ///
    /// # Errors
    /// A URL that cannot be read or leads to another database; no connection; a login that is refused.
    pub async fn open(url: &EnvString, key: &str, name: &str) -> Result<Self> {
        let url = url.address().map_err(|e| e.context(key))?;
        let mut address = Address::parse(&url).map_err(|e| e.context(format!("the URL of {key}")))?;
        match address.config.get_dbname() {
            None => drop(address.config.dbname(CONSOLE)),
            Some(CONSOLE) => {}
            Some(_) => {
                return Err(Error::usage(format!(
                    "the URL of {key} leads to another database than `{CONSOLE}`, which is the console"
                ))
                .hint(format!("write postgres://ADMIN:PASSWORD@HOST:6432/{CONSOLE}")));
            }
        }
        Self::dial(address, key, name).await
    }

    /// Opens a connection through a pooler, to one of its databases.
    ///
    /// # Errors
    /// As [`Console::open`].
    pub async fn through(url: &Secret, database: &str, key: &str) -> Result<Self> {
        let mut address = Address::parse(url).map_err(|e| e.context(format!("the URL of {key}")))?;
        address.config.dbname(database);
        Self::dial(address, key, "handover").await
    }

    async fn dial(mut address: Address, key: &str, name: &str) -> Result<Self> {
        address.config.application_name(name);
        let place = address.place();
        let (client, wire) = address.dial().await.map_err(|refused| match refused {
            Refused::Driver(error) => of_driver(&error, &place, key),
            other => other
                .into_error(|e| of_driver(e, &place, key))
                .context(format!("cannot connect to PgBouncer at {place}")),
        })?;
        // The connection's own error reaches every pending call through the client; nothing is lost here.
        let wire = tokio::spawn(async move { drop(wire.await) });
        let user = address.config.get_user().unwrap_or_default().to_owned();
        Ok(Console { client, wire, place, user })
    }

    /// Asks, and waits for the answer no longer than a few seconds.
    ///
    /// # Errors
    /// What PgBouncer says; no answer; a connection that broke.
    pub async fn ask(&self, command: &str) -> Result<Vec<Row>> {
        self.ask_within(command, ANSWER).await?.ok_or_else(|| {
            Error::new(
                Class::Connection,
                format!(
                    "PgBouncer at {} has not answered `{command}` within {} s",
                    self.place,
                    ANSWER.as_secs()
                ),
            )
            .hint("see that it runs and is not suspended")
        })
    }

    /// The same with another limit; none when that has passed. This connection is of no use then: the console reads
    /// nothing more from it before it has answered.
    ///
    /// # Errors
    /// As [`Console::ask`].
    pub async fn ask_within(&self, command: &str, limit: Duration) -> Result<Option<Vec<Row>>> {
        match tokio::time::timeout(limit, self.client.simple_query(command)).await {
            Ok(Ok(messages)) => Ok(Some(messages.into_iter().filter_map(row).collect())),
            Ok(Err(error)) => Err(self.failed(command, &error)),
            Err(_) => Ok(None),
        }
    }

    fn failed(&self, command: &str, error: &tokio_postgres::Error) -> Error {
        let Some(said) = error.as_db_error() else {
            return Error::new(
                Class::Connection,
                format!("the connection to PgBouncer at {} broke during `{command}`", self.place),
            )
            .hint("see its log: it may have been restarted");
        };
        let text = said.message();
        let failed = format!("PgBouncer at {} refuses `{command}`: {text}", self.place);
        if text.contains("admin access needed") {
            return Error::new(Class::Privilege, failed)
                .hint(format!("put `{}` into admin_users of pgbouncer.ini, and RELOAD", self.user));
        }
        if text.contains("already suspended/paused") {
            return Error::external(failed)
                .hint("somebody holds the whole pooler with PAUSE or SUSPEND: when they are done, `RESUME` on its console");
        }
        Error::external(failed).hint("see its log")
    }
}

/// What PgBouncer says on login has one code for everything, so its words decide.
fn of_driver(error: &tokio_postgres::Error, place: &str, key: &str) -> Error {
    let cannot = format!("cannot log in to PgBouncer at {place}");
    let Some(said) = error.as_db_error() else {
        let why = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
        return Error::new(Class::Connection, format!("cannot connect to PgBouncer at {place} ({why})"))
            .hint(format!("see that it runs, and where the URL of {key} leads"));
    };
    let text = said.message();
    let failed = |class| Error::new(class, format!("{cannot}: {text}"));
    if text.contains("authentication failed") || text.contains("no such user") {
        return failed(Class::Privilege)
            .hint(format!("look at user and password in the URL of {key}, and at auth_file"));
    }
    if text == "not allowed" {
        return failed(Class::Privilege).hint(format!(
            "put the user that the URL of {key} names into admin_users of pgbouncer.ini, and RELOAD"
        ));
    }
    failed(Class::Connection).hint("see its log")
}

fn row(message: SimpleQueryMessage) -> Option<Row> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    let columns = row.columns().iter().enumerate();
    Some(Row(columns
        .filter_map(|(i, column)| Some((column.name().to_owned(), row.get(i)?.to_owned())))
        .collect()))
}

/// A database's name in a command of the console's.
#[must_use]
pub fn named(database: &str) -> String {
    if database.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
        database.to_owned()
    } else {
        format!("\"{}\"", database.replace('"', "\"\""))
    }
}
