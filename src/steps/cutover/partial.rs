//! Writes to captured tables that their capture leaves out: an operation that is not captured, rows for which a
//! condition does not hold, columns that events do not carry.
//!
//! The server counts inserted, updated and deleted rows of each table. The copy kept the counters of its beginning;
//! what they moved by since, less what was captured, was not carried over. The table itself cannot be asked, since
//! captured writes change it too. So this errs on both sides, and says so: the counters also count what was rolled
//! back, a backend reports up to ten seconds after its commit, and a crash of the server sets them back.
//! (<https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-STATS-VIEWS>)

use super::feeds;
use super::options::Cutover;
use crate::error::{Class, Error, Result};
use crate::event::StepId;
use crate::postgres::{Session, TableName};
use crate::problem::few;
use crate::steps::{Context, Description};
use handover_copy::counters;
use handover_copy::state;
use handover_events::capture::Capture;
use handover_events::capture::{Gap, OPERATIONS, Rest, Why, words};
use handover_events::catalog::inspect;
use handover_events::{Stream, outbox};
use std::collections::{BTreeMap, BTreeSet};

/// A captured table of which something is left out.
struct Partial<'a> {
    capture: &'a StepId,
    table: &'a TableName,
    gaps: Vec<Gap>,
    /// The tables that hold its rows: itself, or its partitions.
    leaves: Vec<TableName>,
}

/// The tables that are copied, frozen and captured in part, and of which the plan does not say that the rest may be
/// lost.
async fn partial<'a>(cutover: &'a Cutover, cx: &'a Context, blue: &Session) -> Result<Vec<Partial<'a>>> {
    if feeds::copies(cutover, cx).next().is_none() {
        return Ok(Vec::new());
    }
    let captures: Vec<(&StepId, &Capture)> = feeds::captures(cutover, cx).collect();
    let whole: BTreeSet<&TableName> = captures
        .iter()
        .flat_map(|(_, capture)| &capture.tables)
        .filter(|(_, table)| table.gaps(None).is_empty())
        .map(|(name, _)| name)
        .collect();
    let mut out = Vec::new();
    let mut replicated = None;
    for (id, capture) in captures {
        for (name, table) in &capture.tables {
            let copied = feeds::copies(cutover, cx).any(|(_, copy)| copy.takes_rows(name));
            if !copied
                || table.rest == Rest::Ignore
                || whole.contains(name)
                || cutover.except.contains(name)
                || table.gaps(None).is_empty()
            {
                continue;
            }
            if replicated.is_none() {
                replicated = Some(feeds::replicated(cutover, cx, blue).await?);
            }
            let leaves = leaves(blue, name).await?;
            if replicated.as_ref().is_some_and(|r| leaves.iter().all(|leaf| r.contains(leaf))) {
                continue;
            }
            let columns: Option<Vec<String>> = inspect(blue, name)
                .await?
                .map(|facts| facts.columns.into_iter().map(|(column, _)| column).collect());
            let gaps = table.gaps(columns.as_deref());
            if !gaps.is_empty() {
                out.push(Partial { capture: id, table: name, gaps, leaves });
            }
        }
    }
    Ok(out)
}

async fn leaves(blue: &Session, table: &TableName) -> Result<Vec<TableName>> {
    let rows = blue
        .query(
            "select n.nspname::text, c.relname::text
             from pg_class r join pg_namespace rn on rn.oid = r.relnamespace
             cross join lateral (select r.oid union select t.relid::oid from pg_partition_tree(r.oid::regclass) t) l (oid)
             join pg_class c on c.oid = l.oid join pg_namespace n on n.oid = c.relnamespace
             where rn.nspname = $1 and r.relname = $2 and c.relkind = 'r'",
            &[&table.schema, &table.name],
        )
        .await?;
    Ok(rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}

/// Refuses a cutover that would lose such writes. Cheap where nothing is captured in part.
pub async fn refuse(cutover: &Cutover, cx: &Context, blue: &Session, green: &Session) -> Result<()> {
    let partial = partial(cutover, cx, blue).await?;
    if partial.is_empty() {
        return Ok(());
    }
    let now: BTreeMap<TableName, [i64; 3]> = counters::operations(blue).await?.into_iter().collect();
    let started = counters::server_started(blue).await?;
    let mut lost = Vec::new();
    for (step, copy) in feeds::copies(cutover, cx) {
        let Some(state) = state::read(green, cx.run, step).await? else { continue };
        let then: BTreeMap<&TableName, [i64; 3]> = state.operations.iter().map(|(t, n)| (t, *n)).collect();
        if started != state.server_started || then.is_empty() {
            cx.warn(format!(
                "the server's counters began anew since the copy, so writes to {} that were not captured before that are not seen",
                few(&partial.iter().map(|p| p.table).collect::<Vec<_>>())
            ));
        }
        for part in partial.iter().filter(|part| copy.takes_rows(part.table)) {
            let mut since = [0_i64; 3];
            for leaf in &part.leaves {
                let (now, then) = (now.get(leaf).copied().unwrap_or_default(), then.get(leaf).copied());
                for (sum, n) in since.iter_mut().zip(moved(now, then)) {
                    *sum += n;
                }
            }
            let events = match Stream::find(blue, cx.run, part.capture).await? {
                Some(stream) => outbox::written(blue, &stream, part.table).await?,
                None => [0; 3],
            };
            let words = left_out(&part.gaps, since, events);
            if !words.is_empty() {
                lost.push(format!("{} of {}", words.join(", "), part.table));
            }
        }
    }
    if lost.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Class::Invariant,
        format!("written since the copy, and not captured as a whole: {}", lost.join("; ")),
    )
    .on_database(blue.database())
    .hint(
        "the old side serves on. If such writes may be lost (the server also counts those that were rolled back), say \
         `rest: ignore` under the table in the capture, and `handover resume --accept-changes`; else `handover rollback`, \
         capture all operations without `when` and `columns`, and run again",
    ))
}

/// By how much counters moved. Lower ones than before were set back.
fn moved(now: [i64; 3], then: Option<[i64; 3]>) -> [i64; 3] {
    let then = then.unwrap_or_default();
    std::array::from_fn(|i| if now[i] >= then[i] { now[i] - then[i] } else { now[i] })
}

/// The writes that were left out, in words. Of those under a condition, the captured ones count too: from before the
/// copy on, so that the rest is a lower bound.
fn left_out(gaps: &[Gap], since: [i64; 3], events: [i64; 3]) -> Vec<String> {
    let mut out = Vec::new();
    for gap in gaps {
        let Some(at) = OPERATIONS.iter().position(|operation| *operation == gap.operation) else { continue };
        let n = match gap.why {
            Why::Uncaptured | Why::Columns => since[at],
            Why::Condition => since[at] - events[at],
        };
        if n > 0 {
            let (operation, s) = (gap.operation, if n == 1 { "" } else { "s" });
            out.push(match gap.why {
                Why::Uncaptured => format!("{n} {operation}{s}"),
                Why::Condition => format!("{n} {operation}{s} for which its `when` does not hold"),
                Why::Columns => format!("{n} {operation}{s}, of which events carry some columns"),
            });
        }
    }
    out
}

/// What a dry run says of them.
pub async fn describe(cutover: &Cutover, cx: &Context, blue: &Session, out: &mut Description) -> Result<()> {
    for part in partial(cutover, cx, blue).await? {
        out.warning(format!(
            "{} is copied, and of what is written to it afterwards is carried over: {}; the cutover refuses if its counters \
             show such writes, unless the capture says `rest: ignore`",
            part.table,
            words(&part.gaps)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use handover_events::trigger::Operation;

    #[test]
    fn counters_are_compared_operation_by_operation() {
        let gap = |operation, why| Gap { operation, why };
        let gaps = [
            gap(Operation::Insert, Why::Columns),
            gap(Operation::Update, Why::Condition),
            gap(Operation::Delete, Why::Uncaptured),
        ];
        assert!(left_out(&gaps, [0, 5, 0], [0, 5, 0]).is_empty());
        assert!(left_out(&gaps, [0, 5, 0], [0, 7, 0]).is_empty(), "some were captured before the copy");
        assert_eq!(
            left_out(&gaps, [2, 6, 1], [2, 5, 0]),
            [
                "2 inserts, of which events carry some columns",
                "1 update for which its `when` does not hold",
                "1 delete"
            ]
        );
        assert_eq!(moved([5, 5, 5], Some([5, 3, 9])), [0, 2, 5]);
    }
}
