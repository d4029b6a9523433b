//! Programs that steps start: pg_dump for `copy`, in a version that reads the source and that the target
//! understands (<https://www.postgresql.org/docs/current/app-pgdump.html>, Notes).

use super::findings::{Finding, Notes};
use crate::plan::Plan;
use handover_copy::Program;
use std::collections::BTreeMap;

pub(super) async fn examine(plan: &Plan, versions: &BTreeMap<String, u32>) -> Vec<Finding> {
    let mut notes = Notes::new("programs");
    for (id, copy) in plan.links.copies.all() {
        let (Some(blue), Some(green)) = (versions.get(&copy.from), versions.get(&copy.to)) else { continue };
        match Program::find(copy.programs.as_deref(), *blue, *green).await {
            Ok(program) => {
                notes.ok(format!("step `{id}`: pg_dump {} ({})", program.major, program.path.display()));
            }
            Err(error) => {
                let next = error.next_step().unwrap_or("name their folder with `programs:`");
                notes.error(format!("step `{id}`: {}", error.message()), next);
            }
        }
    }
    notes.findings
}
