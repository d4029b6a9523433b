//! What a copy saw of its source at its point in time, kept with its plan for a cutover to compare with what is then.

use crate::state::states;
use handover_core::error::Result;
use handover_core::event::{RunId, StepId};
use handover_port::Port;
use handover_postgres::fingerprint::{self, Facts, Row};
use handover_postgres::ours::OURS;
use handover_postgres::{Session, Tx};

/// Where it is kept, as a unit of the copy's checkpoints. Another name for other words.
const UNIT: &str = "fingerprint 2";

/// Keeps what a copy saw at its point in time, with the plan of the copy.
///
/// # Errors
/// What a server says.
pub async fn keep(port: &Port, source: &Session, tx: &Tx<'_>) -> Result<()> {
    let facts = fingerprint::look(source).await?;
    tx.save_checkpoint(port.run, &port.step, UNIT, &fingerprint::to_rows(&facts)).await
}

/// What a copy saw; none of one that an earlier version made.
pub async fn read(green: &Session, run: RunId, step: &StepId) -> Result<Option<Facts>> {
    let found: Vec<Vec<Row>> = states(green, run, step, UNIT).await?;
    Ok(found.into_iter().next().map(fingerprint::from_rows))
}

/// Names the copy that filled a database, and when it did; none where none did. Another copy has another name.
pub async fn filled(green: &Session) -> Result<Option<String>> {
    let there = green.query_one(&format!("select to_regclass('{OURS}.checkpoint') is not null"), &[]).await?;
    if !there.get::<_, bool>(0) {
        return Ok(None);
    }
    let sql = &format!(
        "select concat_ws('/', run, step, extract(epoch from at)) from {OURS}.checkpoint
               where unit = $1 order by at desc limit 1"
    );
    Ok(green.query_opt(sql, &[&UNIT]).await?.map(|row| row.get(0)))
}
