//! How far index builds have come, as the target's server says.

use handover_core::error::Result;
use handover_core::event::Measure;
use handover_port::Port;
use handover_postgres::Session;
use std::collections::BTreeMap;

/// Moves the bars of what the backends in `builds` are building. A table is read once, and what was read is
/// then written in order, so a bar goes to twice the table's bytes
/// (<https://www.postgresql.org/docs/current/progress-reporting.html#CREATE-INDEX-PROGRESS-REPORTING>).
pub async fn report(port: &Port, green: &Session, builds: &BTreeMap<i32, String>) -> Result<()> {
    let pids: Vec<i32> = builds.keys().copied().collect();
    let rows = green
        .query(
            "select pid, blocks_done, blocks_total, tuples_done, tuples_total,
                    coalesce(pg_relation_size(relid), 0), current_setting('block_size')::int8
             from pg_stat_progress_create_index where pid = any($1) and datname = current_database()",
            &[&pids],
        )
        .await?;
    for row in &rows {
        let Some(name) = builds.get(&row.get::<_, i32>(0)) else { continue };
        let number = |at: usize| row.get::<_, i64>(at).unsigned_abs();
        let (table, block) = (number(5).max(1), number(6));
        let read = if number(2) > 0 { (number(1) * block).min(table) } else { 0 };
        let written = match number(4) {
            0 => 0,
            // Not a product of two large numbers: the share, in thousandths.
            total => table / 1000 * (number(3) * 1000 / total).min(1000),
        };
        // What is written was read: the server forgets the blocks when it begins to write.
        let done = if written > 0 { table + written } else { read };
        port.progress(name, done.min(2 * table), Some(2 * table), Measure::Bytes);
    }
    Ok(())
}
