//! Whether what is there is what was reviewed: asked before anything is made, taken or ended, by looking only.

use super::advice;
use crate::error::Result;
use crate::event::Reviewed;
use crate::journal::RunState;
use crate::plan::Plan;
use crate::postgres::Databases;

/// The plan, its files and its databases as they are now.
#[derive(Debug)]
pub(super) struct Compared {
    /// Their digest.
    pub digest: String,
    /// What the digest is made of.
    pub reviewed: Box<Reviewed>,
    /// Whether that is not what the run began with, and the operator has accepted it.
    pub accepts: bool,
}

/// What a run began with.
#[derive(Debug)]
pub(super) struct Begun {
    digest: String,
    reviewed: Option<Box<Reviewed>>,
}

impl Begun {
    /// None of a run that has not begun.
    pub fn of(state: &RunState) -> Option<Self> {
        (state.seq > 0).then(|| Begun { digest: state.digest.clone(), reviewed: state.reviewed.clone() })
    }
}

/// Compares.
///
/// # Errors
/// A change that nobody accepted; a file or database that cannot be read.
pub(super) async fn compare(
    plan: &Plan,
    databases: &Databases,
    begun: Option<&Begun>,
    accept: bool,
) -> Result<Compared> {
    let digest = plan.digest(databases).await?;
    let reviewed = Box::new(plan.reviewed(databases).await?);
    let changed = begun.is_some_and(|begun| begun.digest != digest);
    if changed && !accept {
        return Err(advice::changed(
            "the plan, a file it names, or a database is not what this run began with",
            begun.and_then(|begun| begun.reviewed.as_deref()),
            &reviewed,
        ));
    }
    Ok(Compared { digest, reviewed, accepts: changed })
}
