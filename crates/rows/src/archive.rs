//! Putting back what a step changed or took away, from `handover.archive`.
//!
//! Undo walks the archive backwards, so that a parent taken after its children is back before them. Each batch
//! puts rows back and drops them from the archive in one transaction, which makes the archive its own
//! checkpoint. What somebody wrote since is never overwritten: such a row stays in the archive with the reason.

use crate::table::{Catalog, Table, object};
use handover_core::error::{Class, Error, Result};
use handover_core::event::{Measure, StepId};
use handover_core::failpoint;
use handover_port::Port;
use handover_port::Turns;
use handover_postgres::ours::OURS;
use handover_postgres::{Session, TableName, Tx, quote_ident, quote_literal};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Rows put back in one transaction.
const BATCH: i64 = 1000;
/// How long a batch waits for a row that somebody changes.
const LOCK_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// One archived row of a batch.
struct Entry {
    id: i64,
    table: String,
    action: String,
    key: String,
}

/// When an updated row may be put back.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Guard<'a> {
    /// Only if these columns, which the step wrote, still hold what it wrote.
    Columns(&'a [String]),
    /// Always: the columns only mirror others, so nothing is lost with them.
    Always,
}

/// Which archived rows, as a condition with the ids as `$3`.
const CHOSEN: &str = "a.run = $1 and a.step = $2 and a.id = any ($3)";

/// Puts everything back that this step archived. An updated row that the guard does not let through is a
/// conflict; in the others, each column that somebody wrote since keeps what they wrote. Nothing is put back where a
/// later step gave the database up.
pub(crate) async fn put_back(
    cx: &Port,
    session: &mut Session,
    guard: Guard<'_>,
    given_up_by: Option<&StepId>,
) -> Result<Value> {
    if let Some(step) = given_up_by {
        cx.note(format!(
            "rows are not put back: step `{step}` gave {} up, and an earlier step's undo empties it",
            session.database()
        ));
        forget(cx, session).await?;
        return Ok(json!({ "restored": 0, "given_up_by": step }));
    }
    let total = count(cx, session, "conflict is null").await?;
    let mut tables: BTreeMap<String, Table> = BTreeMap::new();
    let (mut restored, mut altered) = (0_u64, 0_u64);
    let putting = "putting rows back";
    let mut turns = Turns::new(putting);
    loop {
        cx.proceed()?;
        let next = upcoming(cx, session).await?;
        let Some(first) = next.first() else { break };
        if !tables.contains_key(&first.table) {
            let name = TableName::try_from(first.table.clone()).map_err(Error::internal)?;
            let table = match Table::load(Catalog::Session(session), &name, None).await {
                // A child without a key of its own was found through its foreign key.
                Err(e) if e.class() == Class::Data && first.key == "{}" => {
                    Table::load_without_key(Catalog::Session(session), &name).await?
                }
                other => other?,
            };
            tables.insert(first.table.clone(), table);
        }
        let Some(table) = tables.get(&first.table) else { break };
        let ids: Vec<i64> = next.iter().map(|e| e.id).collect();
        let (done, changed) = match batch(cx, session, table, &first.action, &ids, guard, false).await {
            // One row that a constraint refuses must not keep the others out.
            Err(e) if e.class() == Class::Data => {
                batch(cx, session, table, &first.action, &ids, guard, true).await?
            }
            Err(e) if e.class() == Class::Contention => {
                turns.again(cx, e).await?;
                continue;
            }
            other => other?,
        };
        turns = Turns::new(putting);
        restored += done;
        altered += changed;
        cx.progress("rows put back", restored, Some(total), Measure::Rows);
        failpoint::at(failpoint::CLEANUP_UNDO_BATCH)?;
    }
    cx.unit_done("rows put back");
    let conflicts = count(cx, session, "conflict is not null").await?;
    if conflicts > 0 {
        cx.warn(format!(
            "{conflicts} rows could not be put back without overwriting newer data; they are kept: select table_name, key, conflict, old_row from {OURS}.archive where run = '{}' and step = {} and conflict is not null",
            cx.run,
            quote_literal(cx.step.as_str())
        ));
    }
    if altered > 0 {
        cx.warn(format!(
            "{altered} rows were put back, but triggers of the table changed them on the way in"
        ));
    }
    Ok(json!({ "restored": restored, "conflicts": conflicts, "altered_by_triggers": altered }))
}

/// Drops what undo would have needed. Quarantined rows are set aside for people and stay.
pub(crate) async fn forget(cx: &Port, session: &mut Session) -> Result<()> {
    loop {
        cx.proceed()?;
        let tx = session.transaction().await?;
        let gone = tx
            .execute(
                &format!(
                    "delete from {OURS}.archive a where run = $1 and step = $2 and id in
                     (select id from {OURS}.archive where run = $1 and step = $2 and action <> 'quarantine'
                      order by id limit 20000)"
                ),
                &[&cx.run.0, &cx.step.as_str()],
            )
            .await?;
        tx.commit().await?;
        if gone == 0 {
            break;
        }
    }
    let kept = count(cx, session, "true").await?;
    if kept > 0 {
        cx.note(format!(
            "{kept} quarantined rows stay in {OURS}.archive (run {}, step {}) until you delete them",
            cx.run, cx.step
        ));
    }
    Ok(())
}

async fn count(cx: &Port, session: &Session, condition: &str) -> Result<u64> {
    let sql = format!("select count(*) from {OURS}.archive where run = $1 and step = $2 and {condition}");
    let n: i64 = session.query_one(&sql, &[&cx.run.0, &cx.step.as_str()]).await?.get(0);
    Ok(n.unsigned_abs())
}

/// The next rows to put back: newest first, of one table and one action, and no row twice.
async fn upcoming(cx: &Port, session: &Session) -> Result<Vec<Entry>> {
    let rows = session
        .query(
            &format!(
                "select id, table_name, action, key::text from {OURS}.archive
             where run = $1 and step = $2 and conflict is null order by id desc limit $3"
            ),
            &[&cx.run.0, &cx.step.as_str(), &BATCH],
        )
        .await?;
    let mut out: Vec<Entry> = Vec::new();
    let mut keys = BTreeSet::new();
    for row in &rows {
        let entry = Entry { id: row.get(0), table: row.get(1), action: row.get(2), key: row.get(3) };
        let same = out.first().is_none_or(|f| f.table == entry.table && f.action == entry.action);
        if !same || (entry.key != "{}" && !keys.insert(entry.key.clone())) {
            break;
        }
        out.push(entry);
    }
    Ok(out)
}

async fn batch(
    cx: &Port,
    session: &mut Session,
    table: &Table,
    action: &str,
    ids: &[i64],
    guard: Guard<'_>,
    one_by_one: bool,
) -> Result<(u64, u64)> {
    let tx = session.transaction().await?;
    tx.wait_for_locks(LOCK_TIMEOUT).await?;
    let (mut restored, mut altered) = (Vec::new(), 0);
    let mut refused: BTreeMap<i64, String> = BTreeMap::new();
    if one_by_one {
        for id in ids {
            tx.batch("savepoint row").await?;
            match apply(cx, &tx, table, action, &[*id], guard).await {
                Ok((mut done, changed)) => {
                    restored.append(&mut done);
                    altered += changed;
                    tx.batch("release savepoint row").await?;
                }
                Err(e) if e.class() == Class::Data => {
                    tx.batch("rollback to savepoint row").await?;
                    refused.insert(*id, e.message().to_owned());
                }
                Err(e) => return Err(e),
            }
        }
    } else {
        (restored, altered) = apply(cx, &tx, table, action, ids, guard).await?;
    }
    for id in ids.iter().filter(|id| !restored.contains(id)) {
        let reason = refused.remove(id).unwrap_or_else(|| {
            match action {
                "update" => "the row was written or deleted since",
                "insert" => "the row was written or deleted since, or other rows refer to it",
                _ => "a row with this key or another unique value is there again",
            }
            .to_owned()
        });
        tx.execute(
            &format!("update {OURS}.archive set conflict = $4 where run = $1 and step = $2 and id = $3"),
            &[&cx.run.0, &cx.step.as_str(), id, &reason],
        )
        .await?;
    }
    tx.execute(
        &format!("delete from {OURS}.archive where run = $1 and step = $2 and id = any ($3)"),
        &[&cx.run.0, &cx.step.as_str(), &restored],
    )
    .await?;
    tx.commit().await?;
    Ok((restored.len() as u64, altered))
}

/// Puts some rows back; returns whose ids it did, and how many of them triggers altered.
async fn apply(
    cx: &Port,
    tx: &Tx<'_>,
    table: &Table,
    action: &str,
    ids: &[i64],
    guard: Guard<'_>,
) -> Result<(Vec<i64>, u64)> {
    let archived = match action {
        "insert" => "new_row",
        _ => "old_row",
    };
    let names: Vec<String> = tx
        .query(
            &format!("select distinct jsonb_object_keys({archived}) from {OURS}.archive a where {CHOSEN}"),
            &[&cx.run.0, &cx.step.as_str(), &ids],
        )
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect();
    if let Some(missing) = names.iter().find(|name| table.column(name).is_none()) {
        // Not a data error: no single row is at fault.
        return Err(Error::usage(format!(
            "archived rows of {} have a column `{missing}` that it no longer has",
            table.name
        ))
        .on_database(tx.database())
        .hint("put the column back (undo the migration that dropped it), then `handover rollback` again"));
    }
    let sql = match action {
        "update" => update_sql(table, &names, guard),
        "insert" => delete_sql(table),
        _ => insert_sql(table, &names),
    };
    let Some(sql) = sql else { return Ok((ids.to_vec(), 0)) };
    let rows = tx.query(&sql, &[&cx.run.0, &cx.step.as_str(), &ids]).await?;
    let done = rows.iter().map(|row| row.get(0)).collect();
    let altered = rows.iter().filter(|row| !row.get::<_, bool>(1)).count() as u64;
    Ok((done, altered))
}

fn insert_sql(table: &Table, names: &[String]) -> Option<String> {
    let columns: Vec<_> = table.columns.iter().filter(|c| !c.generated && names.contains(&c.name)).collect();
    let list: Vec<String> = columns.iter().map(|c| c.ident()).collect();
    let values: Vec<String> = columns.iter().map(|c| c.read_json("a.old_row")).collect();
    // Without a key there is nothing to conflict with, and all rows are taken as put back.
    Some(format!(
        "with back as (
             insert into {} ({}) overriding system value
             select {} from {OURS}.archive a where {CHOSEN} order by a.id desc
             on conflict do nothing returning {} as key, {} as row)
         select a.id, back.row @> a.old_row from {OURS}.archive a join back on back.key = a.key
             and (a.key <> '{{}}' or back.row @> a.old_row)
         where {CHOSEN}",
        table.name.sql(),
        list.join(", "),
        values.join(", "),
        table.key_json(),
        table.row_json(),
    ))
}

fn key_matches(table: &Table) -> String {
    let parts: Vec<String> =
        table.key.iter().map(|c| format!("t.{} = {}", c.ident(), c.read_json("a.key"))).collect();
    parts.join(" and ")
}

fn update_sql(table: &Table, names: &[String], guard: Guard<'_>) -> Option<String> {
    let held = |name: &str| match guard {
        Guard::Always => "true".to_owned(),
        Guard::Columns(_) => format!(
            "t.{}::text is not distinct from (a.new_row ->> {})",
            quote_ident(name),
            quote_literal(name)
        ),
    };
    let columns: Vec<_> =
        names.iter().filter_map(|n| table.column(n)).filter(|c| !c.generated && !c.identity_always).collect();
    if columns.is_empty() {
        return None;
    }
    let sets: Vec<String> = columns
        .iter()
        .map(|c| {
            format!(
                "{0} = case when a.old_row ? {1} and {2} then {3} else t.{0} end",
                c.ident(),
                quote_literal(&c.name),
                held(&c.name),
                c.read_json("a.old_row")
            )
        })
        .collect();
    let guards: Vec<String> = names
        .iter()
        .filter(|n| matches!(guard, Guard::Columns(list) if list.contains(n)))
        .map(|n| format!(" and (not a.new_row ? {} or {})", quote_literal(n), held(n)))
        .collect();
    let after = object(columns.iter().copied(), "t.");
    Some(format!(
        "with back as (
             update {} t set {} from {OURS}.archive a where {CHOSEN} and {}{}
             returning a.id, a.old_row, {} as row)
         select id, row @> old_row from back",
        table.name.sql(),
        sets.join(", "),
        key_matches(table),
        guards.concat(),
        after,
    ))
}

fn delete_sql(table: &Table) -> Option<String> {
    let unreferenced: Vec<String> = table
        .foreign_keys
        .iter()
        .map(|fk| {
            let pairs: Vec<String> = fk
                .child_columns
                .iter()
                .zip(&fk.parent_columns)
                .map(|(child, parent)| format!("f.{} = t.{}", quote_ident(child), quote_ident(parent)))
                .collect();
            format!(" and not exists (select 1 from {} f where {})", fk.child.sql(), pairs.join(" and "))
        })
        .collect();
    Some(format!(
        "with back as (
             delete from {} t using {OURS}.archive a
             where {CHOSEN} and {} and (select {} from (select t.*) as r) @> a.new_row{} returning a.id)
         select id, true from back",
        table.name.sql(),
        key_matches(table),
        table.row_json(),
        unreferenced.concat(),
    ))
}
