//! What can be found wrong with a verification without connecting to anything.

use crate::event::StepId;
use crate::problem::{Problems, Segment, suggest};
use crate::steps::CheckContext;
use handover_compare::{Before, Invariant, Recorded, Verify};

pub(super) fn recorded(step: &Verify, cx: &CheckContext<'_>, recorded: &Recorded, problems: &mut Problems) {
    let path = ["before", "from_step"];
    if step.record {
        problems.error(["record"], "a baseline is recorded from a database").hint("name one with `before`");
    }
    let earlier: Vec<(&StepId, &Verify)> = cx.links.verifications.before(cx.index).collect();
    let Some((_, other)) = earlier.iter().find(|(id, other)| **id == recorded.from_step && other.record)
    else {
        let known: Vec<&str> = earlier.iter().filter(|(_, s)| s.record).map(|(id, _)| id.as_str()).collect();
        problems.error(path, format!("no earlier step `{}` records a baseline", recorded.from_step)).hint(
            match (suggest(recorded.from_step.as_str(), known.iter().copied()), known.as_slice()) {
                (Some(close), _) => format!("did you mean `{close}`?"),
                (None, []) => "add a `verify` step with `record: true` before this one".to_owned(),
                (None, known) => format!("steps that do: {}", known.join(", ")),
            },
        );
        return;
    };
    if step.counts_tables() && !other.counts_tables() {
        problems
            .error(["row_counts"], format!("step `{}` records no row counts", recorded.from_step))
            .hint("add `row_counts` there as well");
    }
    for (i, invariant) in step.invariants.iter().enumerate() {
        let at = [Segment::from("invariants"), i.into(), "name".into()];
        match other.invariants.iter().find(|o| o.name == invariant.name) {
            None => {
                problems
                    .error(at, format!("step `{}` records no `{}`", recorded.from_step, invariant.name))
                    .hint("add it there under the same name");
            }
            Some(theirs) if theirs.key != invariant.key || theirs.matching() != invariant.matching() => {
                problems
                    .error(
                        at,
                        format!(
                            "`{}` has another key or order in step `{}`",
                            invariant.name, recorded.from_step
                        ),
                    )
                    .hint("give `key`, `ordered` and `tolerance` in both steps alike");
            }
            Some(_) => {}
        }
    }
}

pub(super) fn invariant(step: &Verify, i: usize, invariant: &Invariant, problems: &mut Problems) {
    let at = |field: &str| [Segment::from("invariants"), i.into(), field.into()];
    let recorded = matches!(step.before, Before::Recorded(_));
    if invariant.before.is_none() && (!recorded || invariant.after.is_none()) {
        problems
            .error(at("name"), format!("`{}` has no query", invariant.name))
            .hint("write `before: \"select …\"`; `after` is the same unless given");
    }
    invariant.check(&[Segment::from("invariants"), i.into()], problems);
}
