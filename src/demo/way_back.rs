//! The way back in the verdict: what was promised of it, and what was counted.

use serde::Serialize;

/// What `--and-back` adds: from the end of the second plan to the moment when blue serves again.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct WayBack {
    /// Writes that green was to take before.
    pub writes_asked: u64,
    /// Requests that wrote on green and were answered as they should be, from the end of the plan until the rollback began.
    pub writes_on_green: u64,
    /// Events that were captured on green and have their effect on blue, as the cutover counted them; none when it did not
    /// come so far.
    pub events_carried_back: Option<i64>,
    /// Tokens that were revoked (as the client knows) and are active on blue.
    pub revocations_lost: u64,
    /// Tokens that were issued during the demo and that blue does not know.
    pub tokens_unknown_on_blue: u64,
    /// The longest a write took that met the way back, from when it was meant to be sent.
    pub write_pause_ms: f64,
    /// How long the service held writes for it.
    pub write_hold_ms: f64,
    /// The write pause as the undo of the cutover measured it.
    pub write_pause_measured_ms: Option<f64>,
    /// Participants that were not turned back.
    pub not_turned_back: Vec<String>,
    /// How long the rollback took, with all that it waited for.
    pub seconds: f64,
    /// Whether it came to its end.
    pub done: bool,
}

impl WayBack {
    /// Promises of it that were broken.
    #[must_use]
    pub fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        for (count, what) in [
            (self.revocations_lost, "revocations lost on the way back"),
            (self.tokens_unknown_on_blue, "tokens unknown on blue"),
            (self.writes_asked.saturating_sub(self.writes_on_green), "writes too few on green"),
        ] {
            if count > 0 {
                broken.push(format!("{count} {what}"));
            }
        }
        if !self.done {
            broken.push("the rollback did not reach its end".into());
        }
        broken.extend(self.not_turned_back.iter().map(|name| format!("{name} was not turned back")));
        broken
    }

    /// What the table says of it.
    #[must_use]
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let number = |n: u64| indicatif::HumanCount(n).to_string();
        let events = self.events_carried_back.map(|n| number(n.unsigned_abs()));
        let measured = self.write_pause_measured_ms.map(|ms| format!("{ms:.0} ms"));
        vec![
            ("writes on green before it", number(self.writes_on_green)),
            ("rollback in all", format!("{:.2} s", self.seconds)),
            ("events carried back", events.unwrap_or_else(|| "-".into())),
            ("revocations lost", number(self.revocations_lost)),
            ("tokens unknown on blue", number(self.tokens_unknown_on_blue)),
            ("pause, as clients felt it", format!("{:.0} ms", self.write_pause_ms)),
            ("pause, as the service held it", format!("{:.0} ms", self.write_hold_ms)),
            ("pause, as the cutover measured it", measured.unwrap_or_else(|| "-".into())),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> WayBack {
        WayBack { writes_asked: 10, writes_on_green: 12, done: true, ..WayBack::default() }
    }

    #[test]
    fn each_promise_of_the_way_back_can_be_broken() {
        assert_eq!(good().broken(), [] as [String; 0]);
        let broken = [
            WayBack { revocations_lost: 1, ..good() },
            WayBack { tokens_unknown_on_blue: 1, ..good() },
            WayBack { writes_on_green: 9, ..good() },
            WayBack { not_turned_back: vec!["the registry".into()], ..good() },
            WayBack { done: false, ..good() },
        ];
        for way in broken {
            assert_eq!(way.broken().len(), 1, "{way:?}");
        }
    }
}
