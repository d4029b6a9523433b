//! The queue in RabbitMQ: one durable quorum queue per partition, `<stream>.<partition>`, and `<stream>.dead`
//! for whatever the broker itself decides to reject.
//!
//! Two connections are kept, because a resource alarm stops the reading of a connection that has published:
//! consumers on it could no longer acknowledge (<https://www.rabbitmq.com/docs/alarms#client-connections>).

mod connect;
mod consumer;
mod error;
mod properties;

use crate::stream::{
    Consumer, Message, Options, Queue, check_name, check_partitions, no_stream, other_partitions, too_large,
};
use crate::url::QueueUrl;
use async_trait::async_trait;
use connect::{Server, Target, seconds};
use handover_core::error::{Error, Result};
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, QueueDeclareOptions,
    QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Confirmation, Connection, PublisherConfirm};
use properties::properties;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long a new queue is left alone. The broker writes which files are whose queue's a moment after it has
/// confirmed the declaration: 3.10, killed within the first second, starts again with the queue empty, and what
/// it had confirmed by then is lost (measured: lost at 0.7 s, kept at 1.0 s).
const SETTLING: Duration = Duration::from_secs(3);

/// Messages on their way to the broker before the first confirm is awaited.
const WINDOW: usize = 2_000;

pub struct RabbitMq {
    target: Target,
    server: Server,
    /// For everything but publishing.
    link: Mutex<Option<Arc<Connection>>>,
    publisher: Mutex<Option<Publisher>>,
    /// `max_message_size`: its default until the broker names another.
    max_message: AtomicUsize,
}

struct Publisher {
    connection: Connection,
    channel: Channel,
}

impl RabbitMq {
    pub async fn connect(url: &QueueUrl, options: Options) -> Result<Self> {
        let target = Target::new(url, options)?;
        let server = target.identify().await?;
        let max_message = AtomicUsize::new(default_limit(&server));
        let queue = Self { server, link: Mutex::new(None), publisher: Mutex::new(None), max_message, target };
        queue.link().await?;
        Ok(queue)
    }

    /// `RabbitMQ at host:port`, for messages.
    fn place(&self) -> String {
        format!("{} at {}", self.server.product, self.target.place())
    }

    /// The connection for everything but publishing, made again when it broke.
    async fn link(&self) -> Result<Arc<Connection>> {
        let mut link = self.link.lock().await;
        if let Some(connection) = link.as_ref().filter(|c| c.status().connected()) {
            return Ok(connection.clone());
        }
        let connection = Arc::new(self.target.connect().await?);
        *link = Some(connection.clone());
        Ok(connection)
    }

    /// Awaits one operation of lapin under the time limit, and says what failed.
    async fn within<T>(&self, doing: &str, work: impl Future<Output = lapin::Result<T>>) -> Result<T> {
        let limit = self.target.options().operation_timeout;
        match tokio::time::timeout(limit, work).await {
            Err(_) => Err(error::slow(&self.place(), doing, seconds(limit))),
            Ok(Err(e)) => Err(error::operation(&e, &self.place(), doing)),
            Ok(Ok(value)) => Ok(value),
        }
    }

    async fn channel(&self) -> Result<Channel> {
        let link = self.link().await?;
        self.within("open a channel", link.create_channel()).await
    }

    /// The number of waiting messages, or `None` when there is no such queue. Every call takes its own channel,
    /// for the broker closes it when the answer is no.
    async fn count(&self, queue: &str) -> Result<Option<u32>> {
        let channel = self.channel().await?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let asking = channel.queue_declare(queue.into(), options, FieldTable::default());
        let limit = self.target.options().operation_timeout;
        let doing = format!("look at queue `{queue}`");
        match tokio::time::timeout(limit, asking).await {
            Err(_) => Err(error::slow(&self.place(), &doing, seconds(limit))),
            Ok(Err(e)) if error::code(&e) == Some(404) => Ok(None),
            Ok(Err(e)) => Err(error::operation(&e, &self.place(), &doing)),
            Ok(Ok(found)) => Ok(Some(found.message_count())),
        }
    }

    /// The waiting messages of each partition. Partitions are created from the highest down, so a stream is
    /// there when its partition 0 is, and its number of partitions is where the row of queues ends.
    async fn counts(&self, stream: &str) -> Result<Vec<u32>> {
        let mut counts = Vec::new();
        while let Some(count) =
            self.count(&partition_queue(stream, u32::try_from(counts.len()).unwrap_or(u32::MAX))).await?
        {
            counts.push(count);
        }
        if counts.is_empty() {
            return Err(no_stream(stream, &self.place()));
        }
        Ok(counts)
    }

    async fn declare_queue(&self, channel: &Channel, name: &str, arguments: FieldTable) -> Result<()> {
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        self.within(
            &format!("declare queue `{name}`"),
            channel.queue_declare(name.into(), options, arguments),
        )
        .await?;
        Ok(())
    }

    /// A channel in confirm mode on the publishing connection.
    async fn publisher(&self) -> Result<Publisher> {
        let connection = self.target.connect().await?;
        let channel = self.within("open a channel", connection.create_channel()).await?;
        self.within("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Publisher { connection, channel })
    }

    /// Waits while the broker blocks publishers, so that no further message is put on a connection that is
    /// not read.
    async fn unblocked(&self, connection: &Connection) -> Result<()> {
        let limit = self.target.options().operation_timeout;
        let deadline = Instant::now() + limit;
        while connection.status().blocked() && connection.status().connected() {
            if Instant::now() >= deadline {
                return Err(error::blocked(&self.place(), seconds(limit)));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn publish_window(&self, publisher: &Publisher, stream: &str, window: &[Message]) -> Result<()> {
        let mut confirms = Vec::with_capacity(window.len());
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        for message in window {
            let queue = partition_queue(stream, message.partition);
            let sending = publisher.channel.basic_publish(
                "".into(),
                queue.as_str().into(),
                options,
                &message.payload,
                properties(message),
            );
            match self.progress(publisher, sending).await {
                Ok(confirm) => confirms.push((queue, confirm)),
                // That the channel is being closed is all that is said here. Why, what was sent before is told.
                Err(error) => return Err(self.confirm(publisher, confirms).await.err().unwrap_or(error)),
            }
        }
        self.confirm(publisher, confirms).await
    }

    /// Awaits that what was sent is taken.
    async fn confirm(&self, publisher: &Publisher, sent: Vec<(String, PublisherConfirm)>) -> Result<()> {
        for (queue, confirm) in sent {
            self.confirmed(&queue, self.progress(publisher, confirm_future(confirm)).await?)?;
        }
        Ok(())
    }

    /// Awaits one step of publishing. The time limit is for each step, so a large batch may take long as long as
    /// it moves.
    async fn progress<T>(
        &self,
        publisher: &Publisher,
        step: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T> {
        let limit = self.target.options().operation_timeout;
        match tokio::time::timeout(limit, step).await {
            Err(_) if publisher.connection.status().blocked() => {
                Err(error::blocked(&self.place(), seconds(limit)))
            }
            Err(_) => Err(error::slow(&self.place(), "publish", seconds(limit))),
            Ok(Err(e)) => Err(error::operation(&e, &self.place(), "publish")),
            Ok(Ok(value)) => Ok(value),
        }
    }

    /// Remembers the broker's limit on messages if that is what it refused.
    fn learn(&self, error: Error, window: &[Message]) -> Error {
        let Some(limit) = error::size_limit(error.message()) else { return error };
        self.max_message.store(limit, Ordering::Relaxed);
        let largest = window.iter().map(|message| message.payload.len()).max().unwrap_or_default();
        too_large(&self.place(), largest, limit)
    }

    fn confirmed(&self, queue: &str, confirmation: Confirmation) -> Result<()> {
        match confirmation {
            Confirmation::Ack(None) => Ok(()),
            // The broker acknowledges also what it could not route, after it has returned the message.
            Confirmation::Ack(Some(_)) => Err(Error::data(format!("{} has no queue `{queue}`", self.place())).hint(
                "it was never declared or somebody deleted it; `handover resume` declares and fills it again from the outbox",
            )),
            Confirmation::Nack(_) => Err(Error::new(
                handover_core::error::Class::Connection,
                format!("{} refused a message for queue `{queue}`", self.place()),
            )
            .hint(
                "the queue is at a length limit set by a policy, or has no quorum: see `rabbitmqctl list_policies` and \
                 the broker's log; publishing is tried again",
            )),
            Confirmation::NotRequested => Err(Error::internal("the channel was not in confirm mode")),
        }
    }
}

async fn confirm_future(confirm: PublisherConfirm) -> lapin::Result<Confirmation> {
    confirm.await
}

#[async_trait]
impl Queue for RabbitMq {
    fn describe(&self) -> String {
        let Server { product, version } = &self.server;
        format!(
            "{product} {version} at {}/{}",
            self.target.place(),
            self.target.vhost().trim_start_matches('/')
        )
    }

    fn max_message(&self) -> usize {
        self.max_message.load(Ordering::Relaxed)
    }

    async fn declare(&self, stream: &str, partitions: u32) -> Result<()> {
        check_name(stream)?;
        check_partitions(partitions)?;
        let last = partition_queue(stream, partitions - 1);
        let place = self.place();
        if self.count(&partition_queue(stream, partitions)).await?.is_some() {
            return Err(other_partitions(stream, &place, "more partitions", partitions));
        }
        let is_new = self.count(&partition_queue(stream, 0)).await?.is_none();
        if !is_new && self.count(&last).await?.is_none() {
            return Err(other_partitions(stream, &place, "fewer partitions", partitions));
        }
        let channel = self.channel().await?;
        let dead = dead_queue(stream);
        // First, so that there is never a partition whose rejects have nowhere to go.
        self.declare_queue(&channel, &dead, arguments(&self.server)).await?;
        for partition in (0..partitions).rev() {
            let mut arguments = arguments(&self.server);
            insert(&mut arguments, "x-single-active-consumer", AMQPValue::Boolean(true));
            insert(&mut arguments, "x-dead-letter-exchange", string(""));
            insert(&mut arguments, "x-dead-letter-routing-key", string(&dead));
            insert(&mut arguments, "x-dead-letter-strategy", string("at-least-once"));
            self.declare_queue(&channel, &partition_queue(stream, partition), arguments).await?;
        }
        if is_new {
            tokio::time::sleep(SETTLING).await;
        }
        Ok(())
    }

    async fn publish(&self, stream: &str, batch: &[Message]) -> Result<()> {
        check_name(stream)?;
        let mut slot = self.publisher.lock().await;
        for window in batch.chunks(WINDOW) {
            let publisher = match slot.take() {
                Some(p) if p.connection.status().connected() && p.channel.status().connected() => p,
                _ => self.publisher().await?,
            };
            let result = match self.unblocked(&publisher.connection).await {
                Ok(()) => self.publish_window(&publisher, stream, window).await,
                refused => refused,
            };
            let result = result.map_err(|error| self.learn(error, window));
            // After a failure the connection goes, and with it whatever was not sent yet: a repeated batch must
            // not meet leftovers. While publishers are blocked it is kept instead: a new one would be blocked
            // too, after it had sent messages that then lie in the socket.
            if result.is_ok() || publisher.connection.status().blocked() {
                *slot = Some(publisher);
            }
            result?;
        }
        Ok(())
    }

    async fn consume(&self, stream: &str, partition: u32, prefetch: u16) -> Result<Box<dyn Consumer>> {
        check_name(stream)?;
        let queue = partition_queue(stream, partition);
        let connection = self.link().await?;
        let channel = self.within("open a channel", connection.create_channel()).await?;
        // Before the broker is asked: a call that is dropped, or takes too long, closes its channel. lapin alone would
        // leave a consumer behind that nobody reads, and on this queue no other one would be served.
        let mut consumer = consumer::RabbitConsumer {
            partition,
            queue,
            place: self.place(),
            channel,
            deliveries: None,
            delivered: 0,
            acked: 0,
            broken: None,
            connection: Some(connection),
        };
        let limiting = consumer.channel.basic_qos(prefetch.max(1), BasicQosOptions::default());
        self.within("set the prefetch", limiting).await?;
        let starting = consumer.channel.basic_consume(
            consumer.queue.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let doing = format!("consume from queue `{}`", consumer.queue);
        consumer.deliveries = Some(self.within(&doing, starting).await?);
        Ok(Box::new(consumer))
    }

    async fn depth(&self, stream: &str) -> Result<u64> {
        check_name(stream)?;
        Ok(self.counts(stream).await?.into_iter().map(u64::from).sum())
    }

    async fn purge(&self, stream: &str) -> Result<()> {
        check_name(stream)?;
        let partitions = self.counts(stream).await?.len();
        let channel = self.channel().await?;
        for partition in 0..partitions {
            let queue = partition_queue(stream, u32::try_from(partition).unwrap_or(u32::MAX));
            let purging = channel.queue_purge(queue.as_str().into(), QueuePurgeOptions::default());
            self.within(&format!("purge queue `{queue}`"), purging).await?;
        }
        Ok(())
    }

    async fn delete(&self, stream: &str) -> Result<()> {
        check_name(stream)?;
        let channel = self.channel().await?;
        // Every queue that could belong to it, from the highest down, so that an interrupted declaration or
        // deletion leaves nothing behind. Deleting a queue that is not there is no error in RabbitMQ.
        let partitions = (0..crate::stream::MAX_PARTITIONS).rev().map(|p| partition_queue(stream, p));
        for queue in partitions.chain([dead_queue(stream)]) {
            let deleting = channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default());
            self.within(&format!("delete queue `{queue}`"), deleting).await?;
        }
        Ok(())
    }
}

/// What `max_message_size` is unless somebody sets it: 128 MiB, and 16 MiB since 4.0.
fn default_limit(server: &Server) -> usize {
    if server.major().is_some_and(|major| major >= 4) { 16 << 20 } else { 128 << 20 }
}

fn partition_queue(stream: &str, partition: u32) -> String {
    format!("{stream}.{partition}")
}

fn dead_queue(stream: &str) -> String {
    format!("{stream}.dead")
}

/// The arguments that every queue of ours is declared with.
///
/// `reject-publish`, because the default overflow drops the oldest message when a policy limits the length, a
/// confirmed one; and at-least-once dead-lettering demands it
/// (<https://www.rabbitmq.com/docs/quorum-queues#dead-lettering>). A policy that itself sets `overflow` to
/// `drop-head` wins over this; a client cannot see policies, and only the gapless numbers show such a loss.
///
/// No delivery limit: it counts each time a message was merely prefetched by a consumer that went away, so a
/// crash loop of ours would push good messages out of the queue. Up to 3.13 leaving it out means no limit, and
/// -1 would remove a message at its first return. Since 4.0 leaving it out means 20, and -1 means no limit
/// (<https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>). A `delivery-limit` in a policy still
/// wins, which is one reason for the dead-letter queue.
fn arguments(server: &Server) -> FieldTable {
    let mut table = FieldTable::default();
    insert(&mut table, "x-queue-type", string("quorum"));
    insert(&mut table, "x-overflow", string("reject-publish"));
    if server.major().is_some_and(|major| major >= 4) {
        insert(&mut table, "x-delivery-limit", AMQPValue::LongInt(-1));
    }
    table
}

fn insert(table: &mut FieldTable, key: &str, value: AMQPValue) {
    table.insert(key.into(), value);
}

fn string(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delivery_limit_is_switched_off_in_the_way_of_each_version() {
        let of = |version: &str| {
            let server = Server { product: "RabbitMQ".into(), version: version.into() };
            arguments(&server).inner().get("x-delivery-limit").cloned()
        };
        assert_eq!(of("3.10.8"), None);
        assert_eq!(of("3.13.7"), None);
        assert_eq!(of("4.0.5"), Some(AMQPValue::LongInt(-1)));
        assert_eq!(of("4.2.0-rc.1"), Some(AMQPValue::LongInt(-1)));
        assert_eq!(of("unknown"), None);
    }
}
