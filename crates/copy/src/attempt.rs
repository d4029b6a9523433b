//! One attempt at a copy, from wherever an earlier one left it.

use crate::follower::{self, Follower};
use crate::options::Copy;
use crate::source::Source;
use crate::state::{Snapshot, State};
use crate::{
    catalog, created, extensions, jobs, large_objects, plan, pool, preflight, schema, snapshot_holder,
};
use crate::{state, tune, violation};
use handover_core::error::{Error, Result};
use handover_core::failpoint;
use handover_port::{Description, Port};
use handover_postgres::{Session, TableName, fence};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a copy did, for its record.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Tables with rows.
    pub tables: usize,
    /// Rows that the target took.
    pub rows: u64,
    /// Bytes that went over the wire.
    pub bytes: u64,
    /// Bytes of those tables on the source; an estimate of the next copy goes by them.
    pub bytes_on_source: u64,
    /// Large objects that were copied.
    pub large_objects: u64,
    /// Indexes, keys, triggers and whatever else was made after the rows.
    pub objects_after_rows: usize,
    /// Sequences that were set.
    pub sequences: usize,
    /// What stays behind because it hangs on something that is left out, in words.
    pub left_out: Vec<String>,
    /// Rows that were set aside, by table.
    pub set_aside: BTreeMap<String, u64>,
    /// The point in time that the copy shows.
    pub snapshot: Snapshot,
}

/// Copies, from wherever an earlier attempt left it.
///
/// # Errors
/// What either server says, what stands in the way, a run that is asked to stop. What is committed stays, for the next
/// attempt to go on from.
pub async fn run(copy: &Copy, port: &Port, follower: Option<&dyn Follower>) -> Result<Summary> {
    let result = tokio::select! {
        result = attempt(port, copy, follower) => result,
        // A slot that a replication after this copy needs must not fill the source's disk meanwhile.
        error = follower::guard(follower) => Err(error),
    };
    let restored = tune::restore(port, copy).await;
    let summary = result?;
    restored.map(|()| summary)
}

async fn attempt(port: &Port, copy: &Copy, follower: Option<&dyn Follower>) -> Result<Summary> {
    let databases = port.databases.labelled(port.step.as_str());
    let mut green = port.writer(&copy.to).await?;
    let state = state::load(&mut green, port.run, &port.step).await?;
    if state.is_some() {
        // What an earlier attempt of this process left running would be in our way.
        let blue = databases.read_only(&copy.from).await?;
        for session in [&green, &blue] {
            fence::end_step(session, port.databases.lease()?, port.step.as_str()).await?;
        }
    }
    let done = state::units(&green, port.run, &port.step).await?;
    let (state, source) = match state {
        Some(state) if done.contains(state::DATA) => {
            // Killed between the mark and letting go.
            snapshot_holder::release(&databases, &copy.from, port.run, &port.step).await?;
            (state, None)
        }
        Some(state) => go_on(port, copy, follower, &mut green, state, &done).await?,
        None => begin(port, copy, follower, &mut green).await?,
    };
    let state = Arc::new(state);
    tune::apply(port, copy, &green).await?;
    schema::create(port, copy, &state).await?;
    extensions::carry(port, copy, source.as_ref(), &mut green).await?;
    let jobs = jobs::choose(copy, &databases.read_only(&copy.from).await?, &green).await?;
    pool::work(port, copy, jobs.number, source, &state).await?;
    rest(port, copy, &mut green, &state, jobs.number).await?;
    let loaded = state::loaded(&green, port.run, &port.step).await?;
    Ok(Summary {
        tables: state.tables.len(),
        rows: loaded.iter().map(|l| l.rows).sum(),
        bytes: loaded.iter().map(|l| l.bytes).sum(),
        bytes_on_source: state.tables.iter().map(|t| t.bytes).sum(),
        large_objects: large_objects::total(&green, port).await?.objects,
        objects_after_rows: state.after.len(),
        sequences: state.sequences.len(),
        left_out: state.left_out.clone(),
        set_aside: violation::summary(&green, port).await?,
        snapshot: state.snapshot.clone(),
    })
}

/// Goes on from an earlier attempt's snapshot, or begins again.
async fn go_on(
    port: &Port,
    copy: &Copy,
    follower: Option<&dyn Follower>,
    green: &mut Session,
    state: State,
    done: &BTreeSet<String>,
) -> Result<(State, Option<Source>)> {
    let chunks: usize = state.tables.iter().map(|t| t.chunks.len()).sum();
    let loaded = done.iter().filter(|unit| unit.starts_with("rows:")).count();
    // A replication goes on only from its slot's own snapshot.
    let replicable = match follower {
        Some(follower) => follower.is_there().await?,
        None => true,
    };
    if replicable && let Some(source) = Source::rejoin(port, copy, &state).await? {
        port.note(format!(
            "goes on from the snapshot of {}: {loaded} of {chunks} pieces are there",
            state.snapshot.taken_at
        ));
        return Ok((state, Some(source)));
    }
    if replicable && copy.source_is_quiet {
        let source = Source::open(port, copy, follower).await?;
        port.warn(format!(
            "the snapshot of {} is gone; {} is declared quiet, so the copy goes on from one of {}: {loaded} of {chunks} pieces are there",
            state.snapshot.taken_at, copy.from, source.snapshot.taken_at
        ));
        let state = State { held: source.held().clone(), ..state };
        let tx = green.transaction().await?;
        tx.save_checkpoint(port.run, &port.step, state::STATE, &state).await?;
        tx.commit().await?;
        return Ok((state, Some(source)));
    }
    port.warn(format!(
        "an earlier attempt ended before all rows were there, and its snapshot of {} is gone (the server restarted, or nobody came back within `hold`): what it made is dropped, and the copy begins again",
        state.snapshot.taken_at
    ));
    created::discard(port, green, None).await?;
    *green = port.writer(&copy.to).await?;
    begin(port, copy, follower, green).await
}

/// Takes the snapshot, and writes down what will be done.
async fn begin(
    port: &Port,
    copy: &Copy,
    follower: Option<&dyn Follower>,
    green: &mut Session,
) -> Result<(State, Option<Source>)> {
    created::assert_empty(green).await?;
    let blue = port.databases.labelled(port.step.as_str()).read_only(&copy.from).await?;
    let mut found = Description::default();
    let program = preflight::look(copy, &blue, green, &mut found).await?;
    extensions::look(copy, &blue, green, &mut found).await?;
    if let Some(follower) = follower {
        follower.look(copy, &blue, green, &mut found).await?;
    }
    preflight::refuse(&found, &copy.to)?;
    drop(blue);
    let Some(program) = program else {
        return Err(Error::internal("no pg_dump, and no reason"));
    };
    for warning in &found.warnings {
        port.warn(warning);
    }
    let source = Source::open(port, copy, follower).await?;
    port.note(format!(
        "the copy shows {} as of {} (log position {})",
        copy.from, source.snapshot.taken_at, source.snapshot.lsn
    ));
    match plan::write(port, copy, &program, &source, green).await {
        Ok(state) => {
            failpoint::at(failpoint::COPY_PLANNED)?;
            Ok((state, Some(source)))
        }
        Err(error) => {
            // Nothing refers to it: it need not wait for its time to run out.
            let _ = source.release().await;
            Err(error)
        }
    }
}

/// Everything after the last foreign key; each piece is skipped when its checkpoint is there.
async fn rest(port: &Port, copy: &Copy, green: &mut Session, state: &State, jobs: usize) -> Result<()> {
    set_sequences(port, green, state).await?;
    schema::complete(port, copy, state, jobs.saturating_sub(1)).await?;
    let tx = green.transaction().await?;
    let views = tx.query(&catalog::relations("'m'"), &[]).await?;
    for row in &views {
        let name = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        tx.batch(&format!("analyze {}", name.sql())).await?;
    }
    state::mark(&tx, port.run, &port.step, state::DONE).await?;
    tx.commit().await
}

async fn set_sequences(port: &Port, green: &mut Session, state: &State) -> Result<()> {
    let done = state::units(green, port.run, &port.step).await?;
    if done.contains(state::SEQUENCES) {
        return Ok(());
    }
    port.proceed()?;
    let tx = green.transaction().await?;
    for sequence in &state.sequences {
        tx.query(
            "select setval(to_regclass($1), $2, $3)",
            &[&sequence.name.sql(), &sequence.value, &sequence.called],
        )
        .await
        .map_err(|e| e.context(format!("setting sequence {}", sequence.name)))?;
    }
    state::mark(&tx, port.run, &port.step, state::SEQUENCES).await?;
    tx.commit().await?;
    failpoint::at(failpoint::COPY_SEQUENCES_SET)?;
    Ok(())
}
