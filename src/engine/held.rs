//! Which of the things that Handover left in a database are one plan's.

use crate::error::Result;
use crate::event::RunId;
use crate::postgres::leftovers::{Leftover, LeftoverKind, SNAPSHOT_PREFIX};
use crate::postgres::ours::OURS;
use crate::postgres::{Lease, Session, quote_ident};
use std::collections::BTreeSet;

/// Counting stops here, as in a list of everything.
const COUNTED: i64 = 100_000;

/// Whose things are asked for.
pub struct Whose<'a> {
    /// The plan's name.
    pub plan: &'a str,
    /// Every run of it.
    pub runs: &'a [RunId],
    /// What the names of its steps' triggers begin with.
    pub triggers: &'a [String],
}

/// Keeps what is this plan's. What does not say whose it is stays in the list.
pub async fn only(session: &Session, whose: &Whose<'_>, found: Vec<Leftover>) -> Result<Vec<Leftover>> {
    let runs: Vec<uuid::Uuid> = whose.runs.iter().map(|run| run.0).collect();
    let simple: Vec<String> = runs.iter().map(|run| run.simple().to_string()).collect();
    let captures = captures(session, &runs).await?;
    let ours = |name: &str| simple.iter().any(|run| name.contains(run));
    let mut out = Vec::new();
    for leftover in found {
        let name = leftover.name.as_str();
        let keep = match leftover.kind {
            LeftoverKind::Session => name.starts_with(&Lease::application_prefix(whose.plan)),
            LeftoverKind::Snapshot => name
                .strip_prefix(SNAPSHOT_PREFIX)
                .is_some_and(|rest| runs.iter().any(|run| rest.starts_with(&run.to_string()))),
            LeftoverKind::Trigger => trigger(name, whose, &captures),
            LeftoverKind::Slot | LeftoverKind::Publication | LeftoverKind::Subscription => {
                ours(name) || !names_a_run(name)
            }
            LeftoverKind::Table => {
                out.extend(table(session, &runs, &simple, &leftover).await?);
                false
            }
        };
        if keep {
            out.push(leftover);
        }
    }
    Ok(out)
}

/// The numbers of the captures that these runs made.
async fn captures(session: &Session, runs: &[uuid::Uuid]) -> Result<BTreeSet<String>> {
    let there = session
        .query_one(
            &format!("select coalesce(pg_catalog.has_table_privilege(pg_catalog.to_regclass('{OURS}.capture'), 'select'), false)"),
            &[],
        )
        .await?;
    if !there.get::<_, bool>(0) {
        return Ok(BTreeSet::new());
    }
    let rows =
        session.query(&format!("select id::text from {OURS}.capture where run = any($1)"), &[&runs]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Whether a trigger is one that a step of the plan made. A capture's carries its number.
fn trigger(name: &str, whose: &Whose<'_>, captures: &BTreeSet<String>) -> bool {
    let number = name.strip_prefix("00_handover_").and_then(|rest| rest.split('_').next());
    number.is_some_and(|number| captures.contains(number))
        || whose.triggers.iter().any(|start| name.starts_with(start.as_str()))
}

/// Whether a name carries a run's id, as the names of slots and publications do.
fn names_a_run(name: &str) -> bool {
    name.split('_').any(|part| part.len() == 32 && part.chars().all(|c| c.is_ascii_hexdigit()))
}

/// A table of ours with the rows that are of these runs; none when there are none.
async fn table(
    session: &Session,
    runs: &[uuid::Uuid],
    simple: &[String],
    leftover: &Leftover,
) -> Result<Option<Leftover>> {
    let name = format!("{OURS}.{}", quote_ident(&leftover.name));
    let columns = session
        .query(
            "select attname::text, pg_catalog.has_table_privilege(attrelid, 'select') from pg_catalog.pg_attribute
             where attrelid = pg_catalog.to_regclass($1) and attnum > 0 and not attisdropped
               and attname in ('run', 'capture', 'stream')",
            &[&name],
        )
        .await?;
    let has = |column: &str| columns.iter().any(|row| row.get::<_, &str>(0) == column);
    let readable = columns.iter().all(|row| row.get::<_, bool>(1));
    let of_runs = if has("run") {
        "run = any($1) or $2::text[] is null"
    } else if has("capture") {
        &format!("$2::text[] is null or capture in (select id from {OURS}.capture where run = any($1))")
    } else if has("stream") {
        "$1::uuid[] is null or pg_catalog.right(stream, 32) = any($2)"
    } else {
        return Ok(Some(leftover.clone()));
    };
    if !readable {
        return Ok(Some(leftover.clone()));
    }
    let sql = format!("select count(*) from (select from {name} where {of_runs} limit {}) t", COUNTED + 1);
    let rows: i64 = session.query_one(&sql, &[&runs, &simple]).await?.get(0);
    let words = if rows > COUNTED {
        format!("more than {COUNTED} rows")
    } else {
        crate::problem::count(usize::try_from(rows).unwrap_or_default(), "row")
    };
    Ok((rows > 0).then(|| {
        // The size is the whole table's.
        let detail =
            if leftover.detail.starts_with(&format!("{words},")) { leftover.detail.clone() } else { words };
        Leftover { detail, ..leftover.clone() }
    }))
}
