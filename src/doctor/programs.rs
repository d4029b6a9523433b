//! Programs that steps start.

use super::findings::{Finding, Notes};
use crate::plan::Plan;
use std::collections::BTreeMap;

pub(super) async fn examine(plan: &Plan, versions: &BTreeMap<String, u32>) -> Vec<Finding> {
    let mut notes = Notes::new("programs");
    for step in plan.steps.iter() {
        for program in step.kind.programs(versions).await {
            match program {
                Ok(program) => notes.ok(format!("step `{}`: {program}", step.id)),
                Err(error) => {
                    let next = error.next_step().unwrap_or("name their folder with `programs:`");
                    notes.error(format!("step `{}`: {}", step.id, error.message()), next);
                }
            }
        }
    }
    notes.findings
}
