//! One probe: what is asked, and what the answer must be.

use crate::error::{Class, Result};
use crate::problem::{Problems, Segment};
use crate::value::Duration;
use handover_actions::{Actions, Command, Http, sql};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;
use std::fmt;
use std::time::Instant;

/// How long a query may take unless the plan says otherwise.
const QUERY_TIMEOUT: Duration = Duration::secs(10);

/// Something asked again and again. Exactly one of `sql`, `http` and `command`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Its name, unique within the step; the baseline is looked up by it.
    #[schemars(length(min = 1))]
    pub name: String,
    /// A query; its one value is judged. Without a threshold it must be true.
    pub sql: Option<SqlProbe>,
    /// A request; the answer must be the expected one, and its time is measured.
    pub http: Option<Http>,
    /// A program that must exit with 0; a number in the last line that it prints is its value.
    pub command: Option<Command>,
    /// Of an HTTP answer: JSON pointer to its value.
    pub value: Option<String>,
    /// The least the value may be.
    pub min: Option<f64>,
    /// The most the value may be.
    pub max: Option<f64>,
    /// What the value must be: a number, a string or a boolean.
    pub equals: Option<Value>,
    /// How far the value may be from the baseline's median, e.g. `20%`. For a request without `value` it is
    /// the answer's time that counts, and only more is too much.
    pub within: Option<Percent>,
    /// Limits for an HTTP answer's time.
    pub latency: Option<Latency>,
}

/// A query as a probe.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqlProbe {
    /// The database.
    pub on: String,
    /// A query for one value.
    pub query: String,
    /// How long it may take; ten seconds unless given.
    pub timeout: Option<Duration>,
}

/// Limits for answers' times.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// For the median of the last 500 answers, once there are 20 (or `min_samples`, if that is more), and at the end.
    pub p50: Option<Duration>,
    /// For their 95th percentile.
    pub p95: Option<Duration>,
    /// For their 99th percentile.
    pub p99: Option<Duration>,
    /// For each answer.
    pub max: Option<Duration>,
}

/// A share as people write it: `20%`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Percent(pub f64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.strip_suffix('%')
            .and_then(|number| number.trim().parse::<f64>().ok())
            .filter(|number| number.is_finite() && *number >= 0.0)
            .map(Percent)
            .ok_or_else(|| de::Error::custom(format!("`{text}` is not a percentage; write e.g. `20%`")))
    }
}

impl JsonSchema for Percent {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Percent".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A percentage such as `20%`.",
            "pattern": r"^\d+(\.\d+)?\s*%$"
        })
    }
}

/// One answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Its value, if it is a number.
    pub value: Option<f64>,
    /// It in words.
    pub text: String,
    /// How long it took, in milliseconds.
    pub ms: f64,
    /// What is wrong with it whatever its value: a status, an exit code.
    pub wrong: Option<String>,
}

impl Probe {
    /// Whether there is a threshold for its value.
    #[must_use]
    fn has_threshold(&self) -> bool {
        self.min.is_some() || self.max.is_some() || self.equals.is_some() || self.within.is_some()
    }

    /// Whether it is a query that must simply be true.
    #[must_use]
    pub fn is_plain_sql(&self) -> bool {
        self.sql.is_some() && !self.has_threshold()
    }

    /// Whether it is its answer's time that a baseline is compared with.
    #[must_use]
    pub fn is_timed(&self) -> bool {
        self.http.is_some() && self.value.is_none()
    }

    /// Finds what is wrong with it; the problems' base is the probe.
    pub fn check(&self, problems: &mut Problems) {
        let count = [self.sql.is_some(), self.http.is_some(), self.command.is_some()];
        let count = count.into_iter().filter(|given| *given).count();
        handover_actions::one_of(count, &["sql", "http", "command"], &[], problems);
        if let Some(probe) = &self.sql {
            sql::check_query(&probe.query, &["sql".into(), "query".into()], problems);
        }
        if let Some(http) = &self.http {
            http.check(&["http".into()], problems);
            if !http.method.is_safe() {
                problems
                    .warning(["http", "method"], "this probe may change something each time it is asked")
                    .hint("use GET or HEAD unless the endpoint only looks");
            }
        }
        if let Some(command) = &self.command {
            command.check(&["command".into()], problems);
        }
        if let (Some(min), Some(max)) = (self.min, self.max)
            && min > max
        {
            problems.error(["min"], format!("nothing is at least {min} and at most {max}"));
        }
        if self.http.is_none() {
            for (field, given) in [("latency", self.latency.is_some()), ("value", self.value.is_some())] {
                if given {
                    problems.error([field], format!("`{field}` is for `http` probes")).at_key();
                }
            }
        }
        if let Some(pointer) = &self.value
            && !pointer.starts_with('/')
        {
            problems
                .error(["value"], format!("`{pointer}` is not a JSON pointer"))
                .hint(format!("write `/{}`", pointer.replace('.', "/")));
        }
        if self.is_timed() && (self.min.is_some() || self.max.is_some() || self.equals.is_some()) {
            problems
                .error([Segment::from("http")], "there is no value to compare")
                .hint("add `value:`, a JSON pointer into the answer; the answer's time has its limits under `latency:`");
        }
        if let Some(equals) = &self.equals
            && !(equals.is_number() || equals.is_string() || equals.is_boolean())
        {
            problems.error(["equals"], "a value is compared with a number, a string or a boolean");
        }
        if let Some(latency) = &self.latency
            && [latency.p50, latency.p95, latency.p99, latency.max].iter().all(Option::is_none)
        {
            problems.error(["latency"], "there is no limit here").hint("give `p50`, `p95`, `p99` or `max`");
        }
    }

    /// Asks once. `Ok(Err(…))`: there was no answer, and why.
    ///
    /// # Errors
    /// Only what must end the step: a request to stop, a lost lease, a failing journal.
    pub async fn ask(&self, actions: &Actions<'_>) -> Result<Result<Reading, String>> {
        let begun = Instant::now();
        let asked = self.reading(actions).await;
        match asked {
            Ok(mut reading) => {
                // The exchange itself was measured more closely for HTTP.
                if self.http.is_none() {
                    reading.ms = begun.elapsed().as_secs_f64() * 1000.0;
                }
                Ok(Ok(reading))
            }
            Err(e) if matches!(e.class(), Class::Cancelled | Class::LeaseLost | Class::Journal) => Err(e),
            Err(e) => Ok(Err(e.to_string())),
        }
    }

    async fn reading(&self, actions: &Actions<'_>) -> Result<Reading> {
        if let Some(probe) = &self.sql {
            let limit = probe.timeout.unwrap_or(QUERY_TIMEOUT);
            // The server's own limit does not end a wait for a server that is gone.
            let asked = actions.value(&probe.on, &probe.query, Some(limit));
            let value = match tokio::time::timeout(limit.0 * 2, asked).await {
                Ok(value) => value?,
                Err(_) => {
                    return Err(crate::Error::new(Class::Timeout, "the server does not answer")
                        .on_database(&probe.on)
                        .hint("see that the server is up"));
                }
            };
            return Ok(of_text(value.unwrap_or_else(|| "null".to_owned())));
        }
        if let Some(http) = &self.http {
            let answer = actions.send(http).await?;
            let found = match (&self.value, &answer.json) {
                (None, _) => None,
                (Some(pointer), json) => json.as_ref().and_then(|json| json.pointer(pointer)),
            };
            let wrong = answer.mismatch.clone().or_else(|| match (&self.value, found) {
                (Some(pointer), None) => Some(format!("answered without `{pointer}`")),
                _ => None,
            });
            let ms = answer.took.as_secs_f64() * 1000.0;
            let reading = match found {
                Some(Value::String(text)) => of_text(text.clone()),
                Some(other) => of_text(other.to_string()),
                None => {
                    Reading { value: None, text: format!("{} in {ms:.0} ms", answer.status), ms, wrong: None }
                }
            };
            return Ok(Reading { ms, wrong, ..reading });
        }
        let Some(command) = &self.command else {
            return Err(crate::Error::usage("a probe without anything to ask").hint("see `handover check`"));
        };
        let ran = actions.look(command).await?;
        let printed = ran.stdout.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("").trim();
        let wrong = (ran.code() != Some(0)).then(|| format!("{}{}", ran.ended(), ran.tail()));
        let text = if printed.is_empty() { ran.ended() } else { handover_actions::line(printed) };
        Ok(Reading { wrong, ..of_text(text) })
    }
}

fn of_text(text: String) -> Reading {
    let value = match text.as_str() {
        "true" => Some(1.0),
        "false" => Some(0.0),
        other => other.parse().ok().filter(|number: &f64| number.is_finite()),
    };
    Reading { value, text: handover_actions::line(&text), ms: 0.0, wrong: None }
}
