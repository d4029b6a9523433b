//! The vendor's own history: what its table says was applied, and the rows that its tool would have written for
//! what Handover applies. A service that migrates when it starts then finds everything done.
//!
//! A row is only written where it can be written as the tool does. What stands in the table already is compared
//! first, checksums too: were our way of computing them another than the tool's, it would show there.

use super::Migrate;
use super::folder::Migration;
use super::names::{Kind, Names};
use crate::error::{Class, Error, Result};
use crate::postgres::ours::OURS;
use crate::postgres::{Session, TableName, Tx, quote_ident};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

mod checksum;
mod rows;
mod tool;

use rows::State;
pub use tool::Tool;

/// Whose history counts, and is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum History {
    /// The vendor's own table too, where the layout's tool is known and its table exists.
    #[default]
    Auto,
    /// The vendor's own table too; it is created where it does not exist.
    Vendor,
    /// Handover's own only.
    Own,
}

/// The vendor's table for one folder.
#[derive(Debug, Clone)]
pub struct Vendor {
    /// Whose it is.
    pub tool: Tool,
    /// Where it is.
    pub table: TableName,
    /// Whether it is still to be created.
    missing: bool,
    /// Whether refinery's or Flyway's versions have 32 bits there.
    narrow: bool,
    state: State,
}

/// The vendors' tables, by folder.
#[derive(Debug, Clone, Default)]
pub struct Vendors {
    folders: BTreeMap<String, Vendor>,
    role: Option<String>,
}

impl Vendors {
    /// Looks for the tables, and reads them, as `role` where one is given: the tables are the application's.
    ///
    /// # Errors
    /// As for [`Vendors::find`].
    pub async fn find_as(
        session: &Session,
        role: Option<&str>,
        step: &Migrate,
        files: &[Migration],
    ) -> Result<Vendors> {
        let Some(role) = role else { return Vendors::find(session, step, files).await };
        session.query(format!("set role {}", quote_ident(role)).as_str(), &[]).await?;
        let found = Vendors::find(session, step, files).await;
        session.query("reset role", &[]).await?;
        found
    }

    /// Looks for the tables, and reads them.
    ///
    /// # Errors
    /// A table that is there and can belong to several tools, or cannot be read; a tool that says that it left a
    /// migration half done.
    pub async fn find(session: &Session, step: &Migrate, files: &[Migration]) -> Result<Vendors> {
        let mut out = Vendors { folders: BTreeMap::new(), role: step.role.clone() };
        if step.history == History::Own {
            return Ok(out);
        }
        let folders: BTreeSet<(&str, Names)> = files.iter().map(|f| (f.folder.as_str(), f.names)).collect();
        let alone = folders.len() == 1;
        for (folder, names) in folders {
            let candidates = Tool::candidates(names, step.names != Names::Auto, || {
                files.iter().filter(|f| f.folder == folder).all(|f| !f.file.starts_with('U'))
            });
            let mut found = Vec::new();
            for tool in &candidates {
                found.extend(look(session, step, *tool).await?);
            }
            let mut vendor = match (&found[..], &candidates[..], step.history) {
                ([], [tool], History::Vendor) if alone => missing(session, step, *tool).await?,
                ([], _, History::Vendor) if alone => return Err(unknown_tool(folder, &candidates)),
                ([], _, _) => continue,
                ([one], _, _) => one.clone(),
                ([one, other, ..], _, _) => {
                    return Err(Error::usage(format!(
                        "the migrations of {folder} can be {}'s or {}'s, and both {} and {} exist",
                        one.tool, other.tool, one.table, other.table
                    ))
                    .on_database(session.database())
                    .hint("say whose they are with `names:`, or `history: own` to write neither"));
                }
            };
            if let Some((other, _)) = out.folders.iter().find(|(_, v)| v.table == vendor.table) {
                return Err(Error::usage(format!(
                    "the migrations of {other} and of {folder} would both be recorded in {}",
                    vendor.table
                ))
                .on_database(session.database())
                .hint(
                    "give each folder a step of its own, with `history: own` where it is not the vendor's",
                ));
            }
            if !vendor.missing {
                vendor.state = rows::read(session, vendor.tool, &vendor.table).await.map_err(|e| {
                    let grant = format!("grant select, insert, update, delete on {} to …", vendor.table);
                    match e.class() {
                        Class::Privilege => Error::new(Class::Privilege, e.message())
                            .on_database(session.database())
                            .hint(format!(
                                "let the step's `role:` be its owner, or {grant}; or say `history: own`"
                            )),
                        _ => e,
                    }
                })?;
                vendor.check(session, folder, files)?;
            }
            out.folders.insert(folder.to_owned(), vendor);
        }
        if out.folders.is_empty() && step.history == History::Vendor {
            return Err(Error::usage("no folder's tool has its table here".to_owned())
                .on_database(session.database())
                .hint(
                    "give the vendor's folder a step of its own, with `names:`; then its table is created",
                ));
        }
        Ok(out)
    }

    /// The table for a folder.
    #[must_use]
    pub fn of(&self, file: &Migration) -> Option<&Vendor> {
        self.folders.get(&file.folder)
    }

    /// The folders with their tables.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Vendor)> {
        self.folders.iter().map(|(folder, vendor)| (folder.as_str(), vendor))
    }

    /// Whether the vendor's table says that a migration was applied.
    #[must_use]
    pub fn covers(&self, file: &Migration) -> bool {
        self.of(file).is_some_and(|vendor| vendor.covers(file))
    }

    /// Creates the tables that are missing.
    ///
    /// # Errors
    /// What the server says.
    pub async fn create(&mut self, tx: &Tx<'_>) -> Result<()> {
        let role = self.role.clone();
        for vendor in self.folders.values_mut().filter(|v| v.missing) {
            act_as(tx, role.as_deref()).await?;
            tx.batch(&vendor.tool.create(&vendor.table)).await?;
            act_as(tx, None).await?;
            vendor.missing = false;
        }
        Ok(())
    }

    /// Records a migration as the vendor's tool does, in the transaction of its effect. Tells where, if anywhere.
    ///
    /// # Errors
    /// What the server says.
    pub async fn record(&self, tx: &Tx<'_>, file: &Migration, took: Duration) -> Result<Option<String>> {
        let Some(vendor) = self.of(file) else { return Ok(None) };
        act_as(tx, self.role.as_deref()).await?;
        rows::write(tx, vendor, file, took)
            .await
            .map_err(|e| e.context(format!("recording {} in {}", file.file, vendor.table)))?;
        act_as(tx, None).await?;
        Ok(Some(vendor.table.sql()))
    }

    /// Takes the vendor's row back. `previous`: the number of the migration that was applied before this one.
    ///
    /// # Errors
    /// What the server says, or a table that says something else.
    pub async fn forget(&self, tx: &Tx<'_>, file: &Migration, previous: Option<&str>) -> Result<()> {
        let Some(vendor) = self.of(file).filter(|v| !v.missing) else { return Ok(()) };
        act_as(tx, self.role.as_deref()).await?;
        rows::forget(tx, vendor, file, previous).await?;
        act_as(tx, None).await
    }
}

async fn act_as(tx: &Tx<'_>, role: Option<&str>) -> Result<()> {
    tx.batch(&format!("set local role {}", role.map_or("none".to_owned(), quote_ident))).await
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
    fn check(&self, session: &Session, folder: &str, files: &[Migration]) -> Result<()> {
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

fn unknown_tool(folder: &str, candidates: &[Tool]) -> Error {
    let hint = if candidates.is_empty() {
        "Handover knows no history table for this layout: say `history: own`"
    } else {
        "say whose they are with `names:`; then the table is created"
    };
    Error::usage(format!("whose history table the migrations of {folder} belong into cannot be told"))
        .hint(hint)
}

/// Looks for a tool's table on the search path.
async fn look(session: &Session, step: &Migrate, tool: Tool) -> Result<Option<Vendor>> {
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
async fn missing(session: &Session, step: &Migrate, tool: Tool) -> Result<Vendor> {
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
