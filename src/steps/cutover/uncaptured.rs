//! Writes that would be lost without a word: to tables that were copied and are frozen, but not captured.
//!
//! The server counts the rows that are written to each table. The copy kept the counters of its beginning; where
//! one has moved, the table itself is asked, for counters arrive late (a backend reports up to ten seconds after
//! its commit) and start over after a crash. A table that changed has another number of rows than were copied, or
//! a row whose writer the copy's snapshot does not see. Behind the lock the counters are compared once more. A write
//! within the last seconds before the pause may still escape this, as its counter has not moved yet: it guards against
//! jobs that nobody thought of, and only `capture` carries writes over.
//! (<https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-STATS-VIEWS>)

use super::feeds;
use super::options::Cutover;
use super::{freeze, newer, partial};
use crate::error::{Class, Error, Result};
use crate::event::Measure;
use crate::postgres::catalog::is_application;
use crate::postgres::{Session, TableName};
use crate::problem::few;
use crate::steps::{Context, Description};
use handover_copy::counters;
use handover_copy::state::{self, State};
use std::collections::{BTreeMap, BTreeSet};

/// The tables that are copied and frozen, and of which nothing is captured or replicated.
pub async fn exposed(cutover: &Cutover, cx: &Context, blue: &Session) -> Result<Vec<TableName>> {
    if feeds::copies(cutover, cx).next().is_none() {
        return Ok(Vec::new());
    }
    let captured = feeds::captured(cutover, cx);
    // A partition's rows are captured with its parent's; a parent has no rows of its own.
    let rows = blue
        .query(
            &format!(
                "select n.nspname::text, c.relname::text, an.nspname::text, a.relname::text
                 from pg_class c join pg_namespace n on n.oid = c.relnamespace
                 left join lateral pg_partition_ancestors(c.oid) p on c.relispartition
                 left join pg_class a on a.oid = p.relid left join pg_namespace an on an.oid = a.relnamespace
                 where {}",
                is_application("'r'")
            ),
            &[],
        )
        .await?;
    let mut known: BTreeMap<TableName, bool> = BTreeMap::new();
    for row in &rows {
        let name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let parent = match (row.get::<_, Option<String>>(2), row.get::<_, Option<String>>(3)) {
            (Some(schema), Some(table)) => Some(TableName::new(schema, table)),
            _ => None,
        };
        let is = captured.contains(&name) || parent.is_some_and(|parent| captured.contains(&parent));
        *known.entry(name).or_default() |= is;
    }
    let replicated = feeds::replicated(cutover, cx, blue).await?;
    let frozen = freeze::tables(blue, cutover).await?;
    Ok(frozen
        .into_iter()
        .filter(|table| known.get(table) == Some(&false) && !replicated.contains(table))
        .filter(|table| feeds::copies(cutover, cx).any(|(_, copy)| copy.takes_rows(table)))
        .collect())
}

/// What a dry run says: the tables whose writes would make the cutover refuse, those first that are written to.
pub async fn describe(cutover: &Cutover, cx: &Context, blue: &Session, out: &mut Description) -> Result<()> {
    partial::describe(cutover, cx, blue, out).await?;
    left_out(cutover, cx, blue, out).await?;
    let mut silent = exposed(cutover, cx, blue).await?;
    let writes: BTreeMap<TableName, i64> = counters::writes(blue).await?.into_iter().collect();
    let written = |table: &TableName| writes.get(table).copied().unwrap_or_default();
    silent.sort_by_key(|table| std::cmp::Reverse(written(table)));
    if silent.is_empty() {
        return Ok(());
    }
    let (busy, quiet): (Vec<&TableName>, Vec<&TableName>) =
        silent.iter().partition(|table| written(table) > 0);
    let busy: Vec<String> =
        busy.into_iter().map(|table| format!("{table} ({} row writes so far)", written(table))).collect();
    let names = match (busy.is_empty(), quiet.is_empty()) {
        (false, false) => {
            format!("{}; and, without writes since the server counts, {}", few(&busy), few(&quiet))
        }
        (false, true) => few(&busy),
        _ => few(&quiet),
    };
    out.warning(format!(
        "copied, but not captured: {names}; a write to them between the copy and the cutover would be lost, so the cutover \
         refuses if it finds one: add them to `capture`, put a `replicate` behind the copy, or list them under `except:`"
    ));
    Ok(())
}

/// Names the tables that are frozen like all others although no copy takes them and nothing of them is captured.
async fn left_out(cutover: &Cutover, cx: &Context, blue: &Session, out: &mut Description) -> Result<()> {
    let (Some(from), Some(to)) = (&cutover.freeze, &cutover.to) else { return Ok(()) };
    if feeds::copies(cutover, cx).next().is_none() {
        return Ok(());
    }
    let captured = feeds::captured(cutover, cx);
    let left: Vec<TableName> = freeze::tables(blue, cutover)
        .await?
        .into_iter()
        .filter(|table| !captured.contains(table))
        .filter(|table| !feeds::copies(cutover, cx).any(|(_, copy)| copy.selection().table(table)))
        .collect();
    if !left.is_empty() {
        out.warning(format!(
            "frozen like all others, and left out of the copy: {}; from then on {from} only lets them be read, and {to} has \
             none unless something else makes them there: list them under `except:` if they are to be written to on {from}",
            few(&left)
        ));
    }
    Ok(())
}

/// Refuses a cutover that would lose what was written to such tables since the copy. Returns their counters, which must
/// stand still from here on.
pub async fn refuse(
    cutover: &Cutover,
    cx: &Context,
    blue: &Session,
    green: &Session,
) -> Result<BTreeMap<TableName, i64>> {
    partial::refuse(cutover, cx, blue, green).await?;
    let exposed = exposed(cutover, cx, blue).await?;
    if exposed.is_empty() {
        return Ok(BTreeMap::new());
    }
    // Before the tables themselves are looked at, so that no write falls between the two.
    let now: BTreeMap<TableName, i64> = counters::writes(blue).await?.into_iter().collect();
    let started = counters::server_started(blue).await?;
    let (mut changed, mut new) = (Vec::new(), Vec::new());
    for (step, copy) in feeds::copies(cutover, cx) {
        let Some(state) = state::read(green, cx.run, step).await? else { continue };
        let loaded = state::loaded(green, cx.run, step).await?;
        let mut rows: BTreeMap<&TableName, u64> = BTreeMap::new();
        for chunk in &loaded {
            *rows.entry(&chunk.table).or_default() += chunk.rows;
        }
        let counted: BTreeMap<&TableName, i64> = state.writes.iter().map(|(name, n)| (name, *n)).collect();
        let copied: BTreeSet<&TableName> = state.tables.iter().map(|table| &table.name).collect();
        for table in exposed.iter().filter(|table| copy.takes_rows(table)) {
            cx.proceed()?;
            if !copied.contains(table) {
                new.push(table.clone());
                continue;
            }
            if started == state.server_started && counted.get(table) == now.get(table) {
                continue;
            }
            cx.progress("looking for writes that were not captured", 0, None, Measure::Items);
            let rows = rows.get(table).copied().unwrap_or_default();
            if differs(cx, cutover, &state, table, rows).await? {
                changed.push(table.clone());
            }
        }
    }
    cx.unit_done("looking for writes that were not captured");
    if changed.is_empty() && new.is_empty() {
        return Ok(exposed
            .into_iter()
            .filter_map(|table| Some((table.clone(), *now.get(&table)?)))
            .collect());
    }
    let mut text = Vec::new();
    if !changed.is_empty() {
        text.push(format!(
            "written to since the copy, and neither captured nor replicated: {}",
            few(&changed)
        ));
    }
    if !new.is_empty() {
        text.push(format!("made after the copy: {}", few(&new)));
    }
    Err(Error::new(Class::Invariant, format!("the new side would lack what is in tables {}", text.join("; ")))
        .on_database(blue.database())
        .hint("nothing was paused and the old side serves on. `handover rollback`, add these tables to `capture` (or a `replicate` behind the copy), and run again; or list them under the cutover's `except:` if what was written there may be lost"))
}

/// Proves behind the lock that the counters of such tables stand where they stood before the pause.
///
/// # Errors
/// One moved, which the next attempt looks at; or what the server says.
pub async fn assert_unwritten(blue: &Session, before: &BTreeMap<TableName, i64>) -> Result<()> {
    if before.is_empty() {
        return Ok(());
    }
    let now: BTreeMap<TableName, i64> = counters::writes(blue).await?.into_iter().collect();
    let moved: Vec<&TableName> =
        before.iter().filter(|(table, n)| now.get(table) != Some(n)).map(|(table, _)| table).collect();
    if moved.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Class::Contention,
        format!("tables that are neither captured nor replicated were written just before the pause: {}", few(&moved)),
    )
    .on_database(blue.database())
    .hint("add them to `capture`, or list them under the cutover's `except:` if what was written there may be lost"))
}

/// Whether a table is not what the copy saw.
async fn differs(
    cx: &Context,
    cutover: &Cutover,
    state: &State,
    table: &TableName,
    rows: u64,
) -> Result<bool> {
    let Some(freeze) = &cutover.freeze else { return Ok(false) };
    let session = cx.databases.labelled(cx.step.as_str()).read_only(freeze).await?;
    let row = session
        .query_one(
            &format!(
                "select count(*), coalesce(bool_or({}), false) from only {} t",
                newer::than("$1::text::pg_snapshot"),
                table.sql()
            ),
            &[&state.snapshot.xids],
        )
        .await?;
    Ok(row.get::<_, i64>(0).unsigned_abs() != rows || row.get(1))
}
