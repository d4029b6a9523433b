//! What commits with a file's effect, and how far a file has come.

use crate::folder::Migration;
use crate::script::Script;
use crate::vendor::Vendors;
use handover_core::{Result, value};
use handover_port::Port;
use handover_postgres::Tx;
use handover_postgres::ours::OURS;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What commits with a file's or unit's effect.
pub enum Tail<'t> {
    /// The migration is applied: refinery's row, and our columns of it.
    Applied { insert: &'t str, version: i64, file: &'t Migration },
    /// A unit of a file that runs step by step is done.
    Unit { key: &'t str, position: Position },
    /// The migration is applied again, because its text changed.
    Again { version: i64, checksum: &'t str, file: &'t Migration },
    /// The migration is taken back; in a vendor's table too, if the row there is ours. `previous`: the number
    /// of the one before it in its folder.
    Forgotten { version: Option<i64>, file: &'t Migration, vendor: bool, previous: Option<&'t str> },
}

/// How far a file that runs step by step has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Units done.
    pub done: usize,
    /// Whether the next one was begun; only for one that is not in a transaction.
    pub begun: bool,
    /// Digest of the text that was executed, which must not change any more.
    pub executed: String,
}

impl Position {
    /// After the first `done` units of a script.
    pub fn at(script: &Script, done: usize, begun: bool) -> Self {
        Position { done, begun, executed: digest(script.prefix(done)) }
    }
}

/// Tells one executed text from another.
pub fn digest(text: &str) -> String {
    value::fingerprint(text, 16)
}

/// The key under which a file's progress upwards is kept.
pub fn up_key(file: &Migration) -> String {
    format!("up {}", file.key())
}

/// The key under which a file's progress downwards is kept.
pub fn down_key(file: &Migration) -> String {
    format!("down {}", file.key())
}

/// What its progress is shown under.
pub fn unit_label(tail: &Tail<'_>) -> String {
    match tail {
        Tail::Applied { file, .. } | Tail::Again { file, .. } => file.file.clone(),
        Tail::Unit { key, .. } => (*key).to_owned(),
        Tail::Forgotten { file, .. } => format!("undo {}", file.file),
    }
}

/// Writes what commits with the effect.
pub async fn finish(
    tx: &Tx<'_>,
    port: &Port,
    table: &str,
    tail: &Tail<'_>,
    baseline: bool,
    vendors: &Vendors,
    took: Duration,
) -> Result<()> {
    match tail {
        Tail::Applied { insert, version, file } => {
            tx.batch(insert).await?;
            let vendor = vendors.record(tx, file, took).await?;
            own_columns(tx, port, table, *version, file, baseline, vendor).await
        }
        Tail::Again { version, checksum, file } => {
            tx.execute(
                format!("update {table} set checksum = $2, applied_on = now()::text where version = $1")
                    .as_str(),
                &[version, checksum],
            )
            .await?;
            let vendor = vendors.record(tx, file, took).await?;
            own_columns(tx, port, table, *version, file, false, vendor).await
        }
        Tail::Unit { key, position } => tx.save_checkpoint(port.run, &port.step, key, position).await,
        Tail::Forgotten { version, file, vendor, previous } => {
            if *vendor {
                vendors.forget(tx, file, *previous).await?;
            }
            if let Some(version) = version {
                tx.execute(format!("delete from {table} where version = $1").as_str(), &[version]).await?;
            }
            for key in [up_key(file), down_key(file)] {
                forget(tx, port, &key).await?;
            }
            Ok(())
        }
    }
}

/// Fills our columns of a row that refinery just wrote, and drops the record of the way there.
pub async fn own_columns(
    tx: &Tx<'_>,
    port: &Port,
    table: &str,
    version: i64,
    file: &Migration,
    baseline: bool,
    vendor: Option<String>,
) -> Result<()> {
    tx.execute(
        format!("update {table} set folder = $2, number = $3, file = $4, baseline = $5, run = $6, vendor = $7 where version = $1")
            .as_str(),
        &[&version, &file.folder, &file.number, &file.file, &baseline, &port.run.0, &vendor],
    )
    .await?;
    forget(tx, port, &up_key(file)).await
}

async fn forget(tx: &Tx<'_>, port: &Port, key: &str) -> Result<()> {
    tx.execute(
        &format!("delete from {OURS}.checkpoint where run = $1 and step = $2 and unit = $3"),
        &[&port.run.0, &port.step.as_str(), &key],
    )
    .await
    .map(drop)
}
