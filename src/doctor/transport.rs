//! How the plan's connections are protected on their way: whether the server must prove who it is.
//!
//! Connections that do not leave this machine need no proof: a socket, or the loopback interface by number or as
//! `localhost`. Whoever can stand between there can read our memory as well.

use super::findings::Notes;
use crate::postgres::address::Address;
use crate::queue::{QueueUrl, url::Kind};
use crate::value::Secret;

/// A URL that cannot be read is reported by whoever connects.
pub(super) fn examine(url: &Secret, key: &str, notes: &mut Notes) {
    let Ok(address) = Address::parse(url) else { return };
    if address.verifies() || address.is_local() {
        return;
    }
    let (mode, _) = address.certificates();
    let what = match mode {
        "disable" | "allow" => "is not encrypted: passwords and rows can be read on the way",
        "prefer" => "is not verified, and not even encrypted where the server does not offer it",
        _ => "is encrypted, but whoever answers is taken for the server",
    };
    notes.warning(
        format!("the connection of `{key}` to {} {what} (sslmode={mode})", address.place()),
        "say sslmode=verify-full in the URL, and sslrootcert=/path/ca.pem for a certificate authority of your own",
    );
}

/// The same for the queue.
pub(super) fn examine_queue(url: &Secret, notes: &mut Notes) {
    let Ok(parsed) = QueueUrl::parse(url.expose()) else { return };
    if parsed.kind() == Kind::Postgres {
        return examine(url, "queue", notes);
    }
    if !parsed.is_encrypted() && !parsed.is_local() {
        notes.warning(
            format!("the connection of `queue` to {} is not encrypted: passwords and events can be read on the way", parsed.authority()),
            "use amqps:// (by custom on port 5671), which also verifies the server; cacertfile=/path/ca.pem names a certificate authority of your own",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warned(url: &str, queue: bool) -> String {
        let mut notes = Notes::new("x");
        let url = Secret::new(url);
        if queue {
            examine_queue(&url, &mut notes)
        } else {
            examine(&url, "databases.blue", &mut notes)
        }
        notes.findings.iter().map(|finding| finding.what.clone()).collect()
    }

    #[test]
    fn what_takes_anybody_for_the_server_is_named() {
        for (url, word) in [
            ("postgres://u:hunter2@db.example/d", "not even encrypted"),
            ("postgres://u:hunter2@db.example/d?sslmode=require", "whoever answers"),
            ("host=db.example password=hunter2 sslmode=disable", "not encrypted"),
            ("postgres://u@127.0.0.1,db.example/d", "not even encrypted"),
        ] {
            let text = warned(url, false);
            assert!(
                text.contains(word) && text.contains("db.example") && !text.contains("hunter2"),
                "{text}"
            );
        }
        for url in [
            "postgres://u@db.example/d?sslmode=verify-full",
            "host=db.example sslrootcert=system",
            "postgres://u@localhost/d",
            "postgres://u@127.0.0.1/d?sslmode=disable",
            "host=/run/postgresql user=u",
        ] {
            assert_eq!(warned(url, false), "", "{url}");
        }
        assert!(warned("amqp://u:p@broker.example/v", true).contains("broker.example:5672 is not encrypted"));
        assert!(warned("postgres://u@db.example/q", true).contains("`queue`"));
        for url in ["amqps://u:p@broker.example", "amqp://u:p@localhost", "amqp://u:p@[::1]/"] {
            assert_eq!(warned(url, true), "", "{url}");
        }
    }
}
