//! Where a comparison's sessions come from: from one point in time, or from whatever is there when they ask.

use crate::side::{Side, summing};
use handover_core::error::Result;
use handover_postgres::{Databases, Session};
use std::time::Duration;

/// Where sessions come from.
#[derive(Debug, Clone, Copy)]
pub enum Sessions<'a> {
    /// One point in time for each side, and every difference is one.
    Frozen(&'a Side, &'a Side),
    /// Each query sees what is there when it begins, and differences may be writes on their way.
    Moving {
        /// The plan's databases.
        databases: &'a Databases,
        /// Names of both sides.
        names: (&'a str, &'a str),
        /// For each query.
        timeout: Duration,
    },
}

/// A session on either side.
#[derive(Debug)]
pub struct Pair {
    /// Before.
    pub before: Session,
    /// After.
    pub after: Session,
}

impl Sessions<'_> {
    /// A new pair.
    ///
    /// # Errors
    /// No connection, or what a server says.
    pub async fn pair(&self) -> Result<Pair> {
        let (before, after) = match self {
            Sessions::Frozen(before, after) => tokio::try_join!(before.join_to_sum(), after.join_to_sum())?,
            Sessions::Moving { databases, names, timeout } => tokio::try_join!(
                summing(databases, names.0, *timeout),
                summing(databases, names.1, *timeout)
            )?,
        };
        Ok(Pair { before, after })
    }

    /// Whether rows may be written meanwhile.
    #[must_use]
    pub fn moving(&self) -> bool {
        matches!(self, Sessions::Moving { .. })
    }
}

impl Pair {
    /// Both sessions.
    #[must_use]
    pub fn both(&self) -> (&Session, &Session) {
        (&self.before, &self.after)
    }

    /// Whether small pieces are found through an index even where the planner knows nothing of the table yet.
    ///
    /// # Errors
    /// What a server says.
    pub async fn by_index(&self, yes: bool) -> Result<()> {
        let value = if yes { "off" } else { "on" };
        let set = |session| async move { Session::set(session, "enable_seqscan", value).await };
        tokio::try_join!(set(&self.before), set(&self.after)).map(drop)
    }
}
