//! The workers that replay a stream, one for each partition, and the keeper that watches over all of them.
//!
//! A worker applies only the next number of its partition, so a loss or a duplicate is seen at once. It commits
//! effects and mark together and acknowledges afterwards, so it may be killed at any point. What the queue lost is
//! asked for again: the outbox holds every event until the keeper, who knows the marks, trims it.

use super::apply::{Applier, Stuck};
use super::copied::Copied;
use super::event::Event;
use super::load::Loader;
use super::window::Window;
use super::{OnPoison, Replay, mapping};
use crate::error::{Class, Error, Result};
use crate::event::{Measure, StepId};
use crate::failpoint;
use crate::postgres::ours::OURS;
use crate::queue::{Consumer, Queue};
use crate::steps::capture::{Capture, connect_queue};
use crate::steps::{Context, of_kind};
use futures_util::future::{BoxFuture, try_join_all};
use handover_events::{Marker, Stream, backlog, books, budget, marker_passed, marks};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

/// How long to wait for messages before looking around.
const WAIT: Duration = Duration::from_millis(200);
/// How long a gap may last before the missing events are asked for: a relay that repeats a batch closes it itself.
const GAP: Duration = Duration::from_secs(1);
/// How long nothing may come, though the queue is known to have something, before it is asked for again. Doubles.
const SILENCE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(60));
/// How long a stuck event waits for other partitions that make no progress.
const QUIET: Duration = Duration::from_secs(2);
/// How often somebody's wish is looked for to try again what was set aside.
const RETRY: Duration = Duration::from_millis(500);
/// How often a statement may be ended by a timeout or a cancel, one after the other, before replay gives up.
const CUT_SHORT: u32 = 5;
/// The pause after a failure that passes, doubling.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// How many applied events may stay in the outbox before they are trimmed, and for how long.
const TRIM: (i64, Duration) = (5_000, Duration::from_secs(1));

/// When replay has done what it was started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// When it is stopped.
    Stopped,
    /// When at most so many events wait.
    Near(i64),
    /// When every partition has passed the marker.
    Marker(Marker),
}

/// What the workers and the keeper know of a partition.
#[derive(Debug, Default)]
struct Part {
    done: AtomicI64,
    published: AtomicI64,
}

/// All workers of a stream.
pub(super) struct Pool<'a> {
    cx: &'a Context,
    replay: &'a Replay,
    blue: &'a str,
    pub stream: Stream,
    parts: Vec<Part>,
    copied: Copied,
    loader: Loader,
}

impl<'a> Pool<'a> {
    /// Sets the marks up, or finds them.
    pub async fn open(
        cx: &'a Context,
        replay: &'a Replay,
        capture: &StepId,
        blue: &'a str,
        begun: bool,
    ) -> Result<Pool<'a>> {
        let old = cx.reader(blue).await?;
        let stream = Stream::get(&old, cx.run, capture).await?;
        let books = books::read(&old, &stream).await?;
        let mut green = cx.writer(&replay.to).await?;
        let done = marks::begin(&mut green, &stream, &books, begun).await?;
        let copied = Copied::find(cx, &green, blue, &replay.to).await?;
        let parts = done
            .iter()
            .zip(&books)
            .map(|(done, books)| Part {
                done: AtomicI64::new(*done),
                published: AtomicI64::new(books.published),
            })
            .collect();
        let loader = Loader::new(blue, stream.clone());
        Ok(Pool { cx, replay, blue, stream, parts, copied, loader })
    }

    /// Replays until what `until` says.
    pub async fn work(&self, until: Until) -> Result<()> {
        let mut rest = Rest::new(self.cx);
        let queue = loop {
            match connect_queue(self.cx).await {
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
            result = self.keeper(until) => result,
            () = self.cx.stop.cancelled() => {
                if until == Until::Stopped { Ok(()) } else { Err(Error::cancelled()) }
            }
        }
    }

    async fn partition(&self, partition: u32, queue: &Arc<dyn Queue>) -> Result<()> {
        let mut rest = Rest::new(self.cx);
        loop {
            match self.consume(partition, queue).await {
                Ok(()) => return Ok(()),
                Err(error) => rest.after(error).await?,
            }
        }
    }

    async fn keeper(&self, until: Until) -> Result<()> {
        let mut rest = Rest::new(self.cx);
        loop {
            match self.keep(until).await {
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
        let mut green = self.cx.operator_writer(&self.replay.to).await?;
        let mut applier = Applier {
            stream: &self.stream,
            copied: &self.copied,
            partition: number,
            effects: mapping::prepare(&green, &self.replay.events).await?,
            blocked: marks::blocked(&green, &self.stream, number).await?,
            ask: false,
            on_missing: self.replay.on_missing,
            on_error: self.replay.on_error,
        };
        let done = marks::done(&green, &self.stream).await?;
        let done = done.get(partition as usize).copied().ok_or_else(|| {
            Error::data("replay's marks are gone")
                .on_database(&self.replay.to)
                .hint("the replay was undone by somebody else; see `handover status`")
        })?;
        part.done.store(done, Ordering::Relaxed);
        let batch = self.replay.batch as usize;
        // Captures of the plan may be replayed side by side, and share what one process may hold.
        let streams = of_kind::<Capture>(&self.cx.steps).count();
        let prefetch = budget::prefetch(batch * 2, self.parts.len() * streams.max(1));
        let mut window: Window<Event> = Window::new(done + 1);
        let mut consumer = self.consumer(queue, partition, prefetch, &window).await?;
        let mut loss = Loss::new();
        let mut looked = Instant::now();
        loop {
            if !applier.blocked.is_empty() && looked.elapsed() > RETRY {
                looked = Instant::now();
                let settled = applier.retry(&mut green).await?;
                if settled > 0 {
                    self.cx.note(format!("{settled} events that were set aside took effect"));
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
                let loaded = self.loader.load(self.cx, number, ready).await?;
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
        self.cx.warn(format!(
            "the queue lost events of partition {partition}: asking for number {} and later again",
            window.next()
        ));
        let mut blue = self.cx.writer(self.blue).await?;
        books::publish_again(&mut blue, &self.stream, partition, window.next() - 1).await
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
        green: &mut crate::postgres::Session,
        event: &Event,
        mut stuck: Stuck,
    ) -> Result<usize> {
        let target = books::read(&self.cx.reader(self.blue).await?, &self.stream).await?;
        let others = || {
            self.parts
                .iter()
                .zip(&target)
                .filter(|(other, _)| !std::ptr::eq(*other, part))
                .map(|(other, books)| (other.done.load(Ordering::Relaxed), books.last))
        };
        let mut progress = (others().map(|(done, _)| done).sum::<i64>(), Instant::now());
        loop {
            let settled = others().all(|(done, last)| done >= last) || progress.1.elapsed() > QUIET;
            self.cx.sleep(Duration::from_millis(50)).await?;
            let applied = applier.batch(green, std::slice::from_ref(event), false).await?;
            if applied.tally.total() > 0 {
                return Ok(self.moved(part, window, applied.tally.total()));
            }
            stuck = applied.stuck.unwrap_or(stuck);
            if settled {
                break;
            }
            let now = others().map(|(done, _)| done).sum::<i64>();
            if now != progress.0 {
                progress = (now, Instant::now());
            }
        }
        if applier.policy(&stuck.cause) == OnPoison::Quarantine {
            self.cx.warn(format!(
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
        marks::stuck(green, &self.stream, applier.partition, &text).await?;
        Err(Error::data(text).on_database(&self.replay.to).hint(format!(
            "it is in {OURS}.outbox_numbered on {} (capture {}, partition {}, number {}); mend the data or the mapping, or set \
             `on_missing` or `on_error` to quarantine, then `handover resume` (with `--accept-changes` after a change of the plan)",
            self.blue, self.stream.id, applier.partition, stuck.number
        )))
    }

    /// Trims, reports, and watches for the end.
    async fn keep(&self, until: Until) -> Result<()> {
        let mut blue = self.cx.writer(self.blue).await?;
        let green = self.cx.reader(&self.replay.to).await?;
        let mut trimmed = Instant::now();
        let mut reported: Option<Instant> = None;
        let mut at_start = None;
        loop {
            let books = books::read(&blue, &self.stream).await?;
            let due = trimmed.elapsed() >= TRIM.1;
            for (part, books) in self.parts.iter().zip(&books) {
                part.published.store(books.published, Ordering::Relaxed);
                let done = part.done.load(Ordering::Relaxed);
                if done - books.trimmed >= TRIM.0 || due && done > books.trimmed {
                    books::trim(&mut blue, &self.stream, books, done).await?;
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
                    self.cx.standing(format!("{waiting} events behind"), Some(waiting));
                    let total = *at_start.get_or_insert(waiting);
                    if until != Until::Stopped {
                        self.cx.progress(
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
                    for (part, books) in self.parts.iter().zip(&books::read(&blue, &self.stream).await?) {
                        books::trim(&mut blue, &self.stream, books, part.done.load(Ordering::Relaxed))
                            .await?;
                    }
                    self.cx.unit_done("events");
                    return Ok(());
                }
            }
            tokio::time::sleep(if until == Until::Stopped { WAIT } else { Duration::from_millis(50) }).await;
        }
    }
}

/// Rests after failures that pass, longer and longer.
struct Rest<'a> {
    cx: &'a Context,
    begun: Instant,
    next: Duration,
    cut_short: u32,
}

impl<'a> Rest<'a> {
    fn new(cx: &'a Context) -> Self {
        Rest { cx, begun: Instant::now(), next: BACKOFF.0, cut_short: 0 }
    }

    /// Rests, or gives the error back if resting does not help.
    async fn after(&mut self, error: Error) -> Result<()> {
        // What worked for a while earns a fresh backoff.
        if self.begun.elapsed() > BACKOFF.1 {
            self.next = BACKOFF.0;
            self.cut_short = 0;
        }
        // A statement that was ended from outside may work the next time; what always ends it is for people.
        let cut_short = error.class() == Class::Timeout && self.cut_short < CUT_SHORT;
        if !error.class().is_transient() && !cut_short {
            return Err(error);
        }
        self.cut_short += u32::from(cut_short);
        // Somebody else's progress is no news.
        if error.class() != Class::Contention {
            self.cx.standing(format!("replay waits: {error}"), None);
        }
        self.cx.sleep(self.next).await?;
        self.next = (self.next * 2).min(BACKOFF.1);
        self.begun = Instant::now();
        Ok(())
    }
}

/// Tells a loss in the queue from a delay.
struct Loss {
    gap_since: Option<Instant>,
    last_came: Instant,
    asked_at: Option<Instant>,
    patience: Duration,
}

impl Loss {
    fn new() -> Self {
        Loss { gap_since: None, last_came: Instant::now(), asked_at: None, patience: SILENCE.0 }
    }

    /// The next event came.
    fn recovered(&mut self) {
        *self = Loss::new();
    }

    fn asked(&self) -> bool {
        self.asked_at.is_some()
    }

    /// Whether it is time to ask for events again.
    fn is_near(&mut self, gap: bool, full: bool, came: bool, expects: impl Fn() -> bool) -> bool {
        let now = Instant::now();
        if came {
            self.last_came = now;
        }
        let since = if gap { Some(*self.gap_since.get_or_insert(now)) } else { None };
        self.gap_since = since;
        let ask = match self.asked_at {
            // Asked before: what was asked for comes last, after all that is in the queue.
            Some(at) => now - at > self.patience && now - self.last_came > SILENCE.0 && expects(),
            None => {
                full && gap
                    || since.is_some_and(|since| now - since > GAP)
                    || !gap && now - self.last_came > self.patience && expects()
            }
        };
        if ask {
            if self.asked_at.is_some() {
                self.patience = (self.patience * 2).min(SILENCE.1);
            }
            self.asked_at = Some(now);
            self.last_came = now;
        }
        ask
    }
}
