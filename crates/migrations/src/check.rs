//! What is wrong with a step before anything is connected.

use crate::folder::Migration;
use crate::options::{Baseline, History, Migrate};
use crate::status::{baseline_of, few};
use handover_core::problem::{Problems, count};
use std::collections::BTreeSet;
use std::path::Path;

/// Finds everything that is wrong with the options and the files below `base` at once, the name of the database aside.
pub fn check(step: &Migrate, base: &Path, problems: &mut Problems) {
    match (&step.dir, step.dirs.is_empty()) {
        (Some(_), false) => {
            problems
                .error(["dirs"], "both `dir` and `dirs` are given")
                .hint("write all folders under `dirs`, in order");
            return;
        }
        (None, true) => {
            problems.error::<&str>([], "no folder is given").hint("write `dir: migrations`");
            return;
        }
        _ => {}
    }
    if step.lock_timeout.0.is_zero() {
        problems
            .error(["lock_timeout"], "a lock_timeout of zero waits without limit, and all traffic behind it")
            .hint("write e.g. `2s`; it is tried again `lock_attempts` times");
    }
    let loaded = step.load(base);
    for (field, error) in &loaded.problems {
        let field = if *field == "dirs" && step.dir.is_some() { "dir" } else { field };
        let problem = problems.error([field], error.to_string());
        if let Some(hint) = error.next_step() {
            problem.hint(hint);
        }
    }
    if !loaded.problems.is_empty() {
        return;
    }
    if step.history == History::Own && step.history_table.is_some() {
        problems
            .error(["history_table"], "`history: own` writes no vendor's table")
            .hint("leave one of the two out");
    }
    let baseline = match baseline_of(step, base, &loaded.migrations) {
        Ok(baseline) => baseline,
        Err(error) => {
            let problem = problems.error(["baseline"], error.to_string());
            if let Some(hint) = error.next_step() {
                problem.hint(hint);
            }
            BTreeSet::new()
        }
    };
    if let (Some(Baseline::UpTo(last)), false) = (&step.baseline, baseline.is_empty()) {
        let left_out: Vec<&Migration> =
            loaded.migrations.iter().filter(|m| baseline.contains(&m.key())).collect();
        problems
            .warning(
                ["baseline"],
                format!(
                    "{} up to `{last}` will be recorded as applied and not run: {}",
                    count(left_out.len(), "file"),
                    few(&left_out)
                ),
            )
            .hint("a later release may bring files with lower numbers that never ran: name what was applied as a list, or let the vendor's own table tell (`history: vendor`)");
    }
    let all: Vec<&Migration> = loaded.migrations.iter().filter(|m| !baseline.contains(&m.key())).collect();
    if let Some(error) = step.without_way_back(&all) {
        // What the vendor's table says was applied needs none, and only the database knows.
        let problem = match step.history {
            History::Vendor => problems.warning(["undo"], error.message()),
            History::Auto | History::Own => problems.error(["undo"], error.message()),
        };
        if let Some(hint) = error.next_step() {
            problem.hint(hint);
        }
    }
}
