//! What can be done with a run next, in words. One place, so that no text offers a way back without what it loses.

use super::loss::Loss;
use crate::error::{Class, Error};
use crate::event::{Reviewed, StepId};
use crate::plan::differences;

/// Commands that are about a run: they are told a plan's file, or its name and the journal's place.
const OF_A_RUN: &[&str] = &["resume", "rollback", "abort", "finish", "status", "events", "report"];

/// Commands that are told a plan's file.
const OF_A_FILE: &[&str] = &["check", "dry-run", "run", "approve", "runs", "doctor"];

/// A text of a step, which does not know by which name its plan is called, with that name in its commands. Those that need
/// a file stay as they are where none is known.
#[must_use]
pub fn named(text: &str, called: &str, file: Option<&str>) -> String {
    let runs = OF_A_RUN.iter().map(|verb| (verb, called));
    let files = OF_A_FILE.iter().filter_map(|verb| Some((verb, file?)));
    let text = file.map_or_else(|| text.to_owned(), |file| text.replace(" PLAN ", &format!(" {file} ")));
    runs.chain(files).fold(text, |text, (verb, plan)| {
        let open = format!("`handover {verb} --");
        let mut parts = text.split(&open);
        let mut out = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            // One that is told its plan already.
            let told = part.starts_with("control ");
            out += &if told { open.clone() } else { format!("`handover {verb} {plan} --") };
            out += part;
        }
        out.replace(&format!("`handover {verb}`"), &format!("`handover {verb} {plan}`"))
    })
}

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
    let accepted = if losses.iter().any(Loss::is_final) {
        "`handover rollback --to` a later step undoes only what came after it".to_owned()
    } else {
        format!("only `handover rollback {file} --accept-loss` does it")
    };
    format!("rolling back now is not free: {}; {accepted}", all(losses))
}

/// Whether a text of our own offers a way back.
#[must_use]
pub fn speaks_of_rollback(text: &str) -> bool {
    text.contains("rollback") || text.contains("roll back")
}

/// Text of our own, written where nobody knew how far the run had come: if it speaks of a rollback, what that loses
/// now is added, and the command says that it is accepted; one that no word makes possible goes as far as it can.
#[must_use]
pub fn honest(text: &str, losses: &[Loss]) -> String {
    if losses.is_empty() || !speaks_of_rollback(text) {
        return text.to_owned();
    }
    let last = losses.iter().rposition(Loss::is_final);
    let to =
        last.and_then(|at| losses.get(at)).map_or_else(String::new, |last| format!(" --to {}", last.step));
    // What comes after it is taken back.
    let accepted = if last.is_some_and(|at| at + 1 == losses.len()) { "" } else { " --accept-loss" };
    let text = text.replace("`handover rollback`", &format!("`handover rollback{to}{accepted}`"));
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

/// What is answered to a request to abort that came after the decision of a cutover.
#[must_use]
pub fn overtaken(step: &StepId) -> Error {
    Error::new(
        Class::Cancelled,
        format!("nothing was aborted: the decision of step `{step}` has fallen, and only forward or rollback is left"),
    )
    .hint("`handover resume` goes forward, `handover rollback` back, which says first what that would lose")
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
        let said = honest("or `handover rollback` takes it back", &lossy);
        assert_eq!(
            said,
            "or `handover rollback --accept-loss` takes it back (rolling back now is not free: step `flip` loses what \
             was written on green)"
        );
        let called = "--control C --plan p";
        let text = named("`handover resume`, `handover rollback --to x`, `handover run`", called, None);
        let said = "`handover resume --control C --plan p`, `handover rollback --control C --plan p --to x`, `handover run`";
        assert_eq!(text, said);
        assert_eq!(named(&text, called, None), said);
        let [flip, m] = [lossy[0].clone(), never[0].clone()];
        assert!(honest("`handover rollback`", &never).starts_with("`handover rollback --to m` ("));
        assert!(
            honest("`handover rollback`", &[flip.clone(), m.clone()])
                .starts_with("`handover rollback --to m` (")
        );
        let said = honest("`handover rollback`", &[m, flip]);
        assert!(said.starts_with("`handover rollback --to m --accept-loss` ("), "{said}");
    }
}
