//! What an instance says of itself, by commands that only look.

use crate::console::{Console, Row};
use crate::entry::Target;
use handover_core::error::{Error, Result};
use jiff::civil::DateTime;
use std::time::Duration;

/// An entry as an instance has it in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Where it leads.
    pub target: Target,
    /// Whether it is paused, by whomever.
    pub paused: bool,
    /// Whether it refuses new clients.
    pub disabled: bool,
    /// Its own pooling mode, if it has one.
    pub mode: Option<String>,
}

/// An entry, if the instance has it.
///
/// # Errors
/// The console failing.
pub async fn entry(console: &Console, database: &str) -> Result<Option<State>> {
    let rows = console.ask("SHOW DATABASES").await?;
    Ok(rows.iter().find(|row| row.get("name") == Some(database)).map(|row| State {
        target: Target {
            host: row.get("host").filter(|host| !host.is_empty()).map(str::to_owned),
            port: row.get("port").unwrap_or_default().to_owned(),
            dbname: row.get("database").unwrap_or_default().to_owned(),
        },
        paused: row.is("paused"),
        disabled: row.is("disabled"),
        mode: row.get("pool_mode").map(str::to_owned),
    }))
}

/// The same for an entry that must be there.
///
/// # Errors
/// It is not; the console failing.
pub async fn state(console: &Console, database: &str) -> Result<State> {
    entry(console, database).await?.ok_or_else(|| {
        Error::usage(format!("PgBouncer at {} has no database `{database}`", console.place))
            .hint("name an entry of its [databases]; one that only `*` covers needs a line of its own")
    })
}

/// The version, as it says it.
///
/// # Errors
/// The console failing.
pub async fn version(console: &Console) -> Result<String> {
    let rows = console.ask("SHOW VERSION").await?;
    Ok(rows.first().and_then(|row| row.get("version")).unwrap_or("PgBouncer").to_owned())
}

/// Who keeps a server for as long as a client is connected, in words: the entry, or a user of it.
///
/// # Errors
/// The console failing.
pub async fn session_pooling(console: &Console, state: &State) -> Result<Option<String>> {
    let config = console.ask("SHOW CONFIG").await?;
    let default =
        config.iter().find(|row| row.get("key") == Some("pool_mode")).and_then(|row| row.get("value"));
    if state.mode.as_deref().or(default) == Some("session") {
        return Ok(Some("it pools sessions".into()));
    }
    let users = console.ask("SHOW USERS").await?;
    Ok(users
        .iter()
        .find(|row| row.get("pool_mode") == Some("session"))
        .and_then(|row| row.get("name"))
        .map(|user| format!("it pools sessions of user `{user}`")))
}

/// How many clients of an entry are connected.
///
/// # Errors
/// The console failing.
pub async fn clients(console: &Console, database: &str) -> Result<usize> {
    let rows = console.ask("SHOW CLIENTS").await?;
    Ok(rows.iter().filter(|row| row.get("database") == Some(database)).count())
}

/// The process ids, in the server, of what is still at work for an entry.
///
/// # Errors
/// The console failing.
pub async fn at_work(console: &Console, database: &str) -> Result<Vec<String>> {
    let rows = console.ask("SHOW SERVERS").await?;
    let active = |row: &&Row| row.get("database") == Some(database) && row.get("state") == Some("active");
    Ok(rows.iter().filter(active).filter_map(|row| row.get("remote_pid")).map(str::to_owned).collect())
}

/// A client by the name it gave itself, and for how long it has asked nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its `application_name`.
    pub name: String,
    /// Since its last command, by the pooler's clock, to the second.
    pub silent: Duration,
}

/// Who is connected to the console.
///
/// # Errors
/// The console failing.
pub async fn consoles(console: &Console) -> Result<Vec<Named>> {
    let rows = console.ask("SHOW CLIENTS").await?;
    let asked = |row: &Row| row.get("request_time").and_then(time);
    // What is being answered is the newest command of all.
    let now = rows.iter().filter_map(asked).max();
    let of_console = rows.iter().filter(|row| row.get("database") == Some("pgbouncer"));
    Ok(of_console
        .filter_map(|row| {
            let silent = now?.duration_since(asked(row)?);
            Some(Named {
                name: row.get("application_name")?.to_owned(),
                silent: Duration::try_from(silent).unwrap_or_default(),
            })
        })
        .collect())
}

/// `2026-11-27 17:43:48 UTC`; only differences matter here.
fn time(text: &str) -> Option<DateTime> {
    text.get(..19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_read_to_the_second() {
        let at = |text: &str| super::time(text);
        let between =
            at("2026-11-28 00:00:01 UTC").unwrap().duration_since(at("2026-11-27 23:59:58 UTC").unwrap());
        assert_eq!(between.as_secs(), 3);
        assert_eq!(at("soon"), None);
    }
}
