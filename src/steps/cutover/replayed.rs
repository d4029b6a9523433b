//! The way back by capture and replay, for two sides of different schemas: triggers on the new side, an outbox, the queue, and
//! mappings that say what an event means on the old side. All of it is what a `capture` and a `replay` step do, in the other
//! direction and under the cutover's own name.
//!
//! - The triggers are made before the pause. They count from the last look before it: events of transactions that had
//!   ended by then are passed over, as those are that a copy has brought.
//! - What the replays forward write on the new side is not captured there, and what this one writes on the old side is not
//!   captured there: a transaction of replay says whose events it applies ([`handover_events::applies`]). No trigger is ever
//!   switched off or on, so there is no moment in which one is in the wrong state.
//! - The old side's gate lets this replay through, and nobody else.

use super::carrier::{Arrivals, Carrier, Carrying};
use super::forecast::Measured;
use super::options::Cutover;
use super::{attempts, feeds, quarantine, subscriptions, uncarried};
use crate::error::{Class, Error, Result};
use crate::event::StepId;
use crate::failpoint;
use crate::postgres::{Session, catalog};
use crate::problem::count;
use crate::steps::{Context, Description, Port, watched};
use crate::value::fingerprint;
use async_trait::async_trait;
use handover_events::capture::{self, Capture};
use handover_events::replay::{self, Copied, Mode, Replay, Snapshot, Source};
use handover_events::{Stream, relay};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// The journal's fact: what had ended on the new side when its writes began to count.
const COUNTS_FROM: &str = "carried_from";
/// The journal's fact: what the triggers were made to capture.
const MADE_AS: &str = "carried_as";

/// The way back of a cutover.
pub struct Replayed<'a> {
    cutover: &'a Cutover,
    ends: Ends,
    /// The stream's name.
    name: String,
    /// Why what carries in this process has ended.
    failed: Failed,
}

/// Both ends of the stream.
#[derive(Clone)]
struct Ends {
    step: StepId,
    capture: Capture,
    replay: Replay,
}

type Failed = Arc<Mutex<Option<Error>>>;

impl<'a> Replayed<'a> {
    /// The one that a plan asks for; none where it asks for none, or for the servers' own.
    pub fn of(cutover: &'a Cutover, cx: &Context) -> Option<Self> {
        let name = cutover.stream_back(cx.run, &cx.step)?;
        let (reverse, from, to) = (cutover.reverse.as_ref()?, cutover.to.as_ref()?, cutover.freeze.as_ref()?);
        let ends = Ends {
            step: cx.step.clone(),
            capture: reverse.capture(from, &cx.step),
            replay: reverse.replay(to),
        };
        Some(Replayed { cutover, ends, name, failed: Failed::default() })
    }

    /// The streams whose replay writes on the new side, which is not to come back.
    fn forward(&self, cx: &Context) -> Vec<String> {
        feeds::captures(self.cutover, cx).map(|(id, capture)| capture.stream_name(cx.run, id)).collect()
    }

    /// What the triggers are made from. Their functions have numbers, so others must not be made beside them.
    fn made_as(&self, cx: &Context) -> String {
        fingerprint(&format!("{:?} {:?}", self.ends.capture, self.forward(cx)), 16)
    }

    /// Proves that the captures on the old side leave out what comes back: those of a run that began with another plan would
    /// send it round.
    async fn assert_left_out(&self, cx: &Context) -> Result<()> {
        let blue = cx.reader(self.to()).await?;
        for (id, _) in feeds::captures(self.cutover, cx) {
            let stream = Stream::get(&blue, cx.run, id).await?;
            if !capture::leaves_out(&blue, &stream, &self.name).await? {
                return Err(attempts::refusal(
                    &blue,
                    format!(
                        "step `{id}` began when the plan had no `tables` under `reverse:`, and would capture again what comes back: `handover rollback` to before it, and run again, or leave `reverse:` out"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Forgets how far an earlier one came. What it set aside stays, under another name: it may be all that is left of it.
    async fn forget(&self, cx: &Context) -> Result<()> {
        handover_events::quarantine::lay_by(&mut cx.writer(self.to()).await?, &self.name).await?;
        replay::undo(&self.ends.replay, cx, Some(&self.name)).await?;
        for fact in [COUNTS_FROM, MADE_AS, watched::UNIT] {
            cx.forget(fact).await?;
        }
        Ok(())
    }
}

impl Ends {
    /// Relays and replays until it is stopped, or something is wrong that waiting does not mend.
    async fn carry(&self, cx: &Context) -> Result<()> {
        let replayed = async {
            let from: String = cx.recall(COUNTS_FROM)?.ok_or_else(|| {
                Error::internal("the journal does not say since when the way back counts writes")
            })?;
            let snapshot = Snapshot::parse(&from)
                .ok_or_else(|| Error::internal("since when the way back counts writes cannot be read"))?;
            let mut copied = Copied::default();
            copied.add(&snapshot, self.capture.tables.keys().map(ToString::to_string));
            let captures = cx.links.captures.all().count() + 1;
            let source = Source { step: &self.step, database: &self.capture.from, captures, copied };
            replay::keep_up(&self.replay, cx, source, cx.writer(&self.replay.to).await?).await
        };
        tokio::try_join!(relay::relay(&self.capture, cx), replayed).map(drop)
    }
}

#[async_trait]
impl Carrier for Replayed<'_> {
    fn from(&self) -> &str {
        &self.ends.capture.from
    }

    fn to(&self) -> &str {
        &self.ends.replay.to
    }

    async fn describe(
        &self,
        cx: &Context,
        blue: &Session,
        green: &Session,
        out: &mut Description,
    ) -> Result<()> {
        let Ends { step, capture, replay } = &self.ends;
        let (from, to) = (self.from(), self.to());
        out.action(format!(
            "before the pause: capture {} of {from}; from the decision on, what is written there is replayed on {to}{}",
            count(capture.tables.len(), "table"),
            self.cutover.but_for()
        ));
        self.look(cx, blue, green, out).await?;
        for said in [
            capture::describe(capture, cx, &self.forward(cx)).await?,
            replay::describe(replay, cx, step, capture, Mode::Tail).await?,
        ] {
            let of = |text: &String| format!("the way back: {text}");
            out.warnings.extend(said.warnings.iter().map(of));
            out.blockers.extend(said.blockers.iter().map(of));
            for (on, sql) in said.statements() {
                out.statement(on, sql);
            }
        }
        Ok(())
    }

    async fn look(&self, cx: &Context, blue: &Session, green: &Session, out: &mut Description) -> Result<()> {
        // Before the copy there is nothing to be covered.
        if !catalog::tables(green).await?.is_empty() {
            out.blockers.extend(uncarried::look(self.cutover, cx, &self.ends.capture, blue, green).await?);
            out.blockers.extend(subscriptions::writing(green, self.cutover).await?);
        }
        Ok(())
    }

    async fn make(&self, cx: &Context) -> Result<()> {
        self.assert_left_out(cx).await?;
        match Stream::find(&cx.reader(self.from()).await?, cx.run, &cx.step).await? {
            // Of an earlier attempt: nothing of it counts, and since then tables were altered or triggers disabled, perhaps.
            Some(_) => self.discard(cx).await?,
            // Marks that an earlier one left would say that the first events of this one were applied.
            None => self.forget(cx).await?,
        }
        cx.remember(MADE_AS, &self.made_as(cx)).await?;
        capture::begin(&self.ends.capture, cx, &self.forward(cx)).await?;
        failpoint::at(failpoint::CARRY_CAPTURED)?;
        watched::keep_for_capture(cx, &self.ends.capture).await?;
        // What is wrong with a mapping is found while the old side serves.
        replay::rehearse(&self.ends.replay, cx).await
    }

    async fn freshen(&self, cx: &Context) -> Result<()> {
        let green = cx.reader(self.from()).await?;
        let row = green.query_one("select pg_current_snapshot()::text", &[]).await?;
        cx.remember(COUNTS_FROM, &row.get::<_, String>(0)).await?;
        failpoint::at(failpoint::CARRY_COUNTS)
    }

    async fn trouble(&self, cx: &Context) -> Result<Option<String>> {
        match capture::assert_hung(&self.ends.capture, cx).await {
            Ok(_) => Ok(None),
            Err(error) if error.class() == Class::Data => Ok(Some(error.message().to_owned())),
            Err(error) => Err(error),
        }
    }

    async fn unfit(&self, cx: &Context, blue: &Session, green: &Session) -> Result<Option<String>> {
        Ok(self.differences(cx, blue, green).await?.into_iter().next())
    }

    async fn enable(&self, _cx: &Context) -> Result<()> {
        // The triggers capture already, and the standing task carries.
        Ok(())
    }

    async fn stand(&self, cx: &Context) -> Result<()> {
        self.ends.carry(cx).await
    }

    async fn discard(&self, cx: &Context) -> Result<()> {
        capture::remove(&self.ends.capture, cx).await?;
        failpoint::at(failpoint::CARRY_UNDO_DROPPED)?;
        self.forget(cx).await
    }

    async fn differences(&self, cx: &Context, blue: &Session, green: &Session) -> Result<Vec<String>> {
        let mut out = uncarried::look(self.cutover, cx, &self.ends.capture, blue, green).await?;
        out.extend(subscriptions::writing(green, self.cutover).await?);
        out.extend(self.trouble(cx).await?);
        out.extend(uncarried::drifted(self.cutover, cx, &self.ends.capture, green).await?);
        if cx.recall::<String>(MADE_AS)?.is_some_and(|earlier| earlier != self.made_as(cx)) {
            out.push("the plan says another `tables:` of `reverse:` than what was captured since the cutover: put the old one back".into());
        }
        Ok(out)
    }

    fn carry(&self, cx: &Context) -> Carrying {
        let stop = CancellationToken::new();
        let port = Port { stop: stop.clone(), ..cx.port.clone() };
        let (cx, ends, failed) = (Context { port, ..cx.clone() }, self.ends.clone(), self.failed.clone());
        let task = tokio::spawn(async move {
            while let Err(error) = ends.carry(&cx).await {
                if !error.class().is_transient() {
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    return;
                }
                cx.standing(format!("the way back waits: {error}"), None);
                if cx.sleep(Duration::from_millis(500)).await.is_err() {
                    return;
                }
            }
        });
        Carrying::new(stop, task)
    }

    async fn arrivals<'s>(&'s self, cx: &Context) -> Result<Box<dyn Arrivals + 's>> {
        let (blue, green) = (cx.reader(self.to()).await?, cx.writer(self.from()).await?);
        let stream = Stream::get(&green, cx.run, &self.ends.step).await?;
        Ok(Box::new(Events { carrier: self, blue, green, stream }))
    }

    async fn left_behind(&self, cx: &Context) -> Result<Option<String>> {
        let blue = cx.reader(self.to()).await?;
        let (aside, _) = handover_events::quarantine::count_aside(&blue, &[&self.name]).await?;
        let events = usize::try_from(aside).unwrap_or_default();
        Ok((events > 0).then(|| {
            format!(
                "{} that could not be applied, in event_quarantine on {}",
                count(events, "event"),
                self.to()
            )
        }))
    }
}

/// Events on their way back.
struct Events<'s> {
    carrier: &'s Replayed<'s>,
    blue: Session,
    green: Session,
    stream: Stream,
}

impl Events<'_> {
    /// Whether what carries still does.
    fn assert_carried(&self) -> Result<()> {
        let failed = self.carrier.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.clone().map_or(Ok(()), Err)
    }

    /// Writes a marker, and waits until it has passed; false when it has not within `limit`.
    async fn mark(&mut self, limit: Duration) -> Result<bool> {
        let begun = Instant::now();
        let marker = handover_events::write_fence_marker(&mut self.green, &self.stream).await?;
        while !handover_events::marker_passed(&self.blue, &self.stream, marker).await? {
            self.assert_carried()?;
            if begun.elapsed() >= limit {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(true)
    }
}

#[async_trait]
impl Arrivals for Events<'_> {
    async fn late(&mut self, cx: &Context, measured: &mut Measured) -> Result<Option<String>> {
        cx.proceed()?;
        self.assert_carried()?;
        let (cutover, to) = (self.carrier.cutover, self.carrier.to());
        let counts = handover_events::backlog(&self.green, &self.blue, &self.stream).await?;
        if counts.waiting > i64::from(cutover.max_backlog) {
            return Ok(Some(format!("{} events wait to be replayed on {to} ({counts})", counts.waiting)));
        }
        let streams = std::slice::from_ref(&self.stream);
        if let Some(pending) = quarantine::pending_of(cutover, &self.blue, streams).await? {
            return Ok(Some(pending));
        }
        let begun = Instant::now();
        let soon = cutover.reverse.as_ref().map_or(Duration::ZERO, |reverse| reverse.max_lag.0);
        if !self.mark(soon).await? {
            return Ok(Some(format!(
                "an event takes longer than {soon:?} to be replayed on {to} ({counts})"
            )));
        }
        measured.arrived(begun.elapsed());
        Ok(None)
    }

    async fn all(&mut self) -> Result<Option<i64>> {
        // The pause's own budget ends it.
        self.mark(Duration::MAX).await?;
        let counts = handover_events::backlog(&self.green, &self.blue, &self.stream).await?;
        if !counts.complete() {
            return Err(Error::new(
                Class::Contention,
                format!("not every event that was captured since the cutover has an outcome: {counts}"),
            )
            .on_database(self.carrier.to())
            .hint("does something still write to the new side that the freeze does not hold off?"));
        }
        quarantine::refuse(self.carrier.cutover, &self.blue, std::slice::from_ref(&self.stream)).await?;
        Ok(Some(counts.captured - counts.quarantined))
    }
}
