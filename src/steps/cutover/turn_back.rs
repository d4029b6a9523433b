//! The undo: what was not decided is called off, what was decided is turned back.

use super::book::Book;
use super::options::Cutover;
use super::state::{Event, Stand, Way};
use super::switch::Flipping;
use super::{freeze, protocol, sequences, statements};
use crate::error::{Class, Error, Result};
use crate::failpoint;
use crate::steps::Context;
use handover_actions::Actions;
use serde_json::{Value, json};
use std::time::Duration;

/// How long the new side may take to tell its sequences, while the old one still refuses writes.
const CARRY: Duration = Duration::from_secs(3);

/// Takes the cutover back, from wherever it stands.
pub async fn run(cutover: &Cutover, cx: &Context) -> Result<Value> {
    let book = Book::open(cutover, cx)?;
    statements::end_orphaned(cutover, cx).await?;
    match book.way(protocol::look(cutover, cx).await?).await {
        Way::Attempt => {
            for participant in &cutover.participants {
                Flipping::of(participant, cx).tidy().await;
            }
            freeze::clear(cx, cutover).await;
            return Ok(json!({ "turned_back": [] }));
        }
        Way::CallOff => {
            protocol::call_off(cutover, cx, &book).await?;
            freeze::clear(cx, cutover).await;
            return Ok(json!({ "turned_back": [] }));
        }
        Way::Decide => {
            book.note(Event::Decided).await?;
            book.note(Event::TurnBack).await?;
        }
        // Opening the old side takes its own word back: from here on only the journal tells.
        Way::Commit | Way::Done | Way::Lost => book.note(Event::TurnBack).await?,
        Way::Back => {}
    }
    // The old side first: a participant that is turned back must find it open.
    if let Some(freeze) = &cutover.freeze {
        carry_back(cutover, freeze, cx).await;
        freeze::open_again(&mut cx.writer(freeze).await?, cx).await?;
        if let Some(to) = cutover.to.as_ref().filter(|_| !cutover.allow_served) {
            cx.note(format!(
                "what was written on {to} since the cutover stays there; the next cutover to it is refused until {to} is made anew"
            ));
        }
    }
    failpoint::at(failpoint::CUTOVER_UNDO_OPENED)?;
    let actions = Actions::new(cx);
    let mut back = Vec::new();
    for participant in cutover.participants.iter().rev() {
        if book.stand(&participant.name).await != Stand::Reverted {
            let _section = cx.critical(format!("participant {} is being turned back", participant.name));
            book.note(Event::Revert(&participant.name)).await?;
            participant.revert(cx, &book, &actions).await?;
            failpoint::at(failpoint::CUTOVER_UNDO_REVERTED)?;
            book.note(Event::Reverted(&participant.name)).await?;
            participant.forget(cx, &actions)?;
        }
        back.push(participant.name.as_str());
    }
    freeze::clear(cx, cutover).await;
    Ok(json!({ "turned_back": back }))
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
