//! Whether a server reads the name of our own schema without quotes.

use crate::error::from_postgres;
use crate::ours::{DEFAULT, OURS};
use handover_core::error::{Error, Result};

/// Refuses a name that this server's SQL would not read without quotes: one of its own words.
///
/// # Errors
/// Such a name; what the server says.
pub async fn assert_plain(client: &tokio_postgres::Client, database: &str) -> Result<()> {
    let name = OURS.name();
    if name == DEFAULT {
        return Ok(());
    }
    let row = client.query_one("select pg_catalog.quote_ident($1) = $1", &[&name]).await;
    if row.map_err(|e| from_postgres(&e, database))?.get(0) {
        return Ok(());
    }
    Err(Error::usage(format!("`{name}` is a word of SQL, and cannot name Handover's own schema"))
        .on_database(database)
        .hint(format!("choose another `schema:`, for example `{name}_upgrade`")))
}
