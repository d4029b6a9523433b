//! `monitor`: watches for a while, by SQL, HTTP and commands, and stops the plan when what it sees is not as
//! it should be; or records how things usually are, as the baseline of a later monitor.
//!
//! How long it has watched is kept in the journal, so that a resumed run watches the rest. Time in which
//! nobody watched does not count, and after a breach the watch begins anew.

pub(super) mod options;
pub mod probe;
pub mod stats;

use super::{Access, CheckContext, Context, Description, Links, Midway, OnFailure, StepKind, Undo};
use crate::error::{Class, Error, Result};
use crate::event::{Measure, StepId};
use crate::failpoint;
use crate::problem::{Problems, Segment};
use async_trait::async_trait;
use futures_util::future::try_join_all;
use handover_actions::Actions;
pub use options::{Monitor, OnBreach};
use probe::{Probe, Reading};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use stats::Stats;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration as Time, Instant};

/// The journal's fact.
const SOAK: &str = "soak";
/// How often the journal learns how far the watch is, at most.
const KEEP_EVERY: Time = Time::from_secs(30);
/// Bad samples in a row that make a breach.
const BREACHES: u32 = 3;

/// How far the watch is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Soak {
    elapsed_ms: u64,
    done: bool,
    probes: BTreeMap<String, Stats>,
}

impl Soak {
    fn elapsed(&self) -> Time {
        Time::from_millis(self.elapsed_ms)
    }
    fn advance(&mut self, time: Time) {
        self.elapsed_ms = self.elapsed_ms.saturating_add(u64::try_from(time.as_millis()).unwrap_or(0));
    }
}

#[async_trait]
impl StepKind for Monitor {
    fn link(self: Arc<Self>, id: &StepId, place: usize, links: &mut Links) {
        links.monitors.add(id, place, self);
    }

    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        for (field, time) in [("for", self.time), ("every", self.every)] {
            if time.0.is_zero() {
                problems.error([field], "this time is zero");
            }
        }
        if self.every > self.time && !self.time.0.is_zero() {
            problems
                .warning(["every"], format!("probes are asked only twice in {}", self.time))
                .hint("a watch sees what lasts longer than `every:`");
        }
        if self.breaches == Some(0) {
            problems.error(["breaches"], "a breach is at least one bad sample");
        }
        if self.grace.is_some_and(|grace| grace >= self.time) {
            problems.error(["grace"], "no sample would count").hint("make `grace:` shorter than `for:`");
        }
        let mut names = BTreeSet::new();
        for (i, probe) in self.probes.iter().enumerate() {
            let base = problems.base().join("probes").join(i);
            problems.within(base, |problems| {
                if !names.insert(&probe.name) {
                    problems.error(["name"], format!("the probe `{}` is named twice", probe.name));
                }
                probe.check(problems);
                if let Some(sql) = &probe.sql {
                    let base = problems.base().join("sql");
                    problems.within(base, |problems| cx.database(problems, "on", &sql.on));
                }
                if probe.within.is_some() && self.baseline.is_none() {
                    problems.error(["within"], "there is no baseline to compare with").hint(
                        "add `baseline: ID` to the step, naming an earlier monitor with `record: true`",
                    );
                }
            });
        }
        self.check_baseline(cx, problems);
        let on_failure = cx.on_failure;
        match (self.on_breach, on_failure) {
            (Some(OnBreach::Rollback), OnFailure::Halt) => {
                problems
                    .error(
                        ["on_breach"],
                        "the step's `on_failure` is `halt`, so a breach would not roll back",
                    )
                    .hint("add `on_failure: rollback` to the step, beside `monitor:`");
            }
            (Some(OnBreach::Halt), OnFailure::Rollback) => {
                problems
                    .error(["on_breach"], "the step's `on_failure` is `rollback`, so a breach would not halt")
                    .hint("leave one of the two out");
            }
            _ => {}
        }
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        self.probes.iter().filter_map(|p| Some((p.sql.as_ref()?.on.as_str(), Access::Read))).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        self.probes
            .iter()
            .filter_map(|probe| probe.command.as_ref()?.run.first())
            .filter(|program| program.contains('/') && !program.starts_with('/'))
            .map(PathBuf::from)
            .collect()
    }

    fn can_ask_the_source(&self) -> bool {
        true
    }

    fn midway(&self, _links: &Links, _place: usize) -> Midway {
        Midway { failpoint: failpoint::MONITOR_SAMPLED, passing: 2, place: "after its second sample" }
    }

    fn reversibility(&self) -> Undo {
        Undo::Nothing
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        let estimate = Some(format!("{} as the plan says", self.time));
        let mut out = Description { estimate, ..Description::default() };
        let actions = Actions::new(cx);
        for probe in &self.probes {
            if let Some(http) = &probe.http {
                out.action(format!("every {}, {}: send {}", self.every, probe.name, http.shown()));
            } else if let Some(command) = &probe.command {
                if command.program(&cx.base).is_none() {
                    out.blocker(format!(
                        "the program of `{}` is not here or not executable",
                        command.shown()
                    ));
                }
                out.action(format!("every {}, {}: run `{}`", self.every, probe.name, command.shown()));
            } else if let Some(sql) = &probe.sql {
                let query = handover_actions::line(&sql.query);
                out.action(format!("every {}, {}: on {}: {query}", self.every, probe.name, sql.on));
                let value = actions.peek(&sql.on, &sql.query).await;
                match value {
                    Ok(value) => {
                        out.action(format!("{} gives {} now", probe.name, value.as_deref().unwrap_or("null")))
                    }
                    Err(e) => out.warning(format!("{} cannot be asked now: {e}", probe.name)),
                };
            }
        }
        Ok(out)
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let mut soak = cx.recall::<Soak>(SOAK)?.unwrap_or_default();
        if !soak.done {
            if soak.elapsed_ms > 0 {
                cx.note(format!("watching goes on after {} s", soak.elapsed().as_secs()));
            }
            self.watch(cx, &mut soak).await?;
        }
        cx.unit_done(SOAK);
        Ok(summary(&soak))
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        let soak = cx.recall::<Soak>(SOAK)?.unwrap_or_default();
        let seen = |probe: &Probe| soak.probes.get(&probe.name).is_some_and(|stats| stats.good > 0);
        if !soak.done || soak.elapsed() < self.time.0 {
            return Err(Error::new(Class::Invariant, "the watch is not complete")
                .hint("`handover resume` watches the rest"));
        }
        match self.probes.iter().find(|probe| !seen(probe)) {
            Some(probe) => Err(never_good(&probe.name, "")),
            None => Ok(()),
        }
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        cx.forget(SOAK).await?;
        Ok(json!({}))
    }
}

fn never_good(name: &str, last: &str) -> Error {
    let last = if last.is_empty() { String::new() } else { format!("; the last: {last}") };
    Error::new(Class::Invariant, format!("probe `{name}` had no good sample at all{last}")).hint(
        "mend what it watches, or the probe itself; then `handover resume` watches again from the start",
    )
}

fn summary(soak: &Soak) -> Value {
    let probes: Map<String, Value> = soak
        .probes
        .iter()
        .map(|(name, stats)| {
            let value = json!({
                "good": stats.good, "bad": stats.bad, "failed": stats.failed, "breaches": stats.breaches,
                "value": stats.values.summary(), "ms": stats.times.summary(), "last": stats.last,
            });
            (name.clone(), value)
        })
        .collect();
    json!({ "seconds": soak.elapsed().as_secs_f64(), "probes": probes })
}

impl Monitor {
    fn check_baseline(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        let Some(baseline) = &self.baseline else { return };
        if self.record {
            problems
                .error(["record"], "a monitor records a baseline or is compared with one, not both")
                .at_key();
        }
        let recording = || cx.links.monitors.before(cx.index).filter(|(_, monitor)| monitor.record);
        let Some((_, recorded)) = recording().find(|(id, _)| id.as_str() == baseline) else {
            let names: Vec<&str> = recording().map(|(id, _)| id.as_str()).collect();
            let hint = match crate::problem::suggest(baseline, names.iter().copied()) {
                Some(close) => format!("did you mean `{close}`?"),
                None => "name a monitor step with `record: true` that stands before this one".to_owned(),
            };
            problems
                .error(["baseline"], format!("`{baseline}` is not an earlier monitor that records"))
                .hint(hint);
            return;
        };
        for (i, probe) in self.probes.iter().enumerate().filter(|(_, probe)| probe.within.is_some()) {
            let path = || [Segment::from("probes"), i.into(), "name".into()];
            match recorded.probes.iter().find(|other| other.name == probe.name) {
                None => {
                    problems
                        .error(path(), format!("step `{baseline}` records no probe `{}`", probe.name))
                        .hint("probes are compared with their namesakes");
                }
                Some(other) if other.is_timed() != probe.is_timed() => {
                    problems.error(
                        path(),
                        format!("step `{baseline}` records `{}` as something else", probe.name),
                    );
                }
                Some(_) => {}
            }
        }
        if self.probes.iter().all(|probe| probe.within.is_none()) {
            problems
                .warning(["baseline"], "no probe is compared with the baseline")
                .hint("add `within: 20%` to a probe");
        }
    }

    fn baseline(&self, cx: &Context) -> Result<BTreeMap<String, Stats>> {
        let Some(id) = &self.baseline else { return Ok(BTreeMap::new()) };
        let fact = cx.ledger.recall(&StepId(id.clone()), SOAK).filter(|value| !value.is_null());
        let soak: Soak = fact
            .map(serde_json::from_value)
            .transpose()
            .map_err(|e| Error::internal(format!("the baseline cannot be read ({e})")))?
            .ok_or_else(|| {
                Error::data(format!("step `{id}` recorded no baseline"))
                    .hint("roll back to before it and run again")
            })?;
        Ok(soak.probes)
    }

    async fn watch(&self, cx: &Context, soak: &mut Soak) -> Result<()> {
        let baseline = self.baseline(cx)?;
        let actions = Actions::new(cx);
        let keep_every = (self.time.0 / 20).clamp(Time::from_millis(500), KEEP_EVERY);
        let mut kept = Instant::now();
        loop {
            cx.proceed()?;
            let begun = Instant::now();
            let samples = try_join_all(self.probes.iter().map(|probe| probe.ask(&actions))).await?;
            self.take(cx, soak, &samples, &baseline).await?;
            soak.advance(begun.elapsed());
            failpoint::at(failpoint::MONITOR_SAMPLED)?;
            let total = self.time.0.as_secs();
            cx.progress(SOAK, soak.elapsed().as_secs().min(total), Some(total), Measure::Seconds);
            if soak.elapsed() >= self.time.0 {
                break;
            }
            if kept.elapsed() >= keep_every {
                kept = Instant::now();
                cx.remember(SOAK, soak).await?;
                failpoint::at(failpoint::MONITOR_KEPT)?;
                let last: Vec<String> =
                    soak.probes.iter().map(|(name, stats)| format!("{name}: {}", stats.last)).collect();
                cx.note(format!("{} of {total} s; {}", soak.elapsed().as_secs(), last.join(", ")));
            }
            let pause = self.every.0.min(self.time.0.saturating_sub(soak.elapsed()));
            let begun = Instant::now();
            cx.sleep(pause).await?;
            // A process that was stopped or a machine that slept has not watched meanwhile.
            soak.advance(begun.elapsed().min(pause + Time::from_secs(1)));
        }
        self.conclude(cx, soak).await?;
        soak.done = true;
        cx.remember(SOAK, soak).await
    }

    async fn take(
        &self,
        cx: &Context,
        soak: &mut Soak,
        samples: &[Result<Reading, String>],
        baseline: &BTreeMap<String, Stats>,
    ) -> Result<()> {
        let limit = self.breaches.unwrap_or(BREACHES);
        let grace = self.grace.is_some_and(|grace| soak.elapsed() < grace.0);
        for (probe, sample) in self.probes.iter().zip(samples) {
            let stats = soak.probes.entry(probe.name.clone()).or_default();
            let was_bad = stats.streak > 0;
            let sample = sample.as_ref().map_err(String::as_str);
            let wrong = stats.take(probe, sample, baseline.get(&probe.name));
            let Some(wrong) = wrong else {
                if was_bad {
                    cx.note(format!("probe `{}` is well again: {}", probe.name, stats.last));
                }
                continue;
            };
            if grace {
                stats.streak = 0;
                cx.note(format!("probe `{}`, in its grace time: {wrong}", probe.name));
            } else if stats.streak == limit {
                stats.breaches += 1;
                self.breach(cx, &probe.name, &format!("{wrong} ({limit} times in a row)")).await?;
            } else if stats.streak < limit {
                cx.warn(format!("probe `{}`: {wrong} ({} of {limit})", probe.name, stats.streak));
            }
        }
        Ok(())
    }

    /// Judges the whole: what a single sample cannot show, and what began too late to become a breach.
    async fn conclude(&self, cx: &Context, soak: &mut Soak) -> Result<()> {
        let mut breaches = Vec::new();
        for probe in &self.probes {
            let stats = soak.probes.entry(probe.name.clone()).or_default();
            if stats.good == 0 {
                cx.forget(SOAK).await?;
                return Err(never_good(&probe.name, &stats.last));
            }
            let counted = stats.streak >= self.breaches.unwrap_or(BREACHES);
            let wrong = match stats.slow(probe.latency.as_ref(), 1) {
                None if stats.streak > 0 => Some(format!("it ends badly: {}", stats.last)),
                slow => slow,
            };
            if let Some(wrong) = wrong.filter(|_| !counted) {
                stats.breaches += 1;
                breaches.push((probe.name.clone(), wrong));
            }
        }
        for (name, wrong) in breaches {
            self.breach(cx, &name, &wrong).await?;
        }
        Ok(())
    }

    async fn breach(&self, cx: &Context, name: &str, wrong: &str) -> Result<()> {
        if self.on_breach == Some(OnBreach::Warn) {
            cx.warn(format!("breach of probe `{name}`: {wrong}"));
            return Ok(());
        }
        // What was watched before a breach says nothing of the time after it.
        cx.forget(SOAK).await?;
        Err(Error::new(Class::Invariant, format!("breach of probe `{name}`: {wrong}")).hint(
            "mend it, then `handover resume` watches again from the start; or `handover rollback` takes the plan back",
        ))
    }
}
