//! The relay: a standing task that numbers what was captured, publishes it, and notes what the queue confirmed.
//!
//! It may be killed at any point, and an older one may still be finishing: numbers are given once, under a lock,
//! in a fenced transaction; publishing again only repeats numbers, which replay recognises. While the queue is
//! down the old side serves on and the outbox grows.

use super::{Capture, connect_queue, unsent};
use crate::error::{Class, Error, Result};
use crate::failpoint;
use crate::outbox::Stream;
use crate::outbox::books::{self, Floor, PartitionBooks};
use crate::postgres::Session;
use crate::queue::{Message, Queue};
use crate::steps::Context;
use std::time::{Duration, Instant};

/// Events numbered in one transaction, and published of one partition at once.
const BATCH: i64 = 2_000;
/// The pause when nothing was found, doubling from the shorter to the longer.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));
/// The pause after a failure that passes, likewise.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// Runs until it is asked to stop, or fails in a way that waiting does not mend.
pub(super) async fn relay(capture: &Capture, cx: &Context) -> Result<()> {
    let mut backoff = BACKOFF.0;
    loop {
        let begun = Instant::now();
        let result = tokio::select! {
            result = pump(capture, cx) => result,
            () = cx.stop.cancelled() => return Ok(()),
        };
        let Err(error) = result else { return Ok(()) };
        if !error.class().is_transient() {
            return Err(error);
        }
        if begun.elapsed() > BACKOFF.1 {
            backoff = BACKOFF.0;
        }
        cx.standing(format!("relay waits, {} serves on: {error}", capture.from), None);
        if cx.sleep(backoff).await.is_err() {
            return Ok(());
        }
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

async fn pump(capture: &Capture, cx: &Context) -> Result<()> {
    let mut blue = cx.writer(&capture.from).await?;
    let stream = Stream::get(&blue, cx.run, &cx.step).await?;
    let mut report = Report { capture, cx, next: Instant::now(), next_size: Instant::now(), over: false };
    let mut queue = None;
    let mut floor = Floor::default();
    let mut pause = PAUSE.0;
    loop {
        let mut moved = 0;
        if books::has_arrivals(&blue, &stream, &floor).await? {
            moved = books::number(&mut blue, &stream, &mut floor, BATCH).await?;
            failpoint::at(failpoint::RELAY_NUMBERED)?;
        }
        let sent = publish(cx, &mut blue, &stream, &mut queue).await;
        report.tick(&blue, &stream, sent.as_ref().err()).await?;
        let sent = sent?;
        if moved > 0 || sent > 0 {
            pause = PAUSE.0;
            if moved == BATCH || sent >= BATCH {
                continue;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Publishes what the queue lacks, one batch of each partition. Returns how many events.
async fn publish(
    cx: &Context,
    blue: &mut Session,
    stream: &Stream,
    queue: &mut Option<std::sync::Arc<dyn Queue>>,
) -> Result<i64> {
    let behind: Vec<PartitionBooks> =
        books::read(blue, stream).await?.into_iter().filter(|b| b.last > b.published).collect();
    if behind.is_empty() {
        return Ok(0);
    }
    let connected = match queue {
        Some(queue) => queue.clone(),
        None => queue.insert(connect_queue(cx).await?).clone(),
    };
    let mut messages: Vec<Message> = Vec::new();
    let mut marks = Vec::new();
    for partition in behind {
        let batch = books::unpublished(blue, stream, &partition, BATCH).await?;
        marks
            .push((partition, batch.last().map_or(partition.trimmed.max(partition.published), |m| m.number)));
        messages.extend(batch);
    }
    // The queue is outside the databases: no fence row guards it.
    cx.databases.lease()?.assert_held()?;
    if let Err(error) = connected.publish(&stream.name, &messages).await {
        if error.class() != Class::Data {
            return Err(error);
        }
        // The stream is gone: somebody deleted it, or the broker lost it.
        cx.warn(format!("the queue lost the stream; it is filled again from the outbox ({error})"));
        connected.declare(&stream.name, stream.partitions).await?;
        books::publish_all_again(blue, stream).await?;
        return Ok(i64::try_from(messages.len()).unwrap_or(i64::MAX));
    }
    failpoint::at(failpoint::RELAY_PUBLISHED)?;
    books::mark_published(blue, stream, &marks).await?;
    Ok(i64::try_from(messages.len()).unwrap_or(i64::MAX))
}

/// Tells now and then how the relay stands.
struct Report<'a> {
    capture: &'a Capture,
    cx: &'a Context,
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
        self.cx.standing(text, u64::try_from(waiting).ok());
        if now < self.next_size {
            return Ok(());
        }
        self.next_size = now + Duration::from_secs(10);
        let size = books::size(blue).await?.unsigned_abs();
        let over = size > self.capture.outbox_budget_mb << 20;
        if over && !self.over {
            self.cx.warn(format!(
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
