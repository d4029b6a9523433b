//! The content of tables: summed, and where it differs judged by whether anybody may be writing.

use crate::agreed::{Agreed, Evidence};
use crate::aside;
use crate::checksum::Comparison;
use crate::fence::Fence;
use crate::found::{self, Kind, TableFound};
use crate::given::Carried;
use crate::hash::Hasher;
use crate::narrow::{self, Candidate};
use crate::options::{Checksums, Tables};
use crate::sessions::{Pair, Sessions};
use crate::settle::{Fate, Row, Settling};
use crate::shape::{self, Shape};
use crate::split::{Split, Table};
use handover_core::error::Result;
use handover_core::event::{RunId, StepId};
use handover_core::failpoint;
use handover_port::Port;
use handover_postgres::TableName;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What is compared, and with what.
struct Work {
    pair: Pair,
    hasher: Hasher,
    tables: Vec<Table>,
    /// Tables that cannot be compared.
    broken: Vec<TableFound>,
}

/// What is wanted of a comparison.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Tables whose content is compared.
    pub sums: Option<&'a Checksums>,
    /// Tables of which it is compared which rows there are.
    pub counts: Option<&'a Tables>,
    /// The copy that made "after".
    pub copy: Option<Carried<'a>>,
    /// The run and step of that copy, if it may have set rows aside.
    pub aside: Option<(RunId, &'a StepId)>,
}

impl Wanted<'_> {
    /// The tables, each with whether its content is compared.
    fn tables(&self, there: &BTreeMap<TableName, Shape>, before: &str) -> Result<Vec<(TableName, bool)>> {
        let mut out = BTreeMap::new();
        if let Some(Tables { tables, exclude }) = self.counts {
            let chosen = shape::chosen(there, tables, exclude, self.copy, before)?;
            out.extend(chosen.into_iter().map(|name| (name, false)));
        }
        if let Some(Checksums { tables, exclude, .. }) = self.sums {
            let chosen = shape::chosen(there, tables, exclude, self.copy, before)?;
            out.extend(chosen.into_iter().map(|name| (name, true)));
        }
        Ok(out.into_iter().collect())
    }
}

/// Reads the catalogs and decides how each chosen table is split.
async fn prepare(wanted: Wanted<'_>, sessions: Sessions<'_>, before_name: &str) -> Result<Work> {
    let pair = sessions.pair().await?;
    let (there, now) = tokio::try_join!(shape::shapes(&pair.before), shape::shapes(&pair.after))?;
    let hasher = Hasher::agree(&pair.before, &pair.after).await?;
    let (mut broken, mut tables) = (Vec::new(), Vec::new());
    let rows = wanted.sums.map_or_else(|| Checksums::default().chunk_rows(), Checksums::chunk_rows);
    for (name, content) in wanted.tables(&there, before_name)? {
        let Some(before) = there.get(&name).cloned() else { continue };
        let Some(after) = now.get(&name).cloned() else {
            broken.push(TableFound::broken(&name, found::GONE));
            continue;
        };
        let mut table = Table::new(name, before, after, rows);
        if let Some((run, step)) = wanted.aside {
            table.aside = aside::condition(&pair.after, run, step, &table).await?;
        }
        if !content {
            tables.push(table.counted());
            continue;
        }
        let lost = table.lost();
        if lost.is_empty() {
            tables.push(table);
        } else {
            broken.push(TableFound::broken(&table.name, format!("columns {} are gone", lost.join(", "))));
        }
    }
    Ok(Work { pair, hasher, tables, broken })
}

/// Compares what stands still: each side at one point in time, and every difference is one.
///
/// # Errors
/// What either server says.
pub async fn frozen(
    cx: &Port,
    wanted: Wanted<'_>,
    sessions: Sessions<'_>,
    jobs: usize,
    before_name: &str,
    evidence: &Evidence,
) -> Result<(Vec<TableFound>, Agreed)> {
    let Work { pair, hasher, tables, mut broken } = prepare(wanted, sessions, before_name).await?;
    let agreed = read_agreed(cx, &tables, evidence)?;
    let compared = Comparison::new(cx, sessions, hasher, &tables, &agreed).run(jobs).await?;
    for (table, (mut found, candidates)) in tables.iter().zip(compared) {
        let keyed = !table.key.is_empty();
        let few: Vec<(Candidate, Kind)> = candidates
            .into_iter()
            .take(found::SHOWN)
            .map(|candidate| {
                let kind = candidate.kind(keyed).0;
                (candidate, kind)
            })
            .collect();
        found.shown = narrow::show(pair.both(), table, &hasher, &few).await?;
        broken.push(found);
    }
    broken.sort_by(|a, b| a.table.cmp(&b.table));
    Ok((broken, agreed))
}

/// What earlier attempts agreed on, of tables that are split the same way as then.
fn read_agreed(cx: &Port, tables: &[Table], evidence: &Evidence) -> Result<Agreed> {
    let mut evidence = evidence.clone();
    for table in tables {
        if let (Some(text), Split::Ranges { columns, .. }) = (evidence.get_mut(&table.name), &table.split) {
            text.push_str(&columns.join(","));
        }
    }
    Agreed::read(cx, evidence, tables.iter().map(|t| t.shapes.0.bytes).sum())
}

/// Compares what is being written before and follows after; rows that differ are looked at again for `within`.
/// A row is equal when it was seen equal at some time
/// since the comparison began; see [`crate::watched`].
///
/// # Errors
/// What either server or the fence says.
pub async fn moving(
    cx: &Port,
    wanted: Wanted<'_>,
    sessions: Sessions<'_>,
    jobs: usize,
    before_name: &str,
    (fence, within): (&mut dyn Fence, Duration),
    evidence: &Evidence,
) -> Result<Vec<TableFound>> {
    let Work { pair, hasher, tables, mut broken } = prepare(wanted, sessions, before_name).await?;
    let agreed = read_agreed(cx, &tables, evidence)?;
    if fence.proves() {
        // What is far behind differs everywhere.
        fence.pass().await?;
    }
    let settling = Settling { cx, pair: &pair, tables: &tables, hasher, prepared: Mutex::default() };
    let mut found: Vec<TableFound> = Vec::new();
    found.resize_with(tables.len(), TableFound::default);
    let mut deadline = None;
    let mut wanted: Vec<usize> = (0..tables.len()).collect();
    while !wanted.is_empty() {
        let some: Vec<Table> = wanted.iter().filter_map(|i| tables.get(*i).cloned()).collect();
        let compared = Comparison::new(cx, sessions, hasher, &some, &agreed).run(jobs).await?;
        failpoint::at(failpoint::VERIFY_SUMMED)?;
        // Reading large tables takes what it takes; the time is for what differed.
        let deadline = *deadline.get_or_insert_with(|| Instant::now() + within);
        let (mut rows, mut again) = (Vec::new(), Vec::new());
        let late = Instant::now() >= deadline;
        for (i, (one, candidates)) in wanted.iter().zip(compared) {
            // With more rows on their way than can be looked at one by one, all is read again later.
            if one.at_least && !late {
                again.push(*i);
            } else {
                rows.extend(candidates.into_iter().map(|candidate| Row::new(*i, candidate)));
                found[*i] = TableFound { only_before: 0, only_after: 0, changed: 0, ..one };
            }
        }
        settling.settle(&mut rows, fence, deadline).await?;
        for i in wanted.iter().filter(|i| !again.contains(i)) {
            let (table, found) = (&tables[*i], &mut found[*i]);
            judge(&pair, table, &hasher, found, rows.iter().filter(|row| row.table == *i)).await?;
            if found.at_least && found.equal() {
                found.problem = Some("more rows differ than can be looked at one by one".into());
            }
        }
        if !again.is_empty() {
            cx.note(format!("{} tables differ in very many rows; they are read again", again.len()));
            fence.pass().await?;
        }
        wanted = again;
    }
    broken.extend(found);
    broken.sort_by(|a, b| a.table.cmp(&b.table));
    Ok(broken)
}

/// Counts the fates of a table's rows, and shows the first.
async fn judge(
    pair: &Pair,
    table: &Table,
    hasher: &Hasher,
    found: &mut TableFound,
    rows: impl Iterator<Item = &Row>,
) -> Result<()> {
    let keyed = !table.key.is_empty();
    let mut few: Vec<(Candidate, Kind)> = Vec::new();
    for row in rows {
        let (mut kind, n) = row.candidate.kind(keyed);
        match row.fate {
            Some(Fate::Equal) => {
                found.settled += 1;
                continue;
            }
            Some(Fate::Different) => match kind {
                Kind::OnlyBefore => found.only_before += n,
                Kind::OnlyAfter => found.only_after += n,
                _ => found.changed += n,
            },
            Some(Fate::Unsettled) | None => {
                kind = Kind::Unsettled;
                found.unsettled += 1;
            }
        }
        few.push((row.candidate.clone(), kind));
    }
    // What is certain comes first.
    few.sort_by_key(|(_, kind)| *kind == Kind::Unsettled);
    few.truncate(found::SHOWN);
    found.shown = narrow::show(pair.both(), table, hasher, &few).await?;
    Ok(())
}
