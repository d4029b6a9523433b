//! `create_index`: builds indexes with `CREATE INDEX CONCURRENTLY`, so that nobody is locked out.
//!
//! The build cannot run in a transaction, so no checkpoint can commit with it; instead each attempt looks at
//! the catalog. A failed build leaves an INVALID index that `IF NOT EXISTS` would take for a good one: ours
//! is dropped and built again, somebody else's is only reported.
//! (<https://www.postgresql.org/docs/current/sql-createindex.html#SQL-CREATEINDEX-CONCURRENTLY>)

use super::{Access, CheckContext, Context, Description, StepKind, Undo};
use crate::error::{Error, Result};
use crate::event::Measure;
use crate::failpoint;
use crate::postgres::index::{Found, find, snapshot_holders};
use crate::postgres::{Session, TableName, quote_ident};
use crate::problem::{Problems, Segment};
use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// Builds indexes without blocking writers.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateIndex {
    /// The database.
    pub on: String,
    /// The indexes, built one after the other (two concurrent builds on one table wait for each other).
    #[schemars(length(min = 1))]
    pub indexes: Vec<Index>,
    /// `maintenance_work_mem` for the build, e.g. `1GB`.
    pub maintenance_work_mem: Option<String>,
}

/// One index.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// Its name; it lands in the table's schema.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The table.
    pub table: TableName,
    /// Columns or expressions as in SQL, with their options: `created_at desc`, `lower(email)`.
    #[schemars(length(min = 1))]
    pub columns: Vec<String>,
    /// Whether values must be unique.
    #[serde(default)]
    pub unique: bool,
    /// Access method; `btree` unless given.
    pub using: Option<String>,
    /// Columns stored without being searched.
    #[serde(default)]
    pub include: Vec<String>,
    /// Condition of a partial index.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// Storage parameters, e.g. `fillfactor = 70`.
    pub with: Option<String>,
}

impl Index {
    fn qualified(&self) -> String {
        TableName::new(&self.table.schema, &self.name).sql()
    }

    fn statement(&self) -> String {
        use std::fmt::Write;
        let mut sql = format!(
            "create {}index concurrently {} on {}",
            if self.unique { "unique " } else { "" },
            quote_ident(&self.name),
            self.table.sql()
        );
        if let Some(method) = &self.using {
            let _ = write!(sql, " using {}", quote_ident(method));
        }
        let _ = write!(sql, " ({})", self.columns.join(", "));
        if !self.include.is_empty() {
            let columns: Vec<String> = self.include.iter().map(|c| quote_ident(c)).collect();
            let _ = write!(sql, " include ({})", columns.join(", "));
        }
        if let Some(with) = &self.with {
            let _ = write!(sql, " with ({with})");
        }
        if let Some(condition) = &self.condition {
            let _ = write!(sql, " where {condition}");
        }
        sql
    }
}

#[async_trait]
impl StepKind for CreateIndex {
    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        cx.database(problems, "on", &self.on);
        let mut names = BTreeSet::new();
        for (i, index) in self.indexes.iter().enumerate() {
            if !names.insert((&index.table.schema, &index.name)) {
                problems
                    .error(
                        [Segment::from("indexes"), i.into(), "name".into()],
                        format!("the index `{}` is named twice", index.name),
                    )
                    .hint("index names are unique within a schema");
            }
        }
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        vec![(&self.on, Access::Write)]
    }

    fn reversibility(&self) -> Undo {
        Undo::Exact { how: "drops the indexes it built, concurrently".into() }
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        let session = cx.reader(&self.on).await?;
        let mut out = Description::default();
        for index in &self.indexes {
            match find(&session, &index.table, &index.name).await? {
                Found::Absent => out.action(index.statement()),
                Found::Valid => out.action(format!("nothing: index {} exists already", index.name)),
                Found::Invalid => out.blocker(format!(
                    "an INVALID index {0} was left by an earlier failed build; drop it: drop index concurrently {1}",
                    index.name,
                    index.qualified()
                )),
                Found::Other(what) => out.blocker(format!("the name {} belongs to {what}", index.name)),
            };
        }
        for blocker in snapshot_holders(&session).await? {
            out.warning(format!("the build would wait for {blocker}"));
        }
        Ok(out)
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let session = cx.writer(&self.on).await?;
        // The waits for older snapshots go through the lock manager: any lock_timeout would end the build there.
        session.set("lock_timeout", "0").await?;
        session.set("statement_timeout", "0").await?;
        if let Some(memory) = &self.maintenance_work_mem {
            session.set("maintenance_work_mem", memory).await?;
        }
        let mut built = Vec::new();
        for index in &self.indexes {
            cx.proceed()?;
            if self.build(cx, &session, index).await? {
                built.push(index.name.as_str());
            }
            failpoint::hit(failpoint::INDEX_BUILT);
        }
        Ok(json!({ "built": built }))
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        let session = cx.reader(&self.on).await?;
        for index in &self.indexes {
            if find(&session, &index.table, &index.name).await? != Found::Valid {
                return Err(Error::data(format!(
                    "index {} is not there or not valid after its build",
                    index.name
                ))
                .on_database(&self.on)
                .hint("see whether somebody dropped it meanwhile, then `handover resume`"));
            }
        }
        Ok(())
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        let session = cx.writer(&self.on).await?;
        let mut dropped = Vec::new();
        for index in &self.indexes {
            // Only what the journal says is ours: one that was there before the run stays.
            if cx.recall::<bool>(&index.name)? == Some(true) {
                session
                    .autocommit(&format!("drop index concurrently if exists {}", index.qualified()), &[])
                    .await?;
                cx.forget(&index.name).await?;
                dropped.push(index.name.as_str());
            }
        }
        Ok(json!({ "dropped": dropped }))
    }
}

impl CreateIndex {
    /// Builds one index unless it is there; returns whether this attempt built it.
    async fn build(&self, cx: &Context, session: &Session, index: &Index) -> Result<bool> {
        let ours = cx.recall::<bool>(&index.name)? == Some(true);
        match find(session, &index.table, &index.name).await? {
            Found::Valid => return Ok(false),
            Found::Other(what) => {
                return Err(Error::data(format!("the name {} belongs to {what}", index.name))
                    .on_database(&self.on)
                    .hint("choose another name for the index, or rename what has it now"));
            }
            Found::Invalid if !ours => {
                return Err(Error::data(format!(
                    "an INVALID index {} exists that this run did not make",
                    index.name
                ))
                .on_database(&self.on)
                .hint(format!(
                    "nobody reads it and every write pays for it; `drop index concurrently {}`, then `handover resume`",
                    index.qualified()
                )));
            }
            Found::Invalid => {
                cx.note(format!("dropping what an interrupted build left of index {}", index.name));
                session.autocommit(&format!("drop index concurrently {}", index.qualified()), &[]).await?;
            }
            Found::Absent => {}
        }
        cx.remember(&index.name, &true).await?;
        failpoint::hit(failpoint::INDEX_BEFORE);
        let pid = session.backend_pid().await?;
        let watch = watch(cx, &self.on, pid, &index.name);
        let sql = index.statement();
        let build = session.autocommit(&sql, &[]);
        tokio::select! {
            result = build => result.map_err(|e| e.context(format!("building index {}", index.name)))?,
            never = watch => never?,
        };
        cx.unit_done(&index.name);
        Ok(true)
    }
}

/// Reports the build's progress and whoever it waits for, until it is dropped; returns only to stop the step.
async fn watch(cx: &Context, database: &str, pid: i32, name: &str) -> Result<u64> {
    let mut reported = String::new();
    let session = cx.reader(database).await?;
    loop {
        cx.sleep(Duration::from_millis(500)).await?;
        let row = session
            .query_opt(
                "select phase, blocks_done, blocks_total, current_locker_pid
                 from pg_stat_progress_create_index where pid = $1",
                &[&pid],
            )
            .await?;
        let Some(row) = row else { continue };
        let (phase, done, total): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
        cx.progress(
            name,
            done.unsigned_abs(),
            Some(total.unsigned_abs()).filter(|n| *n > 0),
            Measure::Blocks,
        );
        if phase.starts_with("waiting") {
            let waits = snapshot_holders(&session).await?.join("; ");
            if !waits.is_empty() && waits != reported {
                cx.warn(format!("index {name} is {phase}: {waits}"));
                reported = waits;
            }
        }
    }
}
