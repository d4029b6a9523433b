//! The protocol: prepare, freeze, drain, decide, commit.

use super::before::{self, Gates};
use super::book::Book;
use super::feeds;
use super::options::Cutover;
use super::preflight::Proof;
use super::state::{Event, Stage, Way};
use super::together::{call_off, commit_all, millis, prepare, still_held};
use super::{
    account, approval, attempts, back, blockers, freeze, invariants, large_objects, lost, partial, preflight,
    quarantine, reverse, sequences, statements, stillness, stream, uncaptured, watched,
};
use crate::error::{Class, Error, Result};
use crate::failpoint;
use crate::postgres::Session;
use crate::postgres::error::is_out_of_locks;
use crate::postgres::ours::OURS;
use crate::steps::{Context, replicate};
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
    /// A session of the new side's, for what follows the decision while clients still wait.
    successor: Option<Session>,
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
            // The operator goes on with the new side after all.
            Way::Return => {
                back::stay(cutover, cx, &book).await?;
                continue;
            }
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
            successor: None,
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
                let passes = attempts::passes(&error);
                (error, passes)
            }
        };
        // One that the window ended is none.
        number -= u32::from(gates.window.take_late());
        if !passes || number >= cutover.attempts {
            approval::spend(cx).await?;
            return Err(attempts::spent(error, number, cutover));
        }
        attempts::again(cutover, cx, number, error, "the old side serves on").await?;
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
    freeze::bolt(cx, cutover, stream::gate(cutover, cx)).await;
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
    // First: afterwards it is written there.
    account::add(cutover, cx, &mut summary).await?;
    reverse::flow(cutover, cx).await?;
    Ok(summary)
}

/// Goes on behind a decision that an earlier attempt made.
async fn go_on(cutover: &Cutover, cx: &Context, book: &Book<'_>) -> Result<Value> {
    cx.proceed()?;
    let section = cx.critical("the participants follow the decision");
    if !matches!(book.stage().await, Stage::Decided | Stage::Committed) {
        book.note(Event::Decided).await?;
    }
    let participants = commit_all(cutover, cx, &section, book, Instant::now(), None).await?;
    drop(section);
    let pause = since_decision(cutover, cx).await;
    freeze::bolt(cx, cutover, stream::gate(cutover, cx)).await;
    end_replication(cutover, cx).await?;
    let mut summary = json!({ "decided": "by an earlier attempt", "participants": participants });
    if let Some(pause) = pause {
        summary["write_pause_ms"] = json!(millis(pause));
    }
    // First: afterwards it is written there.
    account::add(cutover, cx, &mut summary).await?;
    reverse::flow(cutover, cx).await?;
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
        Some(link) => replicate::end(cx, &link, stream::leaves(cutover)).await,
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
    let successor = attempt.successor.take();
    commit_all(cutover, outer, cx, book, attempt.prepared, successor).await.map(Outcome::Flipped)
}

/// Where a failed attempt stands, when nothing of it runs any more. The server may still be taking back our own locks, and
/// while they fill its table of locks nobody can ask it.
async fn standing(cutover: &Cutover, cx: &Context, book: &Book<'_>) -> Result<Way> {
    let begun = Instant::now();
    loop {
        let decided = async {
            statements::end_orphaned(cutover, cx, cutover.freeze.as_ref()).await?;
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

/// Has every participant hold its clients. The window may have closed meanwhile.
async fn hold(
    cutover: &Cutover,
    outer: &Context,
    cx: &Context,
    book: &Book<'_>,
    attempt: &mut Attempt<'_, '_>,
) -> Result<()> {
    attempt.prepared = Instant::now();
    prepare(cutover, outer, cx, book).await?;
    failpoint::at(failpoint::CUTOVER_PREPARED)?;
    attempt.gates.window.assert_open(cx).await
}

/// Up to and including the decision.
async fn decide(
    cutover: &Cutover,
    outer: &Context,
    cx: &Context,
    book: &Book<'_>,
    attempt: &mut Attempt<'_, '_>,
) -> Result<()> {
    if let Some(to) = &cutover.to {
        // Before anybody waits. Without it a rollback only knows less of what it loses.
        let counted = async { lost::keep_counters(cx, &cx.reader(to).await?).await };
        match counted.await {
            Err(error) if matches!(error.class(), Class::LeaseLost | Class::Journal) => return Err(error),
            _ => {}
        }
    }
    book.note(Event::Prepare).await?;
    let (Some(name), Some(to)) = (&cutover.freeze, &cutover.to) else {
        hold(cutover, outer, cx, book, attempt).await?;
        book.note(Event::Prepared).await?;
        outer.proceed()?;
        still_held(cutover, cx, book).await?;
        book.note(Event::Decided).await?;
        return failpoint::at(failpoint::CUTOVER_DECIDED);
    };

    // Whatever takes a connection comes first: clients wait from here on until they are let go.
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
    reverse::keep_shut(cx, attempt.proof.successor_is_shut).await?;

    hold(cutover, outer, cx, book, attempt).await?;
    // From here on a decision may have fallen, whatever is heard of it.
    book.note(Event::Prepared).await?;

    let frozen = Instant::now();
    attempt.frozen = Some(frozen);
    let over_budget = || attempts::over_budget(cutover);
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
        // All has arrived, and nobody was sent there: from here on it is the application's.
        let mark = lost::look(&green).await?;
        Ok::<_, Error>((sequences, round, mark))
    };
    let (sequences, round, mark) = tokio::select! {
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
    lost::keep(&tx, cx, &mark).await?;
    freeze::decide(&tx, cx, cutover, &stream::gate(cutover, cx), &attempt.proof.successor).await?;
    if frozen.elapsed() > budget {
        return Err(over_budget());
    }
    tx.commit_within(budget.saturating_sub(frozen.elapsed()).max(Duration::from_millis(100))).await?;
    attempt.decided = Some(Instant::now());
    attempt.sequences = sequences;
    attempt.successor = Some(setter);
    attempt.large_objects = synchronizer.zip(round);
    failpoint::at(failpoint::CUTOVER_DECIDED)
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
