//! Exit codes: one place, so that scripts can rely on them.

use crate::error::{Class, Error};
use std::process::ExitCode;

/// Shown under `--help`.
pub const HELP: &str = "Exit codes:
   0  done as asked
   1  halted: a step failed; what to do next is printed
   2  the plan or the command line is wrong; nothing was touched
   3  another runner holds the lease
   4  the lease was lost while running
   5  the journal could not be written
   6  the plan, its files or the databases changed since the run began
   7  waiting for an approval and told not to wait
   8  a check of the plan did not hold
 130  stopped on request";

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
