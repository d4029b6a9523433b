//! When the pause may begin: at times that the plan names, and while the old side has little to do.
//!
//! It is asked before anything else, so that nothing is proven for a moment that is hours away; once more when all is
//! proven, and a last time when the participants are prepared, just before writers are held off.

use super::gates::Window;
use super::hours::{Hours, hours};
use crate::error::{Class, Error, Result};
use crate::event::Measure;
use crate::postgres::Session;
use crate::steps::Context;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Over how long transactions are counted: servers report them up to a second late.
const COUNTED: Duration = Duration::from_secs(5);
/// Between two looks at the counter.
const LOOK: Duration = Duration::from_millis(500);

/// The window of one step, while that runs.
pub struct Watch<'a> {
    window: Option<&'a Window>,
    /// The old side, whose transactions are counted.
    database: Option<&'a str>,
    load: Option<Load>,
    /// What was told already, for it is the same for hours.
    told: BTreeSet<String>,
    /// Whether it closed on the last attempt.
    late: bool,
}

impl<'a> Watch<'a> {
    /// Of a plan's window; without one it is always open.
    #[must_use]
    pub fn new(window: Option<&'a Window>, database: Option<&'a str>) -> Self {
        Watch { window, database, load: None, told: BTreeSet::new(), late: false }
    }

    /// Waits until it is open: as long as it takes, for that is what was asked for. The step's own `timeout:` ends it.
    ///
    /// # Errors
    /// A stop that was asked for, a zone that this host does not know, or what the server says.
    pub async fn wait(&mut self, cx: &Context) -> Result<()> {
        let begun = Instant::now();
        while let Some(closed) = self.closed(cx).await? {
            if self.told.insert(closed.told.clone()) {
                cx.note(format!("waits for its window: {}", closed.told));
            }
            cx.progress("waiting for the window", begun.elapsed().as_secs(), None, Measure::Seconds);
            cx.sleep(LOOK).await?;
        }
        Ok(())
    }

    /// Whether it is open still.
    ///
    /// # Errors
    /// As [`Watch::wait`].
    pub async fn is_open(&mut self, cx: &Context) -> Result<bool> {
        Ok(self.closed(cx).await?.is_none())
    }

    /// Refuses to begin a pause outside of it. Participants are prepared: nothing is waited for.
    ///
    /// # Errors
    /// [`Class::Contention`], for another attempt within the next window may succeed.
    pub async fn assert_open(&mut self, cx: &Context) -> Result<()> {
        match self.closed(cx).await? {
            None => Ok(()),
            Some(closed) => {
                self.late = true;
                let text = format!("the window closed while participants prepared: {}", closed.now);
                Err(Error::new(Class::Contention, text)
                    .hint("nothing was paused; the next attempt waits for the window"))
            }
        }
    }

    /// Whether that was why the last attempt was called off; such a one is not counted.
    pub fn take_late(&mut self) -> bool {
        std::mem::take(&mut self.late)
    }

    /// What a dry run says of it; none where it is always open.
    ///
    /// # Errors
    /// A zone that this host does not know.
    pub fn words(&self) -> Result<Option<String>> {
        let Some(window) = self.window else { return Ok(None) };
        let mut parts = Vec::new();
        match hours(window, jiff::Timestamp::now())? {
            None => {}
            Some(Hours::Open) => parts.push("which is open now".to_owned()),
            Some(Hours::Closed { opens }) => parts.push(format!("which opens {}", shown(&opens))),
        }
        if let (Some(most), Some(database)) = (window.max_transactions_per_second, self.database) {
            parts.push(format!("while {database} has at most {most} transactions per second"));
        }
        Ok(Some(format!("begin only within its window, {}", parts.join(", and "))))
    }

    async fn closed(&mut self, cx: &Context) -> Result<Option<Closed>> {
        let Some(window) = self.window else { return Ok(None) };
        if let Some(Hours::Closed { opens }) = hours(window, jiff::Timestamp::now())? {
            // Nobody has to be asked how busy it is meanwhile.
            self.load = None;
            let text = format!("it opens {}", shown(&opens));
            return Ok(Some(Closed { told: text.clone(), now: text }));
        }
        let (Some(most), Some(database)) = (window.max_transactions_per_second, self.database) else {
            return Ok(None);
        };
        if self.load.as_ref().is_none_or(Load::is_over) {
            self.load = Some(Load::watch(cx.reader(database).await?));
        }
        let rate = self.load.as_ref().and_then(Load::rate);
        Ok((!rate.is_some_and(|rate| rate <= most)).then(|| Closed {
            told: format!("{database} must have at most {most} transactions per second"),
            now: match rate {
                Some(rate) => format!(
                    "{database} has {rate:.1} transactions per second, and {most} at most is asked for"
                ),
                None => format!("how many transactions {database} has is being counted"),
            },
        }))
    }
}

fn shown(at: &jiff::Zoned) -> String {
    at.strftime("%a %Y-%m-%d %H:%M:%S %Q").to_string()
}

/// Why it is closed, in words.
struct Closed {
    /// The same as long as nothing else is in the way.
    told: String,
    /// As of now.
    now: String,
}

/// How many transactions there are on the old side, counted by its server.
/// (<https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-DATABASE-VIEW>)
struct Load {
    samples: Arc<Mutex<VecDeque<(Instant, i64)>>>,
    counts: JoinHandle<()>,
}

impl Load {
    /// Counts until it is dropped, or the connection is lost.
    fn watch(session: Session) -> Self {
        let samples = Arc::new(Mutex::new(VecDeque::new()));
        let kept = samples.clone();
        let counts = tokio::spawn(async move {
            while let Ok(count) = transactions(&session).await {
                {
                    let mut samples = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    let now = Instant::now();
                    samples.push_back((now, count));
                    // The newest that is old enough stays in front.
                    while samples.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= COUNTED) {
                        samples.pop_front();
                    }
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        Load { samples, counts }
    }

    fn is_over(&self) -> bool {
        self.counts.is_finished()
    }

    /// Transactions per second; none while they have not been counted for long enough.
    fn rate(&self) -> Option<f64> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let ((from, before), (to, now)) = (samples.front()?, samples.back()?);
        let time = to.duration_since(*from);
        // One that the server started over is no count.
        (time >= COUNTED && now >= before).then(|| (now - before) as f64 / time.as_secs_f64())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.counts.abort();
    }
}

async fn transactions(session: &Session) -> Result<i64> {
    let sql = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()";
    Ok(session.query_one(sql, &[]).await?.get(0))
}
