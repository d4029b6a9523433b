//! The workers that replay a stream, one for each partition, and the supervisor that watches over all of them.
//!
//! A worker applies only the next number of its partition, so a loss or a duplicate is seen at once. It commits
//! effects and mark together and acknowledges afterwards, so it may be killed at any point. What the queue lost is
//! asked for again: the outbox holds every event until the supervisor, which knows the marks, trims it.

use super::apply::{Applier, Stuck};
use super::copied::Copied;
use super::event::Event;
use super::load::Loader;
use super::loss::Loss;
use super::mapping;
use super::options::{OnPoison, Replay};
use super::rest::Rest;
use super::window::Window;
use crate::connect::connect_queue;
use crate::stream::{Marker, Stream, backlog, marker_passed};
use crate::{budget, offsets, outbox, quarantine};
use futures_util::future::{BoxFuture, try_join_all};
use handover_core::error::{Class, Error, Result};
use handover_core::event::{Measure, StepId};
use handover_core::failpoint;
use handover_port::Port;
use handover_postgres::Session;
use handover_postgres::ours::OURS;
use handover_queue::{Consumer, Queue};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

/// How long to wait for messages before looking around.
const WAIT: Duration = Duration::from_millis(200);
/// How long a stuck event waits for other partitions that make no progress.
const QUIET: Duration = Duration::from_secs(2);
/// How often somebody's wish is looked for to try again what was set aside.
const RETRY: Duration = Duration::from_millis(500);
/// How many applied events may stay in the outbox before they are trimmed, and for how long.
const TRIM: (i64, Duration) = (5_000, Duration::from_secs(1));

/// When replay has done what it was started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// When it is stopped.
    Stopped,
    /// When at most so many events wait.
    Near(i64),
    /// When every partition has passed the marker.
    Marker(Marker),
}

/// What the workers and the supervisor know of a partition.
#[derive(Debug, Default)]
struct Part {
    done: AtomicI64,
    published: AtomicI64,
}

/// What is replayed.
#[derive(Debug)]
pub struct Source<'a> {
    /// The capture step.
    pub step: &'a StepId,
    /// The database that it captures.
    pub database: &'a str,
    /// How many captures the plan has: replayed side by side, they share what one process may hold.
    pub captures: usize,
    /// What copies have brought already.
    pub copied: Copied,
}

/// All workers of a stream.
pub struct Pool<'a> {
    port: &'a Port,
    replay: &'a Replay,
    blue: &'a str,
    captures: usize,
    pub stream: Stream,
    parts: Vec<Part>,
    copied: Copied,
    loader: Loader,
}

impl<'a> Pool<'a> {
    /// Sets the offsets up, or finds them. `green` writes to the new side; it is used for this only.
    pub async fn open(
        port: &'a Port,
        replay: &'a Replay,
        source: Source<'a>,
        mut green: Session,
        begun: bool,
    ) -> Result<Pool<'a>> {
        let Source { step, database, captures, copied } = source;
        let old = port.reader(database).await?;
        let stream = Stream::get(&old, port.run, step).await?;
        let books = outbox::read(&old, &stream).await?;
        let done = offsets::begin(&mut green, &stream, &books, begun).await?;
        let parts = done
            .iter()
            .zip(&books)
            .map(|(done, books)| Part {
                done: AtomicI64::new(*done),
                published: AtomicI64::new(books.published),
            })
            .collect();
        let loader = Loader::new(database, stream.clone());
        Ok(Pool { port, replay, blue: database, captures, stream, parts, copied, loader })
    }

    /// Replays until what `until` says.
    pub async fn work(&self, until: Until) -> Result<()> {
        let mut rest = Rest::new(self.port);
        let queue = loop {
            match connect_queue(self.port).await {
                Ok(queue) => break queue,
                Err(error) => rest.after(error).await?,
            }
        };
        let mut workers: Vec<BoxFuture<'_, Result<()>>> = Vec::new();
        for partition in 0..self.stream.partitions {
            workers.push(Box::pin(self.partition(partition, &queue)));
        }
        tokio::select! {
            result = try_join_all(workers) => result.map(drop),
            result = self.supervisor(until) => result,
            () = self.port.stop.cancelled() => {
                if until == Until::Stopped { Ok(()) } else { Err(Error::cancelled()) }
            }
        }
    }

    async fn partition(&self, partition: u32, queue: &Arc<dyn Queue>) -> Result<()> {
        let mut rest = Rest::new(self.port);
        loop {
            match self.consume(partition, queue).await {
                Ok(()) => return Ok(()),
                Err(error) => rest.after(error).await?,
            }
        }
    }

    async fn supervisor(&self, until: Until) -> Result<()> {
        let mut rest = Rest::new(self.port);
        loop {
            match self.supervise(until).await {
                Ok(()) => return Ok(()),
                Err(error) => rest.after(error).await?,
            }
        }
    }

    fn part(&self, partition: u32) -> Result<&Part> {
        self.parts
            .get(partition as usize)
            .ok_or_else(|| Error::internal(format!("there is no partition {partition}")))
    }

    /// Consumes one partition until something fails.
    async fn consume(&self, partition: u32, queue: &Arc<dyn Queue>) -> Result<()> {
        let part = self.part(partition)?;
        let number = i32::try_from(partition).unwrap_or(i32::MAX);
        let mut green = self.port.operator_writer(&self.replay.to).await?;
        let mut applier = Applier {
            stream: &self.stream,
            copied: &self.copied,
            partition: number,
            effects: mapping::prepare(&green, &self.replay.events).await?,
            blocked: quarantine::blocked(&green, &self.stream, number).await?,
            ask: false,
            on_missing: self.replay.on_missing,
            on_error: self.replay.on_error,
        };
        let done = offsets::done(&green, &self.stream).await?;
        let done = done.get(partition as usize).copied().ok_or_else(|| {
            Error::data("replay's marks are gone")
                .on_database(&self.replay.to)
                .hint("the replay was undone by somebody else; see `handover status`")
        })?;
        part.done.store(done, Ordering::Relaxed);
        let batch = self.replay.batch as usize;
        // Captures of the plan may be replayed side by side, and share what one process may hold.
        let prefetch = budget::prefetch(batch * 2, self.parts.len() * self.captures.max(1));
        let mut window: Window<Event> = Window::new(done + 1);
        let mut consumer = self.consumer(queue, partition, prefetch, &window).await?;
        let mut loss = Loss::new();
        let mut looked = Instant::now();
        loop {
            if !applier.blocked.is_empty() && looked.elapsed() > RETRY {
                looked = Instant::now();
                let released = applier.retry(&mut green).await?;
                if released > 0 {
                    self.port.note(format!("{released} events that were set aside took effect"));
                }
            }
            let room = usize::from(prefetch).saturating_sub(window.len()).clamp(1, batch);
            let deliveries = consumer.next(room, WAIT).await?;
            let mut came = !deliveries.is_empty();
            for delivery in deliveries {
                let number = delivery.message.number;
                window.take(number, delivery.tag, Event::parse(number, delivery.message.payload.into())?);
            }
            loop {
                let ready: Vec<Event> = window.ready(batch).into_iter().cloned().collect();
                if ready.is_empty() {
                    break;
                }
                let loaded = self.loader.load(self.port, number, ready).await?;
                let applied = applier.batch(&mut green, &loaded.events, false).await?;
                let mut count = self.moved(part, &mut window, applied.tally.total());
                if let Some(stuck) = applied.stuck {
                    // Other partitions may have to go on first, and need the bytes that we hold.
                    let event = loaded.release(count)?;
                    count += self.unstick(part, &mut window, &mut applier, &mut green, &event, stuck).await?;
                }
                loss.recovered();
                came = true;
                if count > 0 {
                    failpoint::at(failpoint::REPLAY_APPLIED)?;
                }
                if let Some(tag) = window.ackable() {
                    consumer.ack(tag).await?;
                }
            }
            if loss.is_near(window.has_gap(), window.len() >= usize::from(prefetch), came, || {
                part.published.load(Ordering::Relaxed) >= window.next()
            }) {
                self.ask_again(partition, &window).await?;
            }
            if loss.asked() {
                // All of it comes again behind what is still in the queue, and that must not block the way.
                window.clear();
            }
            if let Some(tag) = window.ackable() {
                consumer.ack(tag).await?;
            }
        }
    }

    async fn consumer(
        &self,
        queue: &Arc<dyn Queue>,
        partition: u32,
        prefetch: u16,
        window: &Window<Event>,
    ) -> Result<Box<dyn Consumer>> {
        let error = match queue.consume(&self.stream.name, partition, prefetch).await {
            Err(error) if error.class() == Class::Data => error,
            other => return other,
        };
        // The stream is gone, and with it what was in it. The relay would notice only with its next event.
        queue.declare(&self.stream.name, self.stream.partitions).await?;
        self.ask_again(partition, window).await?;
        Err(error.with_class(Class::Connection))
    }

    fn moved(&self, part: &Part, window: &mut Window<Event>, count: i64) -> usize {
        part.done.fetch_add(count, Ordering::Relaxed);
        let count = usize::try_from(count).unwrap_or_default();
        window.advance(count);
        count
    }

    async fn ask_again(&self, partition: u32, window: &Window<Event>) -> Result<()> {
        self.port.warn(format!(
            "the queue no longer has event {} of partition {partition} (it was lost, or taken by a replay that was undone): \
             asking for it and all later ones again",
            window.next()
        ));
        let mut blue = self.port.writer(self.blue).await?;
        outbox::publish_again(&mut blue, &self.stream, partition, window.next() - 1).await
    }

    /// Deals with an event that does not apply. What it depends on may be in another
    /// partition: it is tried again until those have come as far as events were numbered when it got stuck (order
    /// across keys is only that of commits), or stand still too. Then the plan's policy is followed. Returns how
    /// many events were dealt with: one, unless it fails.
    async fn unstick(
        &self,
        part: &Part,
        window: &mut Window<Event>,
        applier: &mut Applier<'_>,
        green: &mut Session,
        event: &Event,
        mut stuck: Stuck,
    ) -> Result<usize> {
        let target = outbox::read(&self.port.reader(self.blue).await?, &self.stream).await?;
        let others = || {
            self.parts
                .iter()
                .zip(&target)
                .filter(|(other, _)| !std::ptr::eq(*other, part))
                .map(|(other, books)| (other.done.load(Ordering::Relaxed), books.last))
        };
        let mut progress = (others().map(|(done, _)| done).sum::<i64>(), Instant::now());
        loop {
            let quiet = others().all(|(done, last)| done >= last) || progress.1.elapsed() > QUIET;
            self.port.sleep(Duration::from_millis(50)).await?;
            let applied = applier.batch(green, std::slice::from_ref(event), false).await?;
            if applied.tally.total() > 0 {
                return Ok(self.moved(part, window, applied.tally.total()));
            }
            stuck = applied.stuck.unwrap_or(stuck);
            if quiet {
                break;
            }
            let now = others().map(|(done, _)| done).sum::<i64>();
            if now != progress.0 {
                progress = (now, Instant::now());
            }
        }
        if applier.policy(&stuck.cause) == OnPoison::Quarantine {
            self.port.warn(format!(
                "event {} ({} of {}) is set aside in {OURS}.event_quarantine on {}, and with it all later ones of its key: {}; the \
                 cutover refuses until it is settled (set `retry` there to have it tried again)",
                stuck.number, stuck.op, stuck.table, self.replay.to, stuck.cause
            ));
            let applied = applier.batch(green, std::slice::from_ref(event), true).await?;
            return Ok(self.moved(part, window, applied.tally.total()));
        }
        let text = format!(
            "event {} of partition {} ({} of {}) does not apply: {}",
            stuck.number, applier.partition, stuck.op, stuck.table, stuck.cause
        );
        offsets::stuck(green, &self.stream, applier.partition, &text).await?;
        Err(Error::data(text).on_database(&self.replay.to).hint(format!(
            "it is in {OURS}.outbox_numbered on {} (capture {}, partition {}, number {}); mend the data or the mapping, or set \
             `on_missing` or `on_error` to quarantine, then `handover resume` (with `--accept-changes` after a change of the plan)",
            self.blue, self.stream.id, applier.partition, stuck.number
        )))
    }

    /// Trims, reports, and watches for the end.
    async fn supervise(&self, until: Until) -> Result<()> {
        let mut blue = self.port.writer(self.blue).await?;
        let green = self.port.reader(&self.replay.to).await?;
        let mut trimmed = Instant::now();
        let mut reported: Option<Instant> = None;
        let mut at_start = None;
        loop {
            // Read before the books, which only grow.
            let done: Vec<i64> = self.parts.iter().map(|part| part.done.load(Ordering::Relaxed)).collect();
            let books = outbox::read(&blue, &self.stream).await?;
            for (books, done) in books.iter().zip(done) {
                books.assert_remembers(done)?;
            }
            let due = trimmed.elapsed() >= TRIM.1;
            for (part, books) in self.parts.iter().zip(&books) {
                part.published.store(books.published, Ordering::Relaxed);
                let done = part.done.load(Ordering::Relaxed);
                if done - books.trimmed >= TRIM.0 || due && done > books.trimmed {
                    outbox::trim(&mut blue, &self.stream, books, done).await?;
                }
            }
            if due {
                trimmed = Instant::now();
            }
            let numbered: i64 = books.iter().map(|b| b.last).sum();
            let done: i64 = self.parts.iter().map(|p| p.done.load(Ordering::Relaxed)).sum();
            let report = reported.is_none_or(|at| at.elapsed() > Duration::from_secs(1));
            // Counting what is not numbered yet costs a scan of it: only when the rest looks done, or now and then.
            if report || until != Until::Stopped && numbered - done <= 1_000 {
                let counts = backlog(&blue, &green, &self.stream).await?;
                let waiting = u64::try_from(counts.waiting).unwrap_or_default();
                if report {
                    self.port.standing(format!("{waiting} events behind"), Some(waiting));
                    let total = *at_start.get_or_insert(waiting);
                    if until != Until::Stopped {
                        self.port.progress(
                            "events",
                            total.saturating_sub(waiting),
                            Some(total),
                            Measure::Events,
                        );
                    }
                    reported = Some(Instant::now());
                }
                let reached = match until {
                    Until::Stopped => false,
                    Until::Near(near) => counts.waiting <= near,
                    Until::Marker(marker) => marker_passed(&green, &self.stream, marker).await?,
                };
                if reached {
                    for (part, books) in self.parts.iter().zip(&outbox::read(&blue, &self.stream).await?) {
                        outbox::trim(&mut blue, &self.stream, books, part.done.load(Ordering::Relaxed))
                            .await?;
                    }
                    self.port.unit_done("events");
                    return Ok(());
                }
            }
            tokio::time::sleep(if until == Until::Stopped { WAIT } else { Duration::from_millis(50) }).await;
        }
    }
}
