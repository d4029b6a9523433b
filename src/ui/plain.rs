//! Plain lines, for logs and pipes: what became true, and progress now and then.

use super::words::{amount, sentence, stopping};
use super::{Listener, out};
use crate::event::{Event, Level, Record, StepId};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often one unit's progress is worth a line.
const EVERY: Duration = Duration::from_secs(10);

/// Lines without colours or movement.
#[derive(Default)]
pub struct Plain {
    last: HashMap<String, Instant>,
    work: Option<(StepId, Instant)>,
}

impl Plain {
    fn due(&mut self, key: String) -> bool {
        let now = Instant::now();
        match self.last.get(&key) {
            Some(last) if now.duration_since(*last) < EVERY => false,
            Some(_) => {
                self.last.insert(key, now);
                true
            }
            // The first report of a unit starts its clock; short units never need a line of their own.
            None => {
                self.last.insert(key, now);
                false
            }
        }
    }
}

impl Listener for Plain {
    fn on(&mut self, event: &Event) {
        match event {
            Event::Stopping => {
                let work = self.work.as_ref().map(|(step, since)| (step, since.elapsed()));
                out(format_args!("         {}", stopping(work)));
            }
            Event::Recorded { entry, .. } => {
                match &entry.record {
                    Record::StepStarted { step, .. } | Record::UndoStarted { step, .. } => {
                        self.work = Some((step.clone(), Instant::now()));
                    }
                    Record::StepDone { .. }
                    | Record::StepFailed { .. }
                    | Record::UndoDone { .. }
                    | Record::UndoFailed { .. } => self.work = None,
                    _ => {}
                }
                // A note was told already when it was recorded.
                if !matches!(entry.record, Record::Note { .. })
                    && let Some(text) = sentence(&entry.record)
                {
                    out(format_args!("{} {text}", entry.at.strftime("%H:%M:%S")));
                }
            }
            Event::Progress { step, unit, done, total, measure } => {
                if self.due(format!("{step}/{unit}")) {
                    out(format_args!("         {step}: {unit}: {}", amount(*done, *total, *measure)));
                }
            }
            Event::UnitDone { step, unit } => {
                self.last.remove(&format!("{step}/{unit}"));
            }
            Event::Note { step, level, text } => {
                let mark = if *level == Level::Warning { "warning: " } else { "" };
                match step {
                    Some(step) => out(format_args!("         {step}: {mark}{text}")),
                    None => out(format_args!("         {mark}{text}")),
                }
            }
            Event::Standing { step, text, .. } => {
                if self.due(format!("{step}//standing")) {
                    out(format_args!("         {step} (standing): {text}"));
                }
            }
        }
    }
}
