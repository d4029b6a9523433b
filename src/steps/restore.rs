//! `restore`: brings selected rows back from another database, or from what a cleanup set aside.
//!
//! Rows travel as text under pinned settings, as in the archive, so that every type arrives as it left, between
//! versions too. Each batch is one fenced transaction on the target with the rows, their archive and the
//! checkpoint; undo takes away what was brought and puts back what was overwritten.

mod rows;

use super::cleanup::{Action, Catalog, Cleanup, Column, Guard, Table, Throttle};
use super::cleanup::{forget, params, prepare, put_back};
use super::{Access, CheckContext, Context, Description, StepKind, Undo};
use crate::error::{Class, Error, Result};
use crate::event::{Measure, StepId};
use crate::failpoint;
use crate::postgres::{Session, TableName, quote_literal};
use crate::problem::{Problems, suggest};
use crate::value::Duration;
use async_trait::async_trait;
use rows::{archived, insert, missing, overwrite, target_column};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// How long a batch waits for a row that somebody changes.
const LOCK_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Brings selected rows back.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// Where from: a database, or `{ quarantine: STEP }` for what an earlier cleanup of the target took away.
    pub from: Source,
    /// The database they come to.
    pub to: String,
    /// The table they come to.
    pub table: TableName,
    /// The table they come from, when it has another name.
    pub from_table: Option<TableName>,
    /// Which rows, as an SQL condition over the source.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// The target's columns that tell whether a row is there already; its primary key unless given.
    pub key: Option<Vec<String>>,
    /// The target's columns, each with its SQL expression over the source; unless given, the columns that both
    /// have.
    pub columns: Option<BTreeMap<String, String>>,
    /// What to do with a row that is there already.
    #[serde(default)]
    pub on_conflict: OnConflict,
    /// Rows brought in one transaction.
    #[serde(default = "default_batch")]
    #[schemars(range(min = 1, max = 100_000))]
    pub batch: u32,
    /// Rest between batches.
    #[serde(default = "default_pause")]
    pub pause: Duration,
    /// When to wait between batches.
    #[serde(default)]
    pub throttle: Throttle,
}

fn default_batch() -> u32 {
    2000
}

fn default_pause() -> Duration {
    Duration::millis(10)
}

/// Where rows come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Source {
    /// A database of the plan.
    Database(String),
    /// The rows that a cleanup deleted or quarantined.
    Archive {
        /// The cleanup's step id.
        quarantine: StepId,
    },
}

/// What to do with a row whose key the target has already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnConflict {
    /// Leave it as it is.
    #[default]
    Skip,
    /// Give it the source's values; undo gives it its own again.
    Overwrite,
}

/// How far it is; the checkpoint `rows` on the target.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Progress {
    last: Option<Vec<String>>,
    read: u64,
    inserted: u64,
    overwritten: u64,
    done: bool,
}

/// A restore against both catalogs.
struct Resolved {
    target: Table,
    /// The relation to read from, under the table's own name.
    relation: String,
    /// The key to walk the source by, as the key of a table.
    walk: Table,
    /// The target's columns and their expressions over the source.
    columns: Vec<(Column, String)>,
    /// Columns of the source that the target has not.
    left_out: Vec<String>,
    condition: String,
}

#[async_trait]
impl StepKind for Restore {
    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        cx.database(problems, "to", &self.to);
        match &self.from {
            Source::Database(name) => {
                cx.database(problems, "from", name);
                if *name == self.to && self.from_table.as_ref().is_none_or(|t| *t == self.table) {
                    problems
                        .error(["from"], "the rows would come from where they go to")
                        .hint("name another database, or another table under `from_table`");
                }
            }
            Source::Archive { quarantine } => {
                let known: Vec<&str> = super::of_kind::<Cleanup>(cx.earlier())
                    .filter(|(_, kind)| {
                        kind.on == self.to && matches!(kind.action, Action::Quarantine | Action::Delete)
                    })
                    .map(|(id, _)| id.as_str())
                    .collect();
                if !known.contains(&quarantine.as_str()) {
                    let hint = suggest(quarantine.as_str(), known).map_or_else(
                        || "name the id of a `cleanup` step before this one, on the same database".to_owned(),
                        |close| format!("did you mean `{close}`?"),
                    );
                    problems
                        .error(
                            ["from"],
                            format!(
                                "`{quarantine}` is no earlier step that deletes or quarantines rows of {}",
                                self.to
                            ),
                        )
                        .hint(hint);
                }
            }
        }
        if self.batch == 0 {
            problems.error(["batch"], "a batch has at least one row");
        }
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        let mut out = vec![(self.to.as_str(), Access::Write)];
        if let Source::Database(name) = &self.from {
            out.push((name, Access::Read));
        }
        out
    }

    fn reversibility(&self) -> Undo {
        Undo::Exact { how: "takes away what it brought and puts back what it overwrote".into() }
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        let mut out = Description::default();
        if let Source::Archive { quarantine } = &self.from {
            out.action(format!("bring rows that `{quarantine}` took away back into {}", self.table));
            if let Some(condition) = &self.condition {
                out.action(format!("only those where {condition}"));
            }
            return Ok(out);
        }
        let (source, target) = (self.source(cx).await?, cx.operator_reader(&self.to).await?);
        match self.resolve(cx, &source, &target).await {
            Ok(resolved) => self.look(&source, &target, &resolved, &mut out).await?,
            Err(e) if e.class() == Class::Data => {
                out.blocker(format!("{} – {}", e.message(), e.next_step().unwrap_or("correct the plan")));
            }
            Err(e) => return Err(e),
        }
        Ok(out)
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let source = self.source(cx).await?;
        let mut target = self.writer(cx).await?;
        let resolved = self.resolve(cx, &source, &target).await?;
        let mut progress = self.progress(cx, &mut target).await?;
        if progress.done {
            // Called again after a failed verification: rows may have come to the source since.
            progress = Progress {
                inserted: progress.inserted,
                overwritten: progress.overwritten,
                ..Progress::default()
            };
        }
        let unit = self.table.to_string();
        while !progress.done {
            cx.proceed()?;
            self.throttle.wait(cx, &target).await?;
            let (rows, last) = self.read(&source, &resolved, progress.last.as_deref()).await?;
            let tx = target.transaction().await?;
            tx.wait_for_locks(LOCK_TIMEOUT).await?;
            if rows.is_empty() {
                progress.done = true;
            } else {
                progress.inserted += insert(cx, &tx, &resolved, &rows).await?;
                if self.on_conflict == OnConflict::Overwrite {
                    progress.overwritten += overwrite(cx, &tx, &resolved, &rows).await?;
                }
                let missing = missing(Catalog::Transaction(&tx), &resolved, &rows).await?;
                if missing > 0 {
                    return Err(Error::data(format!(
                        "{missing} rows of {} collide with other rows in a unique constraint that is not the key, or a trigger keeps them out",
                        self.table
                    ))
                    .on_database(&self.to)
                    .hint("name the constraint's columns under `key`, or leave those rows out with `where`"));
                }
                progress.read += rows.len() as u64;
                progress.last = last;
            }
            tx.save_checkpoint(cx.run, &cx.step, "rows", &progress).await?;
            tx.commit().await?;
            failpoint::at(failpoint::RESTORE_BATCH)?;
            cx.progress(&unit, progress.read, None, Measure::Rows);
            if !progress.done && !self.pause.0.is_zero() {
                cx.sleep(self.pause.0).await?;
            }
        }
        cx.unit_done(&unit);
        let kept = progress.read.saturating_sub(progress.inserted + progress.overwritten);
        Ok(
            json!({ "inserted": progress.inserted, "overwritten": progress.overwritten, "there already": kept }),
        )
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        let (source, target) = (self.source(cx).await?, cx.operator_reader(&self.to).await?);
        let resolved = self.resolve(cx, &source, &target).await?;
        let (mut last, mut absent) = (None, 0);
        loop {
            let (rows, next) = self.read(&source, &resolved, last.as_deref()).await?;
            if rows.is_empty() {
                break;
            }
            absent += missing(Catalog::Session(&target), &resolved, &rows).await?;
            last = next;
        }
        if absent > 0 {
            return Err(Error::new(
                Class::Invariant,
                format!("{absent} of the selected rows are not in {}", self.table),
            )
            .on_database(&self.to)
            .hint("somebody deletes them, or they came to the source since; `handover resume` brings them again"));
        }
        Ok(())
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        let mut target = self.writer(cx).await?;
        let table = Table::load(Catalog::Session(&target), &self.table, self.key.as_deref()).await?;
        let columns: Vec<String> = match &self.columns {
            Some(columns) => columns.keys().cloned().collect(),
            None => table.columns.iter().map(|c| c.name.clone()).collect(),
        };
        let summary = put_back(cx, &mut target, Guard::Columns(&columns)).await?;
        let tx = target.transaction().await?;
        tx.forget_checkpoints(cx.run, &cx.step).await?;
        tx.commit().await?;
        Ok(summary)
    }

    async fn finish(&self, cx: &Context) -> Result<()> {
        let mut target = self.writer(cx).await?;
        forget(cx, &mut target).await
    }
}

impl Restore {
    async fn source(&self, cx: &Context) -> Result<Session> {
        let name = match &self.from {
            Source::Database(name) => name,
            Source::Archive { .. } => &self.to,
        };
        cx.operator_reader(name).await
    }

    async fn writer(&self, cx: &Context) -> Result<Session> {
        let session = cx.operator_writer(&self.to).await?;
        session.set("idle_in_transaction_session_timeout", "30s").await?;
        Ok(session)
    }

    async fn progress(&self, cx: &Context, target: &mut Session) -> Result<Progress> {
        let tx = target.transaction().await?;
        let progress = tx.checkpoint(cx.run, &cx.step, "rows").await?.unwrap_or_default();
        tx.rollback().await?;
        Ok(progress)
    }

    async fn resolve(&self, cx: &Context, source: &Session, target: &Session) -> Result<Resolved> {
        let table = Table::load(Catalog::Session(target), &self.table, self.key.as_deref()).await?;
        let from_name = self.from_table.as_ref().unwrap_or(&self.table);
        let (relation, walk, names) = match &self.from {
            Source::Database(_) => {
                let from = Table::load(Catalog::Session(source), from_name, None).await?;
                let names = from.columns.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
                (from.name.sql(), from, names)
            }
            Source::Archive { quarantine } => archived(cx, source, quarantine, from_name, &table).await?,
        };
        let mut columns = Vec::new();
        match &self.columns {
            Some(map) => {
                for (name, e) in map {
                    columns.push((target_column(&table, name, &self.to)?, e.clone()));
                }
            }
            None => columns.extend(
                table
                    .columns
                    .iter()
                    .filter(|c| !c.generated && names.contains(&c.name))
                    .map(|c| (c.clone(), c.ident())),
            ),
        }
        let has = |c: &Column| columns.iter().any(|(column, _)| column.name == c.name);
        let fail = |message: String, hint: &str| Err(Error::data(message).on_database(&self.to).hint(hint));
        if let Some(column) = table.key.iter().find(|c| !has(c)) {
            return fail(
                format!("the key column `{}` of {} has no value from the source", column.name, table.name),
                "give it under `columns`, or name another unique key under `key`",
            );
        }
        let lacking = |c: &&Column| c.not_null && !c.has_default && !c.generated && !has(c);
        if let Some(column) = table.columns.iter().find(lacking) {
            return fail(
                format!(
                    "column `{}` of {} must not be null and has no value from the source",
                    column.name, table.name
                ),
                "give its expression under `columns`",
            );
        }
        let condition = self.condition.clone().unwrap_or_else(|| "true".into());
        prepare(source, &format!("select 1 from {relation} where {condition}"), "where").await?;
        for (c, e) in &columns {
            let place = format!("columns.{}", c.name);
            if prepare(source, &format!("select {e}\nfrom {relation}"), &place).await? != 1 {
                return fail(
                    format!("`{place}` is not one expression"),
                    "give each column its own expression",
                );
            }
        }
        let left_out = match &self.columns {
            Some(_) => Vec::new(),
            None => names.into_iter().filter(|n| table.column(n).is_none()).collect(),
        };
        Ok(Resolved { target: table, relation, walk, columns, left_out, condition })
    }

    /// The next rows of the source as archived objects, and the last key.
    async fn read(
        &self,
        source: &Session,
        resolved: &Resolved,
        last: Option<&[String]>,
    ) -> Result<(Vec<Value>, Option<Vec<String>>)> {
        let walk = &resolved.walk;
        let (names, values): (Vec<String>, Vec<String>) =
            resolved.columns.iter().map(|(c, e)| (quote_literal(&c.name), format!("({e}\n)::text"))).unzip();
        let sql = format!(
            "select jsonb_object(array[{}]::text[], array[{}]::text[]), {} from {} where ({}\n) and {} order by {} limit {}",
            names.join(", "),
            values.join(", "),
            walk.key_text(),
            resolved.relation,
            resolved.condition,
            last.map_or("true".into(), |_| walk.key_beyond(">", 1)),
            walk.key_list(),
            self.batch
        );
        let rows = source.query(&sql, &params(last.unwrap_or_default())).await?;
        let key = rows.last().map(|row| (1..=walk.key.len()).map(|i| row.get(i)).collect());
        Ok((rows.iter().map(|row| row.get(0)).collect(), key))
    }

    async fn look(
        &self,
        source: &Session,
        target: &Session,
        resolved: &Resolved,
        out: &mut Description,
    ) -> Result<()> {
        source.set("statement_timeout", "10s").await?;
        let sql = format!("select count(*) from {} where ({}\n)", resolved.relation, resolved.condition);
        let count = match source.query_one(&sql, &[]).await {
            Ok(row) => row.get::<_, i64>(0).to_string(),
            Err(e) if e.class() == Class::Timeout => "more than could be counted in 10 s".into(),
            Err(e) => return Err(e),
        };
        source.set("statement_timeout", "0").await?;
        out.action(format!("bring rows ({count}) from {} to {}", resolved.relation, self.table));
        let names: Vec<&str> = resolved.columns.iter().map(|(c, _)| c.name.as_str()).collect();
        out.action(format!("columns: {}", names.join(", ")));
        let (rows, _) = self.read(source, resolved, None).await?;
        let there = rows.len() as u64 - missing(Catalog::Session(target), resolved, &rows).await?;
        let fate = if self.on_conflict == OnConflict::Skip { "left as they are" } else { "overwritten" };
        if there > 0 {
            out.warning(format!(
                "of the first {} rows, {there} are there already and would be {fate}",
                rows.len()
            ));
        }
        if !resolved.left_out.is_empty() {
            out.warning(format!(
                "the target has no columns {}: their values stay behind",
                resolved.left_out.join(", ")
            ));
        }
        for trigger in &resolved.target.triggers {
            out.warning(format!("this trigger fires for each row: {trigger}"));
        }
        Ok(())
    }
}
