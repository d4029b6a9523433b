//! Events in hand: what a batch applies, within the budget of bytes, with what the queue does not carry.

use super::event::Event;
use crate::stream::Stream;
use crate::{budget, outbox};
use handover_core::error::{Class, Error, Result};
use handover_port::Port;
use handover_postgres::Session;
use std::collections::HashMap;
use tokio::sync::{Mutex, SemaphorePermit};

/// Reads large events from the old side's outbox, one batch after the other.
#[derive(Debug)]
pub struct Loader {
    blue: String,
    stream: Stream,
    session: Mutex<Option<Session>>,
}

/// The events of a batch, and the right to hold so many bytes.
pub struct Loaded {
    pub events: Vec<Event>,
    _permit: Option<SemaphorePermit<'static>>,
}

impl Loaded {
    /// Keeps one event, and gives the bytes of all back.
    pub fn release(self, index: usize) -> Result<Event> {
        let missing = || Error::internal("a batch stopped behind its end");
        self.events.into_iter().nth(index).ok_or_else(missing)
    }
}

impl Loader {
    pub fn new(blue: &str, stream: Stream) -> Self {
        Loader { blue: blue.to_owned(), stream, session: Mutex::new(None) }
    }

    /// Takes as many of the events as fit a batch, at least one, and fetches those that stayed in the outbox.
    pub async fn load(&self, port: &Port, partition: i32, mut ready: Vec<Event>) -> Result<Loaded> {
        let mut bytes = 0;
        let fits = ready
            .iter()
            .take_while(|event| {
                bytes += event.size();
                bytes <= budget::BATCH
            })
            .count();
        ready.truncate(fits.max(1));
        let bytes = ready.iter().map(Event::size).sum();
        let permit = budget::take(bytes).await;
        let numbers: Vec<i64> = ready.iter().filter(|e| e.stored.is_some()).map(|e| e.number).collect();
        if !numbers.is_empty() {
            let mut found = self.stored(port, partition, &numbers).await?;
            for event in ready.iter_mut().filter(|event| event.stored.is_some()) {
                // It goes only when green holds its mark: somebody else applied it.
                let payload = found.remove(&event.number).ok_or_else(|| {
                    Error::new(
                        Class::Contention,
                        format!("event {} is not in the outbox any more", event.number),
                    )
                    .on_database(&self.blue)
                    .hint("the partition's mark is read again by itself")
                })?;
                *event = Event::parse(event.number, payload.into_bytes().into())?;
            }
        }
        Ok(Loaded { events: ready, _permit: permit })
    }

    async fn stored(&self, port: &Port, partition: i32, numbers: &[i64]) -> Result<HashMap<i64, String>> {
        let mut slot = self.session.lock().await;
        // Taken out: a call that fails or is broken off leaves none behind.
        let session = match slot.take() {
            Some(session) => session,
            // Of the old side itself: a standby may not have the event yet.
            None => port.databases.labelled(port.step.as_str()).read_only(&self.blue).await?,
        };
        let found = outbox::stored(&session, &self.stream, partition, numbers).await?;
        *slot = Some(session);
        Ok(found.into_iter().collect())
    }
}
