//! Brings the figures of the verdict together: from the traffic, both databases, the journal and the participants.

use super::verdict::{StepTime, Verdict};
use crate::error::{Error, Result};
use crate::event::{Record, StepId};
use crate::journal::Journal;
use crate::plan::Plan;
use crate::value::Secret;
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

/// Signatures of revoked tokens that green held to be good when the service came over to it, or after.
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
    let held = holds.iter().map(|hold| hold.to.duration_since(hold.from)).max();
    verdict.write_hold_ms = ms(held.unwrap_or_default());
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

/// Waits for the service to come over to green, and at that moment looks whether green holds any revoked token
/// to be good: traffic alone would find that only by chance.
pub async fn watch_flip(
    gate: Arc<Gate>,
    green: Client,
    dead_tokens: impl Fn() -> Vec<String> + Send + 'static,
    honoured: Honoured,
) {
    while gate.state().database != "green" {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let signatures: Vec<String> = dead_tokens().iter().map(|token| signature(token)).collect();
    if let Ok(active) = audit::active_on_green(&green, &signatures).await {
        honoured.lock().unwrap_or_else(PoisonError::into_inner).extend(active);
    }
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
    for token in &dead {
        if service.introspect(token).await?.is_some_and(|seen| seen.active) {
            accepted.insert(signature(token));
        }
    }
    verdict.revoked_honoured += accepted.len() as u64;

    let issued: Vec<String> =
        traffic.ledger(|books| books.issued_tokens().iter().map(|token| signature(token)).collect());
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
            Record::StepDone { step, summary } => {
                let Some(begun) = started.get(&step) else { continue };
                let kind = plan.step(&step).map_or("?", |s| s.kind_name);
                if kind == "cutover" {
                    let longest = |ms: f64| verdict.write_pause_measured_ms.map_or(ms, |other| other.max(ms));
                    verdict.write_pause_measured_ms = pause_in(&summary).map(longest);
                }
                verdict.steps.push(StepTime {
                    id: step.to_string(),
                    kind: kind.to_owned(),
                    seconds: entry.at.duration_since(*begun).as_secs_f64(),
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

/// Whether each of the three participants points at green.
///
/// # Errors
/// When the registry cannot be read.
pub async fn participants(
    verdict: &mut Verdict,
    gate: &Gate,
    config: &Path,
    servers: &Servers,
) -> Result<()> {
    if gate.state().database != "green" {
        verdict.not_flipped.push("the service".into());
    }
    if !std::fs::read_to_string(config).is_ok_and(|text| text.contains("database = green")) {
        verdict.not_flipped.push("the service's configuration".into());
    }
    let registry = servers.registry().await?;
    let database: String = registry
        .query_one("select database from service where name = 'oauth'", &[])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(|e| {
            Error::external(format!("the service registry cannot be read ({e})")).hint("see its server's log")
        })?;
    if database != "green" {
        verdict.not_flipped.push("the service registry".into());
    }
    Ok(())
}
