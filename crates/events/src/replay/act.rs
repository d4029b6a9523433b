//! The acts of a replay: catching up, draining, keeping up, proving, forgetting.

use super::mapping;
use super::options::{Mode, Replay};
use super::worker::{Pool, Source, Until};
use crate::offsets;
use crate::stream::{Counts, Marker, Stream, backlog, marker_passed, write_fence_marker};
use handover_core::event::StepId;
use handover_core::{Class, Error, Result, failpoint};
use handover_port::Port;
use handover_postgres::Session;

async fn pool<'a>(
    replay: &'a Replay,
    port: &'a Port,
    source: Source<'a>,
    green: Session,
) -> Result<Pool<'a>> {
    let begun = port.recall::<bool>("begun")?.unwrap_or(false);
    let pool = Pool::open(port, replay, source, green, begun).await?;
    if !begun {
        port.remember("begun", &true).await?;
    }
    Ok(pool)
}

/// Applies events until at most [`Replay::caught_up`] wait. `green` writes to the new side.
///
/// # Errors
/// An event that does not apply, where the plan says to halt; a stop; lease lost; what a server or the queue says.
pub async fn catch_up(replay: &Replay, port: &Port, source: Source<'_>, green: Session) -> Result<()> {
    pool(replay, port, source, green).await?.work(Until::Near(i64::from(replay.caught_up))).await?;
    failpoint::at(failpoint::REPLAY_CAUGHT_UP)
}

/// Applies events until all that were captured so far have an outcome: a fence marker, written once, has been passed.
///
/// # Errors
/// As for [`catch_up`].
pub async fn drain(replay: &Replay, port: &Port, source: Source<'_>, green: Session) -> Result<()> {
    let blue = source.database;
    let pool = pool(replay, port, source, green).await?;
    let marker = match port.recall::<Marker>("marker")? {
        Some(marker) => marker,
        None => {
            let marker = write_fence_marker(&mut port.writer(blue).await?, &pool.stream).await?;
            port.remember("marker", &marker).await?;
            marker
        }
    };
    pool.work(Until::Marker(marker)).await?;
    failpoint::at(failpoint::REPLAY_CAUGHT_UP)
}

/// Applies events as they come, until it is stopped.
///
/// # Errors
/// As for [`catch_up`].
pub async fn keep_up(replay: &Replay, port: &Port, source: Source<'_>, green: Session) -> Result<()> {
    pool(replay, port, source, green).await?.work(Until::Stopped).await
}

/// Prepares every statement on the database that events are applied to: what is wrong with one is found before the first
/// event comes.
///
/// # Errors
/// A statement that cannot be prepared there, the lease, or no connection.
pub async fn rehearse(replay: &Replay, port: &Port) -> Result<()> {
    mapping::prepare(&port.operator_writer(&replay.to).await?, &replay.events).await.map(drop)
}

/// How many events have which outcome. `step`: the capture; `database`: where it captures.
///
/// # Errors
/// What a server says, or that nothing was captured.
pub async fn counts(replay: &Replay, port: &Port, step: &StepId, database: &str) -> Result<Counts> {
    let blue = port.reader(database).await?;
    let green = port.reader(&replay.to).await?;
    let stream = Stream::get(&blue, port.run, step).await?;
    backlog(&blue, &green, &stream).await
}

/// Proves what a run came to: by arithmetic, by its offsets, and by the fence marker if there is one.
///
/// # Errors
/// What is missing.
pub async fn verify(replay: &Replay, port: &Port, step: &StepId, database: &str, mode: Mode) -> Result<()> {
    let counts = counts(replay, port, step, database).await?;
    match mode {
        Mode::Tail if counts.missing > 0 => Err(Error::new(
            Class::Invariant,
            format!("replay stands at an event that does not apply ({counts})"),
        )
        .on_database(&replay.to)
        .hint("`handover status` says which")),
        Mode::Drain if !counts.complete() => {
            Err(Error::new(Class::Invariant, format!("not every captured event has an outcome: {counts}"))
                .on_database(&replay.to)
                .hint("is something still writing to the old side? Stop it, then `handover resume`"))
        }
        Mode::Tail | Mode::Drain => {
            let stream = Stream::get(&port.reader(database).await?, port.run, step).await?;
            let green = port.reader(&replay.to).await?;
            if offsets::done(&green, &stream).await?.len() != stream.partitions as usize {
                return Err(Error::data("replay's marks are not there")
                    .on_database(&replay.to)
                    .hint("somebody deleted them: `handover rollback` to before the copy"));
            }
            match port.recall::<Marker>("marker")? {
                Some(marker) if !marker_passed(&green, &stream, marker).await? => {
                    Err(Error::new(Class::Invariant, "the fence marker has not been passed")
                        .on_database(&replay.to)
                        .hint("`handover resume` goes on until it is"))
                }
                _ => Ok(()),
            }
        }
    }
}

/// Forgets how far it got, of `stream` where that is this replay's to forget.
///
/// # Errors
/// Lease lost, or what a server says.
pub async fn undo(replay: &Replay, port: &Port, stream: Option<&str>) -> Result<()> {
    if let Some(stream) = stream {
        offsets::forget(&mut port.writer(&replay.to).await?, stream, true).await?;
    }
    port.forget("begun").await?;
    port.forget("marker").await
}

/// Drops the offsets of a stream. What was set aside is the operator's to keep or to drop.
///
/// # Errors
/// Lease lost, or what the server says.
pub async fn finish(replay: &Replay, port: &Port, stream: &str) -> Result<()> {
    offsets::forget(&mut port.writer(&replay.to).await?, stream, false).await
}
