//! The protocol: prepare, freeze, drain, decide, commit.

use super::before::{self, Gates};
use super::book::Book;
use super::feeds;
use super::options::{Cutover, Participant};
use super::preflight::Proof;
use super::state::{Event, Stage, Stand, Way};
use super::{
    account, approval, blockers, freeze, invariants, large_objects, partial, preflight, quarantine,
    sequences, statements, stillness, uncaptured, watched,
};
use crate::error::{Class, Error, Result};
use crate::failpoint;
use crate::postgres::error::is_out_of_locks;
use crate::postgres::ours::OURS;
use crate::steps::{Context, replicate};
use futures_util::future::{join_all, try_join_all};
use handover_actions::Actions;
use handover_copy::large_objects::sync::{SyncRound, Synchronizer};
use handover_replication::Gauge;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How long a server may need to take back the locks of an attempt that failed.
const TAKEN_BACK: Duration = Duration::from_secs(2);

/// How an attempt went, as far as it came.
struct Attempt<'g, 'a> {
    gates: &'g mut Gates<'a>,
    /// What the look before the pause found.
    proof: Proof,
    prepared: Instant,
    frozen: Option<Instant>,
    decided: Option<Instant>,
    sequences: usize,
    large_objects: Option<(Synchronizer, SyncRound)>,
}

/// What an attempt led to.
enum Outcome {
    /// Every participant has committed; how long each was held.
    Flipped(Value),
    /// The old side serves on.
    CalledOff(Error),
}

/// Runs the cutover, from wherever an earlier attempt left it.
pub async fn run(cutover: &Cutover, cx: &Context) -> Result<Value> {
    let book = Book::open(cutover, cx)?;
    let (mut number, mut gates) = (0, Gates::new(cutover));
    loop {
        match book.way(look(cutover, cx).await?).await {
            Way::Attempt => {}
            // An earlier attempt may have left participants holding their clients.
            Way::CallOff => {
                cx.proceed()?;
                call_off(cutover, &cx.critical("participants are being released"), &book).await?;
                continue;
            }
            Way::Decide | Way::Commit | Way::Done => return go_on(cutover, cx, &book).await,
            Way::Back => return Err(Error::internal("the cutover is being turned back")),
            Way::Lost => return Err(lost(cutover)),
        }
        number += 1;
        let mut attempt = Attempt {
            proof: before::pass(cutover, cx, &book, &mut gates).await?,
            gates: &mut gates,
            prepared: Instant::now(),
            frozen: None,
            decided: None,
            sequences: 0,
            large_objects: None,
        };
        let error = match try_to_flip(cutover, cx, &book, &mut attempt).await? {
            Outcome::Flipped(participants) => {
                return finish(cutover, cx, number, &attempt, participants).await;
            }
            Outcome::CalledOff(error) => error,
        };
        let (error, passes) = match is_out_of_locks(&error) {
            true => match preflight::out_of_locks(cutover, cx, error.clone()).await {
                Some(lasting) => (lasting, false),
                None => (error, true),
            },
            false => {
                let class = error.class();
                let passes = class.is_transient() || matches!(class, Class::Timeout | Class::External);
                (error, passes)
            }
        };
        // One that the window ended is none.
        number -= u32::from(gates.window.take_late());
        if !passes || number >= cutover.attempts {
            approval::spend(cx).await?;
            // Its own attempts are spent: another five times as many pauses would help nobody.
            let spent = error.context(format!("attempt {number} of {} was called off", cutover.attempts));
            return Err(spent.exhausted());
        }
        cx.warn(format!(
            "attempt {number} was called off, the old side serves on: {error}; next in {}",
            cutover.backoff
        ));
        cx.sleep(cutover.backoff.0).await?;
    }
}

/// What follows when all have committed.
async fn finish(
    cutover: &Cutover,
    cx: &Context,
    attempts: u32,
    attempt: &Attempt<'_, '_>,
    participants: Value,
) -> Result<Value> {
    // Until writers can write again, which is when the participants have followed.
    let pause = attempt.frozen.unwrap_or(attempt.prepared).elapsed();
    freeze::bolt(cx, cutover).await;
    end_replication(cutover, cx).await?;
    let mut summary = json!({
        "attempts": attempts,
        "write_pause_ms": millis(pause),
        "write_pause_budget_ms": millis(cutover.write_pause.0),
        "sequences": attempt.sequences,
        "participants": participants,
    });
    if let Some((frozen, decided)) = attempt.frozen.zip(attempt.decided) {
        summary["decided_after_ms"] = json!(millis(decided - frozen));
    }
    if let Some((synchronizer, round)) = &attempt.large_objects {
        large_objects::look_back(cx, synchronizer).await;
        if round.objects > 0 || round.removed > 0 {
            summary["large_objects_in_the_pause"] = json!(round);
        }
    }
    account::add(cutover, cx, &mut summary).await?;
    Ok(summary)
}

/// Goes on behind a decision that an earlier attempt made.
async fn go_on(cutover: &Cutover, cx: &Context, book: &Book<'_>) -> Result<Value> {
    cx.proceed()?;
    let section = cx.critical("the participants follow the decision");
    if !matches!(book.stage().await, Stage::Decided | Stage::Committed) {
        book.note(Event::Decided).await?;
    }
    let participants = commit_all(cutover, cx, &section, book, Instant::now()).await?;
    drop(section);
    let pause = since_decision(cutover, cx).await;
    freeze::bolt(cx, cutover).await;
    end_replication(cutover, cx).await?;
    let mut summary = json!({ "decided": "by an earlier attempt", "participants": participants });
    if let Some(pause) = pause {
        summary["write_pause_ms"] = json!(millis(pause));
    }
    account::add(cutover, cx, &mut summary).await?;
    Ok(summary)
}

/// How long ago the decision fell, by the old side's clock: so long nobody could write. None where there is no old
/// side, or it is out of reach by now.
async fn since_decision(cutover: &Cutover, cx: &Context) -> Option<Duration> {
    let session = cx.writer(cutover.freeze.as_deref()?).await.ok()?;
    let row = session
        .query_opt(
            &format!(
                "select extract(epoch from clock_timestamp() - decided_at)::float8 from {OURS}.decision
             where run = $1 and step = $2"
            ),
            &[&cx.run.0, &cx.step.as_str()],
        )
        .await
        .ok()??;
    Duration::try_from_secs_f64(row.get(0)).ok()
}

fn lost(cutover: &Cutover) -> Error {
    let blue = cutover.freeze.as_deref().unwrap_or("the old side");
    Error::new(
        Class::Invariant,
        format!(
            "{blue} no longer knows of the decision that this run recorded, and may be taking writes, while participants \
             were told to use the new side"
        ),
    )
    .on_database(blue)
    .hint(format!(
        "{blue} was restored from a backup, or failed over to a server that had not received the decision. Stop its \
         writers first; then `handover rollback --accept-loss` turns every participant back to it"
    ))
}

/// What still replicates into the new side, which writes for itself from here on. Nothing is written on the old
/// side any more, so there is no hurry.
async fn end_replication(cutover: &Cutover, cx: &Context) -> Result<()> {
    match feeds::link(cutover, cx) {
        Some(link) => replicate::end(cx, &link).await,
        None => Ok(()),
    }
}

/// One attempt: to the decision and the last participant's commit, or until everybody was released. From its
/// beginning to its end it is one section: a stop is heard while participants prepare and just before the decision, and
/// then everything is called off in good order.
async fn try_to_flip(
    cutover: &Cutover,
    outer: &Context,
    book: &Book<'_>,
    attempt: &mut Attempt<'_, '_>,
) -> Result<Outcome> {
    outer.proceed()?;
    let section = outer.critical("an attempt to flip");
    let cx: &Context = &section;
    if let Err(error) = decide(cutover, outer, cx, book, attempt).await {
        if matches!(error.class(), Class::LeaseLost | Class::Journal) {
            return Err(error);
        }
        // Nothing that decides was sent yet: whoever holds its clients is released without asking the old side, which
        // may be what fails.
        if book.stage().await == Stage::Preparing {
            statements::end_of_participants(cutover, cx).await;
            call_off(cutover, cx, book).await?;
            return Ok(Outcome::CalledOff(error));
        }
        match standing(cutover, cx, book).await? {
            // The answer to the commit was lost: it counts.
            Way::Decide | Way::Commit => {}
            _ => {
                call_off(cutover, cx, book).await?;
                return Ok(Outcome::CalledOff(error));
            }
        }
    }
    if book.stage().await != Stage::Decided {
        book.note(Event::Decided).await?;
    }
    commit_all(cutover, outer, cx, book, attempt.prepared).await.map(Outcome::Flipped)
}

/// Where a failed attempt stands, when nothing of it runs any more. The server may still be taking back our own locks, and
/// while they fill its table of locks nobody can ask it.
async fn standing(cutover: &Cutover, cx: &Context, book: &Book<'_>) -> Result<Way> {
    let begun = Instant::now();
    loop {
        let decided = async {
            statements::end_orphaned(cutover, cx).await?;
            look(cutover, cx).await
        };
        match decided.await {
            Err(error) if is_out_of_locks(&error) && begun.elapsed() < TAKEN_BACK => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            decided => return Ok(book.way(decided?).await),
        }
    }
}

/// Prepares everybody, all at once.
async fn prepare(cutover: &Cutover, outer: &Context, cx: &Context, book: &Book<'_>) -> Result<()> {
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

/// Up to and including the decision.
async fn decide(
    cutover: &Cutover,
    outer: &Context,
    cx: &Context,
    book: &Book<'_>,
    attempt: &mut Attempt<'_, '_>,
) -> Result<()> {
    attempt.prepared = Instant::now();
    book.note(Event::Prepare).await?;
    prepare(cutover, outer, cx, book).await?;
    failpoint::at(failpoint::CUTOVER_PREPARED)?;
    attempt.gates.window.assert_open(cx).await?;
    let (Some(name), Some(to)) = (&cutover.freeze, &cutover.to) else {
        book.note(Event::Prepared).await?;
        outer.proceed()?;
        still_held(cutover, cx, book).await?;
        book.note(Event::Decided).await?;
        return failpoint::at(failpoint::CUTOVER_DECIDED);
    };

    let budget = cutover.write_pause.0;
    let mut freezer = cx.writer(name).await?;
    let mut blue = cx.writer(name).await?;
    let green = cx.reader(to).await?;
    let mut setter = cx.writer(to).await?;
    let counter = cx.reader(name).await?;
    let watcher = cx.databases.labelled(cx.step.as_str()).read_only(name).await?;
    let streams = feeds::streams(cutover, cx, &blue).await?;
    let mut gauge = match feeds::link(cutover, cx) {
        Some(link) => Some(Gauge::open(cx, &link).await?),
        None => None,
    };
    let mut synchronizer = large_objects::open(cutover, cx).await?;
    if let Some(synchronizer) = &synchronizer {
        synchronizer.limit(budget).await?;
    }
    let quick = invariants::open(cutover, cx).await?;
    let tables = freeze::tables(&blue, cutover).await?;
    freeze::limit(&freezer, budget).await?;
    let (rule, freezer_pid) = (cutover.blockers.rule(), freezer.backend_pid().await?);
    // Should the old side lose the decision, it is still known to whom it was.
    cx.remember(freeze::SUCCESSOR, &attempt.proof.successor).await?;
    // From here on a decision may have fallen, whatever is heard of it.
    book.note(Event::Prepared).await?;

    let frozen = Instant::now();
    attempt.frozen = Some(frozen);
    let over_budget = || {
        Error::new(
            Class::Timeout,
            format!("the pause would have been longer than its budget of {}", cutover.write_pause),
        )
        .hint("raise `write_pause`, or look at what was slow: replay's backlog, or a lock")
    };
    let tx = freezer.transaction().await?;
    tx.durable().await?;
    let drain = async {
        let locks = freeze::lock(&tx, &tables, budget, frozen);
        blockers::beside(locks, &rule, cx, &watcher, freezer_pid)
            .await
            .map_err(|e| e.context("writers could not be held off"))?;
        failpoint::at(failpoint::CUTOVER_FROZEN)?;
        let arrived = async {
            if let Some(gauge) = &mut gauge {
                let mark = gauge.write(feeds::MARK).await?;
                while !gauge.passed(&mark).await? {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
            for stream in &streams {
                let marker = handover_events::write_fence_marker(&mut blue, stream).await?;
                while !handover_events::marker_passed(&green, stream, marker).await? {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            Ok(())
        };
        let synced = async {
            match &mut synchronizer {
                Some(synchronizer) => large_objects::sync_rest(synchronizer).await.map(Some),
                None => Ok(None),
            }
        };
        // What grows with the schema goes on beside the rest, and in two servers at once.
        let unchanged = async {
            watched::assert_unchanged(&watcher, &attempt.proof.schema).await?;
            uncaptured::assert_unwritten(&watcher, &attempt.proof.exposed).await
        };
        let sequences = sequences::carry(&counter, &mut setter, cutover.sequence_margin);
        let held = still_held(cutover, cx, book);
        let ((), round, (), sequences, ()) = tokio::try_join!(arrived, synced, unchanged, sequences, held)?;
        // Proven before the pause, and again now that nothing can change any more.
        quarantine::refuse(cutover, &green, &streams).await?;
        partial::refuse(cutover, cx, &blue, &green).await?;
        invariants::prove_in_pause(quick.as_ref()).await?;
        Ok::<_, Error>((sequences, round))
    };
    let (sequences, round) = tokio::select! {
        result = tokio::time::timeout(budget, drain) => result.map_err(|_| over_budget())??,
        // Nothing is decided, and writers wait.
        () = outer.stop.cancelled() => return Err(Error::cancelled()),
    };
    failpoint::at(failpoint::CUTOVER_DRAINED)?;
    outer.proceed()?;
    let left = budget.saturating_sub(frozen.elapsed());
    tokio::time::timeout(left, still_held(cutover, cx, book)).await.map_err(|_| over_budget())??;
    // From here on only the old side knows the outcome. Nothing may cut this short: a commit whose answer was
    // not waited for would be a decision that nobody knows of. The server's own limits bound it.
    stillness::mark(&tx, cx).await?;
    freeze::decide(&tx, cx, cutover, &attempt.proof.successor).await?;
    if frozen.elapsed() > budget {
        return Err(over_budget());
    }
    tx.commit_within(budget.saturating_sub(frozen.elapsed()).max(Duration::from_millis(100))).await?;
    attempt.decided = Some(Instant::now());
    attempt.sequences = sequences;
    attempt.large_objects = synchronizer.zip(round);
    failpoint::at(failpoint::CUTOVER_DECIDED)
}

/// Requires that every participant still holds its clients: what lets them go on by itself may have done so.
async fn still_held(cutover: &Cutover, cx: &Context, book: &Book<'_>) -> Result<()> {
    try_join_all(cutover.participants.iter().map(|p| p.still_held(cx, book))).await.map(drop)
}

/// Commits every participant that has not been, all at once; returns how long each was held. A commit that fails is
/// tried again, for the decision stands; once the run is asked to stop, the next failure ends the step.
async fn commit_all(
    cutover: &Cutover,
    outer: &Context,
    cx: &Context,
    book: &Book<'_>,
    prepared: Instant,
) -> Result<Value> {
    let actions = &Actions::new(cx);
    let begun = Instant::now();
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
        match &cutover.freeze {
            Some(_) => cx.ledger.point_of_no_return(&cx.step).await,
            None => Ok(()),
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

/// The old side's word on the decision; none where there is no old side, and the journal tells.
pub async fn look(cutover: &Cutover, cx: &Context) -> Result<Option<bool>> {
    match &cutover.freeze {
        Some(name) => freeze::is_decided(&cx.writer(name).await?, cx).await.map(Some),
        None => Ok(None),
    }
}

/// Whether the decision stands.
pub async fn is_decided(cutover: &Cutover, cx: &Context) -> Result<bool> {
    let decided = look(cutover, cx).await?;
    let stage = super::book::read(cutover, cx)?.stage;
    Ok(decided.unwrap_or(matches!(stage, Stage::Decided | Stage::Committed)))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
