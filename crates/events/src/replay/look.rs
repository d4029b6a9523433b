//! What can be known of a replay before it begins: from the plan, and from the databases.

use super::mapping::{self, Part};
use super::options::{Mode, Replay};
use crate::capture::Capture;
use crate::catalog::inspect;
use crate::trigger::Operation;
use handover_core::Result;
use handover_core::event::StepId;
use handover_core::problem::{Problems, Segment, suggest};
use handover_port::{Description, Port};

/// Reports what the plan alone shows to be wrong with what events mean: each captured operation needs a meaning, and
/// a meaning names what is captured.
pub fn check(replay: &Replay, capture: &Capture, problems: &mut Problems) {
    for (name, mapping) in &replay.events {
        let at = [Segment::from("events"), name.to_string().into()];
        let Some(table) = capture.tables.get(name) else {
            let names: Vec<String> = capture.tables.keys().map(ToString::to_string).collect();
            let close = suggest(&name.to_string(), names.iter().map(String::as_str)).map(str::to_owned);
            problems.error(at, format!("nothing is captured of a table {name}")).at_key().hint(
                close.map_or(format!("captured are: {}", names.join(", ")), |c| {
                    format!("did you mean `{c}`?")
                }),
            );
            continue;
        };
        let known = |part: Part, column: &str| {
            let (list, what) = match part {
                Part::Key => (table.key.as_ref(), "key"),
                Part::Old | Part::New => (table.columns.as_ref(), "captured columns"),
            };
            match list {
                Some(list) if !list.iter().any(|c| c == column) => {
                    Err(format!("`{column}` is not among the {what} of {name}"))
                }
                _ => Ok(()),
            }
        };
        mapping::check(name, mapping, known, problems);
    }
    for (name, table) in &capture.tables {
        for operation in [Operation::Insert, Operation::Update, Operation::Delete] {
            if !table.on.contains(&operation) {
                continue;
            }
            let effect = replay.events.get(name).and_then(|mapping| mapping.effect(operation));
            if effect.is_none_or(|effect| effect.apply.is_none() && !effect.ignore) {
                problems
                    .error(["events"], format!("the plan captures {operation} of {name}, but does not say what it means here"))
                    .hint(format!("add `{name}: {{ {operation}: {{ apply: \"…\" }} }}`, or `{{ ignore: true }}` if it means nothing"));
            }
        }
    }
}

/// Says what the step would do, through read-only sessions. `step`: the capture.
///
/// # Errors
/// What a server says.
pub async fn describe(
    replay: &Replay,
    port: &Port,
    step: &StepId,
    capture: &Capture,
    mode: Mode,
) -> Result<Description> {
    let mut out = Description::default();
    let blue = port.reader(&capture.from).await?;
    let green = port.operator_reader(&replay.to).await?;
    for (name, mapping) in &replay.events {
        let facts = inspect(&blue, name).await?;
        for (place, text, already) in mapping.texts() {
            let place: Vec<String> = place
                .iter()
                .map(|s| match s {
                    Segment::Key(key) => key.clone(),
                    Segment::Index(i) => i.to_string(),
                })
                .collect();
            let place = format!("{name}.{}", place.join("."));
            let rewritten = match mapping::rewrite(text) {
                Ok(rewritten) => rewritten,
                Err(message) => {
                    out.blocker(format!("{place}: {message}"));
                    continue;
                }
            };
            for (_, column) in rewritten.columns() {
                if facts.as_ref().is_some_and(|facts| !facts.has(column)) {
                    out.blocker(format!(
                        "{place} names the column `{column}`, which {name} on {} does not have",
                        capture.from
                    ));
                }
            }
            // Only SELECTs: preparing an UPDATE takes its table's lock.
            if already && let Err(error) = green.prepare(&rewritten.sql).await {
                out.warning(format!("{place} cannot be checked on {} yet: {}", replay.to, error.message()));
            }
        }
    }
    match mode {
        Mode::Tail => out.action(format!(
            "apply what step `{step}` captures to {} until at most {} events wait, and keep up from then on",
            replay.to, replay.caught_up
        )),
        Mode::Drain => out.action(format!(
            "apply all that step `{step}` captured to {}, prove that nothing is missing, and end its relay",
            replay.to
        )),
    };
    if capture.partitions > 1 && replay.events.len() > 1 {
        out.warning(
            "order is kept for each key; an event that needs another table's row waits for it".to_owned(),
        );
    }
    Ok(out)
}
