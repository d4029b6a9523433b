//! Counts what was written on the new side since the cutover, in a time that has an end.

use super::baseline::{self, Counters, Mark};
use super::captured;
use super::rows::{self, Found};
use super::tally::{How, Lost, Tally};
use crate::error::{Class, Error, Result};
use crate::postgres::{Session, TableName};
use crate::problem::few;
use crate::steps::Context;
use crate::steps::cutover::options::{Cutover, Participant};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long all tables may be searched together.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long the whole may take, connections included: a side that hangs answers nothing.
const LIMIT: Duration = Duration::from_secs(25);
/// The first version that reads a range of a table without the rest.
const READS_RANGES: u32 = 14;
/// Numbers of transactions came round once the next one is this: rows that were frozen long ago may look new.
const ROUND: i64 = 1 << 32;

/// Counts. What is in the way becomes part of the answer.
///
/// # Errors
/// The lease, the journal or a stop.
pub async fn count(cutover: &Cutover, cx: &Context) -> Result<Tally> {
    let Some(to) = &cutover.to else { return Ok(Tally::unknown("", "there is no new side")) };
    let counted = async {
        let mark = mark(cutover, cx).await?;
        let green = cx.databases.labelled(cx.step.as_str()).read_only(to).await?;
        with(cutover, cx, &green, &mark).await
    };
    match tokio::time::timeout(LIMIT, counted).await {
        Ok(Ok(tally)) => Ok(tally),
        Ok(Err(error)) if matches!(error.class(), Class::LeaseLost | Class::Journal | Class::Cancelled) => {
            Err(error)
        }
        Ok(Err(error)) => Ok(Tally::unknown(to, error.to_string())),
        Err(_) => Ok(Tally::unknown(to, format!("{to} has not answered within {} s", LIMIT.as_secs()))),
    }
}

/// Where the new side stood when it took over.
///
/// # Errors
/// Nothing was kept of that; what the old side says.
pub async fn mark(cutover: &Cutover, cx: &Context) -> Result<Mark> {
    let freeze = cutover.freeze.as_deref().unwrap_or_default();
    let mut blue = cx.databases.labelled(cx.step.as_str()).read_only(freeze).await?;
    baseline::kept(cx, &mut blue).await?.ok_or_else(|| {
        Error::data(format!(
            "{freeze} no longer knows, or was never told, where the new side stood when it took over"
        ))
    })
}

/// Proves that this is the database that took over, and that it went on from there. Returns how many transactions ago the
/// oldest one could be that the mark does not show.
///
/// # Errors
/// It is another one, or an earlier state of it.
pub async fn assert_successor(green: &Session, mark: &Mark) -> Result<i64> {
    let now = baseline::look(green).await?;
    if (now.system, now.oid) != (mark.system, mark.oid) {
        return Err(Error::new(
            Class::Invariant,
            format!("{} is not the database that took over", green.database()),
        ));
    }
    rows::oldest(green, mark).await
}

/// Counts in a database.
async fn with(cutover: &Cutover, cx: &Context, green: &Session, mark: &Mark) -> Result<Tally> {
    let until = Instant::now() + PATIENCE;
    green.set("lock_timeout", "1s").await?;
    let condition = rows::since(mark, assert_successor(green, mark).await?);
    let (now, then) = (baseline::counters(green).await?, baseline::kept_counters(cx));
    let captured = captured::since(cutover, cx, green, mark).await?;
    let by_stretches = green.major().await? >= READS_RANGES;
    let mut tables: Vec<(&String, Option<[i64; 3]>, i64)> =
        now.tables.iter().map(|(name, t)| (name, now.moved(name, then.as_ref()), t.pages)).collect();
    // Those that are known to be written to, then those that are quick to search.
    tables.sort_by_key(|(_, moved, pages)| (*moved == Some([0; 3]), *pages));
    let mut tally = Tally {
        database: green.database().to_owned(),
        at: Timestamp::now(),
        unknown: None,
        tables: Vec::new(),
        notes: Vec::new(),
        mixed: false,
    };
    let mut unseen = Vec::new();
    for (name, moved, _) in tables {
        cx.progress(
            "counting what would be lost",
            tally.tables.len() as u64,
            None,
            crate::event::Measure::Items,
        );
        let still = moved == Some([0; 3]);
        let rewritten = now.rewritten(name, then.as_ref());
        let Ok(table) = TableName::try_from(name.clone()) else { continue };
        let found = match rows::count(green, &table, &condition, by_stretches, until).await {
            Ok(found) => found,
            // Somebody holds it, as a change of its schema does.
            Err(error) if error.class() == Class::Contention => Found { rows: 0, whole: false },
            // Dropped since it was listed; or one that this role may not read.
            Err(error) if matches!(error.class(), Class::Data | Class::Privilege | Class::Usage) => {
                tally.notes.push(format!("{name} could not be searched: {}", error.message()));
                continue;
            }
            Err(error) => return Err(error),
        };
        if let Some(operations) = captured.get(name) {
            if found.rows > 0 || operations.iter().any(|n| *n > 0) {
                tally.tables.push(Lost {
                    table: name.clone(),
                    how: How::Captured,
                    rows: found.whole.then_some(found.rows),
                    at_least: false,
                    operations: Some(*operations),
                    rewritten,
                });
            }
            continue;
        }
        if !found.whole && found.rows == 0 {
            if still {
                unseen.push(name.clone());
                continue;
            }
            tally.tables.push(Lost {
                table: name.clone(),
                how: How::Statistics,
                rows: None,
                at_least: false,
                operations: moved,
                rewritten,
            });
        } else if found.rows > 0 || rewritten || moved.is_some_and(|moved| moved != [0; 3]) {
            tally.tables.push(Lost {
                table: name.clone(),
                how: How::Rows,
                rows: Some(found.rows),
                at_least: !found.whole,
                operations: moved,
                rewritten,
            });
        }
    }
    // Its rows are made with the objects; what was only written into one leaves none here.
    let objects = TableName::new("pg_catalog", "pg_largeobject_metadata");
    let found = rows::count(green, &objects, &condition, by_stretches, until).await?;
    if found.rows > 0 {
        let made = crate::problem::count(usize::try_from(found.rows).unwrap_or(0), "large object");
        tally.notes.push(format!("at least {made} made or given away there since, which no file gets"));
    }
    cx.unit_done("counting what would be lost");
    green.set("statement_timeout", "5s").await?;
    tally.tables.sort_by(|a, b| b.rows.cmp(&a.rows).then_with(|| a.table.cmp(&b.table)));
    notes(cutover, cx, green, &mut tally, (&now, then.as_ref()), &unseen).await?;
    Ok(tally)
}

/// What else is to be known of the numbers.
async fn notes(
    cutover: &Cutover,
    cx: &Context,
    green: &Session,
    tally: &mut Tally,
    (now, then): (&Counters, Option<&Counters>),
    unseen: &[String],
) -> Result<()> {
    let to = green.database();
    let mut notes = Vec::new();
    match then {
        None => notes.push(format!("deletes are not known: nothing was kept of what {to}'s server had counted before")),
        Some(then) if now.reset != then.reset => {
            notes.push(format!("deletes are not known: the statistics of {to} were reset since the cutover"));
        }
        Some(then) if now.started != then.started => notes.push(format!(
            "{to}'s server was started again since the cutover: if it had crashed, its statistics lack what was before"
        )),
        Some(_) => {}
    }
    if !unseen.is_empty() {
        notes.push(format!(
            "not searched, as time was over and their statistics did not move: {}",
            few(unseen)
        ));
    }
    let ours = writers(cutover, cx, to);
    let replayed = then.map_or(0, |then| now.replayed - then.replayed);
    if !ours.is_empty() || replayed > 0 {
        tally.mixed = true;
        let mut who = ours;
        if replayed > 0 {
            who.push(format!("the replay of {replayed} events"));
        }
        notes.push(format!("what this plan itself wrote there since is among it ({})", few(&who)));
    }
    let row = green.query_one("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint", &[]).await?;
    if row.get::<_, i64>(0) >= ROUND {
        tally.mixed = true;
        notes.push(format!(
            "the numbers of {to}'s transactions have come round: rows that are very old may be among it"
        ));
    }
    if cutover.reverse.is_some() {
        tally.mixed = true;
        notes.push(format!(
            "what the stream back carried before it ended is among it, and is on {} already",
            cutover.freeze.as_deref().unwrap_or("the old side")
        ));
    }
    tally.notes.extend(notes);
    Ok(())
}

/// Who of the plan writes to the new side behind the decision: participants, and steps that come later.
fn writers(cutover: &Cutover, cx: &Context, to: &str) -> Vec<String> {
    let participants: BTreeSet<&str> = cutover
        .participants
        .iter()
        .filter(|participant| Participant::databases(participant).any(|database| database == to))
        .map(|participant| participant.name.as_str())
        .collect();
    let steps = cx.links.writers_behind(cx.place(), to);
    participants
        .into_iter()
        .map(|name| format!("participant {name}"))
        .chain(steps.map(|step| format!("step `{step}`")))
        .collect()
}
