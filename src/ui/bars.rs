//! Bars on a terminal: one for each unit in work, a line for each finished step, standing tasks at the bottom.
//!
//! Bars are drawn on standard error. Lines that stay go there too, unless standard output is not the terminal
//! (`handover run plan.yaml > log`): then the log gets them.

use super::listener::{Listener, Places};
use super::screen::out;
use super::table;
use super::words::{duration, of_step, sentence, stopping, summary_words};
use crate::error::Class;
use crate::event::{Event, Level, Measure, Record, StepId};
use console::{Term, style};
use indicatif::{
    BinaryBytes, HumanCount, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};
use jiff::Timestamp;
use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Bars shown at once; what more there is in work is only counted.
const SHOWN: usize = 8;

/// How often spinners turn when nothing happens.
const TICK: Duration = Duration::from_millis(250);

/// Whether standard error is a terminal that bars can be drawn on.
#[must_use]
pub fn wanted() -> bool {
    let dumb = std::env::var("TERM").is_ok_and(|term| term == "dumb");
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !dumb && !refused
}

/// How long a unit must have been in work before its rate and the time left are shown.
const SETTLED: Duration = Duration::from_secs(1);

/// Draws bars.
pub struct Bars {
    places: Places,
    area: MultiProgress,
    /// The step in work, with a spinner of its own above its units.
    header: Option<Header>,
    units: HashMap<String, Unit>,
    standing: HashMap<StepId, ProgressBar>,
    lines_to_stdout: bool,
}

struct Header {
    step: StepId,
    bar: ProgressBar,
    /// The control database's clock, as for all times of a run.
    since: Timestamp,
    /// The same by this process's clock.
    begun: Instant,
    finished: usize,
}

/// A unit in work; with a bar, if there was room for one.
struct Unit {
    bar: Option<ProgressBar>,
    measure: Measure,
    done: u64,
    total: Option<u64>,
}

impl Bars {
    /// An empty area on standard error, for a plan of these steps.
    #[must_use]
    pub fn new(places: Places) -> Self {
        let area = MultiProgress::with_draw_target(ProgressDrawTarget::term(Term::buffered_stderr(), 10));
        Bars {
            places,
            area,
            header: None,
            units: HashMap::new(),
            standing: HashMap::new(),
            lines_to_stdout: !std::io::stdout().is_terminal(),
        }
    }

    /// A line that stays.
    fn line(&self, text: &str) {
        if self.lines_to_stdout {
            out(console::strip_ansi_codes(text));
        } else {
            // A terminal that went away is no reason to stop.
            let _ = self.area.println(text);
        }
    }

    fn begin(&mut self, step: &StepId, at: Timestamp, verb: &str) {
        self.clear_units();
        let bar = spinner("{spinner:.cyan} {prefix:.bold} {msg} {elapsed:.dim}");
        bar.set_prefix(format!("{}{step}", self.places.mark(step)));
        bar.set_message(verb.to_owned());
        let bar = self.area.insert(0, bar);
        bar.enable_steady_tick(TICK);
        self.header = Some(Header { step: step.clone(), bar, since: at, begun: Instant::now(), finished: 0 });
    }

    /// Takes the step's bars away; says how long it took.
    fn finish(&mut self, at: Timestamp) -> String {
        self.clear_units();
        let Some(header) = self.header.take() else { return String::new() };
        header.bar.finish_and_clear();
        self.area.remove(&header.bar);
        duration(at.duration_since(header.since).as_secs_f64())
    }

    fn clear_units(&mut self) {
        for (_, unit) in self.units.drain() {
            if let Some(bar) = unit.bar {
                bar.finish_and_clear();
                self.area.remove(&bar);
            }
        }
    }

    fn progress(&mut self, step: &StepId, name: &str, done: u64, total: Option<u64>, measure: Measure) {
        let key = format!("{step}/{name}");
        if !self.units.contains_key(&key) {
            let shown = self.units.values().filter(|unit| unit.bar.is_some()).count();
            let bar = (shown < SHOWN).then(|| self.unit_bar(name, done, total, measure));
            self.units.insert(key.clone(), Unit { bar, measure, done, total });
        }
        let Some(unit) = self.units.get_mut(&key) else { return };
        (unit.done, unit.total) = (done, total);
        if let Some(bar) = &unit.bar {
            if bar.length() != total {
                restyle(bar, total, measure);
            }
            bar.set_position(done);
        }
        self.count();
    }

    fn unit_bar(&self, name: &str, done: u64, total: Option<u64>, measure: Measure) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
        restyle(&bar, total, measure);
        bar.set_prefix(name.to_owned());
        let bar = match self.last_unit_bar() {
            Some(last) => self.area.insert_after(&last, bar),
            None => match &self.header {
                Some(header) => self.area.insert_after(&header.bar, bar),
                None => self.area.insert(0, bar),
            },
        };
        // What an earlier attempt did must not count as speed.
        bar.set_position(done);
        bar.reset_eta();
        bar
    }

    fn last_unit_bar(&self) -> Option<ProgressBar> {
        self.units.values().find_map(|unit| unit.bar.clone())
    }

    fn unit_done(&mut self, step: &StepId, name: &str) {
        let Some(unit) = self.units.remove(&format!("{step}/{name}")) else { return };
        if let Some(header) = &mut self.header
            && header.step == *step
        {
            header.finished += 1;
        }
        if let Some(bar) = unit.bar {
            bar.finish_and_clear();
            self.area.remove(&bar);
            // Its place goes to one that waited for it.
            let waiting = self.units.iter().find(|(_, unit)| unit.bar.is_none());
            if let Some((key, unit)) = waiting.map(|(key, unit)| (key.clone(), unit)) {
                let name = key.split_once('/').map_or(key.as_str(), |(_, name)| name);
                let bar = self.unit_bar(name, unit.done, unit.total, unit.measure);
                if let Some(unit) = self.units.get_mut(&key) {
                    unit.bar = Some(bar);
                }
            }
        }
        self.count();
    }

    fn count(&self) {
        let Some(header) = &self.header else { return };
        let hidden = self.units.values().filter(|unit| unit.bar.is_none()).count();
        let mut parts = Vec::new();
        if header.finished > 0 {
            parts.push(format!("{} done", header.finished));
        }
        if hidden > 0 {
            parts.push(format!("{hidden} more in work"));
        }
        header.bar.set_message(parts.join(", "));
    }

    fn standing(&mut self, step: &StepId, text: &str) {
        let bar = self.standing.entry(step.clone()).or_insert_with(|| {
            let bar = self.area.add(spinner("{spinner:.dim} {prefix} {msg:.dim}"));
            bar.set_prefix(format!("{step} (standing):"));
            bar.enable_steady_tick(TICK);
            bar
        });
        bar.set_message(text.to_owned());
    }

    fn end_standing(&mut self, step: &StepId) {
        if let Some(bar) = self.standing.remove(step) {
            bar.finish_and_clear();
            self.area.remove(&bar);
        }
    }

    fn recorded(&mut self, record: &Record, at: Timestamp) {
        let ok = style("✓").green();
        let bad = style("✗").red().bold();
        match record {
            Record::StepStarted { step, attempt } => {
                self.begin(
                    step,
                    at,
                    &if *attempt > 1 { format!("attempt {attempt}") } else { String::new() },
                );
            }
            Record::UndoStarted { step, .. } => {
                self.end_standing(step);
                self.begin(step, at, "undoing");
            }
            Record::StepDone { step, summary } => {
                let took = self.finish(at);
                let words = style(summary_words(summary)).dim();
                self.line(&format!("{ok} {}{} {took} {words}", self.places.mark(step), style(step).bold()));
            }
            Record::UndoDone { step, .. } => {
                let took = self.finish(at);
                self.line(&format!("{ok} {}{} undone, {took}", self.places.mark(step), style(step).bold()));
            }
            Record::StepFailed { step, failure } if failure.class == Class::Waiting => {
                let took = self.finish(at);
                let mark = self.places.mark(step);
                self.line(&format!(
                    "… {mark}{} {took}: {}",
                    style(step).bold(),
                    of_step(step, &failure.message)
                ));
            }
            Record::StepFailed { step, failure } | Record::UndoFailed { step, failure } => {
                let took = self.finish(at);
                let mark = self.places.mark(step);
                self.line(&format!(
                    "{bad} {mark}{} {took}: {}",
                    style(step).bold(),
                    of_step(step, &failure.message)
                ));
            }
            Record::StandingEnded { step, .. } => self.end_standing(step),
            Record::PointOfNoReturn { step } => {
                let text = style(format!("{step}: point of no return passed")).yellow().bold();
                self.line(&format!("! {text}"));
            }
            // The command's own last line says it.
            Record::RunDone | Record::RunRolledBack { .. } | Record::Finished => drop(self.finish(at)),
            // It was told already when it was recorded.
            Record::Note { .. } => {}
            other => {
                if matches!(other, Record::Halted { .. } | Record::RunAborted { .. }) {
                    self.finish(at);
                }
                if let Some(text) = sentence(other) {
                    self.line(&format!("· {text}"));
                }
            }
        }
    }
}

impl Listener for Bars {
    fn on(&mut self, event: &Event) {
        match event {
            Event::Recorded { entry, .. } => {
                self.recorded(&entry.record, entry.at);
                for line in table::of_record(&entry.record).iter().flat_map(|(_, table)| table::lines(table))
                {
                    self.line(&format!("    {line}"));
                }
            }
            Event::Progress { step, unit, done, total, measure } => {
                self.progress(step, unit, *done, *total, *measure);
            }
            Event::UnitDone { step, unit } => self.unit_done(step, unit),
            Event::Note { step, level, text } => {
                let step = step.as_ref().map_or_else(String::new, |step| format!("{step}: "));
                self.line(&match level {
                    Level::Warning => format!("{} {step}{text}", style("!").yellow().bold()),
                    Level::Info => format!("  {step}{text}"),
                });
            }
            Event::Loss { step, words, table, .. } => {
                self.line(&format!("{} {}: {words}", style("!").yellow().bold(), style(step).bold()));
                for line in table.iter().flat_map(table::lines) {
                    self.line(&format!("    {line}"));
                }
            }
            Event::Standing { step, text, .. } => self.standing(step, text),
            Event::Stopping { bound } => {
                let work = self.header.as_ref().map(|header| (&header.step, header.begun.elapsed()));
                self.line(&format!("{} {}", style("!").yellow().bold(), stopping(work, *bound)));
            }
        }
    }

    fn end(&mut self) {
        self.clear_units();
        let _ = self.area.clear();
    }
}

fn spinner(template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    bar.set_style(
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    bar
}

/// Sets length and look: with a known end there is a bar and an ETA, without one only what is done and how fast.
fn restyle(bar: &ProgressBar, total: Option<u64>, measure: Measure) {
    let (amount, of) = match measure {
        Measure::Bytes => ("{binary_bytes}", "{binary_total_bytes}"),
        Measure::Seconds => ("{pos} s", "{len} s"),
        Measure::Rows => ("{human_pos}", "{human_len} rows"),
        Measure::Blocks => ("{human_pos}", "{human_len} blocks"),
        Measure::Events => ("{human_pos}", "{human_len} events"),
        Measure::Items => ("{human_pos}", "{human_len}"),
    };
    let template = match total {
        Some(total) if total > 0 => {
            bar.set_length(total);
            format!("  {{prefix:24!}} {{bar:24.cyan/dim}} {amount} of {of} {{rate}} {{left:.dim}}")
        }
        _ => {
            bar.unset_length();
            format!("  {{prefix:24!}} {amount} {{rate}} {{elapsed:.dim}}")
        }
    };
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let rate = move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        if let Some(text) = rate_words(state.per_sec(), state.elapsed(), measure) {
            let _ = write!(out, "{text}");
        }
    };
    let left = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        if state.elapsed() >= SETTLED && state.pos() > 0 {
            let _ = write!(out, "{} left", duration(state.eta().as_secs_f64().round()));
        }
    };
    bar.set_style(style.progress_chars("━╸─").with_key("rate", rate).with_key("left", left));
}

/// How fast it goes, once there is something to judge by.
fn rate_words(per_second: f64, elapsed: Duration, measure: Measure) -> Option<String> {
    if elapsed < SETTLED || per_second < 1.0 || matches!(measure, Measure::Items | Measure::Seconds) {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at least one, and no rate is near the end of u64"
    )]
    let whole = per_second.round() as u64;
    Some(match measure {
        Measure::Bytes => format!("{}/s", BinaryBytes(whole)),
        _ => format!("{}/s", HumanCount(whole)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_wait_until_they_mean_something() {
        assert_eq!(rate_words(5000.4, Duration::from_millis(100), Measure::Rows), None);
        assert_eq!(rate_words(5000.4, Duration::from_secs(3), Measure::Rows).as_deref(), Some("5,000/s"));
        assert_eq!(
            rate_words(2_097_152.0, Duration::from_secs(3), Measure::Bytes).as_deref(),
            Some("2.00 MiB/s")
        );
        assert_eq!(rate_words(3.0, Duration::from_secs(3), Measure::Items), None);
    }
}
