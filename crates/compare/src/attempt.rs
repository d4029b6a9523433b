//! One attempt at a verification, from its first look to its verdict.

use crate::agreed::{self, Agreed};
use crate::contents::{self, Wanted};
use crate::fence::Fence;
use crate::findings::Findings;
use crate::found::TableFound;
use crate::given::{Carried, Given};
use crate::options::{Before, Retries, Verify};
use crate::sessions::Sessions;
use crate::shape;
use handover_core::error::{Class, Error, Result};
use handover_core::problem::few;
use handover_core::value::Duration;
use handover_port::Port;
use handover_postgres::TableName;
use handover_postgres::binding::{assert_bound, has_subselect};
use serde_json::Value;
use std::time::Instant;

/// How long a comparison that is asked to stop may take to end what it began.
const STOPPING: std::time::Duration = std::time::Duration::from_secs(5);
/// The fact with what differed, for `handover events`.
const DIFFERENCES: &str = "differences";
/// The fact that a verification passed.
const PASSED: &str = "passed";

impl Verify {
    /// Refuses the plan's own queries whose sub-selects select what they don't have.
    ///
    /// # Errors
    /// Such a query, or what a server says.
    pub async fn bound(&self, cx: &Port) -> Result<()> {
        for (database, before) in self.sides() {
            let mut session = None;
            for invariant in &self.invariants {
                let wrapped = if before { invariant.before_sql() } else { invariant.after_sql() };
                let Some(wrapped) = wrapped.filter(|sql| has_subselect(sql)) else { continue };
                if session.is_none() {
                    session = Some(cx.operator_reader(database).await?);
                }
                if let Some(session) = &session {
                    assert_bound(session, &wrapped, &invariant.name).await?;
                }
            }
        }
        Ok(())
    }

    /// Compares both sides until they are equal, or for as long as the plan says. `fence`: how to wait for changes, if
    /// "after" follows "before" while that is written.
    ///
    /// # Errors
    /// What differs, or what a server says.
    pub async fn compare(&self, cx: &Port, given: Given<'_>, fence: Option<Box<dyn Fence>>) -> Result<Value> {
        let started = Instant::now();
        // What is being written is summed on its own, not at one point in time.
        let sums = self.checksums.as_ref().filter(|_| fence.is_none());
        self.tell_left_out(cx, given.carried).await?;
        // Whether a change that has not arrived can be told from one that never will.
        let proves = fence.as_ref().is_some_and(|fence| fence.proves());
        let counts = !proves;
        let contents = match fence {
            Some(fence) => self.moving_contents(cx, given, fence).await?,
            None => Vec::new(),
        };
        let mut evaluations = 0_u32;
        loop {
            cx.proceed()?;
            evaluations += 1;
            let mut found = self.evaluate(cx, given, sums, counts).await?;
            found.add(&contents);
            found.only_counted = self.checksums.is_none();
            if found.differences.is_empty() {
                if found.compared == 0 {
                    return Err(Error::internal("a verification compared nothing"));
                }
                let summary = found.summary(evaluations);
                cx.remember(PASSED, &summary).await?;
                // It was for an interruption; should this ever be asked again, the answer is of then.
                Agreed::forget(cx).await?;
                return Ok(summary);
            }
            let over = contents.iter().any(|table| !table.equal());
            let Some(retries) = self.retries.filter(|r| !over && started.elapsed() < r.within.0) else {
                cx.remember(DIFFERENCES, &found.summary(evaluations)).await?;
                return Err(self.failure(&found, self.retries.filter(|_| !proves)));
            };
            cx.note(format!("not equal yet: {}", found.differences.join("; ")));
            cx.sleep(retries.every.unwrap_or(Duration::secs(1)).0).await?;
        }
    }

    /// Goes on with an attempt until it ends; when the run is asked to stop, ends what the servers do for it.
    ///
    /// # Errors
    /// The attempt's, or a stop that was asked for.
    pub async fn stoppable(
        &self,
        cx: &Port,
        attempt: impl Future<Output = Result<Value>> + Send,
    ) -> Result<Value> {
        tokio::pin!(attempt);
        tokio::select! {
            result = &mut attempt => return result,
            () = cx.stop.cancelled() => {}
        }
        // A server would go on with a query whose client is gone.
        self.cancel(cx).await;
        match tokio::time::timeout(STOPPING, attempt).await {
            Ok(Ok(summary)) => Ok(summary),
            Ok(Err(_)) | Err(_) => Err(Error::cancelled()),
        }
    }

    /// Ends what this step's sessions do on either side. A role may end its own.
    async fn cancel(&self, cx: &Port) {
        let Ok(lease) = cx.databases.lease() else { return };
        let name = lease.application_name(cx.step.as_str());
        let databases = self.sides();
        let ends = databases.iter().map(async |(database, _)| {
            let session = cx.databases.labelled(cx.step.as_str()).read_only(database).await?;
            let sql = "select pg_cancel_backend(pid) from pg_stat_activity
                       where application_name = $1 and datname = current_database() and state = 'active' and pid <> pg_backend_pid()";
            session.query(sql, &[&name]).await.map(drop)
        });
        // As far as it goes: what cannot be reached ends by its own timeout.
        let _ = tokio::time::timeout(STOPPING, futures_util::future::join_all(ends)).await;
    }

    /// Says which tables are not compared because they were not copied.
    async fn tell_left_out(&self, cx: &Port, carried: Option<Carried<'_>>) -> Result<()> {
        let (Before::Database(before), Some(_)) = (&self.before, &self.after) else { return Ok(()) };
        let Some(copy) = carried else { return Ok(()) };
        let there = shape::shapes(&cx.databases.labelled(cx.step.as_str()).read_only(before).await?).await?;
        let left = there.iter().filter(|(name, shape)| shape::left_out(Some(copy), name, shape));
        let left: Vec<&TableName> = left.map(|(name, _)| name).collect();
        if !left.is_empty() {
            cx.note(format!(
                "not compared unless named, as the copy does not carry all of their rows: {}",
                few(&left)
            ));
        }
        Ok(())
    }

    async fn moving_contents(
        &self,
        cx: &Port,
        given: Given<'_>,
        mut fence: Box<dyn Fence>,
    ) -> Result<Vec<TableFound>> {
        let (Before::Database(before), Some(after)) = (&self.before, &self.after) else {
            return Ok(Vec::new());
        };
        // Rows that are written are counted behind the same marks: one that is missing is missing there too.
        let counts = (fence.proves() && self.counts_tables()).then(|| self.counted());
        let wanted = Wanted {
            sums: self.checksums.as_ref(),
            counts: counts.as_ref(),
            copy: given.carried,
            aside: given.aside,
        };
        let databases = cx.databases.labelled(cx.step.as_str());
        let timeout = self.timeout();
        let sessions = Sessions::Moving { databases: &databases, names: (before, after), timeout };
        let within = self.within();
        let evidence = agreed::evidence(&databases, (before, after), true).await?;
        let found =
            contents::moving(cx, wanted, sessions, self.jobs(), before, (fence.as_mut(), within), &evidence)
                .await?;
        if !found.iter().all(TableFound::equal) {
            // What will be done about it may touch anything.
            Agreed::forget(cx).await?;
        }
        Ok(found)
    }

    /// Whether an attempt came to its end: equal, or everything recorded.
    ///
    /// # Errors
    /// What the server says, or the journal.
    pub async fn is_proven(&self, cx: &Port) -> Result<bool> {
        match (&self.before, self.record) {
            (Before::Database(database), true) => self.is_recorded(cx, database).await,
            _ => Ok(cx.recall::<Value>(PASSED)?.is_some()),
        }
    }

    /// Forgets what was proven and recorded.
    ///
    /// # Errors
    /// What the server says, or the journal.
    pub async fn forget(&self, cx: &Port) -> Result<()> {
        cx.forget(PASSED).await?;
        Agreed::forget(cx).await?;
        if let (Before::Database(database), true) = (&self.before, self.record) {
            let mut session = cx.writer(database).await?;
            let tx = session.transaction().await?;
            tx.forget_checkpoints(cx.run, &cx.step).await?;
            tx.commit().await?;
        }
        Ok(())
    }

    /// `waited`: what was waited for without being able to tell what is late from what is different.
    fn failure(&self, found: &Findings, waited: Option<Retries>) -> Error {
        let certain = found.tables.iter().any(|table| table.differing() > 0 || table.problem.is_some());
        let hint = if !certain && found.tables.iter().any(|table| table.unsettled > 0) {
            "give it longer with `retries: { within: … }`, verify when less is written, or behind the freeze of the cutover; then `handover resume`"
        } else if waited.is_some() {
            "if one side may still lag, give it longer with `retries: { within: … }`, or verify while a `replicate` step knows what has arrived; else mend the migration or the data; then `handover resume`, or `handover rollback`"
        } else if self.retries.is_some() {
            "look at the rows; mend the migration or the data, then `handover resume`, or `handover rollback`"
        } else {
            "look at the rows, then `handover resume` or `handover rollback`; if one side is still written to while the other lags, verify behind the freeze or give `retries`"
        };
        let shown: Vec<&str> = found.differences.iter().take(12).map(String::as_str).collect();
        let more = found.differences.len().saturating_sub(shown.len());
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        let since = match waited {
            Some(retries) => format!(
                " after {} of `retries` (a change that is later than that looks the same as one that is lost)",
                retries.within
            ),
            None => String::new(),
        };
        Error::new(Class::Invariant, format!("before and after differ{since}: {}{more}", shown.join("; ")))
            .hint(hint)
    }
}
