//! Invariants that are asked within a pause, while somebody waits: over sessions that are open before it, each query once, and
//! with an end.

use crate::findings::{Findings, broken, judge};
use crate::options::Invariant;
use crate::rows;
use futures_util::TryStreamExt;
use handover_core::error::{Class, Error, Result};
use handover_port::Port;
use handover_postgres::Session;
use std::time::{Duration, Instant};

/// Both sides, ready to be asked.
#[derive(Debug)]
pub struct Quick {
    before: Session,
    after: Session,
    name: String,
    invariants: Vec<Invariant>,
}

impl Quick {
    /// Connects to both sides. `timeout`: for each query.
    ///
    /// # Errors
    /// No connection, or what a server says.
    pub async fn open(
        cx: &Port,
        (before, after): (&str, &str),
        invariants: Vec<Invariant>,
        timeout: Duration,
    ) -> Result<Self> {
        let databases = cx.databases.labelled(cx.step.as_str()).for_operator();
        let open = async |name: &str| -> Result<Session> {
            let session = databases.read_only(name).await?;
            let limit = format!("{}ms", timeout.as_millis());
            for (setting, value) in
                [("timezone", "UTC"), ("datestyle", "ISO, YMD"), ("statement_timeout", &*limit)]
            {
                session.set(setting, value).await?;
            }
            Ok(session)
        };
        let (one, two) = tokio::try_join!(open(before), open(after))?;
        Ok(Quick { before: one, after: two, name: after.to_owned(), invariants })
    }

    /// Asks both sides, each query of what is there then.
    ///
    /// # Errors
    /// What differs ([`Class::Invariant`]), or what a server says.
    pub async fn compare(&self) -> Result<()> {
        let mut found = Findings::default();
        for invariant in &self.invariants {
            let (Some(one), Some(two)) = (invariant.before_sql(), invariant.after_sql()) else { continue };
            let result = async {
                let (one, two) =
                    tokio::try_join!(rows::fetch(&self.before, &one), rows::fetch(&self.after, &two))?;
                rows::compare(one, two, invariant.matching(), invariant.tolerance).await
            };
            let result = result.await.map_err(|e| broken(e, invariant))?;
            judge(invariant, &result, &mut found, &self.name)?;
        }
        if found.differences.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            Class::Invariant,
            format!("before and after differ: {}", found.differences.join("; ")),
        )
        .hint("look at the rows; mend the data or what carries it, then `handover resume`"))
    }

    /// Asks both sides and compares nothing: how long that takes.
    ///
    /// # Errors
    /// What a server says.
    pub async fn rehearse(&self) -> Result<Duration> {
        let begun = Instant::now();
        for invariant in &self.invariants {
            let (Some(one), Some(two)) = (invariant.before_sql(), invariant.after_sql()) else { continue };
            let read = async |session: &Session, sql: &str| -> Result<()> {
                rows::fetch(session, sql).await?.try_for_each(|_| async { Ok(()) }).await
            };
            let both = async { tokio::try_join!(read(&self.before, &one), read(&self.after, &two)) };
            both.await.map_err(|e| broken(e, invariant))?;
        }
        Ok(begun.elapsed())
    }
}
