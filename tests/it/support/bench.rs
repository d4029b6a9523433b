//! Steps run one by one, with a ledger in memory: what the engine would do, under the test's control.

use super::servers::{self, Database};
use async_trait::async_trait;
use handover::event::{Emitter, Event, RunId, StepId};
use handover::postgres::connect::Target;
use handover::postgres::fence::take_over;
use handover::postgres::install::{Part, install};
use handover::postgres::profile::SearchPath;
use handover::postgres::{Databases, Lease};
use handover::steps::context::Request;
use handover::steps::kind::links;
use handover::steps::{Context, Ledger, Memory, Port, Step, kinds};
use handover::value::{EnvString, Secret};
use handover::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How to stop a standing task, and its result.
type Standing = (CancellationToken, JoinHandle<Result<()>>);

/// Facts and standing tasks of one run.
#[derive(Default)]
pub struct MemoryLedger {
    facts: Mutex<HashMap<(StepId, String), Value>>,
    standing: Mutex<HashMap<StepId, Standing>>,
    /// Steps whose standing task was ended.
    pub ended: Mutex<Vec<StepId>>,
}

#[async_trait]
impl Memory for MemoryLedger {
    async fn remember(&self, step: &StepId, key: &str, value: Value) -> Result<()> {
        let at = (step.clone(), key.to_owned());
        let mut facts = self.facts.lock().unwrap();
        if value.is_null() {
            facts.remove(&at)
        } else {
            facts.insert(at, value)
        };
        Ok(())
    }
    fn recall(&self, step: &StepId, key: &str) -> Option<Value> {
        self.facts.lock().unwrap().get(&(step.clone(), key.to_owned())).cloned()
    }
}

#[async_trait]
impl Ledger for MemoryLedger {
    async fn approval(&self, _: &StepId) -> Result<Option<Request>> {
        Ok(None)
    }
    async fn end_standing(&self, step: &StepId, _by: &StepId) -> Result<()> {
        self.ended.lock().unwrap().push(step.clone());
        let task = self.standing.lock().unwrap().remove(step);
        if let Some((stop, handle)) = task {
            stop.cancel();
            handle.await.unwrap()?;
        }
        Ok(())
    }
    async fn point_of_no_return(&self, _: &StepId) -> Result<()> {
        Ok(())
    }
}

/// Two databases, a queue, and the steps of a plan.
pub struct Bench {
    pub blue: Database,
    pub green: Database,
    pub ledger: Arc<MemoryLedger>,
    pub events: Mutex<UnboundedReceiver<Event>>,
    context: Context,
    steps: Vec<Step>,
}

impl Bench {
    /// Blue and green with the same tables, ready for steps given as `(id, kind, value)`.
    pub async fn new(blue_sql: &str, green_sql: &str, queue: &str, steps: &[(&str, &str, Value)]) -> Self {
        let blue = Database::with(servers::blue().await, blue_sql).await;
        let green = Database::with(servers::green().await, green_sql).await;
        let target = |d: &Database| Target {
            url: Secret::new(d.handover_url()),
            reader: Some(Secret::new(d.reader_url())),
            search_path: SearchPath::default(),
        };
        let targets: BTreeMap<String, Target> =
            [("blue".to_owned(), target(&blue)), ("green".to_owned(), target(&green))].into();
        let run = RunId::new();
        let plan = format!("plan-{run}");
        let lease = Lease::granted(&plan, 1, Instant::now(), Duration::from_secs(3600));
        let databases = Databases::new(targets).under(lease.clone());
        for name in ["blue", "green"] {
            let mut session = databases.writer(name).await.unwrap();
            install(&mut session, Part::Database).await.unwrap();
            take_over(&mut session, &lease).await.unwrap();
        }
        let (emitter, events) = Emitter::channel();
        let ledger = Arc::new(MemoryLedger::default());
        let steps: Vec<Step> = steps.iter().map(|(id, kind, value)| step(id, kind, value.clone())).collect();
        let context = Context {
            port: Port {
                run,
                step: "none".into(),
                plan: plan.into(),
                base: Arc::new(".".into()),
                databases,
                queue: Some(EnvString(queue.to_owned())),
                emitter,
                stop: CancellationToken::new(),
                memory: ledger.clone(),
            },
            links: Arc::new(links(&steps)),
            ledger: ledger.clone(),
            accept_loss: false,
            export: None,
            may_wait: false,
            critical: Default::default(),
        };
        Bench { blue, green, ledger, events: Mutex::new(events), context, steps }
    }

    /// The context of a step, with a stop of its own.
    pub fn context(&self, id: &str) -> Context {
        Context {
            port: Port { step: id.into(), stop: CancellationToken::new(), ..self.context.port.clone() },
            ..self.context.clone()
        }
    }

    pub fn step(&self, id: &str) -> Step {
        self.steps.iter().find(|step| step.id.as_str() == id).unwrap().clone()
    }

    /// Runs and verifies a step, as the engine does with failures that pass, and starts its standing task.
    pub async fn run(&self, id: &str) -> Result<Value> {
        let cx = self.context(id);
        let kind = self.step(id).kind;
        let summary = tokio::time::timeout(Duration::from_secs(120), async {
            loop {
                match kind.run(&cx).await {
                    Err(error) if error.class().is_transient() => {
                        cx.sleep(Duration::from_millis(200)).await?
                    }
                    other => return other,
                }
            }
        })
        .await
        .map_err(|_| Error::internal(format!("step {id} did not end: {:?}", self.said())))??;
        kind.verify(&cx).await?;
        if kind.stands() {
            self.stand(id);
        }
        Ok(summary)
    }

    /// Starts a standing task.
    pub fn stand(&self, id: &str) {
        let cx = self.context(id);
        let kind = self.step(id).kind;
        let stop = cx.stop.clone();
        let handle = tokio::spawn(async move { kind.stand(&cx).await });
        self.ledger.standing.lock().unwrap().insert(id.into(), (stop, handle));
    }

    /// Breaks a standing task off wherever it is, as a crash would, and starts it again.
    pub async fn crash(&self, id: &str) {
        let task = self.ledger.standing.lock().unwrap().remove(&StepId::from(id));
        if let Some((_, handle)) = task {
            handle.abort();
            let _ = handle.await;
            self.stand(id);
        }
    }

    /// The result of a standing task that ends by itself.
    pub async fn outcome(&self, id: &str) -> Result<()> {
        let (_, handle) = self.ledger.standing.lock().unwrap().remove(&StepId::from(id)).unwrap();
        tokio::time::timeout(Duration::from_secs(60), handle).await.unwrap().unwrap()
    }

    pub async fn undo(&self, id: &str) -> Result<Value> {
        self.step(id).kind.undo(&self.context(id)).await
    }

    /// What was told so far, as text.
    pub fn said(&self) -> Vec<String> {
        let mut events = self.events.lock().unwrap();
        let mut out = Vec::new();
        while let Ok(event) = events.try_recv() {
            match event {
                Event::Note { text, .. } | Event::Standing { text, .. } => out.push(text),
                _ => {}
            }
        }
        out
    }
}

/// A step as the plan layer would make it.
pub fn step(id: &str, kind: &str, value: Value) -> Step {
    let kind = kinds().iter().find(|k| k.name == kind).unwrap();
    Step {
        id: id.into(),
        title: None,
        timeout: None,
        retry: Default::default(),
        on_failure: Default::default(),
        kind_name: kind.name,
        kind: (kind.parse)(value).unwrap(),
    }
}
