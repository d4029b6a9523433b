//! What a queue is, whoever holds it.

use async_trait::async_trait;
use handover_core::error::{Error, Result};
use std::time::Duration;

/// The most partitions a stream may have.
pub const MAX_PARTITIONS: u32 = 256;

/// One captured event on its way, identified by `(partition, number)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The partition, from 0.
    pub partition: u32,
    /// The publisher's number within the partition.
    pub number: i64,
    /// Opaque bytes.
    pub payload: Vec<u8>,
}

/// A message as a consumer received it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// Its place in this consumer's deliveries, rising; what `ack` takes.
    pub tag: u64,
    /// Whether it was handed to a consumer before. A hint: after a crash of the server it may be wrong.
    pub redelivered: bool,
}

/// A message queue.
#[async_trait]
pub trait Queue: Send + Sync {
    /// What and where it is, for people: `RabbitMQ 3.10.8 at host:5672/vhost`. Never credentials.
    fn describe(&self) -> String;

    /// The largest payload that it takes, in bytes, as far as is known: a broker tells its limit only by refusing.
    fn max_message(&self) -> usize;

    /// Creates the stream. Doing it again is fine.
    ///
    /// # Errors
    /// `Data` when the stream exists with another number of partitions or other settings; `Usage` for a name
    /// or a number of partitions that is not allowed.
    async fn declare(&self, stream: &str, partitions: u32) -> Result<()>;

    /// Publishes all messages, and returns only when every one is durable. Repeating a batch is fine: what is
    /// published again is delivered again, also if a consumer holds it at the moment, and is not acknowledged along with
    /// the first delivery.
    ///
    /// # Errors
    /// `Connection` when the connection broke or the server does not take messages at the moment; `Data` when
    /// the stream or partition does not exist, and for nothing else; `Resources` for a message above what the server
    /// takes, and [`Queue::max_message`] says from then on how large that is. Some of the batch may have been stored:
    /// repeat the whole.
    async fn publish(&self, stream: &str, batch: &[Message]) -> Result<()>;

    /// Starts consuming a partition, with at most `prefetch` (at least 1) messages not yet acknowledged. Only
    /// one consumer of a partition gets messages at a time; the others stand by. Cancelling the future leaves no
    /// consumer behind.
    ///
    /// # Errors
    /// `Data` when the partition does not exist.
    async fn consume(&self, stream: &str, partition: u32, prefetch: u16) -> Result<Box<dyn Consumer>>;

    /// How many messages wait in all partitions. RabbitMQ does not count those that a consumer holds.
    ///
    /// # Errors
    /// `Data` when the stream does not exist.
    async fn depth(&self, stream: &str) -> Result<u64>;

    /// Throws away every message that waits. What a consumer holds goes too in the embedded queue, and stays in
    /// RabbitMQ.
    ///
    /// # Errors
    /// `Data` when the stream does not exist.
    async fn purge(&self, stream: &str) -> Result<()>;

    /// Removes the stream and all its messages. Doing it again is fine.
    ///
    /// # Errors
    /// `Connection` or `Privilege`.
    async fn delete(&self, stream: &str) -> Result<()>;
}

/// One consumer of one partition. Dropping it gives back what it has not acknowledged.
#[async_trait]
pub trait Consumer: Send {
    /// The next messages: waits up to `wait` for the first one, then takes what is there already, at most
    /// `max`. Empty when nothing came. Cancelling the future loses nothing but time: what was taken is delivered
    /// again to the next consumer.
    ///
    /// # Errors
    /// `Connection` when the connection broke, or the server took the messages back because they were held too
    /// long: take a new consumer.
    async fn next(&mut self, max: usize, wait: Duration) -> Result<Vec<Delivery>>;

    /// Acknowledges every delivery up to and including this tag. Doing it again is fine. An acknowledgement can
    /// be lost with the connection, and the messages then come again.
    ///
    /// # Errors
    /// `Connection`; `Internal` for a tag that this consumer never delivered.
    async fn ack(&mut self, up_to_tag: u64) -> Result<()>;
}

/// How patient to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// For name resolution, TCP, TLS and login together.
    pub connect_timeout: Duration,
    /// How long `publish` waits for the server to confirm anything before it gives up, and the limit of every
    /// other single operation.
    pub operation_timeout: Duration,
    /// What the server lists this client as.
    pub name: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            operation_timeout: Duration::from_secs(30),
            name: "handover".to_owned(),
        }
    }
}

/// Refuses stream names that one of the implementations could not hold.
pub(crate) fn check_name(stream: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if stream.is_empty() || stream.len() > 200 || stream.starts_with("amq.") || !stream.chars().all(allowed) {
        return Err(Error::usage(format!("`{}` cannot name a stream", stream.escape_default()))
            .hint("use 1 to 200 letters, digits, `.`, `_` and `-`, not beginning with `amq.`"));
    }
    Ok(())
}

pub(crate) fn check_partitions(partitions: u32) -> Result<()> {
    if !(1..=MAX_PARTITIONS).contains(&partitions) {
        return Err(Error::usage(format!("a stream cannot have {partitions} partitions"))
            .hint(format!("use 1 to {MAX_PARTITIONS}")));
    }
    Ok(())
}

pub(crate) fn no_stream(stream: &str, place: &str) -> Error {
    Error::data(format!("stream `{stream}` does not exist in {place}"))
        .hint("it was never declared or somebody deleted it; `handover resume` declares and fills it again from the outbox")
}

pub(crate) fn too_large(place: &str, bytes: usize, limit: usize) -> Error {
    Error::new(
        handover_core::error::Class::Resources,
        format!("{place} takes no message above {limit} bytes, and one has {bytes}"),
    )
    .hint("raise its limit (`max_message_size` in rabbitmq.conf), then `handover resume`")
}

pub(crate) fn other_partitions(stream: &str, place: &str, found: &str, wanted: u32) -> Error {
    Error::data(format!("stream `{stream}` in {place} has {found}, not {wanted}"))
        .hint("keep the number of partitions that the run began with, or delete the stream first if nothing needs it")
}
