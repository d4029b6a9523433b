//! What a dry run says of a copy.

use super::state::Table;
use super::{Copy, cut, jobs, own_checkpoints, preflight, source};
use crate::error::Result;
use crate::problem::few;
use crate::steps::{Context, Description};

/// For estimates: bytes per second and job, of tables with a few indexes on ordinary disks.
const SPEED: u64 = 15 << 20;

/// Looks at both sides and says what would be done.
pub async fn describe(copy: &Copy, cx: &Context) -> Result<Description> {
    let (blue, green) = (cx.reader(&copy.from).await?, cx.reader(&copy.to).await?);
    let mut out = Description::default();
    let program = preflight::look(copy, &blue, &green, &mut out).await?;
    let resumable = own_checkpoints(&green, cx).await?;
    preflight::emptiness(copy, &green, resumable, &mut out).await?;
    let jobs = jobs::choose(copy, &blue, &green).await?;
    let major = source::major(&blue).await?;
    let tables = source::tables(&blue, copy, major).await?;
    let bytes: u64 = tables.iter().map(|t| t.bytes).sum();
    let pieces: usize = tables.iter().map(|t| t.chunks.len()).sum();
    let facts = source::inventory(&blue, &copy.selection()).await?;
    let indexes = facts.iter().filter(|f| f.text.starts_with("index ")).count();
    let keys =
        facts.iter().filter(|f| f.text.starts_with("constraint ") && f.text.contains("of kind f")).count();
    if let Some(program) = program {
        out.action(format!(
            "create the schema of {} on {} with pg_dump {}",
            copy.from, copy.to, program.major
        ));
    }
    out.action(format!(
        "copy {} tables, {} MB in {pieces} pieces, {} at a time ({}), from one snapshot",
        tables.len(),
        bytes >> 20,
        jobs.number,
        jobs.from
    ));
    let whole: Vec<String> = tables
        .iter()
        .filter(|t| t.chunks.len() == 1 && t.bytes > 2 * copy.chunk_bytes())
        .map(|t| t.name.to_string())
        .collect();
    if !whole.is_empty() && cut::by_key(copy, major) {
        out.warning(format!(
            "no index cuts these tables, so each is copied in one piece, and again from its beginning after a failure: {}; one is of use whose columns are never null and whose order the rows are stored in",
            few(&whole)
        ));
    }
    for table in tables.iter().take(5) {
        out.action(format!(
            "  {}: {} MB in {}, as {}",
            table.name,
            table.bytes >> 20,
            cut_into(table),
            if table.binary { "binary" } else { "text" }
        ));
    }
    let memory: String = green
        .query_one(
            "select coalesce($1, current_setting('maintenance_work_mem'))",
            &[&copy.maintenance_work_mem],
        )
        .await?
        .get(0);
    out.action(format!(
        "load with synchronous_commit = off, and with FREEZE where a table is one piece; build with maintenance_work_mem = {memory}, up to {} builds beside the loads",
        jobs.number
    ));
    for (name, value) in &copy.tune {
        out.action(format!("set {name} = {value} on {}'s server for the load, and put it back", copy.to));
    }
    out.action(format!(
        "build {indexes} indexes, add {keys} foreign keys, set sequences, analyze every table"
    ));
    out.warning(format!(
            "while rows are copied, vacuum on {} keeps every row version that dies, and tables cannot be altered or truncated",
            copy.from
        ));
    out.estimate = Some(format!(
        "about {} min: {} MB at {} MB/s for each of {} jobs (a guess for ordinary disks, index builds included)",
        (bytes / (SPEED * jobs.number as u64)).div_ceil(60).max(1),
        bytes >> 20,
        SPEED >> 20,
        jobs.number
    ));
    Ok(out)
}

/// In how many pieces a table is copied, and which.
fn cut_into(table: &Table) -> String {
    let number = table.chunks.len();
    match &table.key {
        Some(key) => {
            let columns: Vec<&str> = key.columns.iter().map(|c| c.name.as_str()).collect();
            format!("{number} ranges of {}", columns.join(", "))
        }
        None => format!("{number} pieces"),
    }
}
