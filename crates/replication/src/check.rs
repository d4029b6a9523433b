//! What is wrong with a replication's options by themselves.

use crate::options::Replicate;
use handover_core::problem::Problems;

/// Finds what is wrong with the options, whatever else a plan says.
pub fn check(replicate: &Replicate, problems: &mut Problems) {
    if replicate.waive_slot_limit && replicate.wal_budget_mb.is_none() {
        problems
            .error(["waive_slot_limit"], "without a limit on the server, this step needs one of its own")
            .at_key()
            .hint("say `wal_budget_mb:`, how much log the slot may keep on the disk there");
    }
    if replicate.wal_budget_mb == Some(0) {
        problems.error(["wal_budget_mb"], "a slot always keeps some log").hint("write 1024 or more");
    }
    if let Some(connection) = &replicate.connection {
        // One in a URL is found wherever it stands in the plan; this is for `key=value` strings.
        let lower = connection.0.to_ascii_lowercase();
        let open = lower
            .split_once("password")
            .is_none_or(|(_, rest)| rest.trim_start_matches([' ', '=', '\'']).starts_with("${"));
        if !open {
            problems
                .error(["connection"], "a password stands in the plan")
                .hint("take it from the environment: `${NAME}` in the place of the URL or of the password");
        } else if connection.variables().is_err() {
            problems
                .error(["connection"], "the reference to the environment is not complete")
                .hint("write `${NAME}`");
        }
    }
}
