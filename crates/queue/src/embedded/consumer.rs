//! Consuming one partition of the embedded queue.

use super::connect::{Session, Target};
use crate::stream::{Consumer, Delivery, Message, no_stream};
use async_trait::async_trait;
use handover_core::error::{Error, Result};
use handover_postgres::ours::OURS;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// How long to rest when nothing is there. A notification ends it at once; this bound is for a partition whose
/// other consumer goes away, which nobody announces.
const REST: Duration = Duration::from_millis(250);
/// How often to look also for numbers that were acknowledged before: a publisher that repeats a batch brings
/// them back.
const LOOK_BACK: Duration = Duration::from_secs(1);

/// A consumer has a session to itself, whose advisory lock makes it the only one of its partition; the lock goes
/// with the session, however that ends.
pub struct EmbeddedConsumer {
    target: Target,
    session: Session,
    stream: String,
    partition: u32,
    prefetch: usize,
    active: bool,
    /// What was delivered and not acknowledged: tag and number.
    held: VecDeque<(u64, i64)>,
    tag: u64,
    /// The highest number acknowledged here. Rows below it are gone, and skipping their dead index entries keeps
    /// a look cheap while a long transaction holds back vacuum.
    floor: Option<i64>,
    looked_back: Option<Instant>,
    /// The highest number that any consumer was ever given.
    delivered: Option<i64>,
    broken: Option<Error>,
}

impl EmbeddedConsumer {
    pub async fn new(target: Target, stream: &str, partition: u32, prefetch: u16) -> Result<Self> {
        let session = target.connect().await?;
        session
            .client
            .batch_execute(&format!("listen {OURS}_queue"))
            .await
            .map_err(|e| target.error(&e, "listen"))?;
        Ok(Self {
            target,
            session,
            stream: stream.to_owned(),
            partition,
            prefetch: usize::from(prefetch.max(1)),
            active: false,
            held: VecDeque::new(),
            tag: 0,
            floor: None,
            looked_back: None,
            delivered: None,
            broken: None,
        })
    }

    fn number(&self) -> i32 {
        i32::try_from(self.partition).unwrap_or(i32::MAX)
    }

    /// Tries to become the partition's only consumer.
    async fn activate(&mut self) -> Result<bool, tokio_postgres::Error> {
        if !self.active {
            let key = format!("{OURS}_queue:{}:{}", self.stream, self.partition);
            let client = &self.session.client;
            self.active = client
                .query_one("select pg_try_advisory_lock(hashtextextended($1, 0))", &[&key])
                .await?
                .get(0);
            if self.active {
                // Read only now: before, another consumer was still writing it.
                let sql = &format!(
                    "select delivered from {OURS}_queue.partition where stream = $1 and partition = $2"
                );
                self.delivered =
                    client.query_opt(sql, &[&self.stream, &self.number()]).await?.and_then(|row| row.get(0));
            }
        }
        Ok(self.active)
    }

    async fn take(&mut self, max: usize) -> Result<Vec<Delivery>, tokio_postgres::Error> {
        let room = max.min(self.prefetch.saturating_sub(self.held.len()));
        if room == 0 || !self.activate().await? {
            return Ok(Vec::new());
        }
        let mut found = self.select(self.floor, room).await?;
        if found.is_empty() && self.looked_back.is_none_or(|at| at.elapsed() >= LOOK_BACK) {
            self.looked_back = Some(Instant::now());
            // A broker cancels the consumers of a queue that is deleted; here it shows in its row.
            let sql = &format!("select from {OURS}_queue.partition where stream = $1 and partition = $2");
            if self.session.client.query_opt(sql, &[&self.stream, &self.number()]).await?.is_none() {
                let place = format!("Postgres at {}", self.target.place());
                self.broken = Some(no_stream(&self.stream, &place));
                return Ok(Vec::new());
            }
            if self.floor.is_some() {
                found = self.select(None, room).await?;
            }
        }
        let Some(highest) = found.iter().map(|(number, _)| *number).max() else { return Ok(Vec::new()) };
        let before = self.delivered;
        if before < Some(highest) {
            let sql = &format!(
                "update {OURS}_queue.partition set delivered = $3
                       where stream = $1 and partition = $2 and (delivered is null or delivered < $3)"
            );
            self.session.client.execute(sql, &[&self.stream, &self.number(), &highest]).await?;
            self.delivered = Some(highest);
        }
        Ok(found
            .into_iter()
            .map(|(number, payload)| {
                self.tag += 1;
                self.held.push_back((self.tag, number));
                let message = Message { partition: self.partition, number, payload };
                Delivery {
                    message,
                    tag: self.tag,
                    redelivered: before.is_some_and(|before| number <= before),
                }
            })
            .collect())
    }

    async fn select(
        &self,
        above: Option<i64>,
        room: usize,
    ) -> Result<Vec<(i64, Vec<u8>)>, tokio_postgres::Error> {
        let held: Vec<i64> = self.held.iter().map(|(_, number)| *number).collect();
        let room = i64::try_from(room).unwrap_or(i64::MAX);
        let sql = &format!(
            "select number, payload from {OURS}_queue.message
                   where stream = $1 and partition = $2 and number > $3 and number <> all ($4)
                   order by number limit $5"
        );
        let above = above.unwrap_or(i64::MIN);
        let rows =
            self.session.client.query(sql, &[&self.stream, &self.number(), &above, &held, &room]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    fn fail(&mut self, error: &tokio_postgres::Error, doing: &str) -> Error {
        let error = self
            .target
            .error(error, &format!("{doing} stream `{}`, partition {}", self.stream, self.partition));
        self.broken = Some(error.clone());
        error
    }
}

#[async_trait]
impl Consumer for EmbeddedConsumer {
    async fn next(&mut self, max: usize, wait: Duration) -> Result<Vec<Delivery>> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let deadline = Instant::now() + wait;
        let published = self.session.published.clone();
        loop {
            let batch = self.take(max).await.map_err(|e| self.fail(&e, "consume"))?;
            if let Some(error) = &self.broken {
                return Err(error.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !batch.is_empty() || left.is_zero() || max == 0 {
                return Ok(batch);
            }
            // Ended early by a notification, also by one that came since the look.
            let _ = tokio::time::timeout(left.min(REST), published.notified()).await;
        }
    }

    async fn ack(&mut self, up_to_tag: u64) -> Result<()> {
        if up_to_tag > self.tag {
            return Err(Error::internal(format!(
                "acknowledged tag {up_to_tag}, but {} was the last",
                self.tag
            )));
        }
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let numbers: Vec<i64> =
            self.held.iter().take_while(|(tag, _)| *tag <= up_to_tag).map(|(_, number)| *number).collect();
        if numbers.is_empty() {
            return Ok(());
        }
        let sql = &format!(
            "delete from {OURS}_queue.message where stream = $1 and partition = $2 and number = any ($3)"
        );
        self.session
            .client
            .execute(sql, &[&self.stream, &self.number(), &numbers])
            .await
            .map_err(|e| self.fail(&e, "acknowledge to"))?;
        self.held.drain(..numbers.len());
        // Nothing that is still held may fall under the floor.
        let highest = numbers.iter().max().copied();
        let lowest_held = self.held.iter().map(|(_, number)| number.saturating_sub(1)).min();
        self.floor = self.floor.max(lowest_held.map_or(highest, |held| highest.min(Some(held))));
        Ok(())
    }
}
