//! The protocol: prepare, freeze, drain, decide, commit.

use super::{
    AT_STAKE, Cutover, DECIDED, PREPARING, freeze, large_objects, partial, preflight, quarantine, sequences,
};
use crate::error::{Class, Error, Result};
use crate::event::StepId;
use crate::failpoint;
use crate::outbox::{self, Stream};
use crate::outside::Outside;
use crate::postgres::{Session, fence};
use crate::steps::capture::Capture;
use crate::steps::copy::large_objects::carry::{Carrier, Pass};
use crate::steps::replay::Replay;
use crate::steps::replicate::{Gauge, Link};
use crate::steps::{Context, Step, of_kind, replicate};
use futures_util::future::{join_all, try_join_all};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// The name of a cutover's marks in a replication's stream.
pub const MARK: &str = "cutover";

/// How an attempt went that came to a decision.
struct Decided {
    frozen: Instant,
    prepared: Instant,
    pause: Duration,
    sequences: usize,
    large_objects: Option<(Carrier, Pass)>,
}

/// Runs the cutover, from wherever an earlier attempt left it.
pub async fn run(cutover: &Cutover, cx: &Context) -> Result<Value> {
    if is_decided(cutover, cx).await? {
        let begun = Instant::now();
        commit_all(cutover, cx, begun).await?;
        freeze::bolt(cx, cutover).await;
        end_replication(cutover, cx).await?;
        return Ok(json!({ "decided": "by an earlier attempt", "participants": names(cutover) }));
    }
    // An earlier attempt may have left participants holding their clients.
    call_off(cutover, cx).await?;
    let mut attempt = 1;
    let decided = loop {
        preflight::ready(cutover, cx).await?;
        let error = match decide(cutover, cx).await {
            Ok(decided) => break decided,
            Err(error) => error,
        };
        settle(cutover, cx).await?;
        if is_decided(cutover, cx).await? {
            // The connection broke after the commit: it counts.
            return Box::pin(run(cutover, cx)).await;
        }
        call_off(cutover, cx).await?;
        let passes =
            error.class().is_transient() || matches!(error.class(), Class::Timeout | Class::External);
        if !passes || attempt >= cutover.attempts {
            return Err(error.context(format!("attempt {attempt} of {} was called off", cutover.attempts)));
        }
        cx.warn(format!(
            "attempt {attempt} was called off, the old side serves on: {error}; next in {}",
            cutover.backoff
        ));
        cx.sleep(cutover.backoff.0).await?;
        attempt += 1;
    };
    let pauses = commit_all(cutover, cx, decided.prepared).await?;
    freeze::bolt(cx, cutover).await;
    end_replication(cutover, cx).await?;
    let mut summary = json!({
        "attempts": attempt,
        "write_pause_ms": millis(decided.pause),
        "write_pause_budget_ms": millis(cutover.write_pause.0),
        "frozen_until_committed_ms": millis(decided.frozen.elapsed()),
        "sequences": decided.sequences,
        "participants": pauses,
    });
    if let Some((carrier, pass)) = &decided.large_objects {
        large_objects::look_back(cx, carrier).await;
        if pass.objects > 0 || pass.removed > 0 {
            summary["large_objects_in_the_pause"] = json!(pass);
        }
    }
    Ok(summary)
}

/// What still replicates into the new side, which writes for itself from here on. Nothing is written on the old
/// side any more, so there is no hurry.
async fn end_replication(cutover: &Cutover, cx: &Context) -> Result<()> {
    match link(cutover, cx) {
        Some(link) => replicate::end(cx, &link).await,
        None => Ok(()),
    }
}

/// The replication from the side that is frozen to the one that takes over.
pub fn link(cutover: &Cutover, cx: &Context) -> Option<Link> {
    replicate::between(cx, cutover.freeze.as_deref()?, cutover.to.as_deref()?)
}

/// One attempt, up to and including the decision.
async fn decide(cutover: &Cutover, cx: &Context) -> Result<Decided> {
    let outside = Outside::new(cx);
    cx.remember(PREPARING, &true).await?;
    cx.remember(AT_STAKE, &true).await?;
    let prepared = Instant::now();
    let prepare = try_join_all(cutover.participants.iter().map(|p| p.prepare(&outside)));
    match tokio::time::timeout(cutover.prepare_timeout.0, prepare).await {
        Ok(result) => result.map(drop)?,
        Err(_) => {
            return Err(Error::new(
                Class::Timeout,
                format!("participants did not prepare within {}", cutover.prepare_timeout),
            )
            .hint("raise `prepare_timeout`, or see which of them is slow"));
        }
    }
    failpoint::at(failpoint::CUTOVER_PREPARED)?;
    let (Some(name), Some(to)) = (&cutover.freeze, &cutover.to) else {
        cx.remember(DECIDED, &true).await?;
        failpoint::at(failpoint::CUTOVER_DECIDED)?;
        return Ok(Decided {
            frozen: prepared,
            prepared,
            pause: prepared.elapsed(),
            sequences: 0,
            large_objects: None,
        });
    };

    let budget = cutover.write_pause.0;
    let mut freezer = cx.writer(name).await?;
    let mut blue = cx.writer(name).await?;
    let mut green = cx.writer(to).await?;
    let streams = streams(cutover, cx, &blue).await?;
    let mut gauge = match link(cutover, cx) {
        Some(link) => Some(Gauge::open(cx, &link).await?),
        None => None,
    };
    let mut carrier = large_objects::open(cutover, cx).await?;
    if let Some(carrier) = &carrier {
        carrier.limit(budget).await?;
    }
    let tables = freeze::tables(&blue, cutover).await?;
    freeze::limit(&freezer, budget).await?;

    let frozen = Instant::now();
    let over_budget = || {
        Error::new(
            Class::Timeout,
            format!("the pause would have been longer than its budget of {}", cutover.write_pause),
        )
        .hint("raise `write_pause`, or look at what was slow: replay's backlog, or a lock")
    };
    let tx = freezer.transaction().await?;
    let drain = async {
        freeze::lock(&tx, &tables, budget).await.map_err(|e| e.context("writers could not be held off"))?;
        failpoint::at(failpoint::CUTOVER_FROZEN)?;
        let arrived = async {
            if let Some(gauge) = &mut gauge {
                let mark = gauge.write(MARK).await?;
                while !gauge.passed(&mark).await? {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
            for stream in &streams {
                let marker = outbox::write_fence_marker(&mut blue, stream).await?;
                while !outbox::marker_passed(&green, stream, marker).await? {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            Ok(())
        };
        let carried = async {
            match &mut carrier {
                Some(carrier) => large_objects::carry(carrier).await.map(Some),
                None => Ok(None),
            }
        };
        let ((), pass) = tokio::try_join!(arrived, carried)?;
        // Proven before the pause, and again now that nothing can change any more.
        quarantine::refuse(cutover, &green, &streams).await?;
        partial::refuse(cutover, cx, &blue, &green).await?;
        Ok::<_, Error>((sequences::carry(&blue, &mut green, cutover.sequence_margin).await?, pass))
    };
    let (sequences, pass) = match tokio::time::timeout(budget, drain).await {
        Ok(result) => result?,
        Err(_) => return Err(over_budget()),
    };
    failpoint::at(failpoint::CUTOVER_DRAINED)?;
    cx.proceed()?;
    // From here on only the old side knows the outcome. Nothing may cut this short: a commit whose answer was
    // not waited for would be a decision that nobody knows of. The server's own limits bound it.
    freeze::decide(&tx, cx, cutover).await?;
    if frozen.elapsed() > budget {
        return Err(over_budget());
    }
    tx.commit().await?;
    let pause = frozen.elapsed();
    failpoint::at(failpoint::CUTOVER_DECIDED)?;
    let large_objects = carrier.zip(pass);
    Ok(Decided { frozen, prepared, pause, sequences, large_objects })
}

/// Commits every participant that has not been, all at once; returns how long each was held.
async fn commit_all(cutover: &Cutover, cx: &Context, prepared: Instant) -> Result<Value> {
    // Only forward from here: a Ctrl-C must not leave half of them flipped.
    let cx = &Context { stop: CancellationToken::new(), ..cx.clone() };
    let outside = &Outside::new(cx);
    let commit = async |participant: &super::Participant| -> Result<Value> {
        if !participant.is_committed(cx)? {
            let mut wait = Duration::from_millis(100);
            let begun = Instant::now();
            while let Err(error) = participant.commit(cx, outside).await {
                if matches!(error.class(), Class::LeaseLost | Class::Journal)
                    || begun.elapsed() > Duration::from_secs(60)
                {
                    return Err(error.hint(
                        "the decision stands: mend the participant, then `handover resume` commits it",
                    ));
                }
                cx.warn(format!("{error}; trying again, for the decision stands"));
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(5));
            }
            failpoint::at(failpoint::CUTOVER_COMMITTED)?;
        }
        Ok(json!({ "name": participant.name, "held_ms": millis(prepared.elapsed()) }))
    };
    let results = join_all(cutover.participants.iter().map(commit)).await;
    // After the participants: the journal's own words can wait, clients cannot.
    if cutover.freeze.is_some() {
        cx.ledger.point_of_no_return(&cx.step).await?;
    }
    Ok(Value::Array(results.into_iter().collect::<Result<Vec<_>>>()?))
}

/// Lets every participant go on with the old side, if an attempt has asked any of them to prepare.
pub async fn call_off(cutover: &Cutover, cx: &Context) -> Result<()> {
    if cx.recall::<bool>(AT_STAKE)?.is_some() {
        cx.forget(AT_STAKE).await?;
    }
    if cx.recall::<bool>(PREPARING)? != Some(true) {
        return Ok(());
    }
    let cx = &Context { stop: CancellationToken::new(), ..cx.clone() };
    let outside = &Outside::new(cx);
    let results = join_all(cutover.participants.iter().map(async |p| p.abort(outside).await)).await;
    results.into_iter().collect::<Result<()>>()?;
    cx.forget(PREPARING).await
}

/// Ends what a failed attempt left in the old side's server, so that the decision cannot fall after it was
/// looked for.
async fn settle(cutover: &Cutover, cx: &Context) -> Result<()> {
    if let Some(name) = &cutover.freeze {
        let session = cx.databases.labelled("engine").writer(name).await?;
        fence::end_step(&session, cx.databases.lease()?, cx.step.as_str()).await?;
    }
    Ok(())
}

/// Whether the decision has fallen: the old side knows, not the journal.
pub async fn is_decided(cutover: &Cutover, cx: &Context) -> Result<bool> {
    match &cutover.freeze {
        Some(name) => freeze::is_decided(&cx.reader(name).await?, cx).await,
        None => Ok(cx.recall::<bool>(DECIDED)?.unwrap_or(false)),
    }
}

/// The captures on the frozen side whose replay tails into the new one.
pub fn replayed<'a>(cutover: &'a Cutover, cx: &'a Context) -> impl Iterator<Item = &'a StepId> {
    let earlier = cx.before(&cx.step);
    of_kind::<Capture>(earlier)
        .filter(|(id, capture)| Some(&capture.from) == cutover.freeze.as_ref() && is_replayed(earlier, id))
        .map(|(id, _)| id)
}

/// Whether one of the steps replays what the capture step captures.
pub fn is_replayed(steps: &[Step], capture: &StepId) -> bool {
    of_kind::<Replay>(steps).any(|(_, replay)| replay.capture(steps).is_some_and(|(id, _)| id == capture))
}

/// Their streams.
pub async fn streams(cutover: &Cutover, cx: &Context, blue: &Session) -> Result<Vec<Stream>> {
    let mut streams = Vec::new();
    for step in replayed(cutover, cx) {
        streams.push(Stream::get(blue, cx.run, step).await?);
    }
    Ok(streams)
}

fn names(cutover: &Cutover) -> Vec<&str> {
    cutover.participants.iter().map(|p| p.name.as_str()).collect()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
