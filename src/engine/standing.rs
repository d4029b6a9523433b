//! Standing tasks: started when their step is done, restarted when they fail in passing, ended by a later
//! step or with the run.

use crate::error::Error;
use crate::event::StepId;
use crate::steps::{Context, Step};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// How long a task may take to stop by itself.
const GRACE: Duration = Duration::from_secs(15);

struct Task {
    stop: CancellationToken,
    handle: JoinHandle<()>,
}

/// The standing tasks of a run.
#[derive(Default)]
pub struct Supervisor(Mutex<HashMap<StepId, Task>>);

impl Supervisor {
    /// Starts a step's standing task. Failures that do not pass go to `failed`, and the run halts.
    pub fn start(&self, step: &Step, cx: Context, failed: mpsc::UnboundedSender<(StepId, Error)>) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tasks.contains_key(&step.id) {
            return;
        }
        let (kind, id, stop) = (step.kind.clone(), step.id.clone(), cx.stop.clone());
        let handle = tokio::spawn(async move {
            let mut wait = FIRST_BACKOFF;
            loop {
                let begun = std::time::Instant::now();
                let Err(error) = kind.stand(&cx).await else { return };
                if cx.stop.is_cancelled() {
                    return;
                }
                if !error.class().is_transient() {
                    let _ = failed.send((id.clone(), error.at_step(&id)));
                    return;
                }
                // A task that worked for a while earns a fresh backoff.
                if begun.elapsed() > LONGEST_BACKOFF {
                    wait = FIRST_BACKOFF;
                }
                cx.warn(format!("standing task stopped ({error}); it starts again in {wait:?}"));
                if cx.sleep(wait).await.is_err() {
                    return;
                }
                wait = (wait * 2).min(LONGEST_BACKOFF);
            }
        });
        tasks.insert(step.id.clone(), Task { stop, handle });
    }

    /// Stops one task and waits until it has stopped.
    pub async fn end(&self, step: &StepId) {
        let task = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(step);
        if let Some(task) = task {
            stop(task).await;
        }
    }

    /// Stops all tasks and waits until they have stopped.
    pub async fn end_all(&self) {
        let tasks: Vec<Task> =
            self.0.lock().unwrap_or_else(PoisonError::into_inner).drain().map(|(_, t)| t).collect();
        for task in &tasks {
            task.stop.cancel();
        }
        for task in tasks {
            stop(task).await;
        }
    }
}

async fn stop(mut task: Task) {
    task.stop.cancel();
    if tokio::time::timeout(GRACE, &mut task.handle).await.is_err() {
        task.handle.abort();
    }
}
