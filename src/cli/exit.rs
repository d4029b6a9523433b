//! Exit codes: one place, so that scripts can rely on them.

use crate::error::{Class, Error};
use std::process::ExitCode;

/// Shown under `-h`.
pub const HELP: &str = "`handover help COMMAND` has examples; `--help` also lists the exit codes.";

/// Shown under `--help`.
pub const LONG_HELP: &str = "Exit codes:
   0  done as asked
   1  halted: a step failed; what to do next is printed
   2  the plan or the command line is wrong; nothing was touched
   3  another runner holds the lease
   4  the lease was lost while running
   5  the journal could not be written
   6  the plan, its files or the databases changed since the run began
   7  waiting for an approval and told not to wait
   8  a check did not hold: an invariant, a dry run or the doctor found what stands in the way
 101  a defect in Handover
 130  stopped on request

Everything is explained in docs/cli.md.";

/// The exit code of an error.
#[must_use]
pub fn code(error: &Error) -> ExitCode {
    ExitCode::from(match error.class() {
        Class::Usage => 2,
        Class::LeaseHeld => 3,
        Class::LeaseLost => 4,
        Class::Journal => 5,
        Class::Changed => 6,
        Class::Waiting => 7,
        Class::Invariant => 8,
        Class::Cancelled => 130,
        Class::Connection
        | Class::Contention
        | Class::Privilege
        | Class::Resources
        | Class::Data
        | Class::External
        | Class::Timeout
        | Class::Internal => 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The code of every class, as scripts know them; an added class fails to compile in [`code`] first.
    const CODES: &[(Class, u8)] = &[
        (Class::Usage, 2),
        (Class::Connection, 1),
        (Class::Contention, 1),
        (Class::Privilege, 1),
        (Class::Resources, 1),
        (Class::Data, 1),
        (Class::Invariant, 8),
        (Class::External, 1),
        (Class::Timeout, 1),
        (Class::LeaseHeld, 3),
        (Class::LeaseLost, 4),
        (Class::Changed, 6),
        (Class::Journal, 5),
        (Class::Cancelled, 130),
        (Class::Waiting, 7),
        (Class::Internal, 1),
    ];

    #[test]
    fn codes_stay_and_are_in_the_help_and_in_the_docs() {
        let docs = include_str!("../../docs/cli.md");
        for (class, number) in CODES {
            let error = Error::new(*class, "x");
            assert_eq!(format!("{:?}", code(&error)), format!("{:?}", ExitCode::from(*number)), "{class:?}");
            assert!(LONG_HELP.lines().any(|l| l.trim().starts_with(&format!("{number} "))), "{number}");
            assert!(docs.contains(&format!("| {number} |")), "{number} in docs/cli.md");
        }
    }
}
