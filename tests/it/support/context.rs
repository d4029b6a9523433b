//! A step's context without an engine: for tests of one step kind against real servers.

use async_trait::async_trait;
use handover::Result;
use handover::event::{Emitter, Event, RunId, StepId};
use handover::postgres::connect::Target;
use handover::postgres::install::{Part, install};
use handover::postgres::{Databases, Lease, fence};
use handover::steps::{Context, Ledger, Memory, Port, context::Request};
use handover::value::Secret;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Keeps facts in memory.
#[derive(Debug, Default)]
pub struct MemoryLedger(Mutex<HashMap<(String, String), Value>>);

#[async_trait]
impl Memory for MemoryLedger {
    async fn remember(&self, step: &StepId, key: &str, value: Value) -> Result<()> {
        let key = (step.as_str().to_owned(), key.to_owned());
        let mut facts = self.0.lock().unwrap();
        if value.is_null() {
            facts.remove(&key)
        } else {
            facts.insert(key, value)
        };
        Ok(())
    }
    fn recall(&self, step: &StepId, key: &str) -> Option<Value> {
        self.0.lock().unwrap().get(&(step.as_str().to_owned(), key.to_owned())).cloned()
    }
}

#[async_trait]
impl Ledger for MemoryLedger {
    async fn approval(&self, _step: &StepId) -> Result<Option<Request>> {
        Ok(None)
    }
    async fn end_standing(&self, _step: &StepId, _by: &StepId) -> Result<()> {
        Ok(())
    }
    async fn point_of_no_return(&self, _step: &StepId) -> Result<()> {
        Ok(())
    }
}

/// A context under a fresh lease, with Handover's tables made and fenced in `written`, and the end that hears
/// what the step says.
pub async fn context(
    step: &str,
    urls: &[(&str, String)],
    written: &[&str],
) -> (Context, tokio::sync::mpsc::UnboundedReceiver<Event>) {
    let plan = super::servers::unique("plan");
    let lease = Lease::granted(&plan, 1, Instant::now(), Duration::from_secs(600));
    let targets: BTreeMap<String, Target> =
        urls.iter().map(|(name, url)| ((*name).to_owned(), Target::new(Secret::new(url)))).collect();
    let databases = Databases::new(targets).under(lease.clone());
    for name in written {
        let mut session = databases.writer(name).await.unwrap();
        install(&mut session, Part::Database).await.unwrap();
        fence::take_over(&mut session, &lease).await.unwrap();
    }
    let (emitter, events) = Emitter::channel();
    let ledger = Arc::new(MemoryLedger::default());
    let context = Context {
        port: Port {
            run: RunId::new(),
            step: StepId::from(step),
            plan: plan.as_str().into(),
            base: Arc::new(PathBuf::from(".")),
            databases,
            queue: None,
            emitter,
            stop: CancellationToken::new(),
            memory: ledger.clone(),
        },
        links: Arc::default(),
        ledger,
        accept_loss: false,
        export: None,
        may_wait: false,
        critical: Default::default(),
    };
    (context, events)
}

/// A step kind from what a plan would say, as JSON.
pub fn kind(name: &str, value: Value) -> Arc<dyn handover::steps::StepKind> {
    let kind = handover::steps::kinds().iter().find(|k| k.name == name).unwrap();
    (kind.parse)(value).unwrap()
}
