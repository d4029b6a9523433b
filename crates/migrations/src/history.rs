//! What was applied: refinery's history table, one per step, with a few columns of ours beside refinery's.
//!
//! refinery's version is the place at which a file was applied, from 1, written once with its row and never
//! computed again. It cannot be the file's own number: several folders share one history, and popx's twenty
//! digits are more than 64 bits hold. The file's own number and folder stand in the row too, and by them a
//! file is found again.

use crate::folder::Migration;
use crate::names::Kind;
use handover_core::error::{Error, Result};
use handover_core::event::RunId;
use handover_postgres::Session;
use handover_postgres::ours::OURS;

/// The history table of a step, with its schema, ready for SQL. At most 63 bytes, and of another name for
/// every other plan and step, so that it meets neither ours nor an application's own table.
#[must_use]
pub fn table_name(plan: &str, step: &str) -> String {
    let digest = handover_core::value::fingerprint(&format!("{plan}\0{step}"), 4);
    let plain = |text: &str| -> String {
        text.chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
            .take(22)
            .collect()
    };
    format!("{OURS}.migrate_{}_{}_{digest}", plain(plan), plain(step))
}

/// One applied migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// refinery's version: the place at which it was applied.
    pub version: i64,
    /// The name refinery knows it by.
    pub name: String,
    /// refinery's checksum over version, name and text.
    pub checksum: String,
    /// When, as refinery writes it.
    pub applied_on: String,
    /// The folder as the plan wrote it.
    pub folder: String,
    /// The file's own number.
    pub number: String,
    /// The file's name.
    pub file: String,
    /// Whether it was only recorded, because it had been applied before.
    pub baseline: bool,
    /// The run that did it.
    pub run: RunId,
    /// The vendor's table in which it was recorded with that, if in any.
    pub vendor: Option<String>,
}

impl Row {
    /// Its name in checkpoints and messages.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.folder, self.file)
    }
}

/// The statement that creates the table, in the shape refinery expects.
#[must_use]
pub fn create_sql(table: &str) -> String {
    format!(
        "create table if not exists {table} (
            version int8 primary key, name varchar(255), applied_on varchar(255), checksum varchar(255),
            folder text, number text, file text, baseline boolean, run uuid, vendor text);
         comment on table {table} is 'Migrations applied by one step of a plan. Managed by refinery; kept after `handover finish`.'"
    )
}

/// The statement that adds what an earlier version's table lacks.
#[must_use]
pub fn extend_sql(table: &str) -> String {
    format!("alter table {table} add column if not exists vendor text")
}

/// Reads the history, oldest first. No table is an empty history.
///
/// # Errors
/// What the server says, or a row that this version did not write.
pub async fn read(session: &Session, table: &str) -> Result<Vec<Row>> {
    let exists = session.query_one("select to_regclass($1) is not null", &[&table]).await?;
    if !exists.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let sql = format!(
        "select version, name, checksum, applied_on, folder, number, file, baseline, run, to_jsonb(h) ->> 'vendor'
         from {table} h order by version"
    );
    let rows = session.query(sql.as_str(), &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(Row {
                version: row.try_get(0)?,
                name: row.try_get(1)?,
                checksum: row.try_get(2)?,
                applied_on: row.try_get(3)?,
                folder: row.try_get(4)?,
                number: row.try_get(5)?,
                file: row.try_get(6)?,
                baseline: row.try_get(7)?,
                run: RunId(row.try_get(8)?),
                vendor: row.try_get(9)?,
            })
        })
        .collect::<Result<_, tokio_postgres::Error>>()
        .map_err(|e| {
            Error::data(format!("the history table {table} has a row that Handover did not write ({e})"))
                .on_database(session.database())
                .hint("see who changed it; restore the row, then `handover resume`")
        })
}

/// What a history and the folders say together.
#[derive(Debug)]
pub struct Standing<'a> {
    /// As refinery sees what was applied, with the file of each.
    pub applied: Vec<(refinery::Migration, &'a Migration)>,
    /// What is still to do, in order, with the version each will get.
    pub pending: Vec<(refinery::Migration, &'a Migration)>,
    /// What runs again because it changed, in order; it is among the applied ones too, with its new text.
    pub again: Vec<(refinery::Migration, &'a Migration)>,
}

/// Compares the history with the folders.
///
/// # Errors
/// An applied file that is missing or changed, or one that appeared after a later one was applied.
pub fn compare<'a>(rows: &[Row], files: &'a [Migration]) -> Result<Standing<'a>> {
    let mut applied = Vec::new();
    let mut again = Vec::new();
    let mut last = None;
    for row in rows {
        let found = files.iter().position(|f| f.folder == row.folder && f.number == row.number);
        let Some((at, file)) = found.and_then(|at| Some((at, files.get(at)?))) else {
            return Err(Error::data(format!("the migration {} was applied on {} and is gone now", row.key(), row.applied_on))
                .hint("put the file back as it was, and list the folders as they were; a later migration may undo what it did"));
        };
        let migration = refinery(row.version, &row.name, &file.up.sql)?;
        let changed = migration.checksum().to_string() != row.checksum;
        if changed && file.kind == Kind::Repeatable {
            again.push((migration.clone(), file));
        } else if changed || file.file != row.file {
            return Err(Error::data(format!(
                "the migration {} was changed after it was applied on {}",
                row.key(),
                row.applied_on
            ))
            .in_file(&file.up.path, None)
            .hint(
                "put the file back as it was, and put the change into a new migration with a higher number",
            ));
        }
        if !file.may_be_late && file.kind != Kind::Repeatable {
            if let Some((before, _)) = last.filter(|(before, _)| *before > at) {
                let before: &Migration = &files[before];
                return Err(Error::data(format!(
                    "{} was applied before {}, and now stands after it",
                    before.key(),
                    row.key()
                ))
                .hint("list the folders in the order in which they were applied"));
            }
            last = Some((at, row));
        }
        applied.push((migration, file));
    }
    let done = |file: &Migration| rows.iter().any(|r| r.folder == file.folder && r.number == file.number);
    let versions = rows.last().map_or(1, |row| row.version + 1)..;
    let mut pending = Vec::new();
    for (version, (at, file)) in versions.zip(files.iter().enumerate().filter(|(_, f)| !done(f))) {
        if let Some((_, row)) =
            last.filter(|(last, _)| *last > at && !file.may_be_late && file.kind != Kind::Repeatable)
        {
            return Err(Error::data(format!("{} came late: {} comes after it and was applied on {}", file.key(), row.key(), row.applied_on))
                .in_file(&file.up.path, None)
                .hint("give it a number above all applied ones, or put it into a folder of its own that is listed last"));
        }
        pending.push((refinery(version, &refinery_name(&file.file), &file.up.sql)?, file));
    }
    again.sort_by_key(|(_, file): &(_, &Migration)| file.key());
    Ok(Standing { applied, pending, again })
}

fn refinery(version: i64, name: &str, sql: &str) -> Result<refinery::Migration> {
    refinery::Migration::unapplied(&format!("V{version}__{name}"), sql)
        .map_err(|e| Error::internal(format!("refinery refuses V{version}__{name} ({e})")))
}

/// A file's name in the letters that refinery allows, cut to what its column holds.
fn refinery_name(file: &str) -> String {
    let stem = file.strip_suffix(".sql").unwrap_or(file);
    stem.chars().map(|c| if c.is_alphanumeric() || c == '_' { c } else { '_' }).take(255).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::Script;

    fn file(folder: &str, number: &str, sql: &str) -> Migration {
        Migration {
            folder: folder.into(),
            names: crate::names::Names::GolangMigrate,
            number: number.into(),
            title: "a".into(),
            kind: Kind::Versioned,
            file: format!("{number}_a.up.sql"),
            script: format!("{number}_a.up.sql"),
            may_be_late: false,
            up: Script::parse("f.sql", sql, false).unwrap(),
            down: None,
            replaced_by: None,
            shipped: sql.into(),
        }
    }

    fn rows(files: &[Migration]) -> Vec<Row> {
        let standing = compare(&[], files).unwrap();
        standing
            .pending
            .iter()
            .map(|(m, f)| Row {
                version: m.version(),
                name: m.name().to_owned(),
                checksum: m.checksum().to_string(),
                applied_on: "then".into(),
                folder: f.folder.clone(),
                number: f.number.clone(),
                file: f.file.clone(),
                baseline: false,
                run: RunId::new(),
                vendor: None,
            })
            .collect()
    }

    #[test]
    fn names_are_short_and_differ() {
        let long = table_name(&"plan-".repeat(30), &"step/".repeat(30));
        assert!(long.len() <= 63 + 1 + OURS.name().len(), "{long}");
        assert_ne!(table_name("a-b", "c"), table_name("a_b", "c"));
        assert_ne!(table_name("a", "b_c"), table_name("a_b", "c"));
    }

    #[test]
    fn numbers_beyond_64_bits_keep_their_order_and_place() {
        let all = [
            file("a", "20150101000001000000", "select 1"),
            file("a", "20990101000001000000", "select 2"),
            file("b", "1", ""),
        ];
        let first = rows(&all[..1]);
        assert_eq!(first[0].version, 1);
        assert_eq!(first[0].name, "20150101000001000000_a_up");
        let standing = compare(&first, &all).unwrap();
        assert_eq!(standing.pending.iter().map(|(m, _)| m.version()).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let all = [file("a", "1", "select 1"), file("a", "2", "select 2"), file("b", "1", "select 3")];
        let say = |rows: &[Row], files: &[Migration]| compare(rows, files).unwrap_err().to_string();
        let done = rows(&all);
        assert!(say(&done, &all[..2]).contains("gone"));
        let mut changed = all.clone();
        changed[1] = file("a", "2", "select 22");
        assert!(say(&done, &changed).contains("changed"));
        let moved = [all[2].clone(), all[0].clone(), all[1].clone()];
        assert!(say(&done, &moved).contains("stands after"));
        assert!(say(&rows(&[all[0].clone(), all[2].clone()]), &all).contains("came late"));
        let mut late = all.clone();
        late[1].may_be_late = true;
        let mut changed = all.clone();
        changed[2] = file("b", "1", "select 33");
        changed[2].kind = Kind::Repeatable;
        let standing = compare(&done, &changed).unwrap();
        assert_eq!(standing.again.iter().map(|(m, _)| m.version()).collect::<Vec<_>>(), [3]);
        let standing = compare(&rows(&[all[0].clone(), all[2].clone()]), &late).unwrap();
        assert_eq!(standing.pending[0].0.version(), 3);
    }
}
