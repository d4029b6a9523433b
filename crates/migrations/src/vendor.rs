//! The vendor's own history: what its table says was applied, and the rows that its tool would have written for
//! what Handover applies. A service that migrates when it starts then finds everything done.
//!
//! A row is only written where it can be written as the tool does. What stands in the table already is compared
//! first, checksums too: were our way of computing them another than the tool's, it would show there.

use crate::folder::Migration;
use crate::names::Names;
use crate::options::{History, Migrate};
use handover_core::error::{Class, Error, Result};
use handover_postgres::{Session, Tx, quote_ident};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

mod checksum;
mod rows;
mod table;
mod tool;

pub use table::Vendor;
use table::{look, missing};
pub use tool::Tool;

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

fn unknown_tool(folder: &str, candidates: &[Tool]) -> Error {
    let hint = if candidates.is_empty() {
        "Handover knows no history table for this layout: say `history: own`"
    } else {
        "say whose they are with `names:`; then the table is created"
    };
    Error::usage(format!("whose history table the migrations of {folder} belong into cannot be told"))
        .hint(hint)
}
