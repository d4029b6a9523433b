//! What a failure leads to.

use crate::error::Class;
use crate::steps::{OnFailure, Retry};
use std::time::Duration;

/// The longest wait between two attempts.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Try again after a wait.
    Retry(Duration),
    /// Stop and let the operator decide.
    Halt,
    /// Undo what was done.
    Rollback,
}

/// The verdict on a failure of `class`, the `failures`th since this runner attached.
#[must_use]
pub fn verdict(class: Class, failures: u32, retry: Retry, on_failure: OnFailure) -> Verdict {
    let may_pass = class.is_transient() || class == Class::External;
    if may_pass && failures < retry.attempts {
        return Verdict::Retry(backoff(failures, retry));
    }
    match class {
        // Nothing is wrong with the plan or the databases: undoing hours of work would help nobody.
        Class::Cancelled
        | Class::LeaseLost
        | Class::LeaseHeld
        | Class::Journal
        | Class::Changed
        | Class::Internal
        | Class::Waiting => Verdict::Halt,
        _ => match on_failure {
            OnFailure::Halt => Verdict::Halt,
            OnFailure::Rollback => Verdict::Rollback,
        },
    }
}

fn backoff(failures: u32, retry: Retry) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
    retry.backoff.0.saturating_mul(doubled).min(LONGEST_BACKOFF)
}
