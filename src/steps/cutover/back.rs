//! The way back without loss: a cutover in the other direction. The new side is frozen, what was written on it is drained
//! into the old one, and the decision to go back is one commit on the new side, which refuses writes from then on. Only
//! then is the old side opened, and the participants are turned back ([`super::turn_back`]).
//!
//! An attempt that is called off leaves the new side serving: participants that were prepared are told to commit once
//! more, which is what sends their clients there.

use super::book::Book;
use super::carrier::Carrier;
use super::forecast::Measured;
use super::gates::Blockers;
use super::options::Cutover;
use super::reverse;
use super::state::{Event, Stage, Stand};
use super::stream::{self, Stream};
use super::{attempts, blockers, freeze, preflight, sequences, statements, together, watched};
use crate::error::{Class, Error, Result};
use crate::event::Measure;
use crate::failpoint;
use crate::postgres::{Session, fingerprint};
use crate::steps::Context;
use futures_util::future::join_all;
use handover_actions::Actions;
use handover_replication::ahead;
use std::time::{Duration, Instant};

/// How long an operator who accepts loss waits at most for a way back that has none.
const IMPATIENCE: Duration = Duration::from_secs(60);

/// How the way back went.
pub struct Returned {
    /// How many attempts it took; none when an earlier runner decided.
    pub attempts: u32,
    /// When writers were held off.
    pub frozen: Option<Instant>,
    /// A session of the old side's, to open it by while clients wait.
    pub ready: Option<Session>,
    /// How many events came back, where somebody counts them.
    pub events: Option<i64>,
}

/// An attempt that came to its decision.
struct Decided {
    frozen: Instant,
    /// The session of the old side's; none where it was lost.
    ready: Option<Session>,
    events: Option<i64>,
}

/// Whether the decision to go back stands, which the new side knows.
async fn is_decided(cutover: &Cutover, cx: &Context) -> Result<bool> {
    match &cutover.to {
        Some(to) => freeze::is_decided(&cx.writer(to).await?, cx).await,
        None => Ok(false),
    }
}

fn is_open(stage: Stage) -> bool {
    matches!(stage, Stage::PreparingReturn | Stage::DecidingReturn | Stage::CallingOffReturn)
}

/// Goes on with the new side, where an earlier runner began to go back.
///
/// # Errors
/// A decision to go back that fell, or a participant that cannot commit.
pub async fn stay(cutover: &Cutover, cx: &Context, book: &Book<'_>) -> Result<()> {
    cx.proceed()?;
    let section = cx.critical("participants go on with the new side");
    statements::end_orphaned(cutover, &section, cutover.to.as_ref()).await?;
    if is_decided(cutover, &section).await? {
        return Err(Error::new(Class::Invariant, "it was decided to go back to the old side")
            .hint("`handover rollback` goes on with that; `handover resume` then goes forward again"));
    }
    release(cutover, &section, book).await?;
    reverse::detach_forward(cutover, &section).await
}

/// Tries to decide to go back, until it is decided. Returns with the journal saying so, and nobody turned back.
///
/// # Errors
/// What is in the way: the new side serves on.
pub async fn decide(cutover: &Cutover, cx: &Context, book: &Book<'_>) -> Result<Returned> {
    let carrier =
        reverse::carrier(cutover, cx).ok_or_else(|| Error::internal("a way back that nothing carries"))?;
    // No standing task does while a run goes back.
    let _carrying = carrier.carry(cx);
    try_until_decided(cutover, cx, book, &*carrier).await
}

async fn try_until_decided(
    cutover: &Cutover,
    cx: &Context,
    book: &Book<'_>,
    carrier: &dyn Carrier,
) -> Result<Returned> {
    let mut number = 0;
    loop {
        if is_open(book.stage().await) {
            cx.proceed()?;
            let section = cx.critical("the way back that was begun is looked at");
            statements::end_orphaned(cutover, &section, cutover.to.as_ref()).await?;
            if is_decided(cutover, &section).await? {
                book.note(Event::Returned).await?;
                return Ok(Returned { attempts: number, frozen: None, ready: None, events: None });
            }
            release(cutover, &section, book).await?;
        }
        number += 1;
        let schema = ready(cutover, cx, carrier).await?;
        match attempt(cutover, cx, book, carrier, &schema).await? {
            Ok(Decided { frozen, ready, events }) => {
                return Ok(Returned { attempts: number, frozen: Some(frozen), ready, events });
            }
            Err(error) if !attempts::passes(&error) => return Err(error),
            Err(error) => attempts::again(cutover, cx, number, error, "the new side serves on").await?,
        }
    }
}

/// Tells every participant to go on with the new side. Only where it is certain that no decision to go back has fallen.
async fn release(cutover: &Cutover, cx: &Context, book: &Book<'_>) -> Result<()> {
    book.note(Event::NotReturned).await?;
    let actions = &Actions::new(cx);
    let commit = async |participant: &super::Participant| -> Result<()> {
        if book.stand(&participant.name).await == Stand::Committed {
            return Ok(());
        }
        let mut last = Ok(());
        for wait in [0, 200, 1000] {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            last = participant.stay(cx, book, actions).await;
            if last.is_ok() {
                return book.note(Event::Committed(&participant.name)).await;
            }
        }
        last.map_err(|e| {
            e.hint(format!(
                "{0} may still be holding its clients: let it go on with the new side by hand, then `handover resume`",
                participant.name
            ))
        })
    };
    join_all(cutover.participants.iter().map(commit)).await.into_iter().collect()
}

/// Waits until a pause would be short, with the stream forward made ready. Returns the digest of the new side's schema,
/// to be compared behind the lock.
async fn ready(cutover: &Cutover, cx: &Context, carrier: &dyn Carrier) -> Result<String> {
    let (freeze, to) = (carrier.to(), carrier.from());
    let (mut blue, mut green) = (cx.writer(freeze).await?, cx.writer(to).await?);
    let watcher = cx.databases.labelled(cx.step.as_str()).read_only(to).await?;
    refuse(cutover, cx, carrier, &blue, &green).await?;
    if let Some(Stream { replicate, link, copy }) = stream::forward(cutover, cx) {
        ahead::make(cx, &replicate, &copy, &link).await?;
        ahead::freshen(cx, &link).await?;
    }
    let patience = if cx.accept_loss { cutover.patience.0.min(IMPATIENCE) } else { cutover.patience.0 };
    let begun = Instant::now();
    let mut arrivals = carrier.arrivals(cx).await?;
    // What the plan lets be ended is in the way of the flip; here everybody is waited for.
    let (rule, mut measured) = (Blockers::default().rule(), Measured::default());
    loop {
        let obstacle = match arrivals.late(cx, &mut measured).await? {
            None => match preflight::held(&rule, cx, &green, cutover.max_transaction_age.0).await? {
                None => match stream::gate_of_successor(cutover, cx).raise(&mut green, cx, cutover).await? {
                    None => {
                        preflight::unconfirmed(cutover, cx, [&mut green, &mut blue], &mut measured).await?
                    }
                    some => some,
                },
                some => some,
            },
            late => late,
        };
        let Some(obstacle) = obstacle else {
            // Last of all, and the digest first: the stream forward is a part of it, and what was altered while we
            // waited is looked at as well.
            let schema = fingerprint::digest(&watcher).await?;
            refuse(cutover, cx, carrier, &blue, &green).await?;
            return Ok(schema);
        };
        if begun.elapsed() >= patience {
            return Err(Error::new(
                Class::Timeout,
                format!("not ready to go back within {patience:?}: {obstacle}"),
            )
            .on_database(to)
            .hint("nothing was paused and the new side serves on; remove what is in the way, then `handover resume`"));
        }
        cx.progress(
            "waiting to go back",
            begun.elapsed().as_secs(),
            Some(patience.as_secs()),
            Measure::Seconds,
        );
        cx.sleep(Duration::from_millis(250)).await?;
    }
}

/// Refuses what no waiting mends.
async fn refuse(
    cutover: &Cutover,
    cx: &Context,
    carrier: &dyn Carrier,
    blue: &Session,
    green: &Session,
) -> Result<()> {
    let mut obstacles = carrier.differences(cx, blue, green).await?;
    obstacles.extend(preflight::rooms(cutover, green, blue).await?);
    match obstacles.into_iter().next() {
        Some(text) => Err(attempts::refusal(green, text)),
        None => Ok(()),
    }
}

/// One attempt: to the decision, or until everybody goes on with the new side.
async fn attempt(
    cutover: &Cutover,
    outer: &Context,
    book: &Book<'_>,
    carrier: &dyn Carrier,
    schema: &str,
) -> Result<Result<Decided>> {
    outer.proceed()?;
    let section = outer.critical("an attempt to go back");
    let cx: &Context = &section;
    let frozen = Instant::now();
    let error = match try_to_decide(cutover, outer, cx, book, carrier, schema).await {
        Ok(decided) => {
            book.note(Event::Returned).await?;
            return Ok(Ok(decided));
        }
        Err(error) if matches!(error.class(), Class::LeaseLost | Class::Journal) => return Err(error),
        Err(error) => error,
    };
    if book.stage().await == Stage::PreparingReturn {
        statements::end_of_participants(cutover, cx).await;
    } else {
        statements::end_orphaned(cutover, cx, cutover.to.as_ref()).await?;
        // The answer to the commit was lost: it counts.
        if is_decided(cutover, cx).await? {
            book.note(Event::Returned).await?;
            return Ok(Ok(Decided { frozen, ready: None, events: None }));
        }
    }
    release(cutover, cx, book).await?;
    Ok(Err(error))
}

/// Up to and including the decision.
async fn try_to_decide(
    cutover: &Cutover,
    outer: &Context,
    cx: &Context,
    book: &Book<'_>,
    carrier: &dyn Carrier,
    schema: &str,
) -> Result<Decided> {
    let (freeze, to) = (carrier.to(), carrier.from());
    book.note(Event::PrepareReturn).await?;
    // Whatever takes a connection comes first: clients wait from here on until they are let go.
    let budget = cutover.write_pause.0;
    let (mut freezer, counter) = (cx.writer(to).await?, cx.reader(to).await?);
    let mut setter = cx.writer(freeze).await?;
    let watcher = cx.databases.labelled(cx.step.as_str()).read_only(to).await?;
    let mut arrivals = carrier.arrivals(cx).await?;
    let tables = freeze::tables(&counter, cutover).await?;
    freeze::limit(&freezer, budget).await?;
    let (rule, freezer_pid) = (Blockers::default().rule(), freezer.backend_pid().await?);

    together::prepare(cutover, outer, cx, book).await?;
    failpoint::at(failpoint::REVERSE_UNDO_PREPARED)?;
    // From here on a decision may have fallen, whatever is heard of it.
    book.note(Event::PreparedReturn).await?;

    let frozen = Instant::now();
    let tx = freezer.transaction().await?;
    tx.durable().await?;
    let drain = async {
        let locks = freeze::lock(&tx, &tables, budget, frozen);
        blockers::beside(locks, &rule, cx, &watcher, freezer_pid)
            .await
            .map_err(|e| e.context("writers could not be held off"))?;
        failpoint::at(failpoint::REVERSE_UNDO_FROZEN)?;
        let sequences = sequences::carry(&counter, &mut setter, cutover.sequence_margin);
        let (events, ..) =
            tokio::try_join!(arrivals.all(), watched::assert_unchanged(&watcher, schema), sequences)?;
        // What was applied is visible on the old side, and not on its disk before something durable is.
        match freeze::confirms(&mut setter, cx, budget).await? {
            None => Ok(events),
            Some(slow) => Err(Error::new(Class::Timeout, slow).on_database(freeze)),
        }
    };
    let events = match tokio::time::timeout(budget, drain).await {
        Ok(result) => result?,
        Err(_) => return Err(attempts::over_budget(cutover)),
    };
    failpoint::at(failpoint::REVERSE_UNDO_DRAINED)?;
    outer.proceed()?;
    let left = budget.saturating_sub(frozen.elapsed());
    let held = tokio::time::timeout(left, together::still_held(cutover, cx, book));
    held.await.map_err(|_| attempts::over_budget(cutover))??;
    freeze::decide(&tx, cx, cutover, &stream::gate_of_successor(cutover, cx), "").await?;
    if frozen.elapsed() > budget {
        return Err(attempts::over_budget(cutover));
    }
    tx.commit_within(budget.saturating_sub(frozen.elapsed()).max(Duration::from_millis(100))).await?;
    failpoint::at(failpoint::REVERSE_UNDO_DECIDED)?;
    Ok(Decided { frozen, ready: Some(setter), events })
}
