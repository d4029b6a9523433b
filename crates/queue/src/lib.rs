//! The queue between capture and replay: one trait, RabbitMQ and Postgres behind it, chosen by the URL.
//!
//! A *stream* is a named set of partitions; each partition is a FIFO queue of messages that their publisher
//! numbered. The promise is **at least once**:
//!
//! - A message whose `publish` returned `Ok` is durable: it survives a crash of the broker, and leaves the
//!   queue only when a consumer acknowledges it (or somebody purges or deletes the stream).
//! - A message may come more than once: because a consumer went away before it acknowledged, or because a
//!   publisher repeated a batch whose outcome it did not learn. Consumers recognise it by its number.
//! - Within a partition the *first* deliveries of numbers come in the order of publishing, as long as every
//!   `publish` succeeded. After a failed one a later message of the batch may be stored without an earlier one,
//!   and the repeated batch then brings the earlier one behind it; and a broker may return what a lost consumer
//!   held behind later messages. A consumer that demands gapless numbers sees the gap, and reads on without
//!   acknowledging anything beyond it until the rest has come. With a full prefetch the rest cannot come: the
//!   publisher must then send it again and the consumer be taken anew.
//!
//! A broken connection is reported as `Class::Connection`. The queue itself reconnects at its next call, so a
//! caller just calls again; a consumer does not survive its connection: take a new one with `consume`.
//!
//! It needs a RabbitMQ node, or a Postgres database in which the role may create a schema.
//!
//! ```
//! use handover_queue::{Kind, QueueUrl};
//!
//! let url = QueueUrl::parse("amqp://guest:secret@mq.internal/upgrade")?;
//! assert_eq!(url.kind(), Kind::RabbitMq);
//! # Ok::<(), handover_core::Error>(())
//! ```

mod embedded;
mod rabbitmq;
mod stream;
pub mod url;

use handover_core::error::Result;
use std::sync::Arc;
pub use stream::{Consumer, Delivery, MAX_PARTITIONS, Message, Options, Queue};
pub use url::{Kind, QueueUrl};

/// Connects to the queue that `url` (a secret) names.
///
/// # Errors
/// `Usage` for a URL that cannot work, `Privilege` when the login is refused, `Connection` when nobody answers.
pub async fn connect(url: &str, options: Options) -> Result<Arc<dyn Queue>> {
    let url = QueueUrl::parse(url)?;
    Ok(match url.kind() {
        Kind::RabbitMq => Arc::new(rabbitmq::RabbitMq::connect(&url, options).await?),
        Kind::Postgres => Arc::new(embedded::Embedded::connect(&url, options).await?),
    })
}
