//! The relay: a standing task that numbers what was captured, publishes it, and notes what the queue confirmed.
//!
//! It may be killed at any point, and an older one may still be finishing: numbers are given once, under a lock,
//! in a fenced transaction; publishing again only repeats numbers, which replay recognises. While the queue is
//! down the old side serves on and the outbox grows.

use crate::budget;
use crate::capture::Capture;
use crate::connect::connect_queue;
use crate::outbox::{self, Floor, Limits, Partition, Unpublished};
use crate::stream::Stream;
use handover_core::error::{Class, Error, Result};
use handover_core::failpoint;
use handover_port::Port;
use handover_postgres::Session;
use handover_postgres::ours::OURS;
use handover_queue::{Message, Queue};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Events numbered in one transaction, and published of one partition at once.
const BATCH: i64 = 2_000;
/// What an event's envelope adds to its values, in bytes, at most: names and numbers.
const ENVELOPE: usize = 1_024;
/// The pause when nothing was found, doubling from the shorter to the longer.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));
/// The pause after a failure that passes, likewise.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// Runs until it is asked to stop.
///
/// # Errors
/// A failure that waiting does not mend.
pub async fn relay(capture: &Capture, port: &Port) -> Result<()> {
    let mut backoff = BACKOFF.0;
    loop {
        let begun = Instant::now();
        let result = tokio::select! {
            result = pump(capture, port) => result,
            () = port.stop.cancelled() => return Ok(()),
        };
        let Err(error) = result else { return Ok(()) };
        if !error.class().is_transient() {
            return Err(error);
        }
        if begun.elapsed() > BACKOFF.1 {
            backoff = BACKOFF.0;
        }
        port.standing(format!("relay waits, {} serves on: {error}", capture.from), None);
        if port.sleep(backoff).await.is_err() {
            return Ok(());
        }
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

async fn pump(capture: &Capture, port: &Port) -> Result<()> {
    let mut blue = port.writer(&capture.from).await?;
    let stream = Stream::get(&blue, port.run, &port.step).await?;
    let mut report = Report { capture, port, next: Instant::now(), next_size: Instant::now(), over: false };
    let mut queue = None;
    let mut floor = Floor::default();
    let mut pause = PAUSE.0;
    let mut turn = 0;
    loop {
        let mut moved = 0;
        if outbox::has_arrivals(&blue, &stream, &floor).await? {
            moved = outbox::number(&mut blue, &stream, &mut floor, BATCH).await?;
            failpoint::at(failpoint::RELAY_NUMBERED)?;
        }
        let round = publish(port, &mut blue, &stream, &mut queue, turn).await;
        report.tick(&blue, &stream, round.as_ref().err()).await?;
        let round = round?;
        turn = turn.wrapping_add(1);
        if moved > 0 || round.sent > 0 {
            pause = PAUSE.0;
        }
        if moved == BATCH || round.more {
            continue;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// What one round of publishing came to.
#[derive(Debug, Default)]
struct Round {
    /// How many events were sent.
    sent: i64,
    /// Whether there may be more at once.
    more: bool,
}

/// Publishes what the queue lacks: of each partition in turn, from the `turn`th on, up to the budget of bytes.
async fn publish(
    port: &Port,
    blue: &mut Session,
    stream: &Stream,
    queue: &mut Option<Arc<dyn Queue>>,
    turn: usize,
) -> Result<Round> {
    let mut behind: Vec<Partition> =
        outbox::read(blue, stream).await?.into_iter().filter(|b| b.last > b.published).collect();
    if behind.is_empty() {
        return Ok(Round::default());
    }
    let connected = match queue {
        Some(queue) => queue.clone(),
        None => queue.insert(connect_queue(port).await?).clone(),
    };
    // Whose turn comes first changes, so that none waits for the others for ever.
    let first = turn % behind.len();
    behind.rotate_left(first);
    let limit = connected.max_message();
    let mut messages: Vec<Message> = Vec::new();
    let mut marks = Vec::new();
    let mut room = budget::RELAY;
    let mut more = false;
    for partition in behind {
        if room == 0 {
            more = true;
            break;
        }
        let limits =
            Limits { events: BATCH, bytes: room, inline: budget::INLINE.min(limit.saturating_sub(ENVELOPE)) };
        let batch = outbox::unpublished(blue, stream, &partition, limits).await?;
        let above = partition.trimmed.max(partition.published);
        let last = batch.last().map_or(above, |event| event.message.number);
        more |= last < partition.last;
        marks.push((partition, last));
        for event in batch {
            if event.message.payload.len() > limit {
                return Err(too_large(&event, stream, &connected.describe(), limit));
            }
            room = room.saturating_sub(event.message.payload.len());
            messages.push(event.message);
        }
    }
    // The queue is outside the databases: no fence row guards it.
    port.databases.lease()?.assert_held()?;
    let sent = i64::try_from(messages.len()).unwrap_or(i64::MAX);
    if let Err(error) = connected.publish(&stream.name, &messages).await {
        if connected.max_message() < limit {
            // Only now it is known. The next round leaves more events in the outbox.
            port.note(format!("{error}; larger events are read from the outbox"));
            return Ok(Round { sent: 0, more: true });
        }
        if error.class() != Class::Data {
            return Err(error);
        }
        // The stream is gone: somebody deleted it, or the broker lost it.
        port.warn(format!("the queue lost the stream; it is filled again from the outbox ({error})"));
        connected.declare(&stream.name, stream.partitions).await?;
        outbox::publish_all_again(blue, stream).await?;
        return Ok(Round { sent, more: true });
    }
    failpoint::at(failpoint::RELAY_PUBLISHED)?;
    outbox::mark_published(blue, stream, &marks).await?;
    Ok(Round { sent, more })
}

/// Even a note of it is more than the broker takes: its key is long, or the limit is tiny.
fn too_large(event: &Unpublished, stream: &Stream, queue: &str, limit: usize) -> Error {
    Error::new(
        Class::Resources,
        format!(
            "{queue} takes no message above {limit} bytes, and that does not do for a note of event {} of {} {}, which has {} bytes",
            event.message.number, event.table, event.key, event.bytes
        ),
    )
    .hint(format!(
        "raise the broker's `max_message_size` to at least {}, then `handover resume`; the event is in \
         {OURS}.outbox_numbered (capture {}, partition {}, number {})",
        (event.message.payload.len() + ENVELOPE).next_power_of_two(),
        stream.id,
        event.message.partition,
        event.message.number
    ))
}

/// How many events wait for the queue, for the report.
async fn unsent(session: &Session, stream: &Stream) -> Result<i64> {
    let waiting: i64 = session
        .query_one(&format!("select count(*) from {OURS}.outbox where capture = $1"), &[&stream.id])
        .await?
        .get(0);
    let books = outbox::read(session, stream).await?;
    Ok(waiting + books.iter().map(|b| (b.last - b.published.max(b.trimmed)).max(0)).sum::<i64>())
}

/// Tells now and then how the relay stands.
struct Report<'a> {
    capture: &'a Capture,
    port: &'a Port,
    next: Instant,
    next_size: Instant,
    over: bool,
}

impl Report<'_> {
    async fn tick(&mut self, blue: &Session, stream: &Stream, trouble: Option<&Error>) -> Result<()> {
        let now = Instant::now();
        if now < self.next && trouble.is_none() {
            return Ok(());
        }
        self.next = now + Duration::from_secs(1);
        let waiting = unsent(blue, stream).await?;
        let text = match trouble {
            None => format!("{waiting} events to relay"),
            Some(error) => {
                format!("relay waits with {waiting} events, {} serves on: {error}", self.capture.from)
            }
        };
        self.port.standing(text, u64::try_from(waiting).ok());
        if now < self.next_size {
            return Ok(());
        }
        self.next_size = now + Duration::from_secs(10);
        let size = outbox::size(blue).await?.unsigned_abs();
        let over = size > self.capture.outbox_budget_mb << 20;
        if over && !self.over {
            self.port.warn(format!(
                "the outbox on {} takes {} MiB, more than its budget of {} MiB: see that the queue is up and replay keeps pace",
                self.capture.from,
                size >> 20,
                self.capture.outbox_budget_mb
            ));
        }
        self.over = over;
        Ok(())
    }
}
