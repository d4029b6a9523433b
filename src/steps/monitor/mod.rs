//! `monitor`: watches for a while, by SQL, HTTP and commands, and stops the plan when what it sees is not as
//! it should be; or records how things usually are, as the baseline of a later monitor.
//!
//! How long it has watched is kept in the journal, so that a resumed run watches the rest. Time in which
//! nobody watched does not count, and after a breach the watch begins anew. What a recording monitor saw is in the
//! journal as well, and so is there for the later one, whoever resumes the run.

mod baseline;
mod compare;
pub(super) mod options;
pub mod probe;
mod soak;
pub mod stats;

use super::{Access, CheckContext, Context, Description, Links, Midway, OnFailure, StepKind, Undo};
use crate::error::{Class, Error, Result};
use crate::event::{Measure, StepId};
use crate::failpoint;
use crate::problem::Problems;
use crate::table;
use async_trait::async_trait;
use futures_util::future::try_join_all;
use handover_actions::Actions;
pub use options::{Monitor, OnBreach};
use probe::{Probe, Reading};
use serde_json::{Value, json};
use soak::{SOAK, Soak};
use stats::{Rules, Stats};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration as Time, Instant};

/// How often the journal learns how far the watch is, at most.
const KEEP_EVERY: Time = Time::from_secs(30);
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
        self.check_samples(problems);
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
        let baseline = self.baseline(cx)?;
        if !soak.done {
            if soak.elapsed_ms > 0 {
                cx.note(format!("watching goes on after {} s", soak.elapsed().as_secs()));
            }
            self.watch(cx, &mut soak, &baseline).await?;
        }
        cx.unit_done(SOAK);
        Ok(soak.summary(&compare::table(&self.probes, &baseline, &soak.probes)))
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

impl Monitor {
    /// Finds what is wrong with the number of samples that a breach needs.
    fn check_samples(&self, problems: &mut Problems) {
        if self.min_samples == Some(0) {
            problems.error(["min_samples"], "a breach is at least one sample");
        }
        let (time, every) = (self.time.0, self.every.0);
        if every.is_zero() || every > time {
            return;
        }
        let counts = time.saturating_sub(self.grace.map_or(Time::ZERO, |grace| grace.0));
        let samples = counts.as_millis() / every.as_millis().max(1) + 1;
        let enough = self.enough();
        if samples < enough as u128 {
            let field = if self.min_samples.is_some() { "min_samples" } else { "for" };
            problems
                .warning(
                    [field],
                    format!("nothing can be a breach: it needs {enough} samples, and there will be about {samples}"),
                )
                .hint("watch for longer or ask more often, or lower `min_samples:`");
        }
    }

    async fn watch(&self, cx: &Context, soak: &mut Soak, baseline: &BTreeMap<String, Stats>) -> Result<()> {
        self.tell_thin_baseline(cx, baseline);
        let actions = Actions::new(cx);
        let keep_every = (self.time.0 / 20).clamp(Time::from_millis(500), KEEP_EVERY);
        let mut kept = Instant::now();
        loop {
            cx.proceed()?;
            let begun = Instant::now();
            let samples = try_join_all(self.probes.iter().map(|probe| probe.ask(&actions))).await?;
            self.take(cx, soak, &samples, baseline).await?;
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
        self.conclude(cx, soak, baseline).await?;
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
        let (limit, enough) = (self.limit(), self.enough());
        let grace = self.grace.is_some_and(|grace| soak.elapsed() < grace.0);
        let mut broken = None;
        for (probe, sample) in self.probes.iter().zip(samples) {
            let stats = soak.probes.entry(probe.name.clone()).or_default();
            let was_bad = stats.streak > 0;
            let sample = sample.as_ref().map_err(String::as_str);
            let rules = Rules { baseline: baseline.get(&probe.name), enough, grace };
            let Some(wrong) = stats.take(probe, sample, &rules) else {
                if was_bad {
                    cx.note(format!("probe `{}` is well again: {}", probe.name, stats.last));
                }
                continue;
            };
            let streak = stats.streak;
            if grace {
                cx.note(format!("probe `{}`, in its grace time: {wrong}", probe.name));
            } else if stats.breaks(limit, enough) {
                let wrong = format!("{wrong} ({streak} times in a row)");
                self.tell_breach(cx, &probe.name, &wrong);
                broken.get_or_insert((probe.name.clone(), wrong));
            } else if streak < limit {
                cx.warn(format!("probe `{}`: {wrong} ({streak} of {limit})", probe.name));
            } else if streak == limit {
                let seen = stats.counted();
                cx.warn(format!(
                    "probe `{}`: {wrong} ({streak} times in a row), no breach yet: {seen} of the {enough} samples \
                     that one needs",
                    probe.name
                ));
            }
        }
        match broken {
            Some((name, wrong)) => self.breach(cx, soak, baseline, &name, &wrong).await,
            None => Ok(()),
        }
    }

    /// Tells which baselines are too small to judge by.
    fn tell_thin_baseline(&self, cx: &Context, baseline: &BTreeMap<String, Stats>) {
        let enough = self.enough();
        for probe in self.probes.iter().filter(|probe| probe.within.is_some()) {
            let Some(usual) = baseline.get(&probe.name) else { continue };
            let samples = if probe.is_timed() { usual.times.len() } else { usual.values.len() };
            if samples < enough {
                cx.warn(format!(
                    "probe `{}` is not judged by `within`: its baseline has {} of the {enough} samples that a breach \
                     needs",
                    probe.name,
                    samples
                ));
            }
        }
    }

    /// Judges the whole: what a single sample cannot show, and what began too late to become a breach.
    async fn conclude(
        &self,
        cx: &Context,
        soak: &mut Soak,
        baseline: &BTreeMap<String, Stats>,
    ) -> Result<()> {
        let enough = self.enough();
        let mut broken = None;
        for probe in &self.probes {
            let stats = soak.probes.entry(probe.name.clone()).or_default();
            if stats.good == 0 {
                let error = never_good(&probe.name, &stats.last);
                self.give_up(cx, soak, baseline).await?;
                return Err(error);
            }
            if stats.counted() < enough {
                cx.warn(format!(
                    "probe `{}` has {} of the {enough} samples that a breach needs: too few to judge it by",
                    probe.name,
                    stats.counted()
                ));
                continue;
            }
            let wrong = match stats.slow(probe.latency.as_ref(), enough) {
                None if stats.streak > 0 => Some(format!("it ends badly: {}", stats.last)),
                slow => slow,
            };
            if let Some(wrong) = wrong.filter(|_| !stats.told) {
                stats.breaches += 1;
                self.tell_breach(cx, &probe.name, &wrong);
                broken.get_or_insert((probe.name.clone(), wrong));
            }
        }
        match broken {
            Some((name, wrong)) => self.breach(cx, soak, baseline, &name, &wrong).await,
            None => Ok(()),
        }
    }

    fn tell_breach(&self, cx: &Context, name: &str, wrong: &str) {
        if self.on_breach == Some(OnBreach::Warn) {
            cx.warn(format!("breach of probe `{name}`: {wrong}"));
        }
    }

    /// Ends the watch for a breach, unless breaches are only told.
    async fn breach(
        &self,
        cx: &Context,
        soak: &Soak,
        baseline: &BTreeMap<String, Stats>,
        name: &str,
        wrong: &str,
    ) -> Result<()> {
        if self.on_breach == Some(OnBreach::Warn) {
            return Ok(());
        }
        self.give_up(cx, soak, baseline).await?;
        Err(Error::new(Class::Invariant, format!("breach of probe `{name}`: {wrong}")).hint(
            "mend it, then `handover resume` watches again from the start; or `handover rollback` takes the plan back",
        ))
    }

    /// Forgets what was seen, because what was watched before a breach says nothing of the time after it; then leaves
    /// it as a table for people.
    async fn give_up(&self, cx: &Context, soak: &Soak, baseline: &BTreeMap<String, Stats>) -> Result<()> {
        cx.forget(SOAK).await?;
        cx.remember(table::KEY, &compare::table(&self.probes, baseline, &soak.probes)).await
    }
}
