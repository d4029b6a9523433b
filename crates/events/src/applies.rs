//! How a transaction says that it applies events, for triggers that treat those differently: a capture leaves out what comes
//! back to it from its own other side, and a gate that is shut lets it through.
//!
//! It is a setting of the transaction, which goes with it. Nobody sets it by accident, as it holds a run's id; it keeps
//! nobody out who means to write.
//! (<https://www.postgresql.org/docs/current/runtime-config-custom.html>)

use handover_postgres::ours::OURS;
use handover_postgres::quote_literal;

/// The setting.
fn setting() -> String {
    format!("{OURS}.applies")
}

/// The expression that says, as part of a query, that the transaction applies events of the stream `name`, an expression too.
pub(crate) fn saying(name: &str) -> String {
    format!("pg_catalog.set_config('{}', {name}, true)", setting())
}

/// The condition that the transaction applies events of one of these streams.
#[must_use]
pub fn one_of(streams: &[String]) -> String {
    let names: Vec<String> = streams.iter().map(|stream| quote_literal(stream)).collect();
    format!("pg_catalog.current_setting('{}', true) in ({})", setting(), names.join(", "))
}
