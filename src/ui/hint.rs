//! What to do next about an error that does not say so itself: one sentence a class.

use crate::engine::advice;
use crate::error::{Class, Error};

/// What to do next. Never empty.
#[must_use]
pub fn next_step(error: &Error) -> String {
    error.next_step().map_or_else(|| fallback(error.class()).to_owned(), str::to_owned)
}

/// What was asked for, as the shell is to be told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The plan.
    pub plan: String,
    /// Its file, unless the journal's name for it was told.
    pub file: Option<String>,
    /// The whole command, without the program's name.
    pub again: String,
}

/// A next step with its commands as they can be pasted. Where nothing was begun there is nothing to resume: then the
/// command that failed is the one to repeat.
#[must_use]
pub fn pasteable(next: &str, class: Class, asked: &Asked, began: bool) -> String {
    let surroundings = matches!(
        class,
        Class::Connection
            | Class::Journal
            | Class::Resources
            | Class::Privilege
            | Class::Contention
            | Class::Timeout
    );
    let next = if surroundings && !began {
        next.replace("`handover resume`", &format!("`handover {}`", asked.again))
    } else {
        next.to_owned()
    };
    advice::named(&next, &asked.plan, asked.file.as_deref())
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

    #[test]
    fn commands_name_the_plan_and_nothing_is_resumed_that_never_began() {
        let asked = |verb| Asked {
            plan: "p.yaml".into(),
            file: Some("p.yaml".into()),
            again: format!("{verb} p.yaml"),
        };
        let hint = "see that the server is up, then `handover resume`";
        let said = |class, verb, began| pasteable(hint, class, &asked(verb), began);
        assert!(said(Class::Connection, "run", false).ends_with("then `handover run p.yaml`"));
        assert!(said(Class::Connection, "run", true).ends_with("then `handover resume p.yaml`"));
        assert!(said(Class::Connection, "status", false).ends_with("then `handover status p.yaml`"));
        assert!(said(Class::Connection, "rollback", false).ends_with("then `handover rollback p.yaml`"));
        let lossy = pasteable(
            "`handover rollback --accept-loss` accepts that",
            Class::Usage,
            &asked("rollback"),
            false,
        );
        assert_eq!(lossy, "`handover rollback p.yaml --accept-loss` accepts that");
        assert!(said(Class::Usage, "run", false).ends_with("then `handover resume p.yaml`"));
    }
}
