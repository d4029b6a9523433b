//! What to do next about an error that does not say so itself: one sentence a class.

use crate::error::{Class, Error};

/// What to do next. Never empty.
#[must_use]
pub fn next_step(error: &Error) -> String {
    error.next_step().map_or_else(|| fallback(error.class()).to_owned(), str::to_owned)
}

fn fallback(class: Class) -> &'static str {
    match class {
        Class::Usage => "correct it, then try again; `handover check` shows every problem of a plan at once",
        Class::Connection => "see that the server is up and reachable from here, then `handover resume`",
        Class::Contention => "somebody else holds a lock; `handover resume` tries again",
        Class::Privilege => {
            "`handover doctor` lists what is missing, and docs/grants.md what each grant is for"
        }
        Class::Resources => "make room on the server, then `handover resume`",
        Class::Data => {
            "mend the data, the schema or the plan, then `handover resume`; or `handover rollback`"
        }
        Class::Invariant => {
            "see what differs before going on: `handover resume` checks again, `handover rollback` undoes"
        }
        Class::External => "see why the command, endpoint or file failed, then `handover resume`",
        Class::Timeout => "raise the timeout in the plan or find what was slow, then `handover resume`",
        Class::LeaseHeld => "`handover status` shows who acts; `--wait` waits for them",
        Class::LeaseLost => "`handover status` shows who acts now",
        Class::Changed => "see what changed; `--accept-changes` goes on with what is there now",
        Class::Journal => {
            "bring the control database back, then `handover resume`; every database keeps serving"
        }
        Class::Cancelled => "`handover resume` goes on from here",
        Class::Waiting => "do what it waits for, then `handover resume`",
        Class::Internal => {
            "this is a defect in Handover; please report it with the output of `handover events`"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_s_own_hint_goes_first_and_there_is_always_one() {
        assert_eq!(next_step(&Error::data("x").hint("do y")), "do y");
        assert_eq!(next_step(&Error::data("x")), fallback(Class::Data));
    }
}
