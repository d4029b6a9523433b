//! The status of the migrations: what the two histories, Handover's and the vendor's, and the plan's baseline say
//! together of the folders.

use crate::folder::Migration;
use crate::history::{self, Row, Standing};
use crate::names::Kind;
use crate::options::{Baseline, Migrate};
use crate::vendor::Vendors;
use handover_core::error::{Error, Result};
use handover_core::problem::count;
use handover_postgres::Session;
use std::collections::BTreeSet;
use std::path::Path;

/// Everything that decides which files run.
#[derive(Debug)]
pub struct Status {
    /// The migrations that count on this database.
    pub migrations: Vec<Migration>,
    /// Handover's history.
    pub rows: Vec<Row>,
    /// The vendors' tables.
    pub vendors: Vendors,
    /// What the plan names as applied before, by key.
    pub baseline: BTreeSet<String>,
}

impl Status {
    /// Reads the histories; the vendors' as `role`, where one is given.
    ///
    /// # Errors
    /// What the server says, or histories that cannot be read or contradict the plan.
    pub async fn read(
        session: &Session,
        role: Option<&str>,
        step: &Migrate,
        base: &Path,
        table: &str,
        migrations: Vec<Migration>,
    ) -> Result<Status> {
        let rows = history::read(session, table).await?;
        let vendors = Vendors::find_as(session, role, step, &migrations).await?;
        let baseline = baseline_of(step, base, &migrations)?;
        let mut out = Status { migrations, rows, vendors, baseline };
        out.leave_out_replaced();
        out.compare_baseline(session)?;
        Ok(out)
    }

    /// Whether a pending file is only recorded.
    #[must_use]
    pub fn is_baseline(&self, file: &Migration) -> bool {
        self.baseline.contains(&file.key()) || self.vendors.covers(file)
    }

    /// What is still to run, in order, and then what runs again; without what is only recorded.
    #[must_use]
    pub fn to_run<'a>(&self, standing: &Standing<'a>) -> Vec<&'a Migration> {
        let files = standing.pending.iter().chain(&standing.again).map(|(_, file)| *file);
        files.filter(|file| !self.is_baseline(file)).collect()
    }

    /// What Handover applied and the vendor's table does not know: its tool would do it again.
    #[must_use]
    pub fn unknown_to_vendor(&self) -> Vec<&Migration> {
        let known = |file: &Migration| self.vendors.of(file).is_none_or(|v| v.is_missing() || v.covers(file));
        let applied =
            |file: &Migration| self.rows.iter().any(|r| r.folder == file.folder && r.number == file.number);
        self.migrations.iter().filter(|f| f.kind != Kind::Repeatable && applied(f) && !known(f)).collect()
    }

    /// Flyway's baseline migration stands for all versions up to its own on a new database, and for nothing on
    /// any other.
    fn leave_out_replaced(&mut self) {
        let applied = |file: &Migration| {
            self.vendors.covers(file)
                || self.rows.iter().any(|r| r.folder == file.folder && r.file == file.file)
        };
        let fresh = |folder: &str| {
            self.baseline.is_empty()
                && self.rows.iter().all(|r| r.folder != folder)
                && self.vendors.iter().all(|(name, vendor)| name != folder || vendor.is_empty())
        };
        let mut chosen: Vec<&Migration> = Vec::new();
        for file in self.migrations.iter().filter(|f| f.kind == Kind::Baseline) {
            if applied(file) || fresh(&file.folder) {
                chosen.retain(|other| other.folder != file.folder);
                chosen.push(file);
            }
        }
        let stays = |file: &Migration| match file.kind {
            Kind::Repeatable => true,
            Kind::Baseline => chosen.iter().any(|other| other.key() == file.key()),
            Kind::Versioned => !chosen.iter().any(|other| {
                other.folder == file.folder
                    && file.names.compare(&file.number, &other.number).is_le()
                    && !applied(file)
            }),
        };
        let keep: BTreeSet<String> =
            self.migrations.iter().filter(|f| stays(f)).map(Migration::key).collect();
        self.migrations.retain(|file| keep.contains(&file.key()));
    }

    /// A baseline must not say that something was applied of which the vendor's table does not know.
    fn compare_baseline(&self, session: &Session) -> Result<()> {
        let unknown: Vec<&Migration> = self
            .migrations
            .iter()
            .filter(|f| self.baseline.contains(&f.key()))
            .filter(|f| self.vendors.of(f).is_some_and(|v| !v.is_empty() && !v.covers(f)))
            .filter(|f| !self.rows.iter().any(|r| r.folder == f.folder && r.number == f.number))
            .collect();
        let Some(first) = unknown.first() else { return Ok(()) };
        let table = self.vendors.of(first).map(|v| v.table.to_string()).unwrap_or_default();
        Err(Error::data(format!(
            "`baseline` says that {} were applied of which {table} does not know: {}",
            count(unknown.len(), "file"),
            few(&unknown)
        ))
        .on_database(session.database())
        .hint(format!("leave `baseline` out: {table} says what was applied; or say `history: own` if it is not to be believed")))
    }
}

/// The migrations that the plan says were applied before, by key.
///
/// # Errors
/// A name that is not one of them.
pub fn baseline_of(step: &Migrate, base: &Path, migrations: &[Migration]) -> Result<BTreeSet<String>> {
    let (up_to, list) = match &step.baseline {
        None => return Ok(BTreeSet::new()),
        Some(Baseline::UpTo(last)) => (true, vec![last.clone()]),
        Some(Baseline::Set(list)) => (false, list.clone()),
        Some(Baseline::File(named)) => {
            let path = base.join(&named.file);
            let text = std::fs::read_to_string(&path).map_err(|e| {
                Error::usage(format!("cannot read the file ({e})"))
                    .in_file(path.display(), None)
                    .hint("it holds the numbers or names of the migrations that were applied, one a line")
            })?;
            let lines = text.lines().map(|line| line.split('#').next().unwrap_or("").trim());
            (false, lines.filter(|line| !line.is_empty()).map(str::to_owned).collect())
        }
    };
    let mut out = BTreeSet::new();
    for text in list {
        let named = |m: &Migration| m.number == *text || m.file == *text || m.key() == *text;
        let mut found = migrations.iter().enumerate().filter(|(_, m)| named(m)).map(|(i, _)| i);
        match (found.next(), found.next()) {
            (Some(last), None) if up_to => out.extend(migrations.iter().take(last + 1).map(Migration::key)),
            (Some(one), None) => out.extend(migrations.get(one).map(Migration::key)),
            (found, _) => {
                return Err(Error::usage(format!("`{text}` is not the number or name of one migration"))
                    .hint(match found {
                        Some(_) => "several folders have it: write the file's name with its folder",
                        None => "write the number as the file has it, in quotes",
                    }));
            }
        }
    }
    Ok(out)
}

/// The first few of them by name.
pub fn few(list: &[&Migration]) -> String {
    let names: Vec<&str> = list.iter().take(3).map(|f| f.file.as_str()).collect();
    let more = if list.len() > names.len() { ", …" } else { "" };
    format!("{}{more}", names.join(", "))
}
