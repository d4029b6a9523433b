//! What a copy keeps in green's checkpoints, so that another process can go on from it or take it back.

use crate::definitions::Definition;
use crate::dump::Entry;
use handover_core::error::Result;
use handover_core::event::{RunId, StepId};
use handover_postgres::ours::OURS;
use handover_postgres::{Session, TableName, Tx};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use tokio_postgres::types::Json;

/// Unit of [`State`].
pub const STATE: &str = "state";
/// Unit that says that all rows are there.
pub const DATA: &str = "data";
/// Unit that says that sequences are set.
pub const SEQUENCES: &str = "sequences";
/// Unit that says that the copy is complete.
pub const DONE: &str = "done";

/// The copy's plan, written before anything is created.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// Objects that were on green before, as (catalog, row).
    pub existing: Vec<(u32, u32)>,
    /// What a dump showed of green before, entry by entry as a fingerprint; none where that could not be had.
    #[serde(default)]
    pub shown: Option<std::collections::BTreeMap<String, String>>,
    /// Where the copy's rows are from.
    pub snapshot: Snapshot,
    /// Who holds it open.
    pub held: Held,
    /// Tables with rows to copy.
    pub tables: Vec<Table>,
    /// Sequences with their positions.
    pub sequences: Vec<Sequence>,
    /// Settings of the sessions that execute entries.
    pub settings: String,
    /// Entries to execute before the rows come.
    pub before: Vec<Entry>,
    /// Entries to execute after the rows are there.
    pub after: Vec<Object>,
    /// Tables to analyze.
    pub analyze: Vec<Analyze>,
    /// What green must show at the end.
    pub inventory: BTreeSet<Fact>,
    /// What each object of the source's means.
    #[serde(default)]
    pub definitions: Vec<Definition>,
    /// What stays behind because it hangs on something that is left out, in words.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// How often rows of each table had been written when the copy began, as the source's statistics say:
    /// a cutover asks for writes that came after. Read before the snapshot, so none of those is missed.
    #[serde(default)]
    pub writes: Vec<(TableName, i64)>,
    /// The same by operation: inserted, updated, deleted. Empty in the state of an older version.
    #[serde(default)]
    pub operations: Vec<(TableName, [i64; 3])>,
    /// When the source's server had started then, by its own clock: a crash sets its statistics back.
    #[serde(default)]
    pub server_started: String,
}

/// A session of the source's that holds a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The name others import it by (`pg_export_snapshot`).
    pub exported: String,
    /// Its backend.
    pub pid: i32,
    /// When that backend started: a number may come again.
    pub since: String,
}

/// An entry with the tables that it locks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// The entry.
    #[serde(flatten)]
    pub entry: Entry,
    /// The table of an index, constraint or statistics object.
    pub table: Option<TableName>,
    /// The table that a foreign key points to.
    pub references: Option<TableName>,
    /// What rows must fit, of a foreign key or a unique index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Rule>,
}

/// What rows must fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// A row of another table.
    Foreign {
        /// Columns that refer.
        columns: Vec<String>,
        /// Columns that they refer to.
        others: Vec<String>,
        /// Operators between the other's and its own, in SQL.
        equal: Vec<String>,
        /// Whether either all or none of the columns must be null.
        full: bool,
    },
    /// No other row.
    Unique {
        /// Expressions over the row, in SQL.
        keys: Vec<String>,
        /// Which rows, in SQL.
        condition: Option<String>,
        /// Whether nulls are alike.
        nulls: bool,
    },
}

/// A table to analyze, once it and those below it are complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Analyze {
    /// The table; one with partitions is analyzed with them.
    pub table: TableName,
    /// Its partitions and children, at all depths.
    pub below: Vec<TableName>,
}

impl Object {
    /// The name of its checkpoint.
    #[must_use]
    pub fn unit(&self) -> String {
        format!("entry:{}", self.entry.id)
    }
}

impl Analyze {
    /// The name of its checkpoint.
    #[must_use]
    pub fn unit(&self) -> String {
        format!("analyzed:{}", self.table.sql())
    }
}

/// The point in time a copy shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// `pg_current_snapshot()`: the transactions it sees.
    pub xids: String,
    /// Where blue's log stood just after it was taken.
    pub lsn: String,
    /// When, by blue's clock.
    pub taken_at: jiff::Timestamp,
}

/// A table whose rows are copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its name.
    pub name: TableName,
    /// Columns that are stored and not generated.
    pub columns: Vec<String>,
    /// Whether its rows travel in binary form.
    pub binary: bool,
    /// The partitioned table that its rows are given to on green, where the source's partition is not the
    /// target's: rows of any table with this root may land in any other, so none of them may be emptied or
    /// loaded frozen.
    #[serde(default)]
    pub root: Option<TableName>,
    /// Its size on blue with what is stored out of line.
    pub bytes: u64,
    /// Ranges that have each row exactly once; one without bounds is the whole table.
    pub chunks: Vec<Chunk>,
    /// What ranges of keys are ranges of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Key>,
}

/// A range of a table's rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Chunk {
    /// Of its blocks.
    Blocks {
        /// First block.
        from: u64,
        /// The block after the last, none for all the rest.
        to: Option<u64>,
    },
    /// Of its key's values, as the server writes them.
    Keys {
        /// The first that is in it, none for all before.
        lower: Option<Vec<String>>,
        /// The first that is not, none for all the rest.
        upper: Option<Vec<String>>,
    },
}

impl Chunk {
    /// All rows.
    pub const WHOLE: Chunk = Chunk::Blocks { from: 0, to: None };
}

/// Columns with an order that an index has too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// None of them is ever null.
    pub columns: Vec<KeyColumn>,
    /// The operator "less than" of that order.
    pub less: String,
    /// The operator "not less than".
    pub at_least: String,
}

/// A column of a [`Key`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyColumn {
    /// Its name.
    pub name: String,
    /// Its type in SQL.
    pub sql_type: String,
    /// The index's collation in SQL, none for types without.
    pub collation: Option<String>,
}

impl Table {
    /// The name of a chunk's checkpoint.
    #[must_use]
    pub fn unit(&self, chunk: usize) -> String {
        format!("rows:{}:{chunk}", self.name.sql())
    }
}

/// A sequence's position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    /// Its name.
    pub name: TableName,
    /// Its last value.
    pub value: i64,
    /// Whether that value was handed out.
    pub called: bool,
}

/// One line of the catalog comparison.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fact {
    /// Schema of the object.
    pub schema: String,
    /// Its relation, empty for others.
    pub relation: String,
    /// What is there, in words.
    pub text: String,
}

/// What a chunk's checkpoint says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Loaded {
    /// The table.
    pub table: TableName,
    /// Rows the server took.
    pub rows: u64,
    /// Bytes that went over the wire.
    pub bytes: u64,
}

/// Objects made by one transaction, as (catalog, row).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Created {
    /// In no order.
    pub objects: Vec<(u32, u32)>,
}

/// The state that an earlier attempt left, if any.
pub async fn load(session: &mut Session, run: RunId, step: &StepId) -> Result<Option<State>> {
    let tx = session.transaction().await?;
    let state = tx.checkpoint(run, step, STATE).await?;
    tx.rollback().await?;
    Ok(state)
}

/// The same, for a session that only reads.
pub async fn read(session: &Session, run: RunId, step: &StepId) -> Result<Option<State>> {
    Ok(states::<State>(session, run, step, STATE).await?.into_iter().next())
}

/// Names of the units that are done.
pub async fn units(session: &Session, run: RunId, step: &StepId) -> Result<BTreeSet<String>> {
    let rows = session
        .query(
            &format!("select unit from {OURS}.checkpoint where run = $1 and step = $2"),
            &[&run.0, &step.as_str()],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The states of all units whose name begins with `prefix`.
pub async fn states<T: serde::de::DeserializeOwned>(
    session: &Session,
    run: RunId,
    step: &StepId,
    prefix: &str,
) -> Result<Vec<T>> {
    let rows = session
        .query(
            &format!(
                "select state from {OURS}.checkpoint where run = $1 and step = $2 and starts_with(unit, $3)"
            ),
            &[&run.0, &step.as_str(), &prefix],
        )
        .await?;
    rows.iter()
        .map(|row| {
            row.try_get::<_, Json<T>>(0).map(|Json(state)| state).map_err(|e| {
                handover_core::Error::internal(format!("a checkpoint of the copy cannot be read ({e})"))
            })
        })
        .collect()
}

/// Marks a unit without a state of its own.
pub async fn mark(tx: &Tx<'_>, run: RunId, step: &StepId, unit: &str) -> Result<()> {
    tx.save_checkpoint(run, step, unit, &serde_json::Value::Bool(true)).await
}

/// Rows that were loaded, per table.
pub async fn loaded(session: &Session, run: RunId, step: &StepId) -> Result<Vec<Loaded>> {
    let mut totals: std::collections::BTreeMap<_, Loaded> = std::collections::BTreeMap::new();
    for one in states::<Loaded>(session, run, step, "rows:").await? {
        let total = totals.entry(one.table.clone()).or_insert(Loaded { rows: 0, bytes: 0, table: one.table });
        total.rows += one.rows;
        total.bytes += one.bytes;
    }
    Ok(totals.into_values().collect())
}
