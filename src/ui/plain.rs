//! Plain lines, for logs and pipes: what became true, and progress now and then.

use super::listener::{Listener, Places};
use super::screen::out;
use super::table;
use super::words::{amount, sentence, stopping};
use crate::event::{Event, Level, Record, StepId};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often one unit's progress is worth a line.
const EVERY: Duration = Duration::from_secs(10);

/// Lines without colours or movement.
pub struct Plain {
    places: Places,
    last: HashMap<String, Instant>,
    work: Option<(StepId, Instant)>,
}

impl Plain {
    /// For a plan of these steps.
    #[must_use]
    pub fn new(places: Places) -> Self {
        Plain { places, last: HashMap::new(), work: None }
    }

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

/// The step whose attempt begins or ends with a record.
fn attempt_of(record: &Record) -> Option<&StepId> {
    match record {
        Record::StepStarted { step, .. }
        | Record::StepDone { step, .. }
        | Record::StepFailed { step, .. }
        | Record::UndoStarted { step, .. }
        | Record::UndoDone { step, .. }
        | Record::UndoFailed { step, .. } => Some(step),
        _ => None,
    }
}

/// Text of several lines, with the later ones under the first.
fn below(text: &str) -> String {
    text.trim_end().replace('\n', "\n           ")
}

impl Listener for Plain {
    fn on(&mut self, event: &Event) {
        match event {
            Event::Stopping { bound } => {
                let work = self.work.as_ref().map(|(step, since)| (step, since.elapsed()));
                out(format_args!("         {}", stopping(work, *bound)));
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
                    let mark =
                        attempt_of(&entry.record).map_or_else(String::new, |step| self.places.mark(step));
                    out(format_args!("{} {mark}{}", entry.at.strftime("%H:%M:%S"), below(&text)));
                }
                for line in table::of_record(&entry.record).iter().flat_map(|(_, table)| table::lines(table))
                {
                    out(format_args!("           {line}"));
                }
            }
            Event::Progress { step, unit, done, total, measure } => {
                if self.due(format!("{step}/{unit}")) {
                    let mark = self.places.mark(step);
                    out(format_args!("         {mark}{step}: {unit}: {}", amount(*done, *total, *measure)));
                }
            }
            Event::UnitDone { step, unit } => {
                self.last.remove(&format!("{step}/{unit}"));
            }
            Event::Note { step, level, text } => {
                let mark = if *level == Level::Warning { "warning: " } else { "" };
                let text = below(text);
                match step {
                    Some(step) => out(format_args!("         {step}: {mark}{text}")),
                    None => out(format_args!("         {mark}{text}")),
                }
            }
            Event::Loss { step, words, table, .. } => {
                out(format_args!("         {step}: {words}"));
                for line in table.iter().flat_map(table::lines) {
                    out(format_args!("           {line}"));
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
