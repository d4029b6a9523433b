//! What a monitor is compared with: the samples of an earlier one that recorded them, in the journal.

use super::options::Monitor;
use super::soak::{SOAK, Soak};
use super::stats::Stats;
use crate::error::{Error, Result};
use crate::event::StepId;
use crate::problem::{Problems, Segment};
use crate::steps::{CheckContext, Context, Links};
use std::collections::BTreeMap;

impl Monitor {
    /// The monitor that this one, at a place in the plan, is compared with: the one that `baseline` names, else the
    /// last one before it that records.
    pub(super) fn compared_with<'a>(
        &self,
        links: &'a Links,
        place: usize,
    ) -> Option<(&'a StepId, &'a Monitor)> {
        let mut recording = links.monitors.before(place).filter(|(_, monitor)| monitor.record);
        match &self.baseline {
            Some(id) => recording.find(|(known, _)| known.as_str() == id),
            None if self.record => None,
            None => recording.next_back(),
        }
    }

    /// Finds what is wrong with `baseline` and `within`.
    pub(super) fn check_baseline(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        if self.record && self.baseline.is_some() {
            problems
                .error(["record"], "a monitor records a baseline or is compared with one, not both")
                .at_key();
        }
        let Some((id, recorded)) = self.compared_with(cx.links, cx.index) else {
            self.check_missing(cx, problems);
            return;
        };
        for (i, probe) in self.probes.iter().enumerate().filter(|(_, probe)| probe.within.is_some()) {
            let path = || [Segment::from("probes"), i.into(), "name".into()];
            match recorded.probes.iter().find(|other| other.name == probe.name) {
                None => {
                    problems
                        .error(path(), format!("step `{id}` records no probe `{}`", probe.name))
                        .hint("probes are compared with their namesakes");
                }
                Some(other) if other.is_timed() != probe.is_timed() => {
                    problems.error(path(), format!("step `{id}` records `{}` as something else", probe.name));
                }
                Some(_) => {}
            }
        }
        if self.baseline.is_some()
            && !self.probes.iter().any(|probe| recorded.probes.iter().any(|other| other.name == probe.name))
        {
            problems
                .warning(["baseline"], format!("no probe has a namesake in step `{id}`"))
                .hint("probes are compared with their namesakes");
        }
        let asked = self.baseline.is_some() || self.probes.iter().any(|probe| probe.within.is_some());
        let flip = cx.links.cutovers.before(cx.index).next_back().map(|(flip, _)| flip);
        if let Some(flip) = flip.filter(|flip| asked && cx.links.place(flip) < cx.links.place(id)) {
            let field = if self.baseline.is_some() { "baseline" } else { "probes" };
            problems
                .warning([field], format!("step `{id}` records behind the cutover `{flip}`"))
                .hint("record before the cutover, to see what it changed");
        }
    }

    /// Finds what is wrong where there is nothing to be compared with.
    fn check_missing(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        if let Some(baseline) = &self.baseline {
            let recording = cx.links.monitors.before(cx.index).filter(|(_, monitor)| monitor.record);
            let names: Vec<&str> = recording.map(|(id, _)| id.as_str()).collect();
            let hint = match crate::problem::suggest(baseline, names.iter().copied()) {
                Some(close) => format!("did you mean `{close}`?"),
                None => "name a monitor step with `record: true` that stands before this one".to_owned(),
            };
            problems
                .error(["baseline"], format!("`{baseline}` is not an earlier monitor that records"))
                .hint(hint);
            return;
        }
        for (i, probe) in self.probes.iter().enumerate() {
            if probe.within.is_some() {
                problems
                    .error(
                        [Segment::from("probes"), i.into(), "within".into()],
                        "there is no baseline to compare with",
                    )
                    .hint("put a monitor with `record: true` before this step; before the cutover, if there is one");
            }
        }
    }

    /// What the probes of the baseline showed, by their names; empty where there is no baseline.
    ///
    /// # Errors
    /// A baseline that the plan has and the journal lacks.
    pub(super) fn baseline(&self, cx: &Context) -> Result<BTreeMap<String, Stats>> {
        let Some((id, _)) = self.compared_with(&cx.links, cx.place()) else { return Ok(BTreeMap::new()) };
        let fact = cx.ledger.recall(id, SOAK).filter(|value| !value.is_null());
        let soak: Option<Soak> = fact
            .map(serde_json::from_value)
            .transpose()
            .map_err(|e| Error::internal(format!("the baseline cannot be read ({e})")))?;
        match soak {
            Some(soak) if soak.done => Ok(soak.probes),
            // Only what is asked for must be there.
            _ if self.baseline.is_none() && self.probes.iter().all(|probe| probe.within.is_none()) => {
                Ok(BTreeMap::new())
            }
            _ => Err(Error::data(format!("step `{id}` recorded no baseline"))
                .hint("roll back to before it and run again")),
        }
    }
}
