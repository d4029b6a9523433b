//! The subscription on the side that follows.
//! (<https://www.postgresql.org/docs/current/sql-createsubscription.html>)

use crate::link::Link;
use crate::options::Replicate;
use crate::publication;
use bytes::Bytes;
use futures_util::SinkExt;
use handover_core::error::{Class, Error, Result};
use handover_core::value::Secret;
use handover_port::Port;
use handover_postgres::blockers::{self, Blocker};
use handover_postgres::error::PASSED_ON;
use handover_postgres::ours::OURS;
use handover_postgres::programs::connection_string;
use handover_postgres::{Session, Tx, quote_ident, quote_literal};
use std::collections::BTreeMap;
use std::pin::pin;
use tokio_postgres::types::Json;

/// How a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// It applies at once.
    Now,
    /// It is disabled, and the publisher leaves out what came to it from elsewhere. From Postgres 16 on.
    Ahead,
}

impl Begin {
    fn options(self) -> &'static str {
        match self {
            Begin::Now => "",
            Begin::Ahead => ", enabled = false, origin = none",
        }
    }
}

/// Creates it, unless it is there. Returns whether it was made now.
///
/// # Errors
/// What the server says, also of reaching the publisher.
pub async fn create(port: &Port, replicate: &Replicate, link: &Link, begin: Begin) -> Result<bool> {
    let mut green = port.writer(&link.to).await?;
    if find(&green, &link.name).await?.is_some() {
        return Ok(false);
    }
    // It connects to the publisher, which may be slow, and must end some time.
    green.set("statement_timeout", "60s").await?;
    let address = address(port, replicate, link)?;
    let publications = publication::publications(port, link).await?;
    let tx = green.transaction().await?;
    forget_marks(&tx, link).await?;
    execute(&tx, link, &publications, &address, begin).await.map_err(|e| explain(e, link))?;
    tx.commit().await?;
    Ok(true)
}

/// What lets one that is disabled apply.
pub fn enabling(link: &Link) -> String {
    format!("alter subscription {} enable", quote_ident(&link.name))
}

/// Lets one that is disabled apply.
///
/// # Errors
/// What the server says.
pub async fn enable(port: &Port, link: &Link) -> Result<()> {
    let mut green = port.writer(&link.to).await?;
    let tx = green.transaction().await?;
    tx.execute(&enabling(link), &[]).await.map_err(|e| e.context("enabling the subscription"))?;
    tx.commit().await
}

/// Creates one in a transaction that is rolled back: proves, before a copy that takes hours, that the role may
/// and that this side reaches the other. The publication must have no tables yet: they are not
/// on this side.
///
/// # Errors
/// Like [`create`].
pub async fn rehearse(port: &Port, replicate: &Replicate, link: &Link) -> Result<()> {
    let mut green = port.writer(&link.to).await?;
    green.set("statement_timeout", "60s").await?;
    let address = address(port, replicate, link)?;
    let publications = publication::publications(port, link).await?;
    let tx = green.transaction().await?;
    execute(&tx, link, &publications, &address, Begin::Now).await.map_err(|e| explain(e, link))?;
    tx.rollback().await
}

fn address(port: &Port, replicate: &Replicate, link: &Link) -> Result<Secret> {
    // A publisher whose machine is gone is noticed, rather than waited for: every connection string of ours says so.
    let address = match &replicate.connection {
        Some(connection) => connection.resolve()?,
        None => port.databases.url(&replicate.from)?.clone(),
    };
    connection_string(&address, &link.from, &[("application_name", link.name.as_str())])
}

/// What creates it, from the quoted names of its publications: a table for the connection string, the COPY that brings
/// it, and what puts it into the statement. The connection string travels as COPY data, which no server logs, and is put into the statement inside of the
/// server: neither `log_statement`, nor the view of running statements, nor the context of an error shows it. The
/// context of a warning would, as for a publication that is not there; so there must be nothing to warn of.
pub fn creation(link: &Link, publications: &[String], begin: Begin) -> [String; 3] {
    let name = quote_literal(&link.name);
    // No slot is made here, so that this may be part of a transaction; and no rows are copied: they are there.
    let body = format!(
        "begin
             execute format('create subscription %I connection %L publication {} with (create_slot = false, slot_name = %L, copy_data = false{})',
                            {name}, (select text from pg_temp.handover_address), {name});
         exception when others then
             raise exception using errcode = sqlstate, message = '{PASSED_ON}' || sqlerrm;
         end",
        // Within a format string, within a string.
        publications.join(", ").replace('%', "%%").replace('\'', "''"),
        begin.options()
    );
    [
        "create temporary table handover_address (text text) on commit drop".to_owned(),
        "copy pg_temp.handover_address from stdin".to_owned(),
        format!("do {}", quote_literal(&body)),
    ]
}

async fn execute(
    tx: &Tx<'_>,
    link: &Link,
    publications: &[String],
    address: &Secret,
    begin: Begin,
) -> Result<()> {
    let [table, copy, create] = creation(link, publications, begin);
    tx.batch(&table).await?;
    let mut line = address.expose().replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n");
    line.push('\n');
    let mut sink = pin!(tx.copy_in(&copy).await?);
    sink.send(Bytes::from(line)).await.map_err(|e| tx.error(&e))?;
    sink.finish().await.map_err(|e| tx.error(&e))?;
    tx.batch(&create).await
}

fn explain(error: Error, link: &Link) -> Error {
    let (to, from) = (&link.to, &link.from);
    let message = error.message().to_owned();
    let hint = if message.contains("2F003") || message.contains("password") {
        format!(
            "a role that is no superuser subscribes with a password only: give one in the URL of {from} or in `connection:`, and let the publisher's pg_hba.conf ask for it"
        )
    } else if error.class() == Class::Privilege {
        format!(
            "run scripts/grants.sql on {to} with handover.grant_replicate = on; before Postgres 16 only a superuser can subscribe"
        )
    } else {
        format!(
            "the server of {to} connects to {from} by itself: name an address that leads there from it as `connection: ${{NAME}}`, and see that the publisher's pg_hba.conf lets it in"
        )
    };
    let context = format!("subscribing {to} to {from}");
    // The first hint stays, and what the driver knows of its own connection does not help here.
    Error::new(if error.class() == Class::Connection { Class::External } else { error.class() }, message)
        .on_database(to)
        .hint(hint)
        .context(context)
}

/// The subscription as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Whether it runs.
    pub enabled: bool,
}

/// Looks for it.
pub async fn find(green: &Session, name: &str) -> Result<Option<Found>> {
    let row = green
        .query_opt(
            "select s.subenabled from pg_subscription s join pg_database d on d.oid = s.subdbid
             where s.subname = $1 and d.datname = current_database()",
            &[&name],
        )
        .await?;
    Ok(row.map(|row| Found { enabled: row.get(0) }))
}

/// Its worker, and what the server counts about it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Worker {
    /// The process that applies, if it runs.
    pub pid: Option<i32>,
    /// Who holds a lock that it waits for.
    pub blockers: Vec<Blocker>,
    /// The tables it is at.
    pub tables: Option<String>,
    /// What the server's log calls where its changes come from.
    pub origin: String,
    /// The server's log file, if it keeps one and we may know.
    pub log: Option<String>,
    /// The server's counters: failures, unknown before Postgres 15, and conflicts, before 18.
    pub counts: BTreeMap<String, i64>,
}

impl Worker {
    /// Failures so far; unknown before Postgres 15.
    #[must_use]
    pub fn errors(&self) -> Option<i64> {
        self.counts.get("apply_error_count").copied()
    }

    /// Conflicts that end the worker, in words; those that it passes over are [`Worker::skipped`].
    #[must_use]
    pub fn conflicts(&self) -> Option<String> {
        const ENDING: [(&str, &str); 3] = [
            ("confl_insert_exists", "a row to insert had a key that is there already"),
            ("confl_update_exists", "a row was updated to a key that is there already"),
            ("confl_multiple_unique_conflicts", "a row had several keys that are there already"),
        ];
        let told: Vec<String> = ENDING
            .iter()
            .filter_map(|(name, words)| Some((self.counts.get(*name).filter(|n| **n > 0)?, words)))
            .map(|(n, words)| format!("{words} ({n} times)"))
            .collect();
        (!told.is_empty()).then(|| told.join("; "))
    }

    /// Updates and deletes whose row was missing, which the server passes over; counted from Postgres 18 on.
    #[must_use]
    pub fn skipped(&self) -> i64 {
        ["confl_update_missing", "confl_delete_missing"]
            .iter()
            .filter_map(|name| self.counts.get(*name))
            .sum()
    }

    /// Where the server's log has the reason, in words.
    #[must_use]
    pub fn where_to_look(&self) -> String {
        let log = self.log.as_ref().map(|file| format!(" ({file})")).unwrap_or_default();
        format!(
            "look in the log{log} of its server for `replication origin \"{}\"`: that line names the table, and the ERROR above it the reason",
            self.origin
        )
    }
}

/// Looks at its worker.
/// (<https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-SUBSCRIPTION-STATS>)
pub async fn worker(green: &Session, name: &str, major: u32) -> Result<Worker> {
    // Workers that help the one that leads are not asked; before Postgres 16 there are none.
    let alone = if major >= 16 { "and w.leader_pid is null" } else { "" };
    // Each version counts more, and says so by a column.
    let counts = if major >= 15 {
        "(select to_jsonb(s) from pg_stat_subscription_stats s where s.subname = $1)"
    } else {
        "null::jsonb"
    };
    let row = green
        .query_opt(
            &format!(
                "select w.pid, {counts}, 'pg_' || w.subid,
                        (select string_agg(distinct l.relation::regclass::text, ', ') from pg_locks l join pg_class c on c.oid = l.relation
                         where l.pid = w.pid and l.mode = 'RowExclusiveLock' and c.relkind in ('r', 'p') and c.oid >= 16384
                           and c.relnamespace <> to_regnamespace('{OURS}')
                           and l.database = (select oid from pg_database where datname = current_database())),
                        case when has_function_privilege('pg_current_logfile()', 'execute') then pg_current_logfile() end
                 from pg_stat_subscription w where w.subname = $1 and w.relid is null {alone} limit 1"
            ),
            &[&name],
        )
        .await?;
    let Some(row) = row else { return Ok(Worker::default()) };
    let counts: Option<Json<serde_json::Map<String, serde_json::Value>>> = row.get(1);
    let counts = counts.map(|Json(counts)| counts).unwrap_or_default();
    let pid: Option<i32> = row.get(0);
    Ok(Worker {
        pid,
        blockers: match pid {
            Some(pid) => blockers::of_backend(green, pid).await?,
            None => Vec::new(),
        },
        tables: row.get(3),
        origin: row.get(2),
        log: row.get(4),
        counts: counts.into_iter().filter_map(|(name, value)| Some((name, value.as_i64()?))).collect(),
    })
}

/// What drops it, and leaves its slot.
pub fn removal(link: &Link) -> [String; 3] {
    let name = quote_ident(&link.name);
    [
        format!("alter subscription {name} disable"),
        format!("alter subscription {name} set (slot_name = none)"),
        format!("drop subscription {name}"),
    ]
}

/// Drops it if it is there, and leaves its slot to the publisher's side: the publisher may be out of reach.
pub async fn remove(port: &Port, link: &Link) -> Result<()> {
    let mut green = port.writer(&link.to).await?;
    if find(&green, &link.name).await?.is_some() {
        green.set("lock_timeout", "30s").await?;
        let tx = green.transaction().await?;
        for sql in removal(link) {
            tx.execute(&sql, &[]).await.map_err(|e| e.context("dropping the subscription"))?;
        }
        tx.commit().await?;
    }
    let tx = green.transaction().await?;
    forget_marks(&tx, link).await?;
    tx.commit().await
}

/// Forgets the marks of a link.
pub async fn forget_marks(tx: &Tx<'_>, link: &Link) -> Result<()> {
    tx.execute(&format!("delete from {OURS}.replication_marker where link = $1"), &[&link.name])
        .await
        .map(drop)
}
