//! Looks from outside at a statement that takes long: who holds it up, how far it is, and whether to stop it.

use crate::locks::Lock;
use handover_core::error::{Error, Result};
use handover_core::event::Measure;
use handover_port::Port;
use handover_postgres::blockers;
use handover_postgres::patience::Mode;
use handover_postgres::{Session, TableName};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Who was last seen holding a lock that a statement waits for. When the wait has timed out it is too late to ask.
#[derive(Debug, Clone, Default)]
pub struct Blockers {
    seen: Arc<Mutex<Seen>>,
    /// Whether short waits are to be seen too.
    eager: bool,
}

#[derive(Debug, Default)]
struct Seen {
    who: Option<String>,
    wanted: Vec<Lock>,
}

impl Blockers {
    /// Nothing seen yet. `eager`: an attempt failed before, so that it is worth while to look often.
    #[must_use]
    pub fn new(eager: bool) -> Self {
        Blockers { eager, ..Self::default() }
    }

    /// In words.
    #[must_use]
    pub fn last(&self) -> Option<String> {
        self.seen().who.clone()
    }

    /// The tables that were waited for.
    #[must_use]
    pub fn wanted(&self) -> Vec<Lock> {
        self.seen().wanted.clone()
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The table that a backend waits for.
const WANTED: &str = "select n.nspname::text, c.relname::text, l.mode
    from pg_locks l left join pg_index i on i.indexrelid = l.relation
    join pg_class c on c.oid = coalesce(i.indrelid, l.relation) join pg_namespace n on n.oid = c.relnamespace
    where l.pid = $1 and not l.granted and l.locktype = 'relation' and c.relkind in ('r', 'p')";

/// Runs `statement`, which executes on backend `pid`, and watches it meanwhile. When the run is asked to stop,
/// the statement is cancelled: dropping the future alone would leave it running in the server.
///
/// # Errors
/// Only that the run was asked to stop.
pub async fn watched<T>(
    port: &Port,
    database: &str,
    pid: i32,
    unit: &str,
    line: usize,
    blockers: &Blockers,
    statement: impl Future<Output = T>,
) -> Result<T> {
    tokio::pin!(statement);
    let stopped = tokio::select! {
        result = &mut statement => return Ok(result),
        stopped = watch(port, database, pid, unit, line, blockers) => stopped,
    };
    // A session of the same role may cancel it, whatever the reader may.
    if let Ok(session) = port.writer(database).await {
        let _ = session.query("select pg_cancel_backend($1)", &[&pid]).await;
    }
    let _ = tokio::time::timeout(Duration::from_secs(10), statement).await;
    Err(stopped)
}

async fn watch(port: &Port, database: &str, pid: i32, unit: &str, line: usize, blockers: &Blockers) -> Error {
    let started = Instant::now();
    let mut next_note = Duration::from_secs(30);
    let mut reported = String::new();
    let mut session: Option<Session> = None;
    if blockers.eager {
        session = port.reader(database).await.ok();
    }
    loop {
        let often = blockers.eager && started.elapsed() < Duration::from_secs(2);
        let rest = Duration::from_millis(if often { 20 } else { 300 });
        if let Err(stopped) = port.sleep(rest).await {
            return stopped;
        }
        // Watching is a courtesy: without a connection for it the statement goes on.
        if session.is_none() {
            session = port.reader(database).await.ok();
        }
        if let Some(reader) = &session
            && look(port, reader, pid, unit, line, blockers, &mut reported).await.is_err()
        {
            session = None;
        }
        if started.elapsed() >= next_note {
            let elapsed = humantime::format_duration(Duration::from_secs(started.elapsed().as_secs()));
            port.note(format!("{unit}: the statement on line {line} has been running for {elapsed}"));
            next_note *= 2;
        }
    }
}

async fn look(
    port: &Port,
    reader: &Session,
    pid: i32,
    unit: &str,
    line: usize,
    blockers: &Blockers,
    reported: &mut String,
) -> Result<()> {
    let who = blockers::of_backend(reader, pid).await?;
    if !who.is_empty() {
        let text = blockers::listed(&who);
        let keys = blockers::keys(&who);
        if *reported != keys {
            port.warn(format!("{unit} waits for {text}"));
            *reported = keys;
        }
        blockers.seen().who = Some(text);
        let wanted = reader.query(WANTED, &[&pid]).await?;
        for row in &wanted {
            let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
            if let Some(mode) = Mode::shown(row.get(2)) {
                let lock = Lock { table, mode, line };
                let mut seen = blockers.seen();
                if !seen.wanted.contains(&lock) {
                    seen.wanted.push(lock);
                }
            }
        }
    }
    // The server tells how far it is for these statements only
    // (https://www.postgresql.org/docs/current/progress-reporting.html).
    let progress = reader
        .query_opt(
            "select 'building the index', blocks_done, blocks_total from pg_stat_progress_create_index where pid = $1
             union all
             select 'rewriting the table', heap_blks_scanned, heap_blks_total from pg_stat_progress_cluster where pid = $1
             union all
             select 'vacuuming', heap_blks_scanned, heap_blks_total from pg_stat_progress_vacuum where pid = $1
             limit 1",
            &[&pid],
        )
        .await?;
    if let Some(row) = progress {
        let (what, done, total): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
        let total = Some(total.unsigned_abs()).filter(|n| *n > 0);
        port.progress(&format!("{unit}: {what}"), done.unsigned_abs(), total, Measure::Blocks);
    }
    Ok(())
}
