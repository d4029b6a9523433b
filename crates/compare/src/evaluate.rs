//! Evaluating a verification: everything on both sides once, against each other or against a baseline.

use crate::agreed::{self, Agreed, Evidence};
use crate::contents::{self, Wanted};
use crate::findings::{Findings, broken, judge};
use crate::given::Given;
use crate::options::{Before, Checksums, Tables, Verify};
use crate::rows;
use crate::sessions::Sessions;
use crate::shape::{self, Shape};
use crate::side::Side;
use futures_util::TryStreamExt;
use futures_util::stream::{self, StreamExt};
use handover_core::error::{Error, Result};
use handover_core::event::Measure;
use handover_core::failpoint;
use handover_port::Port;
use handover_postgres::TableName;
use handover_rows::aside;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

impl Verify {
    /// Everything once, each side in one snapshot.
    ///
    /// `counts`: whether rows are counted, if the plan says so.
    pub(crate) async fn evaluate(
        &self,
        cx: &Port,
        given: Given<'_>,
        sums: Option<&Checksums>,
        counts: bool,
    ) -> Result<Findings> {
        let Some(after_name) = &self.after else {
            return Err(Error::internal("a verification without a side after"));
        };
        let name = match &self.before {
            Before::Database(name) => name,
            Before::Recorded(recorded) => {
                let after = self.open(cx, after_name).await?;
                return self.compare_recorded(cx, given, recorded, &after, after_name).await;
            }
        };
        let databases = cx.databases.labelled(cx.step.as_str());
        loop {
            // Before the snapshots: what is written in between counts as written later, and is read again.
            let evidence = match sums {
                Some(_) => agreed::evidence(&databases, (name, after_name), false).await?,
                None => Evidence::new(),
            };
            let looked = Instant::now();
            let after = self.open(cx, after_name).await?;
            let before = self.open(cx, name).await?;
            let (found, agreed) = self
                .compare_databases(
                    cx,
                    given,
                    (&before, name),
                    (&after, after_name),
                    sums.map(|s| (s, &evidence)),
                    counts,
                )
                .await?;
            let resumed: BTreeSet<String> =
                found.tables.iter().filter(|t| t.resumed > 0).map(|t| t.table.clone()).collect();
            let Some(agreed) = agreed.filter(|_| !resumed.is_empty()) else { return Ok(found) };
            cx.sleep(agreed::COUNTED.saturating_sub(looked.elapsed())).await?;
            if agreed.holds(&resumed, &agreed::evidence(&databases, (name, after_name), false).await?) {
                cx.note(format!(
                    "of {} tables, what had agreed before the interruption was not read again: they were not written since, by the servers' count",
                    resumed.len()
                ));
                return Ok(found);
            }
            cx.note("tables were written since the interruption, so everything is read again");
            Agreed::forget(cx).await?;
        }
    }

    async fn compare_databases(
        &self,
        cx: &Port,
        given: Given<'_>,
        (before, before_name): (&Side, &str),
        (after, after_name): (&Side, &str),
        sums: Option<(&Checksums, &Evidence)>,
        counts: bool,
    ) -> Result<(Findings, Option<Agreed>)> {
        let mut found = Findings::default();
        let mut agreed = None;
        if let Some((sums, evidence)) = sums {
            let sessions = Sessions::Frozen(before, after);
            let wanted = Wanted { sums: Some(sums), counts: None, copy: given.carried, aside: given.aside };
            let (compared, then) =
                contents::frozen(cx, wanted, sessions, self.jobs(), before_name, evidence).await?;
            found.add(&compared);
            agreed = Some(then);
            found.moments = vec![before.moment.clone(), after.moment.clone()];
            failpoint::at(failpoint::VERIFY_COMPARED)?;
        }
        if self.counts_tables() && counts {
            let there = shape::shapes(before.session()).await?;
            let now = shape::shapes(after.session()).await?;
            let Tables { tables, exclude } = self.counted();
            let work = shape::chosen(&there, &tables, &exclude, given.carried, before_name)?;
            let aside = match given.aside {
                Some((run, step)) => aside::counts(after.session(), run, step).await?,
                None => BTreeMap::new(),
            };
            let aside = &aside;
            let total = work.len() as u64;
            let (there, now) = (&there, &now);
            let one = |name: TableName| async move {
                cx.proceed()?;
                count_table((before, after), &name, (there.get(&name), now.get(&name)), aside).await
            };
            let mut results = stream::iter(work.into_iter().map(one)).buffer_unordered(self.jobs());
            let mut counted = 0;
            while let Some(difference) = results.try_next().await? {
                counted += 1;
                found.differences.extend(difference);
                cx.progress("tables", counted, Some(total), Measure::Items);
            }
            found.compared += counted;
            cx.unit_done("tables");
            found.differences.sort();
            found.differences.dedup();
            failpoint::at(failpoint::VERIFY_COMPARED)?;
        }
        if self.invariants.is_empty() {
            return Ok((found, agreed));
        }
        let (asking, answering) = tokio::try_join!(before.join_for_operator(), after.join_for_operator())?;
        for invariant in &self.invariants {
            cx.proceed()?;
            let (Some(one), Some(two)) = (invariant.before_sql(), invariant.after_sql()) else { continue };
            let result = async {
                let (one, two) = tokio::try_join!(rows::fetch(&asking, &one), rows::fetch(&answering, &two))?;
                rows::compare(one, two, invariant.matching(), invariant.tolerance).await
            }
            .await
            .map_err(|e| broken(e, invariant))?;
            judge(invariant, &result, &mut found, after_name)?;
            cx.unit_done(&invariant.name);
            failpoint::at(failpoint::VERIFY_COMPARED)?;
        }
        Ok((found, agreed))
    }
}

async fn count_table(
    sides: (&Side, &Side),
    name: &TableName,
    shapes: (Option<&Shape>, Option<&Shape>),
    aside: &BTreeMap<TableName, u64>,
) -> Result<Option<String>> {
    let (Some(there), Some(now)) = shapes else { return Ok(Some(format!("table {name} is gone"))) };
    let (left, right) = tokio::try_join!(sides.0.join(), sides.1.join())?;
    let (before, after): (i64, i64) =
        tokio::try_join!(shape::count(&left, name, there), shape::count(&right, name, now))?;
    // Partitions keep what was set aside under their own names.
    let names = now.heaps.iter().map(|heap| &heap.name).filter(|heap| *heap != name).chain([name]);
    let aside = names.filter_map(|name| aside.get(name)).sum::<u64>();
    let before = before - i64::try_from(aside).unwrap_or(i64::MAX);
    Ok((before != after).then(|| format!("table {name} has {before} rows before and {after} after")))
}
