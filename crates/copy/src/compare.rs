//! Proving that a copy is complete.

use crate::options::Copy;
use crate::state::State;
use crate::{definitions, extensions, jobs, large_objects, source, state, target};
use handover_core::error::{Error, Result};
use handover_core::problem::few;
use handover_port::Port;
use handover_postgres::{Session, TableName, quote_literal};
use handover_rows::aside;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Compares the target with what was copied: its catalog, what its definitions mean, its rows and its large objects.
///
/// # Errors
/// What is missing or other, or what a server says.
pub async fn verify(copy: &Copy, port: &Port) -> Result<()> {
    let mut green = port.writer(&copy.to).await?;
    let Some(state) = state::load(&mut green, port.run, &port.step).await? else {
        return Err(Error::internal("a copy without its record on the target").on_database(&copy.to));
    };
    let done = state::units(&green, port.run, &port.step).await?;
    if !done.contains(state::DONE) {
        return Err(Error::data("the copy's last step is not recorded on the target")
            .on_database(&copy.to)
            .hint("`handover resume` completes it"));
    }
    catalogs(copy, &green, &state).await?;
    rows(port, copy, &state).await?;
    extensions::verify(port, &green).await?;
    large_objects::verify(port, copy).await
}

/// Green's catalog against what blue's was.
async fn catalogs(copy: &Copy, green: &Session, state: &State) -> Result<()> {
    let there = source::inventory(green, &copy.selection()).await?;
    let describe = |f: &state::Fact| {
        let name = TableName::new(&f.schema, if f.relation.is_empty() { "*" } else { &f.relation });
        format!("{name}: {}", f.text)
    };
    let missing: Vec<String> = state.inventory.difference(&there).map(describe).collect();
    let extra: Vec<String> = there.difference(&state.inventory).map(describe).collect();
    if !missing.is_empty() || !extra.is_empty() {
        let five = |list: &[String]| list.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
        return Err(Error::data(format!(
            "the target's catalog differs from the source's: {} missing ({}), {} unexpected ({})",
            missing.len(),
            five(&missing),
            extra.len(),
            five(&extra)
        ))
        .on_database(&copy.to)
        .hint(
            "if somebody changed the target meanwhile, undo that; else `handover rollback` and report this",
        ));
    }
    let there = definitions::read(green, &copy.selection()).await?;
    let differing = definitions::differing(&state.definitions, &there, (&copy.from, &copy.to));
    if !differing.is_empty() {
        return Err(Error::data(format!(
            "the same words mean something else on {}: {}",
            copy.to,
            few(&differing)
        ))
        .on_database(&copy.to)
        .hint("make it again on the target so that it means what it does on the source (quote names that are keywords there), then `handover resume`"));
    }
    for sequence in &state.sequences {
        let exists = green.query_one("select to_regclass($1) is not null", &[&sequence.name.sql()]).await?;
        if !exists.get::<_, bool>(0) {
            continue;
        }
        let sql = format!(
            "select last_value, (select seqincrement > 0 from pg_sequence where seqrelid = {1}::regclass) from {0}",
            sequence.name.sql(),
            quote_literal(&sequence.name.sql())
        );
        let row = green.query_one(&sql, &[]).await?;
        let (value, ascending): (i64, bool) = (row.get(0), row.get(1));
        if (ascending && value < sequence.value) || (!ascending && value > sequence.value) {
            return Err(Error::data(format!(
                "sequence {} stands at {value}, behind the source's {}",
                sequence.name, sequence.value
            ))
            .on_database(&copy.to)
            .hint("somebody set it back; set it again, then `handover resume`"));
        }
    }
    Ok(())
}

/// Rows that are there against rows that were sent. (That the source sent all it has is the protocol's
/// promise: a COPY that breaks off ends in an error.)
async fn rows(port: &Port, copy: &Copy, state: &State) -> Result<()> {
    let green = counter(port, copy).await?;
    let loaded = state::loaded(&green, port.run, &port.step).await?;
    let aside = aside::counts(&green, port.run, &port.step).await?;
    let mut uncertain = Vec::new();
    for table in &state.tables {
        port.proceed()?;
        // Rows that were given to a root may be in any of its partitions.
        let same = |t: &state::Table| t.name == table.name || t.root.is_some() && t.root == table.root;
        let tables: Vec<_> = state.tables.iter().filter(|t| same(t)).map(|t| &t.name).collect();
        let sent = loaded.iter().filter(|l| tables.contains(&&l.table)).map(|l| l.rows).sum::<u64>();
        let gone = aside.iter().filter(|(t, _)| tables.contains(t)).map(|(_, n)| n).sum::<u64>();
        let sent = sent.saturating_sub(gone);
        if !was_left_alone(&green, table.root.as_ref().unwrap_or(&table.name), sent).await? {
            uncertain.push((table, sent));
        }
    }
    if uncertain.is_empty() {
        return Ok(());
    }
    let jobs = jobs::choose(copy, &port.reader(&copy.from).await?, &green).await?.number;
    let (next, counted) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let total = uncertain.len();
    let counting = (0..jobs.min(total)).map(async |_| {
        let green = counter(port, copy).await?;
        // The largest come first, as the state has them.
        while let Some((table, sent)) = uncertain.get(next.fetch_add(1, Ordering::Relaxed)) {
            port.proceed()?;
            one(copy, &green, table, *sent).await?;
            let done = counted.fetch_add(1, Ordering::Relaxed) + 1;
            port.progress("count", done as u64, Some(total as u64), handover_core::event::Measure::Items);
        }
        Ok::<(), Error>(())
    });
    futures_util::future::try_join_all(counting).await?;
    port.unit_done("count");
    Ok(())
}

async fn one(copy: &Copy, green: &Session, table: &state::Table, sent: u64) -> Result<()> {
    let only = format!("only {}", table.name.sql());
    let sql = format!("select count(*) from {}", table.root.as_ref().map_or(only, TableName::sql));
    let there = green.query_one(&sql, &[]).await?.get::<_, i64>(0).unsigned_abs();
    if there == sent {
        return Ok(());
    }
    Err(Error::data(format!("table {} has {there} rows, and {sent} were copied", table.name))
        .on_database(&copy.to)
        .hint("somebody writes to the target already: stop that, `handover rollback` to before the copy, and run again"))
}

/// Whether the server's own counters say that a table, with its partitions, got exactly these rows and nothing
/// else ever since, which saves reading it. They say too much after a chunk that was rolled back, and too little
/// after a crash: then the rows are counted. What a stranger wrote within the last second may not be in them yet,
/// no more than it would be in a count a second ago.
/// (<https://www.postgresql.org/docs/current/monitoring-stats.html>, `pg_stat_all_tables`)
async fn was_left_alone(green: &Session, table: &TableName, rows: u64) -> Result<bool> {
    let row = green
        .query_one(
            "select coalesce(sum(pg_stat_get_tuples_inserted(id)) = $2::bigint
                 and sum(pg_stat_get_tuples_updated(id) + pg_stat_get_tuples_deleted(id)) = 0
                 -- Emptied tables keep their counters.
                 and (sum(coalesce(pg_relation_size(id), 0)) > 0) = ($2::bigint > 0), false)
             from (select coalesce(tree.relid, name)::oid as id
                   from (values ($1::text::regclass)) as wanted(name)
                   left join lateral pg_partition_tree(name) tree on true) tables",
            &[&table.sql(), &i64::try_from(rows).unwrap_or(i64::MAX)],
        )
        .await?;
    Ok(row.get(0))
}

/// A session that counts; several count at once, so none of them needs helpers.
async fn counter(port: &Port, copy: &Copy) -> Result<Session> {
    let green = target::reader(port, copy).await?;
    green.set("max_parallel_workers_per_gather", "0").await?;
    Ok(green)
}
