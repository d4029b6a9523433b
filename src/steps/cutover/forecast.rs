//! How long the pause's own work takes, which grows with the schema: rehearsed while writers go on, so that a budget that
//! cannot be kept is refused before anybody waits for it.

use super::gate::Gate;
use super::options::Cutover;
use super::{freeze, sequences};
use crate::error::{Class, Error, Result};
use crate::postgres::{Session, TableName, fingerprint};
use crate::steps::Context;
use crate::value;
use std::time::{Duration, Instant};

/// What the pause costs beside what is rehearsed: the decision's commit, the marks, some round trips.
const BESIDE: Duration = Duration::from_millis(20);

/// Rehearses it. Locks are taken in the mode of readers and let go; sequences are read and not set.
///
/// # Errors
/// A budget that does not suffice, or what a server says.
pub async fn rehearse(
    cutover: &Cutover,
    cx: &Context,
    blue: &mut Session,
    green: &Session,
) -> Result<Duration> {
    let tables = freeze::tables(blue, cutover).await?;
    let there = cx.databases.worker(blue.database())?.role(blue).await?;
    let here = cx.databases.worker(green.database())?.role(green).await?;
    let begun = Instant::now();
    sequences::look((&*blue, there.as_deref()), (green, here.as_deref())).await?;
    // Setting them writes each.
    let setting = begun.elapsed() * 2;
    let begun = Instant::now();
    let tx = blue.transaction().await?;
    let list: Vec<String> = tables.iter().map(|t: &TableName| format!("only {}", t.sql())).collect();
    let locked = match list.is_empty() {
        true => Ok(()),
        false => tx.batch(&format!("lock table {} in access share mode nowait", list.join(", "))).await,
    };
    match locked {
        Ok(()) => {
            Gate::of(cx).is_hung(&tx, cutover).await?;
            tx.query(&fingerprint::digest_sql(), &[]).await?;
        }
        // Somebody alters a table right now. The pause would wait for that, too, and the lock's own limit sees to it.
        Err(error) if error.class() == Class::Contention => {}
        Err(error) => return Err(error),
    }
    tx.rollback().await?;
    let all = begun.elapsed() + setting + BESIDE;
    let budget = cutover.write_pause.0;
    if all > budget * 3 / 4 {
        return Err(Error::new(
            Class::Invariant,
            format!(
                "holding writers off and setting sequences takes about {all:.0?} for {} tables, and the pause has a budget of {}",
                tables.len(),
                cutover.write_pause
            ),
        )
        .on_database(blue.database())
        .hint(format!(
            "nothing was paused and the old side serves on. Raise `write_pause` to {} or more, or see why this server is slow; then `handover resume --accept-changes`",
            value::Duration::secs(all.as_secs() * 2 + 1)
        )));
    }
    Ok(all)
}
