//! The triggers of a capture: made, proven and dropped, each under a lock that is tried for in short attempts.

use super::cascades;
use super::look::{key_of, obstacles};
use super::options::{Capture, Table};
use crate::catalog::{TableFacts, inspect};
use crate::connect::connect_queue;
use crate::stream::Stream;
use crate::trigger::{Installation, Spec, find, function_pattern};
use handover_core::{Class, Error, Result, failpoint};
use handover_port::Port;
use handover_postgres::ours::OURS;
use handover_postgres::profile::SearchPath;
use handover_postgres::{Session, TableName, blockers, quote_ident, quote_literal};
use std::time::{Duration, Instant};

/// How long all attempts to get a table's lock may take together.
const PATIENCE: Duration = Duration::from_secs(120);

/// Registers the stream, declares it in the queue, and makes the triggers of every table that has none. What the replays
/// of the streams `leaves_out` write is not captured: it comes from where this capture's events go.
///
/// # Errors
/// Lease lost, a table that cannot be captured as asked, a lock that was not to be had, or what a server says.
pub async fn begin(capture: &Capture, port: &Port, leaves_out: &[String]) -> Result<Stream> {
    let mut session = port.writer(&capture.from).await?;
    let known = Stream::find(&session, port.run, &port.step).await?.is_some();
    let queue = connect_queue(port).await?;
    let name = capture.stream_name(port.run, &port.step);
    if !known {
        // Of an earlier stream of this name, whose database is gone: its events would be taken for those of this one.
        queue.delete(&name).await?;
    }
    let tx = session.transaction().await?;
    let stream = Stream::register(&tx, port.run, &port.step, &name, capture.partitions).await?;
    tx.commit().await?;
    queue.declare(&stream.name, stream.partitions).await?;
    session.wait_for_locks(capture.lock_timeout.0).await?;
    let path = port.databases.search_path(&capture.from)?;
    for (index, (name, table)) in capture.tables.iter().enumerate() {
        port.proceed()?;
        let facts = inspect(&session, name).await?;
        let key = capture_key(capture, name, table, facts.as_ref())?;
        let forms = facts.map(|facts| facts.forms).unwrap_or_default();
        let spec = table.spec(&stream, index, name, &key, &forms, leaves_out);
        let begun = Instant::now();
        let mut rest = Duration::from_millis(200);
        while let Err(error) = install(&mut session, &spec, path).await {
            if error.class() != Class::Contention || begun.elapsed() > PATIENCE {
                let holders = blockers::of_table(&session, name).await.unwrap_or_default();
                let place = format!("creating triggers on {name}");
                return Err(if holders.is_empty() {
                    error.context(place)
                } else {
                    error.context(format!("{place}, which is held by {}", blockers::listed(&holders)))
                });
            }
            // Writers that queued up behind us pass before the next attempt.
            let holders = blockers::of_table(&session, name).await?;
            port.warn(format!(
                "the triggers on {name} wait for {}",
                if holders.is_empty() { "a lock".into() } else { blockers::listed(&holders) }
            ));
            port.sleep(rest).await?;
            rest = (rest * 2).min(Duration::from_secs(5));
        }
        failpoint::at(failpoint::CAPTURE_TRIGGER)?;
    }
    for unseen in cascades::unseen(&session, capture).await? {
        port.warn(unseen);
    }
    Ok(stream)
}

/// Proves that every trigger is there and enabled, and the stream in the queue.
///
/// # Errors
/// What is missing.
pub async fn verify(capture: &Capture, port: &Port) -> Result<()> {
    let stream = assert_hung(capture, port).await?;
    connect_queue(port).await?.depth(&stream.name).await.map(drop)
}

/// Proves that every trigger is there and enabled.
///
/// # Errors
/// One that is not ([`Class::Data`]), or what the server says.
pub async fn assert_hung(capture: &Capture, port: &Port) -> Result<Stream> {
    let session = port.reader(&capture.from).await?;
    let stream = Stream::get(&session, port.run, &port.step).await?;
    for (index, (name, table)) in capture.tables.iter().enumerate() {
        let spec = table.spec(&stream, index, name, &[], &[], &[]);
        let rows = session.query(&find(), &[&function_pattern(stream.id)]).await?;
        for trigger in spec.triggers() {
            let found = rows.iter().find(|row| {
                (row.get::<_, &str>(0), row.get::<_, &str>(1), row.get::<_, &str>(2))
                    == (name.schema.as_str(), name.name.as_str(), trigger.as_str())
            });
            if found.is_none_or(|row| row.get::<_, &str>(3) != "A") {
                return Err(Error::data(format!("the trigger {trigger} on {name} is not there or not enabled"))
                    .on_database(&capture.from)
                    .hint("somebody dropped or disabled it: `handover rollback` to before this step and begin again, since writes may have been missed"));
            }
        }
    }
    Ok(stream)
}

/// Whether the triggers of a stream leave out what the replay of another one writes, as [`begin`] may have been told.
///
/// # Errors
/// What the server says.
pub async fn leaves_out(session: &Session, stream: &Stream, other: &str) -> Result<bool> {
    let row = session
        .query_one(
            &format!(
                "select coalesce(bool_and(strpos(p.prosrc, $2) > 0), false) from pg_proc p
                 join pg_namespace n on n.oid = p.pronamespace where n.nspname = '{OURS}' and p.proname like $1"
            ),
            &[&function_pattern(stream.id), &quote_literal(other)],
        )
        .await?;
    Ok(row.get(0))
}

/// Drops the triggers, the stream in the queue and the outbox's rows. Returns how many triggers there were.
///
/// # Errors
/// Lease lost, or what a server says.
pub async fn remove(capture: &Capture, port: &Port) -> Result<usize> {
    let mut session = port.writer(&capture.from).await?;
    let Some(stream) = Stream::find(&session, port.run, &port.step).await? else { return Ok(0) };
    session.wait_for_locks(capture.lock_timeout.0).await?;
    let found = session.query(&find(), &[&function_pattern(stream.id)]).await?;
    for row in &found {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let sql = format!("drop trigger if exists {} on {}", quote_ident(row.get(2)), table.sql());
        let begun = Instant::now();
        loop {
            let tx = session.transaction().await?;
            match tx.execute(&sql, &[]).await {
                Ok(_) => {
                    tx.commit().await?;
                    break;
                }
                Err(e) if e.class() == Class::Contention && begun.elapsed() < PATIENCE => {
                    tx.rollback().await?;
                    port.sleep(Duration::from_millis(500)).await?;
                }
                Err(e) => return Err(e.context(format!("dropping a trigger on {table}"))),
            }
        }
    }
    failpoint::at(failpoint::CAPTURE_DROPPED)?;
    connect_queue(port).await?.delete(&stream.name).await?;
    let tx = session.transaction().await?;
    let functions = tx
        .query(
            &format!(
                "select proname::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                 where n.nspname = '{OURS}' and proname like $1"
            ),
            &[&function_pattern(stream.id)],
        )
        .await?;
    for function in &functions {
        tx.execute(&format!("drop function {OURS}.{}()", quote_ident(function.get(0))), &[]).await?;
    }
    for table in ["outbox", "outbox_numbered", "outbox_written", "outbox_partition"] {
        tx.execute(&format!("delete from {OURS}.{table} where capture = $1"), &[&stream.id]).await?;
    }
    tx.execute(&format!("delete from {OURS}.capture where id = $1"), &[&stream.id]).await?;
    tx.commit().await?;
    Ok(found.len())
}

/// The key's columns, or why the table cannot be captured.
fn capture_key(
    capture: &Capture,
    name: &TableName,
    table: &Table,
    facts: Option<&TableFacts>,
) -> Result<Vec<String>> {
    match obstacles(name, table, facts).into_iter().next() {
        Some((problem, hint)) => Err(Error::data(problem).on_database(&capture.from).hint(hint)),
        None => Ok(key_of(table, facts)),
    }
}

/// Makes a table's function and triggers in one transaction, unless they are there.
async fn install(session: &mut Session, spec: &Spec<'_>, path: &SearchPath) -> Result<()> {
    let there = session.query(&find(), &[&function_pattern(spec.capture)]).await?;
    let ours = |row: &tokio_postgres::Row| {
        (row.get::<_, &str>(0), row.get::<_, &str>(1))
            == (spec.table.schema.as_str(), spec.table.name.as_str())
    };
    if there.iter().any(ours) {
        // They were committed together.
        return Ok(());
    }
    let Installation { function, triggers } = spec.installation();
    let tx = session.transaction().await?;
    tx.batch(&function).await?;
    // `when` is the plan's own: its names are looked up here, once.
    tx.execute("select set_config('search_path', $1, true)", &[&path.sql()]).await?;
    for sql in triggers {
        tx.execute(&sql, &[]).await?;
    }
    tx.commit().await
}
