//! The workers: they load chunks, build what hangs on a table as soon as its rows are there, and analyze it,
//! while other tables are still being loaded.

use crate::board::{Board, Next, Unit};
use crate::data::{self, Done};
use crate::lock::lock;
use crate::options::Copy;
use crate::source::Source;
use crate::state::{State, units};
use crate::{builds, graph, large_objects, schema, state, target};
use handover_core::error::{Class, Error, Result};
use handover_core::event::Measure;
use handover_core::failpoint;
use handover_port::Port;
use handover_postgres::Session;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How often the holder of the snapshot is asked after.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How often bars move that no worker moves.
const TICK: Duration = Duration::from_secs(1);
/// The bar of all tables' rows.
const ALL: &str = "all rows";
/// How often the operator is told what it costs, in heartbeats.
const REMINDER: u32 = 60;
/// Attempts at an object that loses a deadlock against its neighbours.
const ATTEMPTS: u32 = 5;

struct Shared {
    port: Port,
    copy: Copy,
    state: Arc<State>,
    jobs: usize,
    exported: Option<String>,
    board: Mutex<Board>,
    /// Changes with every task that is complete.
    beat: watch::Sender<u64>,
    done: Vec<Done>,
    /// Backends on the source, to be cancelled when the copy breaks off.
    backends: Mutex<Vec<i32>>,
    /// What backends on the target are building.
    builds: Mutex<BTreeMap<i32, String>>,
}

/// Does everything from the first row to the last foreign key that is not done yet. The source is let go of as
/// soon as its rows are there; none is needed when they are.
///
/// # Errors
/// What either server says; whatever was committed stays, for the next attempt to go on from.
pub async fn work(
    port: &Port,
    copy: &Copy,
    jobs: usize,
    mut source: Option<Source>,
    state: &Arc<State>,
) -> Result<()> {
    let finished = units(&target::reader(port, copy).await?, port.run, &port.step).await?;
    let board = graph::board(state, &finished, jobs);
    // Loads and builds wait for different things, so each have their own.
    let workers_needed = (2 * jobs).min(board.len());
    let shared = Arc::new(Shared {
        port: port.clone(),
        copy: copy.clone(),
        state: state.clone(),
        exported: source.as_ref().map(|s| s.held().exported.clone()),
        done: already(state, &finished),
        board: Mutex::new(board),
        beat: watch::channel(0).0,
        backends: Mutex::default(),
        builds: Mutex::default(),
        jobs,
    });
    let over = CancellationToken::new();
    // Threads are not ended by letting go of them.
    let _guard = over.clone().drop_guard();
    let mut workers = JoinSet::new();
    for _ in 0..workers_needed {
        let (shared, over) = (shared.clone(), over.clone());
        workers.spawn_blocking(move || on_a_thread(shared, &over));
    }
    let result = supervise(&shared, &mut source, &mut workers).await;
    if result.is_err() {
        over.cancel();
        while workers.join_next().await.is_some() {}
        // A COPY whose reader is gone would read on to its end.
        if let Some(source) = &source {
            let backends = lock(&shared.backends).clone();
            source.holder().cancel(&backends).await;
        }
    }
    result
}

fn already(state: &State, finished: &BTreeSet<String>) -> Vec<Done> {
    let loaded = |table: &state::Table| {
        (0..table.chunks.len()).filter(|chunk| finished.contains(&table.unit(*chunk))).count()
    };
    state.tables.iter().map(|table| Done::already(table, loaded(table))).collect()
}

async fn supervise(
    shared: &Shared,
    source: &mut Option<Source>,
    workers: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let port = &shared.port;
    let mut beat = shared.beat.subscribe();
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    let mut beats = 0;
    let mut tick = tokio::time::interval(TICK);
    let looker = target::reader(port, &shared.copy).await?;
    loop {
        if source.is_some() && lock(&shared.board).loads_left() == 0 {
            rows_are_there(shared, source).await?;
        }
        tokio::select! {
            () = port.stop.cancelled() => return Err(Error::cancelled()),
            _ = heartbeat.tick() => {
                if let Some(source) = source {
                    source.holder().assert_held().await?;
                    beats += 1;
                    if beats % REMINDER == 0 {
                        port.note(source.holder().burden().await?);
                    }
                }
            }
            _ = tick.tick() => {
                if source.is_some() {
                    let total = shared.state.tables.iter().map(|t| t.bytes).sum();
                    let done = shared.done.iter().map(Done::so_far).sum();
                    port.progress(ALL, done, Some(total), Measure::Bytes);
                }
                let building = lock(&shared.builds).clone();
                builds::report(port, &looker, &building).await?;
            }
            changed = beat.changed() => drop(changed),
            ended = workers.join_next() => match ended {
                None => return Ok(()),
                Some(Ok(result)) => result?,
                Some(Err(e)) => return Err(Error::internal(format!("a task of the copy broke off: {e}"))),
            },
        }
    }
}

/// Writes down that all rows are there, and lets go of the source.
async fn rows_are_there(shared: &Shared, source: &mut Option<Source>) -> Result<()> {
    let (port, copy) = (&shared.port, &shared.copy);
    let Some(held) = source else { return Ok(()) };
    port.unit_done(ALL);
    large_objects::copy(port, copy, &held.held().exported, shared.jobs).await?;
    // Only now is it certain that nobody could rewrite a table while it was read.
    held.holder().assert_held().await?;
    let mut green = port.writer(&copy.to).await?;
    let tx = green.transaction().await?;
    state::mark(&tx, port.run, &port.step, state::DATA).await?;
    tx.commit().await?;
    failpoint::at(failpoint::COPY_DATA_COMPLETE)?;
    match source.take() {
        Some(source) => source.release().await,
        None => Ok(()),
    }
}

/// A worker with its connections on a thread of its own: rows go from one socket to the other without waking
/// another thread for each message.
fn on_a_thread(shared: Arc<Shared>, over: &CancellationToken) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::internal(format!("no thread for the copy: {e}")))?;
    runtime.block_on(async {
        tokio::select! {
            () = over.cancelled() => Err(Error::cancelled()),
            result = worker(shared) => result,
        }
    })
}

async fn worker(shared: Arc<Shared>) -> Result<()> {
    let port = &shared.port;
    let mut writer = schema::executor(port, &shared.copy, &shared.state.settings).await?;
    data::prepare_writer(&writer).await?;
    let pid = writer.backend_pid().await?;
    let mut reader: Option<Session> = None;
    let mut beat = shared.beat.subscribe();
    loop {
        beat.mark_unchanged();
        let next = lock(&shared.board).take();
        let (number, unit, idle) = match next {
            Next::Task(number, unit, idle) => (number, unit, idle),
            Next::Wait => {
                // It holds the snapshot too.
                reader = None;
                if beat.changed().await.is_err() {
                    return Ok(());
                }
                continue;
            }
            Next::Finished => return Ok(()),
        };
        port.proceed()?;
        if let Unit::Load(table, chunk) = unit {
            let reader = match &mut reader {
                Some(reader) => reader,
                none => none.insert(open_reader(&shared).await?),
            };
            let table_done = &shared.done[table];
            let table = &shared.state.tables[table];
            data::load(port, reader, &mut writer, table, chunk, table_done)
                .await
                .map_err(|e| e.context(format!("copying table {}", table.name)))?;
        } else {
            reader = None;
            if let Unit::Build(object) = unit {
                lock(&shared.builds).insert(pid, shared.state.after[object].entry.name.clone());
            }
            let result = others(&shared, &mut writer, unit, idle).await;
            lock(&shared.builds).remove(&pid);
            result?;
        }
        lock(&shared.board).done(number);
        shared.beat.send_modify(|n| *n += 1);
    }
}

async fn open_reader(shared: &Shared) -> Result<Session> {
    let Some(exported) = &shared.exported else {
        return Err(Error::internal("rows are left to copy, and no snapshot to copy them from"));
    };
    let databases = shared.port.databases.labelled(shared.port.step.as_str());
    let reader = Source::reader(&databases, &shared.copy.from, exported).await?;
    // The planner may not know what the sample showed: that rows lie in the order of the key which splits the table.
    reader.set("enable_seqscan", "off").await?;
    let pid = reader.backend_pid().await?;
    lock(&shared.backends).push(pid);
    Ok(reader)
}

async fn others(shared: &Shared, writer: &mut Session, unit: Unit, idle: usize) -> Result<()> {
    let (port, state) = (&shared.port, &shared.state);
    let mut attempt = 1;
    loop {
        let result = match unit {
            Unit::Build(object) => {
                schema::build(port, &shared.copy, writer, &state.after[object], state, idle).await
            }
            Unit::Analyze(table) => schema::analyze(port, writer, &state.analyze[table]).await,
            Unit::Load(..) => Ok(()),
        };
        match result {
            Err(e) if e.class() == Class::Contention && attempt < ATTEMPTS => attempt += 1,
            result => return result,
        }
        port.sleep(Duration::from_millis(200 * u64::from(attempt))).await?;
    }
}
