//! What a plan says of a folder of migrations.

use crate::folder::{self, Loaded, Migration};
use crate::names::Names;
use handover_core::value::Duration;
use handover_core::{Error, Result};
use handover_port::Port;
use handover_postgres::profile::SearchPath;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Applies SQL migrations.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Migrate {
    /// The database.
    pub on: String,
    /// The folder with the migrations, relative to the plan's.
    pub dir: Option<PathBuf>,
    /// Several folders instead, in the order in which they run.
    #[serde(default)]
    pub dirs: Vec<PathBuf>,
    /// Whose file names the folders use; found out from the names unless given.
    #[serde(default)]
    pub names: Names,
    /// A folder whose files replace those of the same name, or add a down file that is missing.
    #[serde(rename = "override")]
    pub replace: Option<PathBuf>,
    /// Names of `.sql` files that are no migrations; `*` stands for any text.
    #[serde(default)]
    pub ignore: Vec<String>,
    /// How long a file waits for its locks before everything is rolled back and tried again. Kept short, because
    /// all traffic on a table queues behind a waiting ALTER TABLE; never more than four fifths of the server's
    /// `deadlock_timeout`, so that no statement of the application's is chosen as the victim of a deadlock.
    #[serde(default = "default_lock_timeout")]
    pub lock_timeout: Duration,
    /// How often a file is tried for its locks, with growing pauses.
    #[serde(default = "default_lock_attempts")]
    #[schemars(range(min = 1))]
    pub lock_attempts: u32,
    /// How long one statement may run; without limit unless given.
    pub statement_timeout: Option<Duration>,
    /// The role that the files run as, so that what they create belongs to the application.
    #[schemars(length(min = 1, max = 63))]
    pub role: Option<String>,
    /// The schemas in which names without one are looked up; those of the database in the plan unless given.
    pub search_path: Option<SearchPath>,
    /// What was applied before Handover, and is recorded without being run: a list of numbers (in quotes) or
    /// names, or a file with one a line. A single number or name stands for all up to it. Where the vendor's own
    /// table tells, leave it out.
    pub baseline: Option<Baseline>,
    /// Whose history counts, and is written with what is applied.
    #[serde(default)]
    pub history: History,
    /// The vendor's table, if the service was told another name for it than its tool's usual one.
    #[schemars(length(min = 1))]
    pub history_table: Option<String>,
    /// How the step is taken back.
    #[serde(default)]
    pub undo: UndoBy,
}

/// What was applied before Handover.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Baseline {
    /// All up to this one.
    UpTo(String),
    /// These.
    Set(Vec<String>),
    /// Those that a file names.
    File(BaselineFile),
}

/// A file with the numbers or names of the migrations that were applied.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BaselineFile {
    /// The file, relative to the plan's folder: a number or name on each line; `#` begins a comment.
    pub file: PathBuf,
}

/// How applied migrations are taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UndoBy {
    /// By the down files, newest first; each migration must have one. They are trusted to lose nothing.
    #[default]
    Down,
    /// By the down files, which lose what was written to the columns and tables that they drop: a rollback
    /// asks first.
    DownWithLoss,
    /// Not at all.
    None,
    /// Only the history forgets: the database is filled by this plan, and emptied by an earlier step's undo.
    Throwaway,
}

fn default_lock_timeout() -> Duration {
    Duration::secs(2)
}

fn default_lock_attempts() -> u32 {
    20
}

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

impl Migrate {
    /// Files and folders whose content decides what it does, relative to the plan's folder.
    #[must_use]
    pub fn reads(&self) -> Vec<PathBuf> {
        let baseline = match &self.baseline {
            Some(Baseline::File(named)) => Some(named.file.clone()),
            _ => None,
        };
        self.folders()
            .into_iter()
            .map(Path::to_path_buf)
            .chain(self.replace.clone())
            .chain(baseline)
            .collect()
    }

    fn folders(&self) -> Vec<&Path> {
        self.dir.iter().chain(&self.dirs).map(PathBuf::as_path).collect()
    }

    /// Reads the folders, and tells what is wrong with them.
    pub(crate) fn load(&self, base: &Path) -> Loaded {
        folder::load(base, &self.folders(), self.names, self.replace.as_deref(), &self.ignore)
    }

    /// What is wrong if not all of these can be taken back.
    pub(crate) fn without_way_back(&self, files: &[&Migration]) -> Option<Error> {
        if !matches!(self.undo, UndoBy::Down | UndoBy::DownWithLoss) {
            return None;
        }
        let mut without = files.iter().filter(|m| m.down.is_none());
        let (first, rest) = (without.next()?, without.count());
        let more = if rest == 0 { String::new() } else { format!(" and {rest} more") };
        Some(Error::usage(format!("{}{more}: no down file, so the step cannot be taken back", first.file)).hint(
            "add down files (a blank one if there is nothing to take back; they may stand in `override:`), or say `undo: none`, or `undo: throwaway` for a database that this plan fills; what the vendor's own table says was applied needs none with `history: vendor`",
        ))
    }

    /// Where the files' names are looked up.
    pub(crate) fn path<'a>(&'a self, port: &'a Port) -> Result<&'a SearchPath> {
        match &self.search_path {
            Some(path) => Ok(path),
            None => port.databases.search_path(&self.on),
        }
    }
}
