//! What a plan says of a copy.

use handover_core::value::Duration;
use handover_postgres::TableName;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Tables larger than this are split, unless the plan says otherwise.
const CHUNK: u64 = 1 << 30;
/// How long a snapshot outlives the engine, unless the plan says otherwise.
const HOLD: std::time::Duration = std::time::Duration::from_secs(30 * 60);

/// Copies a database.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Copy {
    /// The database that is read.
    pub from: String,
    /// The empty database that is filled.
    pub to: String,
    /// Pieces loaded at once, and as many indexes and keys built beside them (half as many more while there is
    /// only the one or the other to do); the cores of the server that has fewer unless given.
    #[schemars(range(min = 1, max = 64))]
    pub jobs: Option<usize>,
    /// Copies only these.
    #[serde(default)]
    pub include: Names,
    /// Leaves these out.
    #[serde(default)]
    pub exclude: Names,
    /// Creates these tables without their rows.
    #[serde(default)]
    pub without_data: Vec<TableName>,
    /// What to do about views, routines, triggers and foreign keys that need something that is left out.
    #[serde(default)]
    pub dependents: Dependents,
    /// What to do about rows that do not fit a foreign key or a unique key which the source believes in.
    #[serde(default)]
    pub on_violation: OnViolation,
    /// Whether owners and grants are kept.
    #[serde(default)]
    pub owners: Owners,
    /// What to do when the source has large objects.
    #[serde(default)]
    pub large_objects: LargeObjects,
    /// Whether publications are created too: `false` unless given.
    #[serde(default)]
    pub publications: bool,
    /// Tables larger than this many megabytes are copied in pieces of that size, in parallel; 1024 unless given.
    #[schemars(range(min = 1))]
    pub chunk_mb: Option<u64>,
    /// What those pieces are ranges of.
    #[serde(default)]
    pub split_by: SplitBy,
    /// `maintenance_work_mem` for index builds, e.g. `1GB`; each job uses that much.
    pub maintenance_work_mem: Option<String>,
    /// Settings of the target's server for the time of the load, e.g. `max_wal_size: 32GB`; they are put back
    /// after it. They need the right to ALTER SYSTEM.
    #[serde(default)]
    pub tune: BTreeMap<String, String>,
    /// How long the source keeps the copy's snapshot after the engine was last seen, so that a copy that was
    /// interrupted can go on from it; 30 minutes unless given. Until then vacuum there keeps dead rows.
    pub hold: Option<Duration>,
    /// Says that nothing writes to the source: a copy whose snapshot is gone then goes on from a new one.
    #[serde(default)]
    pub source_is_quiet: bool,
    /// Folder with pg_dump; searched for unless given.
    pub programs: Option<PathBuf>,
}

impl Copy {
    /// Whether the rows of a table are copied, as far as names say.
    #[must_use]
    pub fn takes_rows(&self, table: &TableName) -> bool {
        self.selection().table(table) && !self.without_data.contains(table)
    }

    /// Whether a table is made on the target, with or without its rows.
    #[must_use]
    pub fn takes(&self, table: &TableName) -> bool {
        self.selection().table(table)
    }

    /// What is copied, by name.
    #[must_use]
    pub fn selection(&self) -> Selection<'_> {
        Selection { include: &self.include, exclude: &self.exclude }
    }

    pub(crate) fn chunk_bytes(&self) -> u64 {
        self.chunk_mb.map_or(CHUNK, |mb| mb.max(1) << 20)
    }

    pub(crate) fn hold(&self) -> std::time::Duration {
        self.hold.map_or(HOLD, |hold| hold.0)
    }
}

/// What the pieces of a large table are ranges of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SplitBy {
    /// `tid`, or `key` where the source is older than Postgres 14.
    #[default]
    Auto,
    /// Its blocks. Needs Postgres 14 on the source.
    Tid,
    /// The values of an index's columns: also useful where most blocks of a table hold no rows any more.
    Key,
}

/// Schemas and tables by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Names {
    /// Whole schemas.
    pub schemas: Vec<String>,
    /// Single tables, views or foreign tables.
    pub tables: Vec<TableName>,
}

impl Names {
    /// Whether nothing is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.schemas.is_empty() && self.tables.is_empty()
    }
}

/// What to do about views, routines, triggers, rules and foreign keys that need something that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dependents {
    /// Copy nothing, and name them.
    #[default]
    Refuse,
    /// Leave them out too, with what needs them, and name them. A table, and its defaults, checks and policies, are
    /// never left out like that.
    LeaveOut,
}

/// What to do about rows that do not fit a foreign key or a unique key, though the source calls it valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnViolation {
    /// Stop, and name them.
    #[default]
    Halt,
    /// Set them aside on the target, in `handover.archive`, with the rows that refer to them; of rows with the same
    /// key the first one stays. They are counted in the summary, and `verify` knows of them.
    Quarantine,
}

/// Whether owners and grants are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Owners {
    /// Objects belong to the roles of the same names; those must exist on the target.
    #[default]
    Keep,
    /// Everything belongs to the role that executes the plan, and nothing is granted.
    Skip,
}

/// What to do when the source has large objects (`pg_largeobject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LargeObjects {
    /// Copy them, with the numbers they have.
    #[default]
    Copy,
    /// Leave them behind.
    Skip,
}

/// What is copied, by name.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'a> {
    pub(crate) include: &'a Names,
    pub(crate) exclude: &'a Names,
}

impl Selection<'_> {
    /// Whether objects of a schema are copied.
    #[must_use]
    pub fn schema(&self, schema: &str) -> bool {
        let named = |names: &Names| names.schemas.iter().any(|s| s == schema);
        !named(self.exclude)
            && (self.include.is_empty()
                || named(self.include)
                || self.include.tables.iter().any(|t| t.schema == schema))
    }

    /// Whether a table, view or foreign table is copied.
    #[must_use]
    pub fn relation(&self, name: &TableName) -> bool {
        self.schema(&name.schema)
            && !self.exclude.tables.contains(name)
            && (self.include.is_empty()
                || self.include.schemas.contains(&name.schema)
                || self.include.tables.contains(name))
    }

    /// The same for a table.
    #[must_use]
    pub fn table(&self, name: &TableName) -> bool {
        self.relation(name)
    }
}
