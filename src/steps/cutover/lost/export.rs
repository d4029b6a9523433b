//! Writes rows that would be lost as files which `COPY … FROM` reads, from one snapshot.

use super::baseline::{self, Mark};
use super::{count, rows};
use crate::error::Result;
use crate::event::Measure;
use crate::failpoint;
use crate::postgres::{TableName, Tx, quote_ident};
use crate::problem::count as number;
use crate::steps::Context;
use crate::steps::cutover::options::Cutover;
use crate::steps::export::{Entry, Folder, README, unwritten};
use futures_util::{TryStreamExt, pin_mut};
use jiff::Timestamp;
use std::fmt::Write as _;
use std::io::{BufWriter, Write as _};
use std::path::Path;

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// What was written since the cutover, before anything is undone.
    First,
    /// What was written since the first pass, when nobody is led there any longer.
    Late,
}

/// Writes what is not there yet. Returns how much there is in all, in words.
///
/// # Errors
/// What the servers or the disk say; a stop.
pub async fn write(cutover: &Cutover, cx: &Context, path: &Path, pass: Pass) -> Result<String> {
    let to = cutover.to.as_deref().unwrap_or_default();
    let mark = count::mark(cutover, cx).await?;
    let mut green = cx.databases.labelled(cx.step.as_str()).read_only(to).await?;
    green.set("lock_timeout", "30s").await?;
    count::assert_successor(&green, &mark).await?;
    let mut folder = Folder::open(path, cx.run, &cx.step, to)?;
    let late = pass == Pass::Late;
    let names: Vec<String> = baseline::counters(&green).await?.tables.into_keys().collect();
    let tx = green.transaction().await?;
    tx.batch("set transaction isolation level repeatable read").await?;
    let row = tx
        .query_one(
            "select pg_current_snapshot()::text, pg_snapshot_xmax(pg_current_snapshot())::text::bigint",
            &[],
        )
        .await?;
    let (snapshot, next): (String, i64) = (row.get(0), row.get(1));
    for (done, name) in names.iter().enumerate() {
        cx.proceed()?;
        cx.progress("exporting", done as u64, Some(names.len() as u64), Measure::Items);
        if folder.entry(name, late).is_some() {
            continue;
        }
        let since = match folder.entry(name, false).filter(|_| late) {
            Some(first) => Mark { snapshot: first.snapshot.clone(), ..mark.clone() },
            None => mark.clone(),
        };
        let Ok(table) = TableName::try_from(name.clone()) else { continue };
        if let Some(entry) = table_rows(cx, &tx, &folder, &table, &since, next, late).await? {
            folder.complete(Entry { snapshot: snapshot.clone(), ..entry })?;
        }
    }
    cx.unit_done("exporting");
    folder.manifest.complete = true;
    folder.save()?;
    folder.put(README, readme(&folder, late).as_bytes())?;
    let rows: i64 = folder.manifest.files.iter().map(|entry| entry.rows).sum();
    Ok(format!(
        "{} of {}",
        number(usize::try_from(rows).unwrap_or(0), "row"),
        number(folder.manifest.files.len(), "table")
    ))
}

/// Writes one table's rows under a name that says that they are not complete; none where there is no row.
async fn table_rows(
    cx: &Context,
    tx: &Tx<'_>,
    folder: &Folder,
    table: &TableName,
    since: &Mark,
    next: i64,
    late: bool,
) -> Result<Option<Entry>> {
    let oldest = "select pg_snapshot_xmin($1::text::pg_snapshot)::text::bigint";
    let oldest: i64 = tx.query_one(oldest, &[&since.snapshot]).await?.get(0);
    let condition = rows::since(since, rows::age(next, oldest));
    let from = format!("from only {} t where {condition}", table.sql());
    let rows: i64 = tx.query_one(&format!("select count(*) {from}"), &[]).await?.get(0);
    if rows == 0 {
        return Ok(None);
    }
    let columns: Vec<String> = tx
        .query(
            "select attname::text from pg_attribute
             where attrelid = $1::text::regclass and attnum > 0 and not attisdropped and attgenerated = ''
             order by attnum",
            &[&table.sql()],
        )
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect();
    let list: Vec<String> = columns.iter().map(|column| format!("t.{}", quote_ident(column))).collect();
    let sql = format!("copy (select {} {from}) to stdout (format csv, header)", list.join(", "));
    let file = folder.name(&table.to_string(), late);
    let mut out = BufWriter::new(folder.begin(&file)?);
    let failed = |e: std::io::Error| unwritten(&file, &e);
    let stream = tx.copy_out(&sql).await?;
    pin_mut!(stream);
    while let Some(chunk) = stream.try_next().await.map_err(|e| tx.error(&e))? {
        cx.proceed()?;
        out.write_all(&chunk).map_err(failed)?;
    }
    let out = out.into_inner().map_err(|e| failed(e.into_error()))?;
    out.sync_all().map_err(failed)?;
    failpoint::at(failpoint::LOST_UNDO_WRITTEN)?;
    let (table, snapshot) = (table.to_string(), String::new());
    Ok(Some(Entry { table, file, columns, rows, snapshot, at: Timestamp::now(), late }))
}

/// What is in the folder, for people.
fn readme(folder: &Folder, late: bool) -> String {
    let manifest = &folder.manifest;
    let mut out = format!(
        "# What a rollback lost on {}\n\nRun {}, step `{}`. Rows that were inserted or updated there since the cutover, as they \
         were when the file was written. `manifest.json` has the same for programs.\n\n\
         Not in here: rows that were deleted, earlier versions of rows, large objects, generated columns, positions of \
         sequences. A table without a file had no such row. What the plan's own statements wrote there is among the rows.\n\n",
        manifest.database, manifest.run, manifest.step
    );
    out += match late {
        true => {
            "A file `….late.csv` has what came after the first one was written, up to when every participant was turned \
                 back: load it after that one, and where a key is in both, the late row is the newer.\n\n"
        }
        false => {
            "Written before anything was undone. What clients wrote there afterwards is not in here yet: it follows as \
                  `….late.csv` when every participant is turned back.\n\n"
        }
    };
    if manifest.files.is_empty() {
        out += "There was no such row in any table.\n";
    }
    for entry in &manifest.files {
        let columns: Vec<String> = entry.columns.iter().map(|column| quote_ident(column)).collect();
        let table = TableName::try_from(entry.table.clone()).map_or(entry.table.clone(), |table| table.sql());
        let _ = write!(
            out,
            "## {}\n\n{} at {}, complete as of snapshot `{}`{}. In psql:\n\n```\n\\copy {table} ({}) from '{}' (format csv, header, encoding 'UTF8')\n```\n\n",
            entry.file,
            number(usize::try_from(entry.rows).unwrap_or(0), "row"),
            entry.at.strftime("%Y-%m-%d %H:%M:%S UTC"),
            entry.snapshot,
            if entry.late { ", what came after the first file" } else { "" },
            columns.join(", "),
            entry.file
        );
    }
    out
}
