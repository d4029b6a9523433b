//! The acts of a step: applying, proving, taking back.

use crate::folder::Migration;
use crate::history;
use crate::options::{History, Migrate, UndoBy};
use crate::probe;
use crate::status::{Status, few};
use crate::thrown_away;
use crate::worker::Worker;
use handover_core::problem::count;
use handover_core::{Error, Result};
use handover_port::Port;

/// What a run did, by the history; after an interruption that is all it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Files whose effect committed in this run.
    pub applied: usize,
    /// Files that this run recorded without running them.
    pub baseline: usize,
    /// Files that an earlier run applied or recorded.
    pub before: usize,
}

/// Applies what is pending, after a look at what an earlier attempt left.
///
/// # Errors
/// The first file that fails; histories that contradict each other or the plan.
pub async fn run(step: &Migrate, port: &Port) -> Result<Applied> {
    let loaded = step.load(&port.base).into_result()?;
    let mut worker = Worker::open(port, step).await?;
    thrown_away::take_back(&mut worker.session, port).await?;
    worker.create_history().await?;
    let status = worker.read_status(loaded.migrations).await?;
    let standing = history::compare(&status.rows, &status.migrations)?;
    let pending = standing.pending.iter().map(|(_, file)| *file);
    let pending: Vec<&Migration> = pending.filter(|file| !status.is_baseline(file)).collect();
    if let Some(error) = step.without_way_back(&pending) {
        return Err(error);
    }
    let unknown = status.unknown_to_vendor();
    if !unknown.is_empty() {
        port.warn(format!(
            "{} of Handover's history are not in the vendor's table, and its tool would run them again: {}",
            count(unknown.len(), "file"),
            few(&unknown)
        ));
    }
    worker.apply_all(&standing, |file| status.is_baseline(file)).await?;
    // Counted from the history, so that a run that was interrupted reports all it did.
    let rows = history::read(&worker.session, &worker.table).await?;
    let ours = |baseline: bool| rows.iter().filter(|r| r.run == port.run && r.baseline == baseline).count();
    let (applied, baseline) = (ours(false), ours(true));
    Ok(Applied { applied, baseline, before: rows.len() - applied - baseline })
}

/// Proves that every migration is in the history, and that what no transaction vouches for is there.
///
/// # Errors
/// What is missing.
pub async fn verify(step: &Migrate, port: &Port) -> Result<()> {
    let loaded = step.load(&port.base).into_result()?;
    let session = port.operator_reader(&step.on).await?;
    session.set("search_path", &step.path(port)?.sql()).await?;
    let table = history::table_name(&port.plan, port.step.as_str());
    // The reader may not see the vendor's table; what was written there committed with ours.
    let own = Migrate { history: History::Own, ..step.clone() };
    let status = Status::read(&session, None, &own, &port.base, &table, loaded.migrations).await?;
    let standing = history::compare(&status.rows, &status.migrations)?;
    if let Some((_, file)) = standing.pending.iter().chain(&standing.again).next() {
        return Err(Error::data(format!(
            "{} of {} migrations are not in the history, first {}",
            standing.pending.len() + standing.again.len(),
            status.migrations.len(),
            file.key()
        ))
        .on_database(&step.on)
        .hint("see who changed the history table, then `handover resume`"));
    }
    // Recorded is not enough for what no transaction vouches for.
    for file in status.migrations.iter().filter(|f| f.up.stepwise.is_some()) {
        for statement in file.up.statements() {
            probe::before(&session, statement)
                .await
                .map_err(|e| e.in_file(&file.up.path, Some(statement.line)))?;
        }
    }
    Ok(())
}

/// Takes back what this run applied, as [`Migrate::undo`] says. Returns the files, newest first.
///
/// # Errors
/// A down file that is missing or fails.
pub async fn undo(step: &Migrate, port: &Port) -> Result<Vec<String>> {
    let run_files = match step.undo {
        UndoBy::None => {
            return Err(Error::usage("the plan says `undo: none` for these migrations")
                .hint("roll back to a step after this one, or restore the database"));
        }
        UndoBy::Down | UndoBy::DownWithLoss => true,
        UndoBy::Throwaway => false,
    };
    let loaded = step.load(&port.base).into_result()?;
    let mut worker = Worker::open(port, step).await?;
    if !run_files {
        let rows = history::read(&worker.session, &worker.table).await?;
        if rows.iter().any(|row| row.run == port.run) {
            thrown_away::note(&mut worker.session, port).await?;
        }
    }
    worker.undo_all(&loaded.migrations, run_files).await
}
