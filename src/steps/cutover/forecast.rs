//! How long a pause will be, until its decision: rehearsed while writers go on, so that a budget that cannot be kept is
//! refused before anybody waits for it, and so that an operator sees what it will be spent on.
//!
//! What grows with the schema is measured by doing it: locks are taken in the mode of readers and let go, the checks behind
//! the lock are made, sequences are read on both sides, and as many values are set as there are sequences, in one of our own
//! that is rolled back. What depends on the moment is measured too: a mark through the replication, one through replay, a
//! durable commit.

use super::feeds;
use super::freeze;
use super::gate::Gate;
use super::invariants;
use super::options::Cutover;
use super::sequences;
use crate::error::{Class, Error, Result};
use crate::postgres::ours::OURS;
use crate::postgres::{Session, TableName, catalog, fingerprint};
use crate::steps::{Context, Description};
use crate::value::{self, fingerprint as mark};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// What the pause costs beside what is rehearsed: some round trips.
const BESIDE: Duration = Duration::from_millis(20);
/// The journal's fact.
const FACT: &str = "forecast";
/// Values that are set for a measurement at most.
const MANY: usize = 5000;
/// What a lock costs where it was not measured.
const A_LOCK: Duration = Duration::from_micros(20);

/// A part of the pause.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Term {
    /// What takes the time: `sequences`.
    pub what: String,
    /// Of how many things.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// How long, in milliseconds.
    pub ms: f64,
    /// Whether it goes on beside the others of this sort, so that the longest of them counts.
    #[serde(default)]
    pub beside: bool,
}

/// How long the pause will be, by its parts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// The parts.
    pub terms: Vec<Term>,
}

impl Forecast {
    fn add(&mut self, what: &str, count: Option<usize>, time: Duration, beside: bool) {
        self.terms.push(Term { what: what.to_owned(), count, ms: time.as_secs_f64() * 1000.0, beside });
    }

    /// All of it, in milliseconds.
    #[must_use]
    pub fn ms(&self) -> f64 {
        let (beside, one_by_one): (Vec<&Term>, Vec<&Term>) = self.terms.iter().partition(|term| term.beside);
        let longest = beside.iter().map(|term| term.ms).fold(0.0, f64::max);
        longest + one_by_one.iter().map(|term| term.ms).sum::<f64>()
    }

    /// The part that takes longest, in words: `sequences 30 ms (400)`.
    #[must_use]
    pub fn largest(&self) -> Option<String> {
        let term = self.terms.iter().max_by(|a, b| a.ms.total_cmp(&b.ms))?;
        let count = term.count.map_or_else(String::new, |count| format!(" ({count})"));
        Some(format!("{} {:.0} ms{count}", term.what, term.ms))
    }

    /// In words.
    #[must_use]
    pub fn words(&self) -> String {
        let largest = self.largest().map_or_else(String::new, |largest| format!("; largest: {largest}"));
        format!("pause about {:.0} ms{largest}", self.ms())
    }

    /// Why a pause must not begin now, in words; none when it fits into its budget.
    #[must_use]
    pub fn exceeds(&self, budget: value::Duration) -> Option<String> {
        (self.ms() > budget.0.as_secs_f64() * 1000.0)
            .then(|| format!("{}, which is more than its budget of {budget}", self.words()))
    }
}

/// What was measured while the preflight waited.
#[derive(Debug, Default)]
pub struct Measured {
    /// How long a change took to arrive by replication: the slowest of all marks.
    pub arrival: Option<Duration>,
    /// How long a durable commit on the old side took.
    pub commit: Option<Duration>,
}

impl Measured {
    /// Adds a mark's time.
    pub fn arrived(&mut self, time: Duration) {
        self.arrival = self.arrival.max(Some(time));
    }
}

/// Rehearses it. Locks are taken in the mode of readers and let go; sequences of the application are read and not set.
///
/// # Errors
/// A budget that does not suffice for what grows with the schema, or what a server says.
pub async fn rehearse(
    cutover: &Cutover,
    cx: &Context,
    (blue, green, setter): (&mut Session, &Session, &mut Session),
    measured: &Measured,
) -> Result<Forecast> {
    let budget = cutover.write_pause.0;
    let mut own = Own::measure(cutover, cx, (&mut *blue, green, &mut *setter)).await?;
    // A machine may be busy for a moment; a schema that is too large stays so.
    for _ in 0..4 {
        if own.all() <= budget * 3 / 4 {
            break;
        }
        cx.sleep(Duration::from_millis(200)).await?;
        let again = Own::measure(cutover, cx, (&mut *blue, green, &mut *setter)).await?;
        if again.all() < own.all() {
            own = again;
        }
    }
    let Own { tables, count, locking, checking, setting } = own;
    let all = own.all();
    if all > budget * 3 / 4 {
        return Err(Error::new(
            Class::Invariant,
            format!(
                "holding writers off and setting sequences takes about {all:.0?} for {tables} tables, and the pause has a budget of {}",
                cutover.write_pause
            ),
        )
        .on_database(blue.database())
        .hint(format!(
            "nothing was paused and the old side serves on. Raise `write_pause` to {} or more, or see why this server is slow; then `handover resume --accept-changes`",
            value::Duration::secs(all.as_secs() * 2 + 1)
        )));
    }
    let mut out = Forecast::default();
    out.add("locks", Some(tables), locking, false);
    out.add("round trips", None, BESIDE, false);
    if let Some((count, asking)) = invariants::rehearse(cutover, cx).await? {
        out.add("invariants", Some(count), asking, false);
    }
    if let Some(commit) = measured.commit {
        out.add("commit", None, commit, false);
    }
    out.add("schema", Some(tables), checking, true);
    if count > 0 {
        out.add("sequences", Some(count), setting, true);
    }
    if let Some(arrival) = measured.arrival {
        out.add("replication", None, arrival, true);
    }
    if let Some(replay) = replay(cutover, cx, blue, green).await? {
        out.add("replay", None, replay, true);
    }
    Ok(out)
}

/// What the pause does itself, and how long that takes.
#[derive(Clone, Copy)]
struct Own {
    tables: usize,
    /// Sequences.
    count: usize,
    locking: Duration,
    checking: Duration,
    setting: Duration,
}

impl Own {
    fn all(&self) -> Duration {
        self.locking + self.checking + self.setting + BESIDE
    }

    async fn measure(
        cutover: &Cutover,
        cx: &Context,
        (blue, green, setter): (&mut Session, &Session, &mut Session),
    ) -> Result<Self> {
        let tables = freeze::tables(blue, cutover).await?;
        let there = cx.databases.worker(blue.database())?.role(blue).await?;
        let here = cx.databases.worker(green.database())?.role(green).await?;
        let count = catalog::sequences(blue).await?.len();
        let begun = Instant::now();
        sequences::look((&*blue, there.as_deref()), (green, here.as_deref())).await?;
        let setting = begun.elapsed() + setting(cx, setter, count).await?;
        let begun = Instant::now();
        let tx = blue.transaction().await?;
        let list: Vec<String> = tables.iter().map(|t: &TableName| format!("only {}", t.sql())).collect();
        let locked = match list.is_empty() {
            true => Ok(()),
            false => tx.batch(&format!("lock table {} in access share mode nowait", list.join(", "))).await,
        };
        let locking = begun.elapsed();
        let begun = Instant::now();
        match locked {
            Ok(()) => {
                Gate::of(cx).is_hung(&tx, cutover).await?;
                tx.query(&fingerprint::digest_sql(), &[]).await?;
            }
            // Somebody alters a table right now. The pause would wait for that, too, and the lock's own limit sees to it.
            Err(error) if error.class() == Class::Contention => {}
            Err(error) => return Err(error),
        }
        let checking = begun.elapsed();
        tx.rollback().await?;
        Ok(Own { tables: tables.len(), count, locking, checking, setting })
    }
}

/// How long it takes to set so many sequences: values of one of ours, which nobody else ever sees.
async fn setting(cx: &Context, setter: &mut Session, count: usize) -> Result<Duration> {
    if count == 0 {
        return Ok(Duration::ZERO);
    }
    let name = format!("{OURS}.rehearsed_{}", mark(&cx.mark(), 4));
    let some = count.min(MANY);
    let tx = setter.transaction().await?;
    tx.batch(&format!("create sequence {name}")).await?;
    let begun = Instant::now();
    tx.query(
        &format!("select count(setval('{name}', n)) from generate_series(1, $1::int8) n"),
        &[&i64::try_from(some).unwrap_or(1)],
    )
    .await?;
    let took = begun.elapsed();
    tx.rollback().await?;
    let share = u32::try_from(count.div_ceil(some)).unwrap_or(u32::MAX);
    Ok(took * share)
}

/// How long a mark takes through replay, of the slowest stream; the budget where it takes longer.
async fn replay(
    cutover: &Cutover,
    cx: &Context,
    blue: &mut Session,
    green: &Session,
) -> Result<Option<Duration>> {
    let streams = feeds::streams(cutover, cx, blue).await?;
    if streams.is_empty() {
        return Ok(None);
    }
    let (begun, budget) = (Instant::now(), cutover.write_pause.0);
    for stream in &streams {
        let marker = handover_events::write_fence_marker(blue, stream).await?;
        while !handover_events::marker_passed(green, stream, marker).await? {
            if begun.elapsed() > budget {
                return Ok(Some(begun.elapsed()));
            }
            cx.sleep(Duration::from_millis(5)).await?;
        }
    }
    Ok(Some(begun.elapsed()))
}

/// Keeps it for the summary, whoever writes that.
///
/// # Errors
/// The journal failing.
pub async fn keep(forecast: &Forecast, cx: &Context) -> Result<()> {
    cx.note(forecast.words());
    cx.remember(FACT, forecast).await
}

/// The one of the last attempt.
///
/// # Errors
/// A fact of another version.
pub fn kept(cx: &Context) -> Result<Option<Forecast>> {
    cx.recall(FACT)
}

/// What a dry run says: what can be told by looking only.
///
/// # Errors
/// What a server says.
pub async fn describe(
    cutover: &Cutover,
    (blue, green): (&Session, &Session),
    (there, here): (Option<&str>, Option<&str>),
    out: &mut Description,
) -> Result<String> {
    let tables = freeze::tables(blue, cutover).await?.len();
    let count = catalog::sequences(blue).await?.len();
    let mut forecast = Forecast::default();
    forecast.add("locks", Some(tables), A_LOCK * u32::try_from(tables).unwrap_or(u32::MAX), false);
    forecast.add("round trips", None, BESIDE, false);
    let begun = Instant::now();
    blue.query(&fingerprint::digest_sql(), &[]).await?;
    forecast.add("schema", Some(tables), begun.elapsed(), true);
    if count > 0 {
        let begun = Instant::now();
        sequences::look((blue, there), (green, here)).await?;
        // Setting them writes each.
        forecast.add("sequences", Some(count), begun.elapsed() * 2, true);
    }
    if let Some(text) = forecast.exceeds(cutover.write_pause) {
        out.warning(format!("{text}; raise `write_pause`"));
    }
    Ok(forecast.words())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_at_once_counts_once() {
        let mut forecast = Forecast::default();
        for (what, count, ms, beside) in [
            ("locks", Some(20), 10, false),
            ("commit", None, 5, false),
            ("sequences", Some(400), 30, true),
            ("replication", None, 12, true),
        ] {
            forecast.add(what, count, Duration::from_millis(ms), beside);
        }
        assert_eq!(forecast.words(), "pause about 45 ms; largest: sequences 30 ms (400)");
        assert_eq!(forecast.exceeds(value::Duration::millis(45)), None);
        let late = forecast.exceeds(value::Duration::millis(44)).unwrap();
        assert!(late.ends_with("more than its budget of 44ms"), "{late}");
        assert_eq!(Forecast::default().words(), "pause about 0 ms");
    }

    #[test]
    fn the_slowest_mark_counts() {
        let mut measured = Measured::default();
        for ms in [3, 40, 7] {
            measured.arrived(Duration::from_millis(ms));
        }
        assert_eq!(measured.arrival, Some(Duration::from_millis(40)));
    }
}
