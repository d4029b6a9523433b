//! The traffic: open loop, timed from the intended send, and nothing is tried twice.
//!
//! Requests leave on a schedule that does not care how the service is doing (exponential gaps at the given rate),
//! so a pause is felt by everyone who would have come during it.

use super::endpoint::Hold;
use super::ledger::{Ask, Job, Judgement, Ledger, Reply};
use handover_core::error::{Error, Result};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// After this an answer is not waited for any more. Far above what counts as failed, so that what a late answer
/// says is still known.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many clients press at once: fewer than the service has connections, so that others get through.
const PRESSING: usize = 6;
/// Kinds of failures that are kept with an example.
const EXAMPLES: usize = 8;

/// What was counted.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Requests that were due.
    pub requests: u64,
    /// Those not answered as they should be, or too late.
    pub failed: u64,
    /// Tokens accepted that were revoked or replaced.
    pub honoured: u64,
    /// Failures by reason, with how often.
    pub reasons: Vec<(String, u64)>,
    /// Latencies, in the order of the answers.
    pub latencies: Vec<Duration>,
    /// When writes were due and when they were answered.
    writes: Vec<(Instant, Instant)>,
    /// Those that were answered as they should be.
    written: u64,
}

impl Counts {
    /// The longest that a write took which was under way while the service held writes: what clients feel of a
    /// cutover.
    #[must_use]
    pub fn pause(&self, holds: &[Hold]) -> Duration {
        let felt = |hold: &Hold| {
            self.writes
                .iter()
                .filter(|(due, answered)| *due <= hold.to && *answered >= hold.from)
                .map(|(due, answered)| answered.duration_since(*due))
                .max()
        };
        holds.iter().filter_map(felt).max().unwrap_or_default()
    }

    /// A percentile of the latencies, of 100.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        sorted.get(at).copied().unwrap_or_default()
    }

    fn note(&mut self, due: Instant, limit: Duration, writes: bool, judgement: Judgement) {
        let now = Instant::now();
        let latency = now.duration_since(due);
        self.latencies.push(latency);
        if writes {
            self.writes.push((due, now));
        }
        let why = match judgement {
            Judgement::Wrong { why, honoured } => {
                self.honoured += u64::from(honoured);
                why
            }
            Judgement::Right => {
                self.written += u64::from(writes);
                if latency <= limit {
                    return;
                }
                format!("answered later than {limit:?}")
            }
        };
        self.failed += 1;
        if let Some((_, n)) = self.reasons.iter_mut().find(|(known, _)| *known == why) {
            *n += 1;
        } else if self.reasons.len() < EXAMPLES {
            self.reasons.push((why, 1));
        }
    }
}

/// Running traffic.
pub struct Traffic {
    shared: Arc<Shared>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

struct Shared {
    base: String,
    http: reqwest::Client,
    limit: Duration,
    ledger: Mutex<Ledger>,
    counts: Mutex<Counts>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Traffic {
    /// Starts sending `rate` requests a second to the service at `base`. An answer that takes longer than `limit`
    /// is a failure.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn start(base: &str, rate: f64, limit: Duration, ledger: Ledger) -> Result<Self> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(handover_postgres::tls::unverified()?)
            .no_proxy()
            .timeout(PATIENCE)
            .pool_max_idle_per_host(64)
            .build()
            .map_err(|e| Error::internal(format!("no HTTP client ({e})")))?;
        let shared = Arc::new(Shared {
            base: base.to_owned(),
            http,
            limit,
            ledger: Mutex::new(ledger),
            counts: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let task = tokio::spawn(send(shared.clone(), rate, stop.clone()));
        Ok(Traffic { shared, stop, task })
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        lock(&self.shared.counts).clone()
    }

    /// Looks into the client's books.
    pub fn ledger<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&lock(&self.shared.ledger))
    }

    /// Gives, whenever it is called, the tokens that may not be accepted any more.
    pub fn dead_tokens(&self) -> impl Fn() -> Vec<String> + Send + 'static {
        let shared = self.shared.clone();
        move || lock(&shared.ledger).dead_tokens()
    }

    /// Writes that were answered as they should be, so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        lock(&self.shared.counts).written
    }

    /// Sends so many writes beside the schedule, as fast as the service answers them. Each is judged as every other request.
    pub async fn press(&self, writes: u64) {
        let sent = Arc::new(AtomicU64::new(0));
        let mut clients = JoinSet::new();
        for _ in 0..PRESSING {
            let (shared, sent) = (self.shared.clone(), sent.clone());
            clients.spawn(async move {
                while sent.fetch_add(1, Ordering::Relaxed) < writes {
                    let job = lock(&shared.ledger).draw_write();
                    shared.perform(job, Instant::now()).await;
                }
            });
        }
        while clients.join_next().await.is_some() {}
    }

    /// Sends nothing more, and waits for what is under way.
    pub async fn stop(&mut self) {
        self.stop.cancel();
        let _ = (&mut self.task).await;
    }
}

async fn send(shared: Arc<Shared>, rate: f64, stop: CancellationToken) {
    let mut rng = StdRng::seed_from_u64(rate.to_bits());
    let under_way = TaskTracker::new();
    let mut due = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep_until(due.into()) => {}
        }
        let job = lock(&shared.ledger).draw();
        let (shared, intended) = (shared.clone(), due);
        under_way.spawn(async move { shared.perform(job, intended).await });
        // Exponential gaps make the arrivals a Poisson process.
        let uniform: f64 = rng.random_range(f64::EPSILON..1.0);
        due += Duration::from_secs_f64(-uniform.ln() / rate);
    }
    under_way.close();
    under_way.wait().await;
}

impl Shared {
    /// Asks, and compares the answer with what is true.
    async fn perform(&self, job: Job, due: Instant) {
        lock(&self.counts).requests += 1;
        let reply = self.ask(&job.ask).await;
        let writes = job.ask.writes();
        let judgement = lock(&self.ledger).judge(job, reply);
        lock(&self.counts).note(due, self.limit, writes, judgement);
    }

    async fn ask(&self, ask: &Ask) -> Reply {
        let (path, body) = match ask {
            Ask::Issue { client, subject, tenant } => {
                ("issue", json!({ "client": client, "subject": subject, "tenant": tenant }))
            }
            Ask::Introspect { token, .. } => ("introspect", json!({ "token": token })),
            Ask::Refresh { token, .. } => ("refresh", json!({ "token": token })),
            Ask::Revoke { token } => ("revoke", json!({ "token": token })),
        };
        let answer = async {
            let response = self.http.post(format!("{}/{path}", self.base)).json(&body).send().await?;
            let status = response.status().as_u16();
            Ok::<_, reqwest::Error>((status, response.json::<Value>().await?))
        };
        match answer.await {
            Ok((status, body)) => understand(ask, status, &body),
            Err(e) => Reply::Broken(format!("no answer to {path}: {}", e.without_url())),
        }
    }
}

fn understand(ask: &Ask, status: u16, body: &Value) -> Reply {
    let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
    match (ask, status) {
        (Ask::Issue { .. } | Ask::Refresh { .. }, 200) => {
            match (text("access_token"), text("refresh_token")) {
                (Some(access), Some(refresh)) => Reply::Tokens { access, refresh },
                _ => Reply::Broken("tokens were promised and not given".into()),
            }
        }
        (Ask::Refresh { .. }, 400) if text("error").as_deref() == Some("invalid_grant") => Reply::Refused,
        (Ask::Introspect { .. }, 200) => {
            let active = body.get("active").and_then(Value::as_bool).unwrap_or(false);
            Reply::Seen {
                active,
                known: active || body.get("known").and_then(Value::as_bool).unwrap_or(false),
                subject: text("sub"),
                tenant: body.pointer("/ext/tenant").and_then(Value::as_str).map(str::to_owned),
            }
        }
        (Ask::Revoke { .. }, 200) if body.get("found") == Some(&Value::Bool(true)) => Reply::Revoked,
        (Ask::Revoke { .. }, 200) => Reply::Broken("a good token is unknown to revoke".into()),
        (_, status) => Reply::Broken(format!("status {status}: {}", text("error").unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_and_wrong_answers_are_failures() {
        let mut counts = Counts::default();
        let limit = Duration::from_secs(3);
        let late = Instant::now().checked_sub(Duration::from_secs(4)).unwrap();
        counts.note(Instant::now(), limit, true, Judgement::Right);
        assert_eq!(counts.failed, 0);
        counts.note(late, limit, true, Judgement::Right);
        assert_eq!(counts.failed, 1);
        let wrong = Judgement::Wrong { why: "no".into(), honoured: true };
        counts.note(Instant::now(), limit, false, wrong.clone());
        counts.note(Instant::now(), limit, false, wrong);
        assert_eq!((counts.failed, counts.honoured), (3, 2));
        assert_eq!(counts.reasons.len(), 2);
    }

    #[test]
    fn the_pause_is_the_longest_write_that_met_the_closed_door() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let writes = vec![(at(0), at(50)), (at(100), at(400)), (at(350), at(405)), (at(1000), at(1900))];
        let counts = Counts { writes, ..Counts::default() };
        let hold = Hold { from: at(90), to: at(398) };
        assert_eq!(counts.pause(&[hold]), Duration::from_millis(300));
        assert_eq!(counts.pause(&[]), Duration::ZERO);
    }

    #[test]
    fn an_error_is_no_answer() {
        let ask = Ask::Revoke { token: "t".into() };
        assert!(matches!(understand(&ask, 500, &json!({ "error": "x" })), Reply::Broken(_)));
        assert!(matches!(understand(&ask, 200, &json!({ "found": false })), Reply::Broken(_)));
        assert_eq!(understand(&ask, 200, &json!({ "found": true })), Reply::Revoked);
    }
}
