//! What is wrong with a copy's options by themselves.

use crate::options::Copy;
use crate::tune;
use handover_core::problem::{Problems, Segment};

/// Finds what is wrong with the options, whatever else a plan says.
pub fn check(copy: &Copy, problems: &mut Problems) {
    if copy.from == copy.to {
        problems
            .error(["to"], format!("`{}` cannot be copied into itself", copy.to))
            .hint("name the new, empty database");
    }
    if copy.jobs == Some(0) {
        problems
            .error(["jobs"], "a copy needs at least one connection")
            .hint("leave it out, or write 1 or more");
    }
    if copy.chunk_mb == Some(0) {
        problems.error(["chunk_mb"], "a piece cannot be empty").hint("leave it out, or write 1 or more");
    }
    tune::check(copy, problems);
    for (i, table) in copy.include.tables.iter().enumerate() {
        if copy.exclude.tables.contains(table) {
            problems
                .error(
                    [Segment::from("include"), "tables".into(), i.into()],
                    format!("`{table}` is both included and excluded"),
                )
                .hint("remove it from one of the two");
        }
    }
}
