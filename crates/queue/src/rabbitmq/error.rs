//! What RabbitMQ's answers mean to the engine
//! (reply codes: <https://www.rabbitmq.com/amqp-0-9-1-reference#constants>).

use handover_core::error::{Class, Error};
use lapin::ErrorKind;

const CHECK_BROKER: &str = "see that the broker is up and reachable, then `handover resume`; nothing is lost, \
                            captured events stay in the outbox";

/// The AMQP reply code of an error, if the broker sent one.
pub fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(e) => Some(e.get_id()),
        _ => None,
    }
}

/// Turns an error of a working connection into ours. `place` is the broker without credentials, `doing` what
/// failed, e.g. "declare queue `x`".
pub fn operation(error: &lapin::Error, place: &str, doing: &str) -> Error {
    let ErrorKind::ProtocolError(e) = error.kind() else {
        return Error::new(Class::Connection, format!("{place}: could not {doing}: {error}"))
            .hint(CHECK_BROKER);
    };
    let text = e.get_message();
    let text = text.as_str();
    let (class, hint) = match e.get_id() {
        403 => (
            Class::Privilege,
            "give this user configure, write and read permission for the stream's queues and write for the \
             default exchange (`rabbitmqctl set_permissions`)",
        ),
        404 => (
            Class::Data,
            "the queue was never declared or somebody deleted it; `handover resume` declares and fills it again \
             from the outbox",
        ),
        // A consumer that holds a delivery longer than consumer_timeout (30 minutes unless configured) loses
        // its channel: https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout
        406 if text.contains("timed out") => (
            Class::Connection,
            "the broker took the messages back and delivers them again; shorten the batches, or raise \
             consumer_timeout on the broker",
        ),
        406 if text.contains("inequivalent arg") => (
            Class::Data,
            "a queue of this name exists with other settings; delete it if nothing needs it, or choose another \
             stream name",
        ),
        406 | 311 if size_limit(text).is_some() => {
            (Class::Resources, "raise `max_message_size` in rabbitmq.conf, then `handover resume`")
        }
        // An acknowledgement that the broker does not know: the consumer is taken anew.
        406 if text.contains("unknown delivery tag") => (Class::Connection, CHECK_BROKER),
        406 => (Class::External, "see the broker's log for the precondition that failed"),
        405 => (
            Class::Contention,
            "another connection holds the queue exclusively; find it with `rabbitmqctl list_queues`",
        ),
        506 => (
            Class::Resources,
            "the broker is out of a resource; see its log and `rabbitmq-diagnostics status`",
        ),
        530 => (
            Class::Usage,
            "the broker does not allow this in the URL's virtual host; see its log, and its policies and limits",
        ),
        // What this client sent was no AMQP to the broker.
        502 | 503 | 505 | 540 => (Class::Internal, "see the broker's log, and report it with both versions"),
        320 | 501 | 504 | 541 => (Class::Connection, CHECK_BROKER),
        _ => (Class::External, "see the broker's log for the reason"),
    };
    Error::new(class, format!("{place}: could not {doing}: {text}")).hint(hint)
}

/// The largest message that the broker takes, if that is what its words are about: `message size 20 is larger than
/// configured max size 10`.
pub fn size_limit(text: &str) -> Option<usize> {
    let (_, rest) = text.split_once("message size ")?;
    let (_, limit) = rest.split_once("max size ")?;
    limit.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Turns an error of the login into ours. The broker's text is not quoted, because it names the user.
pub fn login(error: &lapin::Error, place: &str, vhost: &str) -> Error {
    let text = match error.kind() {
        ErrorKind::ProtocolError(e) => e.get_message().as_str().to_owned(),
        _ => String::new(),
    };
    match code(error) {
        Some(403) => Error::new(Class::Privilege, format!("{place} refused the user name or password")).hint(
            "check the credentials in the URL's environment variable (special characters percent-encoded); the \
             user `guest` may only log in from the broker's own host",
        ),
        Some(530) if text.contains("not found") => {
            Error::usage(format!("{place} has no virtual host `{vhost}`")).hint(format!(
                "create it with `rabbitmqctl add_vhost {vhost}`, or correct the URL's path (the default virtual \
                 host is written %2f)"
            ))
        }
        Some(530) if text.contains("refused") => Error::new(
            Class::Privilege,
            format!("{place} does not let this user into the virtual host `{vhost}`"),
        )
        .hint(format!("grant it with `rabbitmqctl set_permissions -p {vhost} USER '.*' '.*' '.*'`")),
        Some(530) => Error::new(Class::Resources, format!("{place} accepts no more connections ({text})"))
            .hint("raise the connection limit of the virtual host or user, or close idle connections"),
        _ => operation(error, place, "log in"),
    }
}

/// The error for an operation that took too long.
pub fn slow(place: &str, doing: &str, seconds: f64) -> Error {
    Error::new(Class::Connection, format!("{place}: could not {doing} within {seconds} s")).hint(
        "the broker answers too slowly or a queue has lost its quorum: see `rabbitmq-diagnostics \
         check_if_node_is_quorum_critical` and the broker's log, then `handover resume`",
    )
}

/// The error for publishing while a resource alarm is in effect
/// (<https://www.rabbitmq.com/docs/alarms>).
pub fn blocked(place: &str, seconds: f64) -> Error {
    Error::new(
        Class::Connection,
        format!("{place} blocks publishers: a memory or disk alarm was in effect for {seconds} s"),
    )
    .hint(
        "see `rabbitmq-diagnostics alarms` on the broker, and free memory or disk there; publishing goes on by \
         itself then, and captured events wait in the outbox",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(code: u16, text: &str) -> Class {
        let error = lapin::protocol::AMQPError::from_id(code, text.into()).unwrap();
        operation(&lapin::ErrorKind::ProtocolError(error).into(), "RabbitMQ", "do it").class()
    }

    #[test]
    fn one_code_has_many_meanings() {
        for (code, text, expected) in [
            (404, "NOT_FOUND - no queue 'x' in vhost '/'", Class::Data),
            (406, "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'x'", Class::Data),
            (406, "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out", Class::Connection),
            (406, "PRECONDITION_FAILED - unknown delivery tag 7", Class::Connection),
            (
                406,
                "PRECONDITION_FAILED - message size 20 is larger than configured max size 10",
                Class::Resources,
            ),
            (406, "PRECONDITION_FAILED - message size 20 is larger than max size 10", Class::Resources),
            (406, "PRECONDITION_FAILED - cannot switch from tx to confirm mode", Class::External),
            (403, "ACCESS_REFUSED", Class::Privilege),
            (506, "RESOURCE_ERROR", Class::Resources),
            (541, "INTERNAL_ERROR", Class::Connection),
        ] {
            assert_eq!(class(code, text), expected, "{text}");
        }
        assert_eq!(size_limit("message size 20 is larger than configured max size 1048576"), Some(1_048_576));
        assert_eq!(size_limit("inequivalent arg"), None);
    }
}
