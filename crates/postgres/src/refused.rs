//! Why there is no connection.

use handover_core::error::{Class, Error};
use std::time::Duration;

/// Why there is no connection.
#[derive(Debug)]
pub enum Refused {
    /// What the driver, or the server through it, says.
    Driver(tokio_postgres::Error),
    /// No answer for this long.
    Silent(Duration),
    /// Servers answered, and none is a primary (or a standby), which the URL asks for.
    Unwanted(&'static str),
}

impl Refused {
    /// As an error of ours; `from_driver` is how the caller words what the driver says.
    pub fn into_error(self, from_driver: impl FnOnce(&tokio_postgres::Error) -> Error) -> Error {
        match self {
            Refused::Driver(error) => from_driver(&error),
            Refused::Silent(limit) => {
                Error::new(Class::Connection, format!("no answer within {} s", limit.as_secs()))
                    .hint("see that the server is up and reachable from here, and check firewalls")
            }
            Refused::Unwanted(role) => Error::new(
                Class::Connection,
                format!("none of its hosts is a {role} now, which target_session_attrs asks for"),
            )
            .hint("a failover may be under way: wait for it, or correct the hosts in the URL"),
        }
    }
}
