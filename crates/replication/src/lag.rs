//! How far the subscriber is behind, and where that is going.

use handover_core::error::Result;
use handover_postgres::Session;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The time over which speeds are taken.
const WINDOW: Duration = Duration::from_secs(60);
/// A speed from less than this says nothing.
const SHORTEST: Duration = Duration::from_secs(3);
/// Behind by less than this is in step: an idle stream moves in pieces.
const IN_STEP: u64 = 1 << 20;

/// The slot at one moment, as the publisher sees it.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When.
    pub at: Instant,
    /// The end of the publisher's log, in bytes from its beginning.
    pub head: u64,
    /// Up to where the subscriber has confirmed, likewise. What was not even sent yet counts as missing.
    pub confirmed: u64,
    /// Bytes of log that the slot keeps on the publisher's disk.
    pub held: u64,
    /// Whether a subscriber is connected.
    pub active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub status: String,
}

impl Sample {
    /// Bytes of log that the subscriber lacks.
    #[must_use]
    pub fn behind(&self) -> u64 {
        self.head.saturating_sub(self.confirmed)
    }
}

/// Looks at a slot; none when it is not there.
/// (<https://www.postgresql.org/docs/current/view-pg-replication-slots.html>)
pub async fn sample(blue: &Session, slot: &str) -> Result<Option<Sample>> {
    let row = blue
        .query_opt(
            "select (pg_current_wal_lsn() - '0/0')::int8, (coalesce(confirmed_flush_lsn, restart_lsn) - '0/0')::int8,
                    (pg_current_wal_lsn() - restart_lsn)::int8, active, coalesce(wal_status, 'lost')
             from pg_replication_slots where slot_name = $1 and database = current_database()",
            &[&slot],
        )
        .await?;
    Ok(row.map(|row| Sample {
        at: Instant::now(),
        head: row.get::<_, i64>(0).unsigned_abs(),
        confirmed: row.get::<_, Option<i64>>(1).unwrap_or_default().unsigned_abs(),
        // A slot that is lost holds nothing.
        held: row.get::<_, Option<i64>>(2).unwrap_or_default().max(0).unsigned_abs(),
        active: row.get(3),
        status: row.get(4),
    }))
}

/// Samples of the last minute.
#[derive(Debug, Default)]
pub struct Trend {
    samples: VecDeque<Sample>,
}

impl Trend {
    /// Adds the newest.
    pub fn add(&mut self, sample: Sample) {
        while self.samples.front().is_some_and(|s| sample.at.duration_since(s.at) > WINDOW) {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// Bytes per second that the publisher wrote, and that the subscriber confirmed.
    fn speeds(&self) -> Option<(f64, f64)> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let time = last.at.duration_since(first.at);
        if time < SHORTEST {
            return None;
        }
        let speed = |from: u64, to: u64| to.saturating_sub(from) as f64 / time.as_secs_f64();
        Some((speed(first.head, last.head), speed(first.confirmed, last.confirmed)))
    }

    /// In words, e.g. `120.0 MB behind, catching up 3.0 MB/s faster than blue writes, about 40 s`.
    #[must_use]
    pub fn words(&self, publisher: &str, delay: Option<Duration>) -> String {
        let Some(last) = self.samples.back() else { return "not looked at yet".into() };
        let behind = last.behind();
        let time = delay.map(|d| format!(" and {:.1} s", d.as_secs_f64())).unwrap_or_default();
        if behind < IN_STEP {
            return format!("in step: {}{time} behind", bytes(behind));
        }
        let head = format!("{}{time} behind", bytes(behind));
        let Some((written, confirmed)) = self.speeds() else { return head };
        let gain = confirmed - written;
        if gain > 1024.0 {
            let left = behind as f64 / gain;
            format!(
                "{head}, catching up {}/s faster than {publisher} writes, about {}",
                bytes(gain as u64),
                rough(Duration::from_secs_f64(left.min(1e9)))
            )
        } else if gain < -1024.0 {
            format!(
                "{head}, falling back by {}/s: {publisher} writes faster than this side applies",
                bytes(-gain as u64)
            )
        } else {
            format!("{head}, and not getting closer")
        }
    }
}

/// A size for people.
#[must_use]
pub fn bytes(n: u64) -> String {
    match n {
        0..=1023 => format!("{n} B"),
        1024..=1_048_575 => format!("{:.0} kB", n as f64 / 1024.0),
        1_048_576..=1_073_741_823 => format!("{:.1} MB", n as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GB", n as f64 / f64::from(1 << 30)),
    }
}

fn rough(time: Duration) -> String {
    match time.as_secs() {
        s @ 0..=119 => format!("{s} s"),
        s @ 120..=7199 => format!("{} min", s / 60),
        s @ 7200..=172_799 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    }
}

/// Heartbeats that were written and not seen on the other side yet.
#[derive(Debug, Default)]
pub struct Pulse {
    waiting: VecDeque<(i64, Instant)>,
    delay: Option<Duration>,
}

impl Pulse {
    /// One was written.
    pub fn sent(&mut self, number: i64, at: Instant) {
        // A subscriber that is gone for days must not fill our memory: the oldest one tells the delay.
        if self.waiting.len() >= 1000 {
            self.waiting.remove(self.waiting.len() / 2);
        }
        self.waiting.push_back((number, at));
    }

    /// Everything up to this one was seen.
    pub fn seen(&mut self, latest: Option<i64>, at: Instant) {
        while let Some((_, sent)) = self.waiting.front().filter(|(number, _)| Some(*number) <= latest) {
            self.delay = Some(at.duration_since(*sent));
            self.waiting.pop_front();
        }
    }

    /// How late changes arrive: the age of the oldest heartbeat that is under way, or how long the last one took.
    #[must_use]
    pub fn delay(&self, now: Instant) -> Option<Duration> {
        let waiting = self.waiting.front().map(|(_, sent)| now.duration_since(*sent));
        // One that was just written says nothing yet.
        match (waiting, self.delay) {
            (Some(waiting), Some(last)) if waiting < last => Some(last),
            (None, last) => last,
            (waiting, _) => waiting,
        }
    }

    /// Whether any heartbeat has arrived since we look.
    #[must_use]
    pub fn beats(&self) -> bool {
        self.delay.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: Instant, head: u64, confirmed: u64) -> Sample {
        Sample { at, head, confirmed, held: 0, active: true, status: "reserved".into() }
    }

    #[test]
    fn the_trend_is_told_with_an_estimate() {
        let start = Instant::now();
        let mb = 1 << 20;
        let mut trend = Trend::default();
        trend.add(sample(start, 200 * mb, 50 * mb));
        assert_eq!(trend.words("blue", None), "150.0 MB behind");
        trend.add(sample(start + Duration::from_secs(10), 210 * mb, 90 * mb));
        assert_eq!(
            trend.words("blue", Some(Duration::from_secs(9))),
            "120.0 MB and 9.0 s behind, catching up 3.0 MB/s faster than blue writes, about 40 s"
        );
        trend.add(sample(start + Duration::from_secs(20), 400 * mb, 100 * mb));
        assert!(trend.words("blue", None).contains("falling back by 7.5 MB/s"));
        trend.add(sample(start + Duration::from_secs(30), 400 * mb, 400 * mb - 10));
        assert_eq!(trend.words("blue", None), "in step: 10 B behind");
        // What is older than a minute is forgotten.
        trend.add(sample(start + Duration::from_secs(500), 500 * mb, 400 * mb));
        assert_eq!(trend.words("blue", None), "100.0 MB behind");
    }

    #[test]
    fn the_delay_is_that_of_the_oldest_heartbeat_under_way() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut pulse = Pulse::default();
        assert_eq!(pulse.delay(at(0)), None);
        pulse.sent(1, at(0));
        pulse.sent(2, at(1));
        assert_eq!(pulse.delay(at(5)), Some(Duration::from_secs(5)));
        pulse.seen(Some(1), at(5));
        assert!(pulse.beats());
        assert_eq!(pulse.delay(at(8)), Some(Duration::from_secs(7)));
        pulse.seen(Some(2), at(8));
        assert_eq!(pulse.delay(at(20)), Some(Duration::from_secs(7)));
    }
}
