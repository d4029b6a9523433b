//! Consuming one partition from RabbitMQ.

use super::error;
use super::properties::number_of;
use crate::stream::{Consumer, Delivery, Message};
use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt};
use handover_core::error::{Class, Error, Result};
use lapin::options::BasicAckOptions;
use lapin::{Channel, Connection};
use std::sync::Arc;
use std::time::Duration;

/// How long the broker may take to close a channel.
const CLOSING: Duration = Duration::from_secs(10);

pub struct RabbitConsumer {
    pub partition: u32,
    pub queue: String,
    pub place: String,
    pub channel: Channel,
    /// There from when the broker was asked to the drop.
    pub deliveries: Option<lapin::Consumer>,
    /// The highest tag delivered and the highest acknowledged.
    pub delivered: u64,
    pub acked: u64,
    /// What ended this consumer, told on every later call.
    pub broken: Option<Error>,
    /// A connection closes when its last handle goes.
    pub connection: Option<Arc<Connection>>,
}

impl Drop for RabbitConsumer {
    /// Closes the channel before lapin cancels the consumer. After a cancel the broker would serve the next
    /// consumer at once, while the messages that this one holds come back only with the channel's end: behind
    /// later ones (seen on 3.10). With the channel, everything returns to its place.
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (channel, deliveries, connection) =
            (self.channel.clone(), self.deliveries.take(), self.connection.take());
        runtime.spawn(async move {
            // An error means that it is closed already; a broker that does not answer loses the connection.
            let _ = tokio::time::timeout(CLOSING, channel.close(200, "OK".into())).await;
            drop((deliveries, connection));
        });
    }
}

impl RabbitConsumer {
    fn take(&mut self, item: Option<lapin::Result<lapin::message::Delivery>>) -> Result<Delivery> {
        let doing = format!("consume from queue `{}`", self.queue);
        let result = match item {
            Some(Ok(delivery)) => self.convert(delivery),
            Some(Err(e)) => Err(error::operation(&e, &self.place, &doing)),
            None => Err(Error::new(
                Class::Connection,
                format!("{}: could not {doing}: the broker cancelled it", self.place),
            )
            .hint("the queue was deleted or its node went down; `handover resume` tries again")),
        };
        if let Err(e) = &result {
            self.broken = Some(e.clone());
        }
        result
    }

    fn convert(&mut self, delivery: lapin::message::Delivery) -> Result<Delivery> {
        let number = number_of(&delivery.properties).ok_or_else(|| {
            Error::data(format!(
                "{}: queue `{}` holds a message that Handover did not publish",
                self.place, self.queue
            ))
            .hint(
                "find out who publishes into this queue, take the message out with the management page, and \
                       `handover resume`",
            )
        })?;
        self.delivered = delivery.delivery_tag;
        Ok(Delivery {
            message: Message { partition: self.partition, number, payload: delivery.data },
            tag: delivery.delivery_tag,
            redelivered: delivery.redelivered,
        })
    }
}

#[async_trait]
impl Consumer for RabbitConsumer {
    async fn next(&mut self, max: usize, wait: Duration) -> Result<Vec<Delivery>> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let mut batch = Vec::new();
        if max == 0 {
            return Ok(batch);
        }
        let Some(deliveries) = &mut self.deliveries else { return Ok(batch) };
        let Ok(first) = tokio::time::timeout(wait, deliveries.next()).await else { return Ok(batch) };
        batch.push(self.take(first)?);
        while batch.len() < max {
            let Some(item) = self.deliveries.as_mut().and_then(|d| d.next().now_or_never()) else { break };
            match self.take(item) {
                Ok(delivery) => batch.push(delivery),
                // What came before the break is still good; the error is told by the next call.
                Err(_) => break,
            }
        }
        Ok(batch)
    }

    async fn ack(&mut self, up_to_tag: u64) -> Result<()> {
        if up_to_tag <= self.acked {
            return Ok(());
        }
        if up_to_tag > self.delivered {
            // Tag 0 and unknown tags have meanings in AMQP that we must never reach by accident.
            return Err(Error::internal(format!(
                "acknowledged tag {up_to_tag}, but {} was the last",
                self.delivered
            )));
        }
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        self.channel.basic_ack(up_to_tag, BasicAckOptions { multiple: true }).await.map_err(|e| {
            let error = error::operation(&e, &self.place, &format!("acknowledge to queue `{}`", self.queue));
            self.broken = Some(error.clone());
            error
        })?;
        self.acked = up_to_tag;
        Ok(())
    }
}
