//! One vendor's table: where it is, and what it says of files.

use super::checksum;
use super::tool::{self, Tool};
use crate::folder::Migration;
use crate::names::{Kind, Names};
use crate::options::Migrate;
use handover_core::{Error, Result};
use handover_postgres::ours::OURS;
use handover_postgres::{Session, TableName};
use std::collections::{BTreeMap, BTreeSet};

/// What a table says.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Numbers that were applied, as [`Names::identity`] gives them, each with its checksum if it has one.
    pub versions: BTreeMap<String, Option<String>>,
    /// All up to here were applied, or are taken for it.
    pub up_to: Option<String>,
    /// Flyway's repeatable migrations by their names, with the checksum of the last time.
    pub repeatable: BTreeMap<String, String>,
    /// What the tool left half done.
    pub unfinished: Option<String>,
}

/// The vendor's table for one folder.
#[derive(Debug, Clone)]
pub struct Vendor {
    /// Whose it is.
    pub tool: Tool,
    /// Where it is.
    pub table: TableName,
    /// Whether it is still to be created.
    pub missing: bool,
    /// Whether refinery's or Flyway's versions have 32 bits there.
    pub narrow: bool,
    /// What it says.
    pub state: State,
}

impl Vendor {
    /// Whether its table says that a migration was applied.
    #[must_use]
    pub fn covers(&self, file: &Migration) -> bool {
        let number = file.names.identity(&file.number);
        match (self.tool, file.kind) {
            (Tool::GolangMigrate, _) => {
                self.state.up_to.as_ref().is_some_and(|last| Names::Sqlx.compare(&number, last).is_le())
            }
            (Tool::Flyway, Kind::Repeatable) => {
                self.state.repeatable.get(&tool::words(&file.title)).map(String::as_str)
                    == checksum::of(self.tool, file, self.narrow).as_deref()
            }
            (Tool::Flyway, Kind::Versioned) => {
                self.state.versions.contains_key(&number)
                    || self
                        .state
                        .up_to
                        .as_ref()
                        .is_some_and(|last| Names::Flyway.compare(&number, last).is_le())
            }
            (Tool::Flyway, Kind::Baseline) => self.state.up_to.as_ref() == Some(&number),
            // Older releases cut the number at 14 digits, and popx takes that for the same migration.
            (Tool::Popx, _) => {
                self.state.versions.contains_key(&number)
                    || number.get(..14).is_some_and(|old| self.state.versions.contains_key(old))
            }
            _ => self.state.versions.contains_key(&number),
        }
    }

    /// Whether it holds no migration.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.state.versions.is_empty() && self.state.repeatable.is_empty() && self.state.up_to.is_none()
    }

    /// Whether it is still to be created.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.missing
    }

    /// The numbers in it that no file has.
    #[must_use]
    pub fn unknown(&self, folder: &str, files: &[Migration]) -> Vec<&str> {
        let known: BTreeSet<String> = files
            .iter()
            .filter(|f| f.folder == folder)
            .flat_map(|f| {
                let number = f.names.identity(&f.number);
                let old = number.get(..14).map(str::to_owned);
                [Some(number), old.filter(|_| self.tool == Tool::Popx)]
            })
            .flatten()
            .collect();
        self.state.versions.keys().map(String::as_str).filter(|v| !known.contains(*v)).collect()
    }

    /// Refuses what the vendor's tool would refuse: a migration half done, or one whose file is another now.
    pub fn check(&self, session: &Session, folder: &str, files: &[Migration]) -> Result<()> {
        if let Some(what) = &self.state.unfinished {
            return Err(Error::data(format!("{} says that {} left {what} half done", self.table, self.tool))
                .on_database(session.database())
                .hint(format!(
                    "see how far it came and mend it with {} first; or say `history: own`",
                    self.tool
                )));
        }
        for file in files.iter().filter(|f| f.folder == folder && f.kind != Kind::Repeatable) {
            let number = file.names.identity(&file.number);
            let (Some(Some(applied)), Some(now)) =
                (self.state.versions.get(&number), checksum::of(self.tool, file, self.narrow))
            else {
                continue;
            };
            if *applied != now && checksum::tolerated(self.tool, file).as_ref() != Some(applied) {
                return Err(Error::data(format!(
                    "{} has another checksum for {} than this file: {} would refuse it",
                    self.table, file.file, self.tool
                ))
                .in_file(&file.up.path, None)
                .on_database(session.database())
                .hint("use the vendor's files of the release that was applied here, to the last byte (line ends too); or say `history: own`"));
            }
        }
        Ok(())
    }
}

/// Looks for a tool's table on the search path.
pub async fn look(session: &Session, step: &Migrate, tool: Tool) -> Result<Option<Vendor>> {
    let name = step.history_table.as_deref().unwrap_or(tool.table());
    let row = session
        .query_opt(
            &format!(
                "select n.nspname::text, c.relname::text,
                    array(select attname::text || ' ' || format_type(atttypid, null) from pg_attribute
                          where attrelid = c.oid and attnum > 0 and not attisdropped)
             from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where c.oid = to_regclass($1) and c.relkind in ('r', 'p') and n.nspname <> '{OURS}'"
            ),
            &[&name],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let columns: Vec<String> = row.get(2);
    if !tool.fits(&columns) {
        return Ok(None);
    }
    let narrow = columns.iter().any(|c| c == "version integer");
    let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
    Ok(Some(Vendor { tool, table, missing: false, narrow, state: State::default() }))
}

/// The table that is to be created: in the first schema of the search path.
pub async fn missing(session: &Session, step: &Migrate, tool: Tool) -> Result<Vendor> {
    let wanted = step.history_table.as_deref().unwrap_or(tool.table());
    let (schema, name) = match wanted.split_once('.') {
        Some((schema, name)) => (schema.to_owned(), name),
        None => {
            let first = step.search_path.as_ref().and_then(|path| path.0.first().cloned());
            let current = session.query_one("select coalesce(current_schema()::text, 'public')", &[]).await?;
            let current: String = current.get(0);
            // Ours is never the application's.
            let current = if current == OURS.name() { "public".to_owned() } else { current };
            (first.unwrap_or(current), wanted)
        }
    };
    let table = TableName::new(schema, name.to_owned());
    Ok(Vendor { tool, table, missing: true, narrow: true, state: State::default() })
}
