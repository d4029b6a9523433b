//! What a database answered at one point in time, kept there for a later comparison.

use crate::findings::{Findings, broken, empty, judge, nothing_to_compare};
use crate::given::Given;
use crate::options::{Before, Recorded, Tables, Verify};
use crate::rows::{self, Row};
use crate::shape;
use crate::side::Side;
use futures_util::TryStreamExt;
use handover_core::error::{Error, Result};
use handover_core::event::StepId;
use handover_core::failpoint;
use handover_port::Port;
use handover_postgres::ours::OURS;
use handover_postgres::{TableName, quote_literal};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Rows of a baseline that share a checkpoint.
const PIECE: usize = 500;
/// Unit that says that a baseline is complete.
const COMPLETE: &str = "baseline";

/// A baseline's record of what it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Baseline {
    /// Rows per table, when they were counted.
    counts: Option<BTreeMap<String, i64>>,
    /// Rows per invariant.
    invariants: BTreeMap<String, u64>,
}

impl Verify {
    pub(crate) async fn compare_recorded(
        &self,
        cx: &Port,
        given: Given<'_>,
        recorded: &Recorded,
        after: &Side,
        after_name: &str,
    ) -> Result<Findings> {
        let mut found = Findings::default();
        let Some(database) = given.baseline_on else {
            return Err(Error::internal(format!("there is no baseline step `{}`", recorded.from_step)));
        };
        let mut kept = cx.writer(database).await?;
        let tx = kept.transaction().await?;
        let baseline: Option<Baseline> = tx.checkpoint(cx.run, &recorded.from_step, COMPLETE).await?;
        tx.rollback().await?;
        let baseline = baseline.ok_or_else(|| {
            Error::data(format!("the baseline of step `{}` is gone", recorded.from_step))
                .on_database(database)
                .hint(format!(
                    "it lives in {OURS}.checkpoint; `handover rollback` to before that step and run again"
                ))
        })?;
        if self.counts_tables() {
            let Tables { tables: wanted, exclude } = self.counted();
            let now = shape::shapes(after.session()).await?;
            let counts = baseline.counts.unwrap_or_default();
            let mut compared = 0;
            for (name, rows_before) in &counts {
                let name = TableName::try_from(name.clone()).map_err(Error::internal)?;
                if exclude.contains(&name) || !(wanted.is_empty() || wanted.contains(&name)) {
                    continue;
                }
                if wanted.is_empty() && given.carried.is_some_and(|copy| !copy.takes_rows(&name)) {
                    continue;
                }
                compared += 1;
                match now.get(&name) {
                    None => found.differences.push(format!("table {name} is gone")),
                    Some(shape) => {
                        let rows = shape::count(after.session(), &name, shape).await?;
                        if rows != *rows_before {
                            found
                                .differences
                                .push(format!("table {name} had {rows_before} rows and has {rows}"));
                        }
                    }
                }
            }
            if compared == 0 {
                return Err(nothing_to_compare(after_name));
            }
            found.compared += compared;
            failpoint::at(failpoint::VERIFY_COMPARED)?;
        }
        if self.invariants.is_empty() {
            return Ok(found);
        }
        let answering = after.join_for_operator().await?;
        for invariant in &self.invariants {
            cx.proceed()?;
            let Some(now) = invariant.after_sql() else { continue };
            let kept_sql = recorded_sql(cx, &recorded.from_step, &invariant.name);
            let result = async {
                let (one, two) =
                    tokio::try_join!(rows::recorded(&kept, &kept_sql), rows::fetch(&answering, &now))?;
                rows::compare(one, two, invariant.matching(), invariant.tolerance).await
            }
            .await
            .map_err(|e| broken(e, invariant))?;
            if Some(&result.before) != baseline.invariants.get(&invariant.name) {
                return Err(Error::data(format!("the baseline of `{}` is not complete", invariant.name))
                    .on_database(database)
                    .hint(format!("somebody changed {OURS}.checkpoint; `handover rollback` to before that step and run again")));
            }
            judge(invariant, &result, &mut found, after_name)?;
            cx.unit_done(&invariant.name);
            failpoint::at(failpoint::VERIFY_COMPARED)?;
        }
        Ok(found)
    }

    /// One side, at the point in time of now.
    pub(crate) async fn open(&self, cx: &Port, database: &str) -> Result<Side> {
        Side::open(&cx.databases.labelled(cx.step.as_str()), database, self.timeout()).await
    }

    /// Whether its baseline is complete.
    pub(crate) async fn is_recorded(&self, cx: &Port, database: &str) -> Result<bool> {
        let mut session = cx.writer(database).await?;
        let tx = session.transaction().await?;
        let baseline: Option<Baseline> = tx.checkpoint(cx.run, &cx.step, COMPLETE).await?;
        tx.rollback().await?;
        Ok(baseline.is_some())
    }

    /// Keeps the results of "before" in its database: everything in one transaction, or nothing.
    ///
    /// # Errors
    /// A query that gives no rows, or what the server says.
    pub async fn record_baseline(&self, cx: &Port) -> Result<Value> {
        let Before::Database(database) = &self.before else {
            return Err(Error::internal("a baseline is recorded from a database"));
        };
        let mut session = cx.writer(database).await?;
        let tx = session.transaction().await?;
        let done: Option<Baseline> = tx.checkpoint(cx.run, &cx.step, COMPLETE).await?;
        if let Some(done) = done {
            return Ok(json!({ "recorded": done }));
        }
        let side = self.open(cx, database).await?;
        let mut baseline = Baseline::default();
        if self.counts_tables() {
            let Tables { tables, exclude } = self.counted();
            let there = shape::shapes(side.session()).await?;
            let mut counts = BTreeMap::new();
            for name in shape::chosen(&there, &tables, &exclude, None, database)? {
                cx.proceed()?;
                if let Some(shape) = there.get(&name) {
                    counts.insert(name.to_string(), shape::count(side.session(), &name, shape).await?);
                }
            }
            baseline.counts = Some(counts);
        }
        let asking = side.join_for_operator().await?;
        for invariant in &self.invariants {
            cx.proceed()?;
            let Some(wrapped) = invariant.before_sql() else { continue };
            let rows = async {
                let mut pieces = rows::fetch(&asking, &wrapped).await?.try_chunks(PIECE);
                let (mut n, mut total) = (0_u32, 0_u64);
                while let Some(piece) = pieces.try_next().await.map_err(|e| e.1)? {
                    total += piece.len() as u64;
                    let unit = format!("{}{n:08}", prefix(&invariant.name));
                    tx.save_checkpoint::<Vec<Row>>(cx.run, &cx.step, &unit, &piece).await?;
                    n += 1;
                }
                Ok::<u64, Error>(total)
            }
            .await
            .map_err(|e| broken(e, invariant))?;
            if rows == 0 && !invariant.allow_empty {
                return Err(empty(invariant, database));
            }
            baseline.invariants.insert(invariant.name.clone(), rows);
            cx.unit_done(&invariant.name);
        }
        tx.save_checkpoint(cx.run, &cx.step, COMPLETE, &baseline).await?;
        tx.commit().await?;
        failpoint::at(failpoint::VERIFY_RECORDED)?;
        Ok(json!({ "recorded": baseline }))
    }
}

/// Checkpoints of a baseline's invariant begin with this.
fn prefix(invariant: &str) -> String {
    format!("rows of {invariant} #")
}

fn recorded_sql(cx: &Port, step: &StepId, invariant: &str) -> String {
    format!(
        "select state from {OURS}.checkpoint where run = '{}' and step = {} and starts_with(unit, {})
         and length(unit) = {} order by unit collate \"C\"",
        cx.run,
        quote_literal(step.as_str()),
        quote_literal(&prefix(invariant)),
        prefix(invariant).chars().count() + 8
    )
}
