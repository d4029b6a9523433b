//! What can be done with a run next, in words. One place, so that no text offers a way back without what it loses.

use super::loss::Loss;
use crate::error::{Class, Error};
use crate::event::Reviewed;
use crate::plan::differences;

/// Losses as one clause: ``step `flip` loses …; step `x` cannot be undone: …``.
#[must_use]
pub fn all(losses: &[Loss]) -> String {
    losses.iter().map(Loss::to_string).collect::<Vec<_>>().join("; ")
}

/// The way back as a command that can be pasted, with what it loses. `what` it takes back, e.g. `the run`.
#[must_use]
pub fn way_back(file: &str, what: &str, losses: &[Loss]) -> String {
    if losses.is_empty() {
        return format!("`handover rollback {file}` undoes {what} and loses nothing");
    }
    let accepted = if losses.iter().any(|loss| loss.what.starts_with("cannot")) {
        "`handover rollback --to` a later step undoes only what came after it".to_owned()
    } else {
        format!("only `handover rollback {file} --accept-loss` does it")
    };
    format!("rolling back now is not free: {}; {accepted}", all(losses))
}

/// Text of our own, written where nobody knew how far the run had come: if it speaks of a rollback, what that loses
/// now is added.
#[must_use]
pub fn honest(text: &str, losses: &[Loss]) -> String {
    if losses.is_empty() || !(text.contains("rollback") || text.contains("roll back")) {
        return text.to_owned();
    }
    format!("{text} (rolling back now is not free: {})", all(losses))
}

/// A next step for who only looks: there is nothing to resume.
#[must_use]
pub fn look_again(next: &str) -> String {
    next.replace("then `handover resume`", "then look again")
}

/// The refusal of a plan that is not what was reviewed, naming what changed where the journal knows.
#[must_use]
pub fn changed(what: &str, then: Option<&Reviewed>, now: &Reviewed) -> Error {
    let differences = then.map(|then| differences(then, now)).unwrap_or_default();
    let words = if differences.is_empty() { String::new() } else { format!(": {}", differences.join("; ")) };
    Error::new(Class::Changed, format!("{what}{words}"))
        .hint("put it back, or review it and go on with what is there now: add `--accept-changes`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_way_back_is_offered_without_what_it_loses() {
        let lossy = [Loss { step: "flip".into(), what: "loses what was written on green".into() }];
        assert!(
            way_back("p.yaml", "the run", &[])
                .contains("`handover rollback p.yaml` undoes the run and loses nothing")
        );
        let text = way_back("p.yaml", "the run", &lossy);
        assert!(
            text.contains("`flip` loses what was written on green") && text.contains("--accept-loss"),
            "{text}"
        );
        assert!(!text.contains("rollback p.yaml`"), "{text}");
        let never = [Loss { step: "m".into(), what: "cannot be undone: no down file".into() }];
        assert!(!way_back("p.yaml", "the run", &never).contains("--accept-loss"));
        assert_eq!(honest("mend it, then `handover resume`", &lossy), "mend it, then `handover resume`");
        assert!(honest("or `handover rollback`", &lossy).contains("loses what was written on green"));
    }
}
