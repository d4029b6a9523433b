//! What travels beside a message's payload: its number, and that it is to be durable.

use crate::stream::Message;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

/// The header that carries a message's number.
const NUMBER: &str = "handover-number";
const PERSISTENT: u8 = 2;

pub(super) fn properties(message: &Message) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert(NUMBER.into(), AMQPValue::LongLongInt(message.number));
    BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_headers(headers)
}

pub(super) fn number_of(properties: &BasicProperties) -> Option<i64> {
    match properties.headers().as_ref()?.inner().get(NUMBER)? {
        AMQPValue::LongLongInt(number) => Some(*number),
        _ => None,
    }
}
