//! Whether what is there is what was reviewed: asked before anything is made, taken or ended, by looking only.

use super::advice;
use crate::error::Result;
use crate::event::Reviewed;
use crate::journal::RunState;
use crate::plan::Plan;
use crate::postgres::Databases;
use std::collections::BTreeSet;

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

/// Compares. `absent`: databases that are done without, and count as what they were.
///
/// # Errors
/// A change that nobody accepted; a file or database that cannot be read.
pub(super) async fn compare(
    plan: &Plan,
    databases: &Databases,
    begun: Option<&Begun>,
    accept: bool,
    absent: &BTreeSet<String>,
) -> Result<Compared> {
    if let (false, Some(Begun { digest, reviewed: Some(then) })) = (absent.is_empty(), begun) {
        return without(plan, databases, (digest, then), accept, absent).await;
    }
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

/// The same where databases are done without. Whatever changed is not accepted for good: nobody knows of those.
async fn without(
    plan: &Plan,
    databases: &Databases,
    (digest, then): (&str, &Reviewed),
    accept: bool,
    absent: &BTreeSet<String>,
) -> Result<Compared> {
    let mut now = plan.reviewed_without(databases, absent).await?;
    for name in absent.iter().map(|name| format!("database {name}")) {
        now.parts.extend(then.parts.get(&name).map(|part| (name, part.clone())));
    }
    if !accept && !crate::plan::differences(then, &now).is_empty() {
        return Err(advice::changed(
            "the plan, a file it names, or a database is not what this run began with",
            Some(then),
            &now,
        ));
    }
    Ok(Compared { digest: digest.to_owned(), reviewed: Box::new(now), accepts: false })
}
