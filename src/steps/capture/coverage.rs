//! What a plan leaves behind: writes to copied tables that no step carries over, or not as a whole.
//!
//! The plan can say that the rest may be lost (`rest: ignore`); otherwise the checker and the dry run name it, and the
//! cutover asks the server's counters for it.

use crate::postgres::TableName;
use crate::problem::{Problems, Segment, few};
use crate::steps::CheckContext;
use crate::steps::cutover::Cutover;
use handover_events::capture::{Capture, Rest, words};

/// Names what the plan would leave behind where it copies a table and then hands over.
pub fn check(capture: &Capture, cx: &CheckContext<'_>, problems: &mut Problems) {
    let to: Vec<&String> = cx
        .links
        .cutovers
        .all()
        .filter(|(_, cutover)| cutover.freeze.as_ref() == Some(&capture.from))
        .filter_map(|(_, cutover)| cutover.to.as_ref())
        .collect();
    for (name, table) in &capture.tables {
        let copied = cx
            .links
            .copies
            .all()
            .any(|(_, c)| c.from == capture.from && to.contains(&&c.to) && c.takes_rows(name));
        let replicated =
            cx.links.replications.all().any(|(_, r)| r.from == capture.from && to.contains(&&r.to));
        let excepted = cx.links.cutovers.all().any(|(_, cutover)| cutover.except.contains(name));
        let gaps = table.gaps(None);
        if !copied || replicated || excepted || table.rest == Rest::Ignore || gaps.is_empty() {
            continue;
        }
        problems
            .warning(
                [Segment::from("tables"), name.to_string().into()],
                format!("{name} is copied, and of what is written to it afterwards is carried over: {}", words(&gaps)),
            )
            .at_key()
            .hint(
                "the cutover refuses if it finds such writes: capture all of `on: [insert, update, delete]` without `when` and \
                 `columns`, or say `rest: ignore` if they may be lost",
            );
    }
}

/// Names tables that a plan copies by name and then carries no writes of.
pub fn check_uncarried(cutover: &Cutover, cx: &CheckContext<'_>, problems: &mut Problems) {
    let (Some(from), Some(to)) = (&cutover.freeze, &cutover.to) else { return };
    if cx.links.replicated(cx.index, from, to).is_some() {
        return;
    }
    let captures: Vec<&Capture> =
        cx.links.captures.before(cx.index).map(|(_, capture)| capture).filter(|c| c.from == *from).collect();
    for (id, copy) in cx.links.copies.before(cx.index).filter(|(_, c)| c.from == *from && c.to == *to) {
        let hint = "a write to them after the copy makes the cutover refuse: add them to a `capture` before the copy, put a \
                    `replicate` behind it, or list them under the cutover's `except:` if such writes may be lost";
        if captures.is_empty() {
            problems
                .warning(
                    ["freeze"],
                    format!(
                        "what is written on `{from}` after the copy `{id}` is neither captured nor replicated"
                    ),
                )
                .at_key()
                .hint(hint.replace("them", "its tables"));
            continue;
        }
        let open: Vec<&TableName> = copy
            .include
            .tables
            .iter()
            .filter(|t| copy.takes_rows(t) && !cutover.except.contains(*t))
            .filter(|t| !captures.iter().any(|capture| capture.tables.contains_key(*t)))
            .collect();
        if !open.is_empty() {
            problems
                .warning(
                    ["freeze"],
                    format!("copied by `{id}`, and neither captured nor replicated: {}", few(&open)),
                )
                .at_key()
                .hint(hint);
        }
    }
}
