//! The queue in a Postgres database, for those who have no broker: schema `handover_queue`, or what
//! the plan's `schema:` makes of it.
//!
//! Publishing is one transaction for the whole batch, so a failed publish has stored nothing. A consumer holds a
//! session-level advisory lock, so the URL must lead to the server itself or to a pool in session mode.

mod connect;
mod consumer;
mod schema;

use crate::stream::{
    Consumer, Message, Options, Queue, check_name, check_partitions, no_stream, other_partitions,
};
use crate::url::QueueUrl;
use async_trait::async_trait;
use connect::{Session, Target, is_missing};
use handover_core::error::{Error, Result};
use handover_postgres::ours::OURS;
use std::future::Future;
use tokio::sync::Mutex;
use tokio_postgres::error::SqlState;

/// Rows and bytes of one INSERT; a message to the server may have 1 GiB at most.
const ROWS: usize = 5_000;
const BYTES: usize = 16 << 20;
/// The largest message: far below what a value may have, as it is in memory several times on both sides.
const LARGEST: usize = 64 << 20;
/// Rows deleted in one transaction by `purge` and `delete`.
const CHUNK: i64 = 20_000;

pub struct Embedded {
    target: Target,
    version: String,
    publisher: Mutex<Option<Session>>,
}

impl Embedded {
    pub async fn connect(url: &QueueUrl, options: Options) -> Result<Self> {
        let target = Target::new(url, options)?;
        let session = target.connect().await?;
        let row = session.client.query_one("select current_setting('server_version')", &[]).await;
        let version: String = row.map_err(|e| target.error(&e, "ask for the version"))?.get(0);
        // Debian's version continues after a space.
        let version = version.split(' ').next().unwrap_or_default().to_owned();
        Ok(Self { target, version, publisher: Mutex::new(Some(session)) })
    }

    fn place(&self) -> String {
        format!("Postgres at {}", self.target.place())
    }

    /// Runs a statement on the shared session, which is made again when it broke.
    async fn within<T, F, W>(&self, stream: &str, doing: &str, work: F) -> Result<T>
    where
        F: FnOnce(Session) -> W + Send,
        W: Future<Output = (Session, Result<T, tokio_postgres::Error>)> + Send,
    {
        let mut slot = self.publisher.lock().await;
        let session = match slot.take() {
            Some(session) if !session.client.is_closed() => session,
            _ => self.target.connect().await?,
        };
        // The session is out of its place meanwhile: a cancelled call drops it, and its transaction with it.
        let limit = self.target.options.operation_timeout + std::time::Duration::from_secs(2);
        let Ok((session, result)) = tokio::time::timeout(limit, work(session)).await else {
            return Err(Error::new(
                handover_core::error::Class::Connection,
                format!(
                    "{}: could not {doing} stream `{stream}` within {} s",
                    self.place(),
                    limit.as_secs_f64()
                ),
            )
            .hint("the server does not answer: see that it is up, then `handover resume`"));
        };
        *slot = Some(session);
        result.map_err(|e| {
            // Foreign keys hold a message to its partition.
            if is_missing(&e) || e.code() == Some(&SqlState::FOREIGN_KEY_VIOLATION) {
                no_stream(stream, &self.place())
            } else {
                self.target.error(&e, &format!("{doing} stream `{stream}`"))
            }
        })
    }

    async fn partitions(&self, stream: &str) -> Result<i32> {
        let name = stream.to_owned();
        let found = self
            .within(stream, "look at", |session| async move {
                let sql = &format!("select partitions from {OURS}_queue.stream where name = $1");
                let row = session.client.query_opt(sql, &[&name]).await;
                (session, row)
            })
            .await?;
        found.map(|row| row.get(0)).ok_or_else(|| no_stream(stream, &self.place()))
    }

    /// Deletes messages piece by piece, so that no single statement runs into its time limit.
    async fn empty(&self, stream: &str, doing: &str) -> Result<()> {
        loop {
            let name = stream.to_owned();
            let deleted = self
                .within(stream, doing, |session| async move {
                    let sql = &format!(
                        "delete from {OURS}_queue.message where ctid = any (array(
                                 select ctid from {OURS}_queue.message where stream = $1 limit $2))"
                    );
                    let deleted = session.client.execute(sql, &[&name, &CHUNK]).await;
                    (session, deleted)
                })
                .await?;
            if deleted == 0 {
                return Ok(());
            }
        }
    }
}

#[async_trait]
impl Queue for Embedded {
    fn describe(&self) -> String {
        format!("Postgres {} at {} (embedded queue)", self.version, self.target.place())
    }

    fn max_message(&self) -> usize {
        LARGEST
    }

    async fn declare(&self, stream: &str, partitions: u32) -> Result<()> {
        check_name(stream)?;
        check_partitions(partitions)?;
        schema::install(&self.target).await?;
        let name = stream.to_owned();
        let wanted = i32::try_from(partitions).unwrap_or(i32::MAX);
        let found: i32 = self
            .within(stream, "declare", |mut session| async move {
                let result = declare(&mut session, &name, wanted).await;
                (session, result)
            })
            .await?;
        if found != wanted {
            return Err(other_partitions(stream, &self.place(), &format!("{found} partitions"), partitions));
        }
        Ok(())
    }

    async fn publish(&self, stream: &str, batch: &[Message]) -> Result<()> {
        check_name(stream)?;
        if batch.is_empty() {
            return Ok(());
        }
        if let Some(large) = batch.iter().find(|message| message.payload.len() > LARGEST) {
            return Err(crate::stream::too_large(&self.place(), large.payload.len(), LARGEST));
        }
        let stream_name = stream.to_owned();
        self.within(stream, "publish to", |mut session| async move {
            let result = insert(&mut session, &stream_name, batch).await;
            (session, result)
        })
        .await
    }

    async fn consume(&self, stream: &str, partition: u32, prefetch: u16) -> Result<Box<dyn Consumer>> {
        check_name(stream)?;
        let partitions = self.partitions(stream).await?;
        if i64::from(partition) >= i64::from(partitions) {
            return Err(no_stream(&format!("{stream}.{partition}"), &self.place()));
        }
        Ok(Box::new(consumer::EmbeddedConsumer::new(self.target.clone(), stream, partition, prefetch).await?))
    }

    async fn depth(&self, stream: &str) -> Result<u64> {
        check_name(stream)?;
        self.partitions(stream).await?;
        let name = stream.to_owned();
        let row = self
            .within(stream, "count", |session| async move {
                let row = session
                    .client
                    .query_one(
                        &format!("select count(*) from {OURS}_queue.message where stream = $1"),
                        &[&name],
                    )
                    .await;
                (session, row)
            })
            .await?;
        Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or_default())
    }

    async fn purge(&self, stream: &str) -> Result<()> {
        check_name(stream)?;
        self.partitions(stream).await?;
        self.empty(stream, "purge").await
    }

    async fn delete(&self, stream: &str) -> Result<()> {
        check_name(stream)?;
        match self.partitions(stream).await {
            // No stream or not even the tables.
            Err(e) if e.class() == handover_core::error::Class::Data => return Ok(()),
            other => other?,
        };
        self.empty(stream, "delete").await?;
        let name = stream.to_owned();
        self.within(stream, "delete", |session| async move {
            // Takes with it, by the foreign keys, what was published since.
            let deleted = session
                .client
                .execute(&format!("delete from {OURS}_queue.stream where name = $1"), &[&name])
                .await;
            (session, deleted)
        })
        .await?;
        Ok(())
    }
}

/// Declares in one transaction, and returns the number of partitions that is there afterwards.
async fn declare(session: &mut Session, stream: &str, partitions: i32) -> Result<i32, tokio_postgres::Error> {
    let tx = session.client.transaction().await?;
    tx.execute(
        &format!("insert into {OURS}_queue.stream (name, partitions) values ($1, $2) on conflict do nothing"),
        &[&stream, &partitions],
    )
    .await?;
    let found: i32 = tx
        .query_one(&format!("select partitions from {OURS}_queue.stream where name = $1"), &[&stream])
        .await?
        .get(0);
    tx.execute(
        &format!(
            "insert into {OURS}_queue.partition (stream, partition) select $1, generate_series(0, $2 - 1)
         on conflict do nothing"
        ),
        &[&stream, &found],
    )
    .await?;
    tx.commit().await?;
    Ok(found)
}

/// Inserts a batch in one transaction. What is there already is published again: it gets a new row, which an
/// acknowledgement of the old one leaves, and consumers that are beyond it go back to it.
async fn insert(session: &mut Session, stream: &str, batch: &[Message]) -> Result<(), tokio_postgres::Error> {
    let tx = session.client.transaction().await?;
    let sql = tx
        .prepare(&format!(
            "with batch as (
                 select distinct on (p, n) p, n, b from unnest($2::integer[], $3::bigint[], $4::bytea[]) as m(p, n, b)
                 order by p, n
             ), published as (
                 insert into {OURS}_queue.message (stream, partition, number, payload) select $1, p, n, b from batch
                 on conflict (stream, partition, number) do update set payload = excluded.payload
             )
             update {OURS}_queue.partition p set delivered = m.lowest - 1
             from (select p, min(n) as lowest from batch group by p) m
             where p.stream = $1 and p.partition = m.p and p.delivered >= m.lowest"
        ))
        .await?;
    let mut rest = batch;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest.iter().take(ROWS).take_while(|m| {
            bytes += m.payload.len();
            bytes <= BYTES
        });
        // One message that is larger than the limit still goes, alone.
        let (chunk, later) = rest.split_at(fits.count().max(1));
        let partitions: Vec<i32> =
            chunk.iter().map(|m| i32::try_from(m.partition).unwrap_or(i32::MAX)).collect();
        let numbers: Vec<i64> = chunk.iter().map(|m| m.number).collect();
        let payloads: Vec<&[u8]> = chunk.iter().map(|m| m.payload.as_slice()).collect();
        tx.execute(&sql, &[&stream, &partitions, &numbers, &payloads]).await?;
        rest = later;
    }
    tx.batch_execute(&format!("notify {OURS}_queue")).await?;
    tx.commit().await
}
