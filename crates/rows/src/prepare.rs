//! The operator's SQL, as the server reads it before anything acts on it.

use handover_core::error::{Error, Result};
use handover_postgres::Session;
use handover_postgres::binding::assert_bound;

/// Prepares a SELECT, and sees that each sub-select's columns are its own; returns its number of columns.
pub(crate) async fn prepare(session: &Session, sql: &str, place: &str) -> Result<usize> {
    let statement = session.prepare(sql).await.map_err(|e| {
        e.context(format!("the SQL under `{place}` is not accepted")).or_hint("correct it in the plan")
    })?;
    if !statement.params().is_empty() {
        return Err(Error::data(format!("the SQL under `{place}` has a parameter"))
            .on_database(session.database())
            .hint("write the value itself instead of $1"));
    }
    assert_bound(session, sql, place).await?;
    Ok(statement.columns().len())
}
