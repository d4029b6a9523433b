//! What can be found wrong with a cutover's gates without connecting to anything.

use super::gates::{Ask, Blockers, Survives, Window};
use super::hours;
use crate::problem::{Problems, Segment};
use std::collections::BTreeSet;

/// Finds what is wrong with the rule for sessions in the way.
pub fn blockers(blockers: &Blockers, problems: &mut Problems) {
    for (i, exception) in blockers.rule().except.iter().enumerate() {
        if exception.is_empty() {
            let at = [Segment::from("blockers"), "except".into(), i.into()];
            problems.error(at, "this exception names nobody").hint("give `application_name`, `role` or both");
        }
    }
}

/// Finds what is wrong with whose word is asked for.
pub fn approval(ask: &Ask, problems: &mut Problems) {
    let Ask::Whose(whose) = ask else { return };
    if whose.message.as_ref().is_some_and(|message| message.trim().is_empty()) {
        problems
            .error(["approve", "message"], "the message is empty")
            .hint("say what is to be approved, or leave it out");
    }
    for (i, name) in whose.by.iter().enumerate().filter(|(_, name)| name.trim().is_empty()) {
        let at = [Segment::from("approve"), "by".into(), i.into()];
        problems.error(at, format!("the name `{name}` is empty")).hint("name who may approve");
    }
}

/// Finds what is wrong with queries whose answers must survive. `frozen`: whether there are two sides.
pub fn invariants(invariants: &[Survives], frozen: bool, problems: &mut Problems) {
    if !invariants.is_empty() && !frozen {
        problems
            .error(["invariants"], "without `freeze:` and `to:` there are no two sides to ask")
            .at_key()
            .hint("use a `verify` step with a recorded baseline");
    }
    let mut names = BTreeSet::new();
    for (i, invariant) in invariants.iter().enumerate() {
        let at = |field: &str| [Segment::from("invariants"), i.into(), field.into()];
        if !names.insert(&invariant.name) {
            problems
                .error(at("name"), format!("there are two invariants `{}`", invariant.name))
                .hint("give each its own name");
        }
        invariant.invariant().check(&[Segment::from("invariants"), i.into()], problems);
    }
}

/// Finds what is wrong with the window. `frozen`: whether there is an old side whose transactions could be counted.
pub fn window(window: &Window, frozen: bool, problems: &mut Problems) {
    let at = |field: &str| [Segment::from("window"), field.into()];
    let hours = !window.days.is_empty() || window.from.is_some() || window.to.is_some();
    match (&window.zone, hours) {
        (None, true) => {
            problems
                .error(["window"], "days and times need a `zone`")
                .hint("name it as `zone: Europe/Zurich`, or `zone: UTC`");
        }
        (Some(_), false) => {
            problems.error(at("zone"), "a zone needs `days`, `from` or `to`").hint("say when it opens");
        }
        _ => {}
    }
    if let Err(error) = hours::zone(window) {
        problems.error(at("zone"), error.message()).hint(error.next_step().unwrap_or_default());
    }
    match window.max_transactions_per_second {
        None if !hours && window.zone.is_none() => {
            problems
                .error(["window"], "the window is always open")
                .hint("give `days`, `from`, `to` and `zone`, or `max_transactions_per_second`");
        }
        Some(most) if !most.is_finite() || most < 0.0 => {
            problems
                .error(at("max_transactions_per_second"), "a rate is 0 or more")
                .hint("write a number such as 50");
        }
        Some(_) if !frozen => {
            problems
                .error(at("max_transactions_per_second"), "without `freeze:` there is no side to count on")
                .hint("leave it out, or name the old side");
        }
        _ => {}
    }
}
