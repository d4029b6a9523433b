//! Standing tasks: started when their step is done, restarted when they fail in passing, ended by a later
//! step or with the run.

use crate::error::{Class, Error};
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
        let attempts = step.retry.attempts;
        let handle = tokio::spawn(async move {
            let (mut wait, mut failures) = (FIRST_BACKOFF, 0);
            loop {
                let begun = std::time::Instant::now();
                // In a task of its own, so that a panic is a failure like others and not a silence.
                let work = tokio::spawn({
                    let (kind, cx) = (kind.clone(), cx.clone());
                    async move { kind.stand(&cx).await }
                });
                let _end_with_us = AbortOnDrop(work.abort_handle());
                let result = work
                    .await
                    .unwrap_or_else(|e| Err(Error::internal(format!("the standing task broke down ({e})"))));
                let Err(error) = result else { return };
                if cx.stop.is_cancelled() {
                    return;
                }
                // A task that worked for a while earns a fresh backoff.
                if begun.elapsed() > LONGEST_BACKOFF {
                    (wait, failures) = (FIRST_BACKOFF, 0);
                }
                failures += 1;
                // What passes by itself is waited for; what may pass is tried as often as a step would be.
                let outside = error.class() == Class::External && failures < attempts;
                if !error.class().is_transient() && !outside {
                    let _ = failed.send((id.clone(), error.at_step(&id)));
                    return;
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

/// Ends the inner task when the outer one is ended.
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn stop(mut task: Task) {
    task.stop.cancel();
    if tokio::time::timeout(GRACE, &mut task.handle).await.is_err() {
        task.handle.abort();
        let _ = task.handle.await;
    }
}
