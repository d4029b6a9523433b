//! What a failure leads to.

use crate::error::Class;
use crate::event::Failure;
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

/// The verdict on a failure, the `failures`th since this runner attached. One that a kind has retried by itself is
/// not retried around: ten attempts within five would be fifty.
#[must_use]
pub fn verdict(failure: &Failure, failures: u32, retry: Retry, on_failure: OnFailure) -> Verdict {
    let class = failure.class;
    let may_pass = class.is_transient() || class == Class::External;
    if may_pass && !failure.exhausted && failures < retry.attempts {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_leads_to_what_the_table_says() {
        use Class::*;
        // Whether it may pass, and whether a rollback that the plan asks for would help.
        let table = [
            (Connection, true, true),
            (Contention, true, true),
            (External, true, true),
            (Usage, false, true),
            (Privilege, false, true),
            (Resources, false, true),
            (Data, false, true),
            (Invariant, false, true),
            (Timeout, false, true),
            (LeaseHeld, false, false),
            (LeaseLost, false, false),
            (Changed, false, false),
            (Journal, false, false),
            (Cancelled, false, false),
            (Waiting, false, false),
            (Internal, false, false),
        ];
        let retry = Retry { attempts: 3, backoff: crate::value::Duration::secs(40) };
        for (class, passes, helps) in table {
            for exhausted in [false, true] {
                for failures in 1..5 {
                    for on_failure in [OnFailure::Halt, OnFailure::Rollback] {
                        let failure = Failure { class, message: "m".into(), hint: None, exhausted };
                        let wanted = match (passes && !exhausted, failures, on_failure) {
                            (true, 1, _) => Verdict::Retry(Duration::from_secs(40)),
                            (true, 2, _) => Verdict::Retry(LONGEST_BACKOFF),
                            (.., OnFailure::Rollback) if helps => Verdict::Rollback,
                            _ => Verdict::Halt,
                        };
                        let case = format!("{class:?} {exhausted} {failures} {on_failure:?}");
                        assert_eq!(verdict(&failure, failures, retry, on_failure), wanted, "{case}");
                    }
                }
            }
        }
    }
}
