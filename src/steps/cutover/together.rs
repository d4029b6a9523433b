//! What all participants are told at once: to prepare, to commit, to go on with the side that serves.

use super::book::Book;
use super::options::{Cutover, Participant};
use super::reverse;
use super::state::{Event, Stand};
use crate::error::{Class, Error, Result};
use crate::failpoint;
use crate::postgres::Session;
use crate::steps::Context;
use futures_util::future::{join_all, try_join_all};
use handover_actions::Actions;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Prepares everybody, all at once.
pub async fn prepare(cutover: &Cutover, outer: &Context, cx: &Context, book: &Book<'_>) -> Result<()> {
    let actions = Actions::new(cx);
    let all = try_join_all(cutover.participants.iter().map(|p| p.prepare(cx, book, &actions)));
    tokio::select! {
        result = tokio::time::timeout(cutover.prepare_timeout.0, all) => match result {
            Ok(result) => result.map(drop),
            Err(_) => Err(Error::new(
                Class::Timeout,
                format!("participants did not prepare within {}", cutover.prepare_timeout),
            )
            .hint("raise `prepare_timeout`, or see which of them is slow")),
        },
        () = outer.stop.cancelled() => Err(Error::cancelled()),
    }
}

/// Requires that every participant still holds its clients: what lets them go on by itself may have done so.
pub async fn still_held(cutover: &Cutover, cx: &Context, book: &Book<'_>) -> Result<()> {
    try_join_all(cutover.participants.iter().map(|p| p.still_held(cx, book))).await.map(drop)
}

/// Commits every participant that has not been, all at once; returns how long each was held. A commit that fails is
/// tried again, for the decision stands; once the run is asked to stop, the next failure ends the step. `ready` is a session
/// of the new side's, if there is one.
pub async fn commit_all(
    cutover: &Cutover,
    outer: &Context,
    cx: &Context,
    book: &Book<'_>,
    prepared: Instant,
    ready: Option<Session>,
) -> Result<Value> {
    let actions = &Actions::new(cx);
    let begun = Instant::now();
    // Clients that follow must find it open.
    reverse::open_successor(cutover, outer, cx, ready).await?;
    let commit = async |participant: &Participant| -> Result<Value> {
        if book.stand(&participant.name).await != Stand::Committed {
            let _section = cx.critical(format!("participant {} is being committed", participant.name));
            let (mut wait, mut tries) = (Duration::from_millis(100), 0_u32);
            while let Err(error) = commit_once(participant, cx, book, actions).await {
                tries += 1;
                if matches!(error.class(), Class::LeaseLost | Class::Journal) {
                    return Err(error);
                }
                if begun.elapsed() >= cutover.commit_timeout.0 || outer.stop.is_cancelled() {
                    return Err(error
                        .context(format!("the decision stands, but after {tries} tries"))
                        .hint(format!(
                            "only forward is safe: mend participant {}, then `handover resume` commits it",
                            participant.name
                        ))
                        .exhausted());
                }
                // It is told once for each thing that is wrong, and counted.
                cx.warn(format!("{error}; it is tried again until it commits, for the decision stands"));
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(5));
            }
            book.note(Event::Committed(&participant.name)).await?;
            failpoint::at(failpoint::CUTOVER_COMMITTED)?;
        }
        Ok(json!({ "name": participant.name, "held_ms": millis(prepared.elapsed()) }))
    };
    // Beside the first commits: clients wait for those.
    let no_return = async {
        match (&cutover.freeze, &cutover.reverse) {
            (Some(_), None) => cx.ledger.point_of_no_return(&cx.step).await,
            _ => Ok(()),
        }
    };
    let (recorded, results) =
        futures_util::future::join(no_return, join_all(cutover.participants.iter().map(commit))).await;
    recorded?;
    Ok(Value::Array(results.into_iter().collect::<Result<Vec<_>>>()?))
}

async fn commit_once(
    participant: &Participant,
    cx: &Context,
    book: &Book<'_>,
    actions: &Actions<'_>,
) -> Result<()> {
    participant.commit(cx, book, actions).await?;
    failpoint::at(failpoint::CUTOVER_PARTICIPANT_ANSWERED)
}

/// Lets every participant that was asked to prepare go on with the old side. Only where it is certain that no decision
/// has fallen; within a section.
pub async fn call_off(cutover: &Cutover, cx: &Context, book: &Book<'_>) -> Result<()> {
    book.note(Event::NotDecided).await?;
    let actions = &Actions::new(cx);
    let release = async |participant: &Participant| -> Result<()> {
        if book.stand(&participant.name).await == Stand::Aborting {
            participant.abort(cx, book, actions).await?;
            book.note(Event::Aborted(&participant.name)).await?;
        }
        Ok(())
    };
    join_all(cutover.participants.iter().map(release)).await.into_iter().collect()
}

/// Milliseconds, for a summary.
#[must_use]
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
