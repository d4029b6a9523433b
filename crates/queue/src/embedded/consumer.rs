//! Consuming one partition of the embedded queue.

use super::connect::{Session, Target};
use crate::stream::{Consumer, Delivery, Message, no_stream};
use async_trait::async_trait;
use handover_core::error::{Error, Result};
use handover_postgres::ours::OURS;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;
use tokio_postgres::Row;

/// How long to rest when nothing is there. A notification ends it at once; this bound is for a partition whose
/// other consumer goes away, which nobody announces.
const REST: Duration = Duration::from_millis(250);
/// How often an idle consumer looks at everything: a publisher that was slow to commit may have brought a number
/// that is lower than what another one brought meanwhile.
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
    /// What was delivered and not acknowledged.
    held: VecDeque<Held>,
    tag: u64,
    /// The last number that was delivered here. Looking only beyond it skips dead index entries, which keeps a look
    /// cheap while a long transaction holds back vacuum.
    position: Option<i64>,
    looked_back: Option<Instant>,
    broken: Option<Error>,
}

/// A delivery that is not acknowledged. `version` tells the row from the one that a publisher makes of it by
/// publishing it again: that one is not acknowledged along with it.
struct Held {
    tag: u64,
    number: i64,
    version: String,
}

/// What one look at a partition finds.
struct Look {
    /// The highest number that a consumer was given, lowered by whoever publishes lower ones again.
    delivered: Option<i64>,
    /// Number, version and payload, in the order of numbers.
    found: Vec<(i64, String, Vec<u8>)>,
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
            position: None,
            looked_back: None,
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
        }
        Ok(self.active)
    }

    async fn take(&mut self, max: usize) -> Result<Vec<Delivery>, tokio_postgres::Error> {
        let room = max.min(self.prefetch.saturating_sub(self.held.len()));
        if room == 0 || !self.activate().await? {
            return Ok(Vec::new());
        }
        let mut above = self.position;
        loop {
            let Some(look) = self.look(above, room).await? else {
                // A broker cancels the consumers of a queue that is deleted; here it shows in its row.
                let place = format!("Postgres at {}", self.target.place());
                self.broken = Some(no_stream(&self.stream, &place));
                return Ok(Vec::new());
            };
            // Lower ones were published again.
            if look.delivered < above {
                above = look.delivered;
                continue;
            }
            let Some(highest) = look.found.last().map(|(number, ..)| *number) else {
                if above.is_some() && self.looked_back.is_none_or(|at| at.elapsed() >= LOOK_BACK) {
                    self.looked_back = Some(Instant::now());
                    above = None;
                    continue;
                }
                return Ok(Vec::new());
            };
            if look.delivered < Some(highest) && !self.note(look.delivered, highest).await? {
                continue;
            }
            self.position = Some(highest);
            return Ok(look.found.into_iter().map(|row| self.deliver(row, look.delivered)).collect());
        }
    }

    /// Notes what is about to be delivered, unless a publisher lowered the number since it was looked at.
    async fn note(&self, before: Option<i64>, highest: i64) -> Result<bool, tokio_postgres::Error> {
        let sql = &format!(
            "update {OURS}_queue.partition set delivered = $4
                   where stream = $1 and partition = $2 and delivered is not distinct from $3"
        );
        let client = &self.session.client;
        Ok(client.execute(sql, &[&self.stream, &self.number(), &before, &highest]).await? > 0)
    }

    fn deliver(
        &mut self,
        (number, version, payload): (i64, String, Vec<u8>),
        before: Option<i64>,
    ) -> Delivery {
        self.tag += 1;
        self.held.push_back(Held { tag: self.tag, number, version });
        Delivery {
            message: Message { partition: self.partition, number, payload },
            tag: self.tag,
            redelivered: before.is_some_and(|before| number <= before),
        }
    }

    /// Nothing if the partition is not there.
    async fn look(&self, above: Option<i64>, room: usize) -> Result<Option<Look>, tokio_postgres::Error> {
        let (numbers, versions): (Vec<i64>, Vec<&str>) =
            self.held.iter().map(|held| (held.number, held.version.as_str())).unzip();
        let room = i64::try_from(room).unwrap_or(i64::MAX);
        let sql = &format!(
            "select p.delivered, m.number, m.version, m.payload
             from {OURS}_queue.partition p left join lateral (
                 select number, xmin::text as version, payload from {OURS}_queue.message
                 where stream = $1 and partition = $2 and number > $3
                   and (number, xmin::text) not in (select * from unnest($4::bigint[], $5::text[]))
                 order by number limit $6) m on true
             where p.stream = $1 and p.partition = $2 order by m.number"
        );
        let above = above.unwrap_or(i64::MIN);
        let client = &self.session.client;
        let rows =
            client.query(sql, &[&self.stream, &self.number(), &above, &numbers, &versions, &room]).await?;
        let found = |row: &Row| Some((row.get::<_, Option<i64>>(1)?, row.get(2), row.get(3)));
        Ok(rows
            .first()
            .map(|row| Look { delivered: row.get(0), found: rows.iter().filter_map(found).collect() }))
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
        let (numbers, versions): (Vec<i64>, Vec<&str>) = self
            .held
            .iter()
            .take_while(|held| held.tag <= up_to_tag)
            .map(|held| (held.number, held.version.as_str()))
            .unzip();
        if numbers.is_empty() {
            return Ok(());
        }
        let sql = &format!(
            "delete from {OURS}_queue.message m using unnest($3::bigint[], $4::text[]) as held (number, version)
             where stream = $1 and partition = $2 and m.number = held.number and m.xmin::text = held.version"
        );
        self.session
            .client
            .execute(sql, &[&self.stream, &self.number(), &numbers, &versions])
            .await
            .map_err(|e| self.fail(&e, "acknowledge to"))?;
        self.held.drain(..numbers.len());
        Ok(())
    }
}
