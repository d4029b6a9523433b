//! Brings the figures of the verdict together: from the traffic, both databases, the journal and the participants.

use super::verdict::{StepTime, Verdict};
use super::way_back::WayBack;
use crate::error::{Error, Result};
use crate::event::{Record, StepId};
use crate::journal::Journal;
use crate::plan::Plan;
use crate::value::Secret;
use futures_util::future::join_all;
use handover_lab::oauth::audit;
use handover_lab::oauth::dataset::signature;
use handover_lab::oauth::endpoint::{Backend, Gate, Hold};
use handover_lab::oauth::ledger::Ledger;
use handover_lab::oauth::servers::Servers;
use handover_lab::oauth::traffic::Traffic;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_postgres::Client;

/// What the second plan allows as a write pause.
pub(super) const PAUSE_BUDGET: Duration = Duration::from_secs(2);

/// So many tokens the service is asked about at once.
const AT_ONCE: usize = 8;

/// Signatures of revoked tokens that a side held to be good when the service came over to it, or green after.
pub type Honoured = Arc<Mutex<BTreeSet<String>>>;

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// What the traffic counted.
pub fn requests(verdict: &mut Verdict, traffic: &Traffic, holds: &[Hold]) {
    let counts = traffic.counts();
    verdict.requests = counts.requests;
    verdict.failed_requests = counts.failed;
    verdict.revoked_honoured = counts.honoured;
    verdict.latency_p50_ms = ms(counts.percentile(50));
    verdict.latency_p99_ms = ms(counts.percentile(99));
    verdict.write_pause_ms = ms(counts.pause(holds));
    verdict.write_hold_ms = ms(longest(holds));
    verdict.write_pause_budget_ms = ms(PAUSE_BUDGET);
    verdict.revocations_issued = traffic.ledger(Ledger::revocations);
    verdict.failures = counts.reasons;
}

/// What green did.
pub fn work(verdict: &mut Verdict, before: audit::Work, after: audit::Work) {
    verdict.rows_updated = after.updated - before.updated;
    verdict.rows_inserted = after.inserted - before.inserted;
    verdict.temp_bytes = after.temp_bytes - before.temp_bytes;
    verdict.commits = after.commits - before.commits;
    verdict.wal_bytes = after.wal - before.wal;
}

/// Whenever the service comes over to another side, looks at that moment whether that side holds any revoked token
/// to be good: traffic alone would find that only by chance. Ends when it is aborted.
pub async fn watch_flips(
    gate: Arc<Gate>,
    blue: Client,
    green: Client,
    dead_tokens: impl Fn() -> Vec<String> + Send + 'static,
    honoured: Honoured,
) {
    let mut serving = gate.state().database;
    loop {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let now = gate.state().database;
        if now == serving {
            continue;
        }
        serving = now;
        let signatures = signed(&dead_tokens());
        let active = match serving {
            "green" => audit::active_on_green(&green, &signatures).await,
            _ => audit::active_on_blue(&blue, &signatures).await,
        };
        if let Ok(active) = active {
            honoured.lock().unwrap_or_else(PoisonError::into_inner).extend(active);
        }
    }
}

fn signed(tokens: &[String]) -> Vec<String> {
    tokens.iter().map(|token| signature(token)).collect()
}

/// What blue makes of every token when it serves again. Traffic may go on: what it was told by now must be there.
///
/// # Errors
/// When blue cannot be read.
pub async fn tokens_on_blue(way: &mut WayBack, traffic: &Traffic, blue: &Client) -> Result<()> {
    let dead = signed(&traffic.ledger(Ledger::dead_tokens));
    let issued = signed(&traffic.ledger(|books| books.issued_tokens().to_vec()));
    way.revocations_lost = audit::active_on_blue(blue, &dead).await?.len() as u64;
    way.tokens_unknown_on_blue = audit::unknown_on_blue(blue, &issued).await?.len() as u64;
    Ok(())
}

/// How long clients and the service waited for the way back, of the cutovers in `holds`.
pub fn pause_of(way: &mut WayBack, traffic: &Traffic, holds: &[Hold]) {
    way.write_pause_ms = ms(traffic.counts().pause(holds));
    way.write_hold_ms = ms(longest(holds));
}

fn longest(holds: &[Hold]) -> Duration {
    holds.iter().map(|hold| hold.to.duration_since(hold.from)).max().unwrap_or_default()
}

/// What green makes of every token, when all is over.
///
/// # Errors
/// When a database cannot be read.
pub async fn tokens(
    verdict: &mut Verdict,
    traffic: &Traffic,
    service: &Backend,
    blue: &Client,
    green: &Client,
    honoured: &Honoured,
) -> Result<()> {
    let dead = traffic.ledger(Ledger::dead_tokens);
    let mut signatures: BTreeSet<String> = dead.iter().map(|token| signature(token)).collect();
    signatures.extend(audit::dead_on_blue(blue).await?);
    let signatures: Vec<String> = signatures.into_iter().collect();
    verdict.revocations_lost = audit::active_on_green(green, &signatures).await?.len() as u64;

    // The service itself has the last word on the client's own.
    let mut accepted = honoured.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for some in dead.chunks(AT_ONCE) {
        let seen = join_all(some.iter().map(|token| service.introspect(token))).await;
        for (token, seen) in some.iter().zip(seen) {
            if seen?.is_some_and(|seen| seen.active) {
                accepted.insert(signature(token));
            }
        }
    }
    verdict.revoked_honoured += accepted.len() as u64;

    let issued = signed(&traffic.ledger(|books| books.issued_tokens().to_vec()));
    verdict.tokens_unknown_on_green = audit::unknown_on_green(green, &issued).await?.len() as u64;
    Ok(())
}

/// How long each step of a plan took, and what its cutover measured.
///
/// # Errors
/// When the journal cannot be read.
pub async fn journal(verdict: &mut Verdict, plan: &Plan, control: &str) -> Result<()> {
    let journal = Journal::open_existing(Secret::new(control), Duration::from_secs(5)).await?;
    let Some(run) = journal.runs(Some(&plan.name)).await?.into_iter().next() else { return Ok(()) };
    let mut started: BTreeMap<StepId, Timestamp> = BTreeMap::new();
    for entry in journal.entries(run.run).await? {
        match entry.record {
            Record::StepStarted { step, .. } => {
                started.entry(step).or_insert(entry.at);
            }
            Record::UndoDone { step, summary } => {
                let is_cutover = plan.step(&step).is_some_and(|s| s.kind_name == "cutover");
                if let Some(way) = verdict.way_back.as_mut().filter(|_| is_cutover) {
                    way.write_pause_measured_ms = pause_in(&summary);
                    way.events_carried_back = summary.get("events_carried_back").and_then(Value::as_i64);
                }
            }
            Record::StepDone { step, summary } => {
                // A step that was taken back since is done a second time.
                let Some(begun) = started.remove(&step) else { continue };
                let kind = plan.step(&step).map_or("?", |s| s.kind_name);
                if kind == "cutover" {
                    let longest = |ms: f64| verdict.write_pause_measured_ms.map_or(ms, |other| other.max(ms));
                    verdict.write_pause_measured_ms = pause_in(&summary).map(longest);
                }
                verdict.steps.push(StepTime {
                    id: step.to_string(),
                    kind: kind.to_owned(),
                    seconds: entry.at.duration_since(begun).as_secs_f64(),
                    plan: plan.name.clone(),
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// The write pause in a cutover's summary.
fn pause_in(summary: &Value) -> Option<f64> {
    summary.get("write_pause_ms").and_then(Value::as_f64)
}

/// Those of the three participants that do not point at a side.
///
/// # Errors
/// When the registry cannot be read.
pub async fn not_at(side: &str, gate: &Gate, config: &Path, servers: &Servers) -> Result<Vec<String>> {
    let mut elsewhere = Vec::new();
    if gate.state().database != side {
        elsewhere.push("the service".into());
    }
    if !std::fs::read_to_string(config).is_ok_and(|text| text.contains(&format!("database = {side}\n"))) {
        elsewhere.push("the service's configuration".into());
    }
    let registry = servers.registry().await?;
    let database: String = registry
        .query_one("select database from service where name = 'oauth'", &[])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(|e| {
            Error::external(format!("the service registry cannot be read ({e})")).hint("see its server's log")
        })?;
    if database != side {
        elsewhere.push("the service registry".into());
    }
    Ok(elsewhere)
}
