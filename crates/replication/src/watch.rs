//! What the engine does while servers replicate: it looks. A heartbeat tells how late changes arrive, the slot how
//! much is missing and how much log it keeps on the publisher's disk.

use crate::end::{ENDED, give_up};
use crate::lag::{Pulse, Sample, Trend, bytes, sample};
use crate::link::Link;
use crate::options::Replicate;
use crate::{marker, origin, subscription};
use handover_core::error::{Error, Result};
use handover_core::event::Measure;
use handover_port::Port;
use handover_postgres::{Session, blockers};
use std::time::{Duration, Instant};

/// The pause between two looks.
const BEAT: Duration = Duration::from_secs(1);
/// The mark of heartbeats.
const HEARTBEAT: &str = "heartbeat";
/// So many failures of the subscriber's worker without any progress between them are no accident.
const FAILURES: i64 = 3;
/// How long a worker may be blocked or absent before it is told.
const SILENCE: Duration = Duration::from_secs(10);

/// Marks in the stream of a link, for steps that must know that everything has arrived.
pub struct Gauge {
    blue: Session,
    green: Session,
    link: Link,
}

impl Gauge {
    /// Connects to both sides.
    ///
    /// # Errors
    /// No connection; a replication that is not there or not running.
    pub async fn open(port: &Port, link: &Link) -> Result<Self> {
        let green = port.databases.labelled(port.step.as_str()).read_only(&link.to).await?;
        match subscription::find(&green, &link.name).await? {
            Some(found) if found.enabled => {}
            Some(_) => return Err(disabled(link)),
            None => return Err(link.over(&format!("its subscription on {} is not there", link.to))),
        }
        Ok(Gauge { blue: port.writer(&link.from).await?, green, link: link.clone() })
    }

    /// The replication that it measures.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Writes a mark under `name`.
    ///
    /// # Errors
    /// Lease lost, or what the server says.
    pub async fn write(&mut self, name: &str) -> Result<marker::Token> {
        marker::write(&mut self.blue, &self.link, name).await
    }

    /// Whether everything before a mark has arrived.
    pub async fn passed(&self, token: &marker::Token) -> Result<bool> {
        marker::passed(&self.green, token).await
    }

    /// Writes a mark and waits for it; false when it did not arrive within `patience`.
    ///
    /// # Errors
    /// Lease lost, what a server says, or a run that is asked to stop.
    pub async fn mark(&mut self, port: &Port, name: &str, patience: Duration) -> Result<bool> {
        let token = self.write(name).await?;
        let begun = Instant::now();
        while !self.passed(&token).await? {
            if begun.elapsed() > patience {
                return Ok(false);
            }
            port.proceed()?;
            port.sleep(Duration::from_millis(10)).await?;
        }
        Ok(true)
    }

    /// How far the subscriber is behind, in bytes of log.
    ///
    /// # Errors
    /// What the server says, or a slot that is gone.
    pub async fn behind(&self) -> Result<u64> {
        match sample(&self.blue, &self.link.name).await? {
            Some(sample) => Ok(sample.behind()),
            None => Err(self.link.over(&format!("its slot on {} is not there", self.link.from))),
        }
    }
}

fn disabled(link: &Link) -> Error {
    Error::data(format!("the subscription {} is disabled", link.name)).on_database(&link.to).hint(format!(
        "find out who disabled it and why; `alter subscription {} enable`, then `handover resume`",
        link.name
    ))
}

/// How much log the slot may keep on the publisher's disk, and what was said of it.
struct WalBudget {
    /// In bytes.
    limit: u64,
    warned: bool,
    unreserved: bool,
}

impl WalBudget {
    async fn new(replicate: &Replicate, blue: &Session) -> Result<Self> {
        let limit: i64 = blue
            .query_one("select setting::int8 from pg_settings where name = 'max_slot_wal_keep_size'", &[])
            .await?
            .get(0);
        let limit = u64::try_from(limit).ok().map(|mb| mb << 20);
        Ok(WalBudget { limit: replicate.budget(limit), warned: false, unreserved: false })
    }

    /// Warns, and says why to end when the budget is used up.
    fn check(&mut self, port: &Port, link: &Link, sample: &Sample) -> Option<String> {
        if sample.status == "lost" {
            return Some(format!(
                "its slot fell further behind than max_slot_wal_keep_size on {} allows",
                link.from
            ));
        }
        if sample.held >= self.limit {
            return Some(format!(
                "its slot kept {} of log on {}, more than its budget of {}",
                bytes(sample.held),
                link.from,
                bytes(self.limit)
            ));
        }
        let near = sample.held >= self.limit / 10 * 7;
        if near && !self.warned {
            port.warn(format!(
                "the slot keeps {} of log on {}: at {} the replication is ended",
                bytes(sample.held),
                link.from,
                bytes(self.limit)
            ));
        }
        self.warned = near;
        let unreserved = sample.status == "unreserved";
        if unreserved && !self.unreserved {
            port.warn(format!(
                "the slot on {} keeps more than max_slot_wal_keep_size: the server may remove what it needs at the next checkpoint",
                link.from
            ));
        }
        self.unreserved = unreserved;
        None
    }
}

/// Watches the slot while the copy runs that `port` is of, when nobody consumes it yet. Returns only with an error:
/// the slot took more than its budget, and was dropped.
pub async fn guard(port: &Port, replicate: &Replicate, link: &Link) -> Error {
    loop {
        if let Err(error) = guarded(port, replicate, link).await
            && !error.class().is_transient()
        {
            return error;
        }
        tokio::time::sleep(BEAT * 5).await;
    }
}

async fn guarded(port: &Port, replicate: &Replicate, link: &Link) -> Result<()> {
    let blue = port.databases.labelled(port.step.as_str()).read_only(&link.from).await?;
    let mut wal_budget = WalBudget::new(replicate, &blue).await?;
    loop {
        if let Some(sample) = sample(&blue, &link.name).await?
            && let Some(reason) = wal_budget.check(port, link, &sample)
        {
            origin::discard(port, link).await?;
            return Err(link.over(&reason));
        }
        tokio::time::sleep(BEAT).await;
    }
}

struct Watch<'a> {
    port: &'a Port,
    link: &'a Link,
    gauge: Gauge,
    wal_budget: WalBudget,
    trend: Trend,
    pulse: Pulse,
    major: u32,
    /// Failures when the subscriber last confirmed something, and what.
    failures: Option<(i64, u64)>,
    /// Since when no worker applies, or one waits for a lock.
    silent: Option<Instant>,
    /// Changes that the subscriber passed over when it was looked at last.
    skipped: Option<i64>,
}

impl<'a> Watch<'a> {
    async fn open(port: &'a Port, replicate: &Replicate, link: &'a Link) -> Result<Self> {
        let gauge = Gauge::open(port, link).await?;
        let wal_budget = WalBudget::new(replicate, &gauge.blue).await?;
        let major = gauge.green.major().await?;
        let (trend, pulse) = (Trend::default(), Pulse::default());
        Ok(Watch {
            port,
            link,
            gauge,
            wal_budget,
            trend,
            pulse,
            major,
            failures: None,
            silent: None,
            skipped: None,
        })
    }

    /// One look. Returns the slot, and how it stands in words.
    async fn beat(&mut self) -> Result<(Sample, String)> {
        let token = self.gauge.write(HEARTBEAT).await?;
        self.pulse.sent(token.number, Instant::now());
        let begun = Instant::now();
        // Between two beats the other side is asked more often, so that the delay is known in tenths of a second.
        while begun.elapsed() < BEAT {
            let latest = marker::latest(&self.gauge.green, &self.link.name, HEARTBEAT).await?;
            self.pulse.seen(latest, Instant::now());
            if latest >= Some(token.number) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let Some(sample) = sample(&self.gauge.blue, &self.link.name).await? else {
            return Err(self.link.over(&format!("its slot on {} is not there", self.link.from)));
        };
        if let Some(reason) = self.wal_budget.check(self.port, self.link, &sample) {
            return Err(give_up(self.port, self.link, reason).await?);
        }
        self.trend.add(sample.clone());
        let trouble = self.subscriber(&sample).await?;
        let mut text = self.trend.words(&self.link.from, self.pulse.delay(Instant::now()));
        text.push_str(&format!("; {} of log kept on {}", bytes(sample.held), self.link.from));
        if let Some(trouble) = trouble {
            text = format!("{trouble}; {text}");
        }
        Ok((sample, text))
    }

    /// Finds a subscriber that does not apply, and says so; halts when it tries the same again and again.
    async fn subscriber(&mut self, sample: &Sample) -> Result<Option<String>> {
        let green = &self.gauge.green;
        match subscription::find(green, &self.link.name).await? {
            Some(found) if found.enabled => {}
            Some(_) => return Err(disabled(self.link)),
            None => {
                let reason = format!("its subscription on {} is not there", self.link.to);
                return Err(self.link.over(&reason));
            }
        }
        let worker = subscription::worker(green, &self.link.name, self.major).await?;
        if let Some(errors) = worker.errors() {
            match self.failures {
                Some((then, confirmed)) if confirmed == sample.confirmed => {
                    if errors - then >= FAILURES {
                        return Err(self.stuck(&worker));
                    }
                }
                _ => self.failures = Some((errors, sample.confirmed)),
            }
        }
        let skipped = worker.skipped();
        if self.skipped.is_some_and(|then| skipped > then) {
            self.port.warn(format!(
                "{} lacked rows that {} updated or deleted, {skipped} so far, and passed them over: the sides have come apart there; {} (LOG, conflict detected)",
                self.link.to, self.link.from, worker.where_to_look()
            ));
        }
        self.skipped = Some(skipped);
        if worker.pid.is_some() && worker.blockers.is_empty() && sample.active {
            self.silent = None;
            return Ok(None);
        }
        let silent = *self.silent.get_or_insert_with(Instant::now);
        if silent.elapsed() < SILENCE {
            return Ok(None);
        }
        Ok(Some(if worker.blockers.is_empty() {
            format!(
                "{} is not connected to {}; its server's log{} says why",
                self.link.to,
                self.link.from,
                worker.log.map(|file| format!(" ({file})")).unwrap_or_default()
            )
        } else {
            let tables = worker.tables.map(|tables| format!(" at {tables}")).unwrap_or_default();
            format!("applying on {}{tables} waits for {}", self.link.to, blockers::listed(&worker.blockers))
        }))
    }

    fn stuck(&self, worker: &subscription::Worker) -> Error {
        let (to, from) = (&self.link.to, &self.link.from);
        let conflicts = worker.conflicts().map(|text| format!(": {text}")).unwrap_or_default();
        Error::data(format!(
            "{to} cannot apply what {from} wrote, and tries the same again and again{conflicts}"
        ))
        .on_database(to)
        .hint(self.link.when_stuck(&worker.where_to_look()))
    }
}

/// Waits until changes arrive within what the plan allows.
pub async fn catch_up(replicate: &Replicate, port: &Port, link: &Link) -> Result<Sample> {
    let mut watch = Watch::open(port, replicate, link).await?;
    let mut first = None;
    let mut next = Instant::now();
    loop {
        port.proceed()?;
        let (sample, text) = watch.beat().await?;
        let start = *first.get_or_insert(sample.confirmed);
        if watch.pulse.beats() && watch.pulse.delay(Instant::now()) <= Some(replicate.max_lag.0) {
            port.unit_done("catching up");
            port.note(text);
            return Ok(sample);
        }
        port.progress(
            "catching up",
            sample.confirmed.saturating_sub(start),
            Some(sample.head.saturating_sub(start)),
            Measure::Bytes,
        );
        if Instant::now() >= next {
            port.note(text);
            next = Instant::now() + Duration::from_secs(30);
        }
        port.sleep(Duration::from_millis(200)).await?;
    }
}

/// The standing task.
pub async fn stand(replicate: &Replicate, port: &Port, link: &Link) -> Result<()> {
    if let Some(reason) = port.recall::<String>(ENDED)? {
        // It may have been interrupted while it took things away.
        origin::discard(port, link).await?;
        return Err(link.over(&reason));
    }
    let work = async {
        let mut watch = Watch::open(port, replicate, link).await?;
        let mut down = false;
        loop {
            let begun = Instant::now();
            let (sample, text) = watch.beat().await?;
            let trouble = watch.silent.is_some_and(|since| since.elapsed() >= SILENCE);
            if trouble && !down {
                port.warn(text.clone());
            }
            down = trouble;
            port.standing(text, Some(sample.behind()));
            tokio::time::sleep(BEAT.saturating_sub(begun.elapsed())).await;
        }
    };
    tokio::select! {
        result = work => result,
        () = port.stop.cancelled() => Ok(()),
    }
}
