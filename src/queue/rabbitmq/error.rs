//! What RabbitMQ's answers mean to the engine
//! (reply codes: <https://www.rabbitmq.com/amqp-0-9-1-reference#constants>).

use crate::error::{Class, Error};
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
        406 => (
            Class::Data,
            "a queue of this name exists with other settings; delete it if nothing needs it, or choose another \
             stream name",
        ),
        405 => (
            Class::Contention,
            "another connection holds the queue exclusively; find it with `rabbitmqctl list_queues`",
        ),
        506 => (
            Class::Resources,
            "the broker is out of a resource; see its log and `rabbitmq-diagnostics status`",
        ),
        320 | 501 | 504 | 541 => (Class::Connection, CHECK_BROKER),
        _ => (Class::External, "see the broker's log for the reason"),
    };
    Error::new(class, format!("{place}: could not {doing}: {text}")).hint(hint)
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
