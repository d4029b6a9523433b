//! Which server is behind an entry.

use crate::console::Console;
use crate::entry::Target;
use handover_core::error::{Error, Result};
use handover_core::value::Secret;
use handover_postgres::address::Address;
use handover_postgres::identity::DatabaseIdentity;
use std::net::IpAddr;
use std::path::Path;
use tokio_postgres::config::Host;

/// Asks the server behind an entry who it is. Any role may; in one statement, which a pooler gives to one server.
const WHO: &str = "select s.system_identifier, d.oid,
    (extract(epoch from pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint as started
  from pg_catalog.pg_control_system() s, pg_catalog.pg_database d where d.datname = pg_catalog.current_database()";

/// Requires that an entry leads to a database, by asking through the pooler.
///
/// # Errors
/// It leads to another one, or to none: the pooler's own message then, for instance of a refused login there.
pub async fn assert_leads(
    url: &Secret,
    key: &str,
    entry: &str,
    wanted: &DatabaseIdentity,
    name: &str,
) -> Result<()> {
    let through = Console::through(url, entry, key).await?;
    let rows = through.ask(WHO).await.map_err(|e| e.context(format!("through entry `{entry}`")))?;
    let number =
        |column: &str| rows.first().and_then(|row| row.get(column)).and_then(|text| text.parse::<i64>().ok());
    let found = (number("system_identifier"), number("oid"), number("started"));
    if found == (Some(wanted.system_identifier), Some(wanted.oid.into()), Some(wanted.started_us)) {
        return Ok(());
    }
    Err(Error::usage(format!(
        "entry `{entry}` of PgBouncer at {} leads to another database than the plan's {name}",
        through.place
    ))
    .hint(format!("correct the entry, or the URL of `databases.{name}`")))
}

/// Whether an entry leads to where a URL does, as far as names and addresses tell.
pub async fn is_same_place(target: &Target, url: &Secret) -> Result<bool> {
    let address = Address::parse(url)?;
    let config = &address.config;
    if config.get_dbname().or(config.get_user()) != Some(target.dbname.as_str()) {
        return Ok(false);
    }
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    for i in 0..hosts.len().max(addresses.len()) {
        let port = ports.get(i).or(ports.first()).copied().unwrap_or(5432);
        if port.to_string() != target.port {
            continue;
        }
        let same = match (hosts.get(i), addresses.get(i), target.host.as_deref()) {
            (_, _, None) => false,
            (Some(Host::Unix(path)), _, Some(host)) => path == Path::new(host),
            (Some(Host::Tcp(name)), _, Some(host)) if name == host => true,
            (_, Some(address), Some(host)) => resolve(host).await.contains(address),
            (Some(Host::Tcp(name)), None, Some(host)) => {
                let here = resolve(host).await;
                resolve(name).await.iter().any(|address| here.contains(address))
            }
            (None, None, _) => false,
        };
        if same {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn resolve(host: &str) -> Vec<IpAddr> {
    match tokio::net::lookup_host((host, 0)).await {
        Ok(found) => found.map(|address| address.ip()).collect(),
        Err(_) => Vec::new(),
    }
}

/// Where a database's URL leads, as an entry would have it.
///
/// # Errors
/// A URL that names several hosts, or cannot be read.
pub fn target_of(url: &Secret, name: &str) -> Result<Target> {
    let address = Address::parse(url).map_err(|e| e.context(format!("the URL of `databases.{name}`")))?;
    let config = &address.config;
    let several = config.get_hosts().len().max(config.get_hostaddrs().len()) > 1;
    let host = match (config.get_hosts(), config.get_hostaddrs()) {
        ([Host::Tcp(host)], _) => Some(host.clone()),
        ([Host::Unix(path)], _) => Some(path.display().to_string()),
        ([], [address]) => Some(address.to_string()),
        _ => None,
    };
    let dbname = config.get_dbname().or(config.get_user());
    match (host, dbname) {
        (Some(host), Some(dbname)) if !several => Ok(Target {
            host: Some(host),
            port: config.get_ports().first().copied().unwrap_or(5432).to_string(),
            dbname: dbname.to_owned(),
        }),
        _ => Err(Error::usage(format!(
            "the URL of `databases.{name}` names several hosts, and an entry leads to one"
        ))
        .hint("say which under `connect:`: \"host=… port=… dbname=…\"")),
    }
}
