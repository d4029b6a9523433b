//! The undo: what was not decided is called off, what was decided is turned back.

use super::back::{self, Returned};
use super::book::Book;
use super::options::{Cutover, Participant};
use super::reverse;
use super::state::{Event, Stand, Way};
use super::stream::{self, Stream};
use super::switch::Flipping;
use super::together::{self, millis};
use super::{freeze, lost, protocol, sequences, statements};
use crate::error::{Class, Error, Result};
use crate::failpoint;
use crate::steps::Context;
use futures_util::future::join_all;
use handover_actions::Actions;
use handover_replication::ahead;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How long the new side may take to tell its sequences, while the old one still refuses writes.
const CARRY: Duration = Duration::from_secs(3);

/// Takes the cutover back, from wherever it stands.
pub async fn run(cutover: &Cutover, cx: &Context) -> Result<Value> {
    let book = Book::open(cutover, cx)?;
    cx.proceed()?;
    let (way, mut returned) = {
        let section = cx.critical("the cutover is being turned back");
        statements::end_orphaned(cutover, &section, cutover.freeze.as_ref()).await?;
        let way = book.way(protocol::look(cutover, &section).await?).await;
        if matches!(way, Way::Attempt | Way::CallOff) {
            if way == Way::CallOff {
                together::call_off(cutover, &section, &book).await?;
            }
            reverse::discard_or_tell(cutover, &section).await?;
            for participant in cutover.participants.iter().filter(|_| way == Way::Attempt) {
                Flipping::of(participant, cx).tidy().await;
            }
            freeze::clear(&section, cutover.freeze.as_ref()).await;
            return Ok(json!({ "turned_back": [] }));
        }
        if way == Way::Decide {
            book.note(Event::Decided).await?;
        }
        (way, None)
    };
    let flows = match way {
        Way::Lost | Way::Back => false,
        _ => reverse::flows(cutover, cx)?,
    };
    if flows {
        match back::decide(cutover, cx, &book).await {
            Ok(how) => returned = Some(how),
            Err(error) if !cx.accept_loss || is_over(&error) => return Err(error),
            Err(error) => cx.warn(format!("a way back without loss cannot be taken: {error}")),
        }
    }
    if let Some(to) = cutover.to.as_ref().filter(|_| cutover.freeze.is_some())
        && !book.is_turning_back().await
        && !cx.accept_loss
    {
        let counted = lost::count(cutover, cx).await?.words();
        return Err(Error::usage(format!(
            "this would lose what was written on {to} since the cutover: {counted}"
        ))
        .hint(
            "`handover rollback --accept-loss` accepts that; `handover abort` leaves everything as it is",
        ));
    }
    if cutover.freeze.is_some() && !book.is_turning_back().await {
        lost::before(cutover, cx).await?;
    }
    cx.proceed()?;
    let section = cx.critical("the cutover is being turned back");
    let mut summary = turn(cutover, cx, &section, &book, returned).await?;
    drop(section);
    if cutover.freeze.is_some() && !book.returned().await {
        lost::after(cutover, cx, &mut summary).await?;
    }
    Ok(summary)
}

/// Turns everybody back, from a decision that stands, or from where an earlier undo came to.
async fn turn(
    cutover: &Cutover,
    outer: &Context,
    cx: &Context,
    book: &Book<'_>,
    mut returned: Option<Returned>,
) -> Result<Value> {
    // Opening the old side takes its own word back: from here on only the journal tells.
    if !book.is_turning_back().await {
        book.note(Event::TurnBack).await?;
    }
    let without_loss = book.returned().await;
    let loses = if without_loss { left_behind(cutover, cx).await? } else { Vec::new() };
    // The old side first: a participant that is turned back must find it open.
    if let Some(freeze) = &cutover.freeze {
        if without_loss && loses.is_empty() {
            let ready = returned.as_mut().and_then(|returned| returned.ready.take());
            reverse::open_with(ready, freeze, cx).await?;
        } else if without_loss {
            freeze::open_with_loss(&mut cx.writer(freeze).await?, cx).await?;
        } else {
            reverse::discard_or_tell(cutover, cx).await?;
            reverse::detach_forward(cutover, cx).await.or_else(|error| told(cx, error))?;
            carry_back(cutover, freeze, cx).await;
            freeze::open_with_loss(&mut cx.writer(freeze).await?, cx).await?;
            if let Some(to) = cutover.to.as_ref().filter(|_| !cutover.allow_served) {
                cx.note(format!(
                    "what was written on {to} since the cutover stays there; the next cutover to it is refused until {to} is made anew"
                ));
            }
        }
    }
    failpoint::at(failpoint::CUTOVER_UNDO_OPENED)?;
    let back = revert_all(cutover, outer, cx, book).await?;
    let mut summary = json!({ "turned_back": back });
    if let Some(Returned { attempts, frozen: Some(frozen), events, .. }) = &returned {
        summary["attempts"] = json!(attempts);
        summary["write_pause_ms"] = json!(millis(frozen.elapsed()));
        if let Some(events) = events {
            summary["events_carried_back"] = json!(events);
        }
    }
    if without_loss {
        failpoint::at(failpoint::REVERSE_UNDO_TURNED_BACK)?;
        // One after the other: two streams at once would send each other's changes round.
        reverse::discard(cutover, cx).await?;
        if let Some(Stream { link, .. }) = stream::forward(cutover, cx) {
            ahead::enable(cx, &link).await?;
        }
        if !loses.is_empty() {
            cx.warn(format!("went back without {}", loses.join(", ")));
            summary["loses"] = json!(loses.join(", "));
        }
    } else {
        freeze::clear(cx, cutover.to.as_ref().filter(|_| cutover.reverse.is_some())).await;
    }
    freeze::clear(cx, cutover.freeze.as_ref()).await;
    Ok(summary)
}

/// What a way back leaves behind although it carries all else, in words: what the plan names, and what could not be applied.
async fn left_behind(cutover: &Cutover, cx: &Context) -> Result<Vec<String>> {
    let aside = match reverse::carrier(cutover, cx) {
        Some(carrier) => carrier.left_behind(cx).await?,
        None => None,
    };
    Ok(cutover.loses().into_iter().chain(aside).collect())
}

/// Turns every participant back, all at once, and each again until it is: clients wait. Once the run is asked to stop, the
/// next failure ends the step.
async fn revert_all<'a>(
    cutover: &'a Cutover,
    outer: &Context,
    cx: &Context,
    book: &Book<'_>,
) -> Result<Vec<&'a str>> {
    let (actions, begun) = (&Actions::new(cx), Instant::now());
    let revert = async |participant: &'a Participant| -> Result<&'a str> {
        let name = participant.name.as_str();
        if book.stand(name).await == Stand::Reverted {
            return Ok(name);
        }
        let _section = cx.critical(format!("participant {name} is being turned back"));
        book.note(Event::Revert(name)).await?;
        let mut wait = Duration::from_millis(100);
        while let Err(error) = participant.revert(cx, book, actions).await {
            let over = begun.elapsed() >= cutover.commit_timeout.0 || outer.stop.is_cancelled();
            if over || cutover.reverse.is_none() || is_over(&error) {
                return Err(error);
            }
            cx.warn(format!("{error}; it is tried again until it is turned back"));
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(5));
        }
        failpoint::at(failpoint::CUTOVER_UNDO_REVERTED)?;
        book.note(Event::Reverted(name)).await?;
        participant.forget(cx, actions)?;
        Ok(name)
    };
    join_all(cutover.participants.iter().rev().map(revert)).await.into_iter().collect()
}

/// Tells of an error that nothing may fail because of.
fn told(cx: &Context, error: Error) -> Result<()> {
    if is_over(&error) {
        return Err(error);
    }
    cx.warn(error.to_string());
    Ok(())
}

/// Sets the old side's sequences behind what the new side gave out since: should the run go forward again, a
/// row of the old side must not come under the key of another one that is there. The new side may be what
/// forced the rollback, so it is waited for no longer than [`CARRY`]: a lock or a disk that hangs there must not keep
/// the old side closed.
async fn carry_back(cutover: &Cutover, freeze: &str, cx: &Context) {
    let Some(to) = &cutover.to else { return };
    let carried = async {
        let (green, mut blue) = (cx.reader(to).await?, cx.writer(freeze).await?);
        sequences::carry(&green, &mut blue, cutover.sequence_margin).await
    };
    let carried = tokio::time::timeout(CARRY, carried).await.unwrap_or_else(|_| {
        Err(Error::new(Class::Timeout, format!("{to} has not answered within {} s", CARRY.as_secs())))
    });
    if let Err(error) = carried {
        cx.warn(format!(
            "{freeze}'s sequences were not set behind what {to} gave out ({error}); values may be given out twice"
        ));
    }
}

/// Whether nothing more may be done.
fn is_over(error: &Error) -> bool {
    matches!(error.class(), Class::LeaseLost | Class::Journal | Class::Cancelled)
}
