//! What a `replicate` step asks of both sides together: the same look that it takes itself before the copy.

use super::findings::{Finding, Notes};
use crate::error::Result;
use crate::plan::Plan;
use crate::postgres::Databases;
use crate::postgres::connect::Target;
use crate::steps::Description;
use std::collections::BTreeMap;

pub(super) async fn examine(plan: &Plan, targets: &BTreeMap<String, Target>) -> Vec<Finding> {
    let mut notes = Notes::new("replication");
    // As the role that executes the plan.
    let working =
        targets.iter().map(|(name, target)| (name.clone(), Target::new(target.url.clone()))).collect();
    let databases = Databases::new(working).labelled("doctor");
    for (id, replicate) in plan.links.replications.all() {
        let place = plan.links.place(id);
        let Some((_, copy)) = plan.links.copied(place, &replicate.from, &replicate.to) else { continue };
        let mut found = Description::default();
        let look = async {
            let (blue, green) =
                (databases.reader(&replicate.from).await?, databases.reader(&replicate.to).await?);
            Result::Ok(
                handover_replication::look(replicate, copy, &databases, &blue, &green, &mut found)
                    .await?
                    .len(),
            )
        };
        match look.await {
            Ok(tables) => notes.ok(format!("step `{id}` would publish {tables} tables")),
            Err(e) => notes.failure(&e),
        }
        for blocker in found.blockers {
            notes.error(
                format!("step `{id}`: {blocker}"),
                "see `replicate` in docs/plans.md and docs/grants.md",
            );
        }
        for warning in found.warnings {
            notes.warning(format!("step `{id}`: {warning}"), "see `replicate` in docs/plans.md");
        }
    }
    notes.findings
}
