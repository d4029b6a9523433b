//! What can be found wrong with a cutover's gates without connecting to anything.

use super::gates::{Blockers, Window};
use super::hours;
use crate::problem::{Problems, Segment};

/// Finds what is wrong with the rule for sessions in the way.
pub fn blockers(blockers: &Blockers, problems: &mut Problems) {
    for (i, exception) in blockers.rule().except.iter().enumerate() {
        if exception.is_empty() {
            let at = [Segment::from("blockers"), "except".into(), i.into()];
            problems.error(at, "this exception names nobody").hint("give `application_name`, `role` or both");
        }
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
