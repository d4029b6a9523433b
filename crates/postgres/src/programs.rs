//! Postgres's own programs that steps start (pg_dump, psql), and how libpq is told where to go.

use super::address::Address;
use super::profile::Profile;
use handover_core::child;
use handover_core::error::{Error, Result};
use handover_core::value::Secret;
use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;
use tokio_postgres::config::Host;

/// Names the folder with the programs of the old (blue) server's Postgres.
pub const BLUE_VARIABLE: &str = "HANDOVER_POSTGRES_BIN";
/// Names the folder with the programs of the new (green) server's Postgres.
pub const GREEN_VARIABLE: &str = "HANDOVER_POSTGRES_BIN_NEW";

/// A program of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Its major version.
    pub major: u32,
}

/// Every program called `name` that answers, in `folder` or, when none is given, in the places where
/// distributions and Homebrew put them and on the search path.
pub async fn find(name: &str, folder: Option<&Path>) -> Vec<Program> {
    let mut out: Vec<Program> = Vec::new();
    for path in candidates(name, folder) {
        if !out.iter().any(|known| known.path == path)
            && let Some(major) = version(&path).await
        {
            out.push(Program { path, major });
        }
    }
    out
}

/// The newest psql: what we say through it, every version says alike. The first of several: on the search path
/// may be a wrapper that takes longer to start than psql.
///
/// # Errors
/// There is none.
pub async fn psql(folder: Option<&Path>) -> Result<Program> {
    find("psql", folder).await.into_iter().min_by_key(|program| Reverse(program.major)).ok_or_else(|| {
        Error::external("there is no psql on this machine")
            .hint("install the client programs of Postgres (Debian: postgresql-client), or name their folder with `programs:`")
    })
}

fn candidates(name: &str, folder: Option<&Path>) -> Vec<PathBuf> {
    if let Some(folder) = folder {
        return vec![folder.join(name)];
    }
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let mut folders: Vec<PathBuf> =
        [GREEN_VARIABLE, BLUE_VARIABLE].into_iter().filter_map(variable).collect();
    for (parent, prefix) in
        [("/usr/lib/postgresql", ""), ("/usr", "pgsql-"), ("/opt/homebrew/opt", "postgresql")]
    {
        let Ok(children) = std::fs::read_dir(parent) else { continue };
        folders.extend(
            children
                .flatten()
                .filter(|c| c.file_name().to_string_lossy().starts_with(prefix))
                .map(|c| c.path().join("bin")),
        );
    }
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    folders.into_iter().map(|f| f.join(name)).filter(|p| p.is_file()).collect()
}

async fn version(program: &Path) -> Option<u32> {
    let output = child::command(program).arg("--version").stdin(Stdio::null()).output().await.ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let word = text.split_once(')')?.1.split_whitespace().next()?;
    word.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Tells a child program where to connect, and as whom, without showing a password in the process list; and what
/// its session is to be like. `major` is the server's version. What a program sets for itself, as pg_dump does,
/// comes later and wins. `command` is one of [`child::command`], in which no variable of ours can change what libpq
/// does. (<https://www.postgresql.org/docs/current/libpq-envars.html>)
///
/// # Errors
/// A URL that cannot be read.
pub fn connect_through_environment(
    command: &mut Command,
    url: &Secret,
    database: &str,
    application_name: &str,
    major: u32,
) -> Result<()> {
    let mut of_url = String::new();
    for (key, value) in parameters(url, database)? {
        if key == "options" {
            of_url = value;
            continue;
        }
        let name = if key == "dbname" { "database".to_owned() } else { key.replace('_', "") };
        command.env(format!("PG{}", name.to_uppercase()), value);
    }
    command.env("PGOPTIONS", Profile::Catalog.options(&of_url, false, Some(major)));
    command.env("PGAPPNAME", application_name);
    Ok(())
}

/// What a child program is told by its `--dbname`, beside its environment: `extra` keywords, and how soon a dead
/// peer is to be noticed, for which libpq has no variables. Nothing in it is secret.
///
/// # Errors
/// A URL that cannot be read.
pub fn dbname(url: &Secret, database: &str, extra: &str) -> Result<String> {
    let address = Address::parse(url).map_err(|e| e.on_database(database))?;
    let words = address.liveness().into_iter().map(|(key, value)| format!("{key}={value}"));
    Ok(std::iter::once(extra.to_owned()).filter(|e| !e.is_empty()).chain(words).collect::<Vec<_>>().join(" "))
}

/// A connection string for a server that connects by itself, as a subscription does. With `extra` keywords.
/// (<https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-KEYWORD-VALUE>)
///
/// # Errors
/// A URL that cannot be read.
pub fn connection_string(url: &Secret, database: &str, extra: &[(&str, &str)]) -> Result<Secret> {
    let mut own = parameters(url, database)?;
    own.extend(Address::parse(url).map_err(|e| e.on_database(database))?.liveness());
    let all = own.iter().map(|(key, value)| (*key, value.as_str())).chain(extra.iter().copied());
    let quoted = |value: &str| format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
    let words: Vec<String> = all.map(|(key, value)| format!("{key}={}", quoted(value))).collect();
    Ok(Secret::new(words.join(" ")))
}

/// A URL's parts by libpq's keywords. As environment variables they are called the same, but for `dbname`.
fn parameters(url: &Secret, database: &str) -> Result<Vec<(&'static str, String)>> {
    let address = Address::parse(url).map_err(|e| e.on_database(database))?;
    let config = &address.config;
    let hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .map(|h| match h {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        })
        .collect();
    let addresses: Vec<String> = config.get_hostaddrs().iter().map(ToString::to_string).collect();
    let ports: Vec<String> = config.get_ports().iter().map(u16::to_string).collect();
    let (mode, authority) = address.certificates();
    let all = [
        ("host", Some(hosts.join(","))),
        ("hostaddr", Some(addresses.join(","))),
        ("port", Some(ports.join(","))),
        ("user", config.get_user().map(str::to_owned)),
        ("dbname", config.get_dbname().or(config.get_user()).map(str::to_owned)),
        ("password", config.get_password().map(|p| String::from_utf8_lossy(p).into_owned())),
        ("options", config.get_options().map(str::to_owned)),
        ("sslmode", Some(mode.to_owned())),
        ("sslrootcert", authority),
        ("target_session_attrs", address.wanted().map(str::to_owned)),
    ];
    Ok(all.into_iter().filter_map(|(key, value)| Some((key, value.filter(|v| !v.is_empty())?))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_survives_odd_passwords() {
        let url = Secret::new("postgres://me:it%27s%5C%20me@db.example:6432/shop?sslmode=require");
        let text = connection_string(&url, "blue", &[("application_name", "handover")]).unwrap();
        let text = text.expose();
        let known =
            r"host='db.example' port='6432' user='me' dbname='shop' password='it\'s\\ me' sslmode='require' ";
        assert!(text.starts_with(known) && text.ends_with(" application_name='handover'"), "{text}");
        for word in ["connect_timeout='10'", "keepalives_count='4'", "tcp_user_timeout='12000'"] {
            assert!(text.contains(word), "no {word} in {text}");
        }
    }
}
