//! The verdict: what was promised, what was counted, and whether they agree.

use super::way_back::WayBack;
use console::style;
use serde::Serialize;
use std::fmt::Write;

/// How long a step took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepTime {
    /// The step.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// From its first start to its end, what a kill cost included.
    pub seconds: f64,
    /// The plan it belongs to.
    pub plan: String,
}

/// What the demo prints at its end; the fields are the keys of the JSON object.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Verdict {
    /// Requests that were due.
    pub requests: u64,
    /// Requests that were answered wrongly, too late or not at all.
    pub failed_requests: u64,
    /// Revocations that the service acknowledged.
    pub revocations_issued: u64,
    /// Tokens that were revoked (as the client or blue knows) and are active on green.
    pub revocations_lost: u64,
    /// Revoked tokens that were accepted.
    pub revoked_honoured: u64,
    /// Tokens that were issued during the demo and that green does not know.
    pub tokens_unknown_on_green: u64,
    /// The longest a write took that met the cutover, from when it was meant to be sent.
    pub write_pause_ms: f64,
    /// How long the service held writes.
    pub write_hold_ms: f64,
    /// The write pause as the cutover step measured it; none when its summary has no such figure.
    pub write_pause_measured_ms: Option<f64>,
    /// The pause that the plan allows.
    pub write_pause_budget_ms: f64,
    /// Rows updated on green (`pg_stat_database.tup_updated`) by the second plan and the traffic behind it.
    pub rows_updated: i64,
    /// Rows inserted on green (`tup_inserted`).
    pub rows_inserted: i64,
    /// Bytes of temporary files on green (`temp_bytes`).
    pub temp_bytes: i64,
    /// Transactions committed on green (`xact_commit`).
    pub commits: i64,
    /// Bytes of write-ahead log that green wrote.
    pub wal_bytes: i64,
    /// Half of the requests were faster.
    pub latency_p50_ms: f64,
    /// All but one of a hundred requests were faster.
    pub latency_p99_ms: f64,
    /// Every step of both plans.
    pub steps: Vec<StepTime>,
    /// Where the engine was killed.
    pub killed: Option<String>,
    /// How the way back went, where it was asked for.
    pub way_back: Option<WayBack>,
    /// What went wrong in requests, with how often.
    pub failures: Vec<(String, u64)>,
    /// Participants that were not flipped.
    pub not_flipped: Vec<String>,
    /// Whether both plans were executed to their end.
    pub plans_done: bool,
    /// How long everything took.
    pub seconds: f64,
    /// Promises that were broken; empty is what we want.
    pub broken: Vec<String>,
}

impl Verdict {
    /// Compares the figures with the promises.
    #[must_use]
    pub fn judged(mut self) -> Self {
        let mut broken = Vec::new();
        for (count, what) in [
            (self.failed_requests, "failed requests"),
            (self.revocations_lost, "lost revocations"),
            (self.revoked_honoured, "revoked tokens accepted"),
            (self.tokens_unknown_on_green, "tokens unknown on green"),
        ] {
            if count > 0 {
                broken.push(format!("{count} {what}"));
            }
        }
        if !self.plans_done {
            broken.push("a plan did not reach its end".into());
        }
        for participant in &self.not_flipped {
            broken.push(format!("{participant} was not flipped"));
        }
        broken.extend(self.way_back.iter().flat_map(WayBack::broken));
        // Promises about nothing are kept by doing nothing.
        if self.requests == 0 || self.revocations_issued == 0 {
            broken.push("there was no traffic to keep promises to".into());
        }
        self.broken = broken;
        self
    }

    /// Whether every promise was kept.
    #[must_use]
    pub fn kept(&self) -> bool {
        self.broken.is_empty()
    }

    /// The table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = String::from("\n");
        for step in &self.steps {
            let id = format!("{} {}", step.plan, step.id);
            let _ = writeln!(out, "  {id:<34} {:<14} {:>8.2} s", step.kind, step.seconds);
        }
        let count = |n: i64| indicatif::HumanCount(n.unsigned_abs()).to_string();
        let bytes = |n: i64| indicatif::BinaryBytes(n.unsigned_abs()).to_string();
        let number = |n: u64| indicatif::HumanCount(n).to_string();
        let mut section = |title: &str, rows: &[(&str, String)]| {
            let _ = writeln!(out, "\n  {}", style(title).bold());
            for (name, value) in rows {
                let _ = writeln!(out, "  {name:<34} {value:>24}");
            }
        };
        section(
            "Traffic",
            &[
                ("requests", number(self.requests)),
                ("failed requests", number(self.failed_requests)),
                ("latency, half below", format!("{:.1} ms", self.latency_p50_ms)),
                ("latency, 99 of 100 below", format!("{:.1} ms", self.latency_p99_ms)),
            ],
        );
        section(
            "Promises",
            &[
                ("revocations issued", number(self.revocations_issued)),
                ("revocations lost", number(self.revocations_lost)),
                ("revoked tokens honoured", number(self.revoked_honoured)),
                ("tokens unknown on green", number(self.tokens_unknown_on_green)),
            ],
        );
        let measured = self.write_pause_measured_ms.map_or("-".into(), |ms| format!("{ms:.0} ms"));
        section(
            "Write pause",
            &[
                ("as clients felt it", format!("{:.0} ms", self.write_pause_ms)),
                ("as the service held it", format!("{:.0} ms", self.write_hold_ms)),
                ("as the cutover measured it", measured),
                ("the plan's budget", format!("{:.0} ms", self.write_pause_budget_ms)),
            ],
        );
        if let Some(way) = &self.way_back {
            section("Way back", &way.rows());
        }
        section(
            "Green",
            &[
                ("rows updated", count(self.rows_updated)),
                ("rows inserted", count(self.rows_inserted)),
                ("temporary files", bytes(self.temp_bytes)),
                ("commits", count(self.commits)),
                ("write-ahead log", bytes(self.wal_bytes)),
            ],
        );
        if let Some(killed) = &self.killed {
            let _ = writeln!(out, "\n  SIGKILL: {killed}; resumed");
        }
        for (why, times) in &self.failures {
            let _ = writeln!(out, "\n  {} ({times} times)", style(why).red());
        }
        let _ = match self.kept() {
            true => writeln!(
                out,
                "\n  {} ({:.0} s)",
                style("Every promise was kept").green().bold(),
                self.seconds
            ),
            false => writeln!(out, "\n  {}: {}", style("BROKEN").red().bold(), self.broken.join(", ")),
        };
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Verdict {
        Verdict { requests: 100, revocations_issued: 10, plans_done: true, ..Verdict::default() }
    }

    #[test]
    fn good_figures_keep_the_promises() {
        let verdict = good().judged();
        assert!(verdict.kept(), "{:?}", verdict.broken);
        assert!(verdict.table().contains("Every promise was kept"));
    }

    #[test]
    fn each_promise_can_be_broken() {
        let broken = [
            Verdict { failed_requests: 1, ..good() },
            Verdict { revocations_lost: 1, ..good() },
            Verdict { revoked_honoured: 1, ..good() },
            Verdict { tokens_unknown_on_green: 1, ..good() },
            Verdict { plans_done: false, ..good() },
            Verdict { not_flipped: vec!["the registry".into()], ..good() },
            Verdict { requests: 0, ..good() },
            Verdict { revocations_issued: 0, ..good() },
            Verdict {
                way_back: Some(WayBack { done: true, writes_asked: 1, ..WayBack::default() }),
                ..good()
            },
        ];
        for verdict in broken {
            let verdict = verdict.judged();
            assert_eq!(verdict.broken.len(), 1, "{verdict:?}");
            assert!(!verdict.kept() && verdict.table().contains("BROKEN"));
        }
    }

    #[test]
    fn the_object_has_every_documented_key() {
        let object = serde_json::to_value(good()).unwrap();
        for key in [
            "requests",
            "failed_requests",
            "revocations_issued",
            "revocations_lost",
            "revoked_honoured",
            "tokens_unknown_on_green",
            "write_pause_ms",
            "rows_updated",
            "rows_inserted",
            "temp_bytes",
            "commits",
            "wal_bytes",
            "steps",
        ] {
            assert!(object.get(key).is_some(), "{key}");
        }
    }
}
