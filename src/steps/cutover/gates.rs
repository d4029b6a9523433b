//! What a plan says of a cutover's gates: what must hold, or be waited for, before the pause may begin.

use crate::value::Duration;
use handover_compare::Invariant;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What becomes of clients' sessions that are in the way of the freeze, before the pause and while its locks are waited
/// for: one word, or a rule.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Blockers {
    /// The same for all of them.
    Word(Ending),
    /// For some of them.
    Rule(Rule),
}

impl Default for Blockers {
    fn default() -> Self {
        Blockers::Word(Ending::Wait)
    }
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// They are waited for.
    #[default]
    Wait,
    /// The statement that runs is cancelled. One that is idle in its transaction is waited for.
    Cancel,
    /// The session is ended, and with it its transaction.
    Terminate,
}

/// Which sessions, and what is done with them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What is done.
    #[serde(rename = "do")]
    pub ending: Ending,
    /// Only with those whose transaction has been open for longer; 30 seconds unless given.
    #[serde(default = "default_older_than")]
    pub older_than: Duration,
    /// Not with these. Dumps by `pg_dump` and `pg_dumpall` unless given; base backups and replication never are.
    #[serde(default = "backups")]
    pub except: Vec<Exception>,
}

fn default_older_than() -> Duration {
    Duration::secs(30)
}

fn backups() -> Vec<Exception> {
    let dump = |name: &str| Exception { application_name: Some(name.to_owned()), role: None };
    vec![dump("pg_dump"), dump("pg_dumpall")]
}

/// Sessions that are let be. All that is given must be so.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exception {
    /// What they call themselves; with a `*` at its end, what that begins with.
    pub application_name: Option<String>,
    /// Their role.
    pub role: Option<String>,
}

impl Exception {
    /// Whether it says nothing, and so would be for everybody.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.application_name.is_none() && self.role.is_none()
    }

    fn covers(&self, role: &str, application: &str) -> bool {
        let called = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => application.starts_with(beginning),
            None => pattern == application,
        };
        !self.is_empty()
            && self.application_name.as_ref().is_none_or(called)
            && self.role.as_ref().is_none_or(|name| name == role)
    }
}

impl Blockers {
    /// As a rule.
    #[must_use]
    pub fn rule(&self) -> Rule {
        match self {
            Blockers::Word(ending) => {
                Rule { ending: *ending, older_than: default_older_than(), except: backups() }
            }
            Blockers::Rule(rule) => rule.clone(),
        }
    }
}

impl Rule {
    /// Whether sessions by this role and name are let be.
    #[must_use]
    pub fn lets_be(&self, role: &str, application: &str) -> bool {
        self.except.iter().any(|exception| exception.covers(role, application))
    }
}

/// When the pause may begin. Outside of it the cutover waits, with nothing held.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Days on which it opens; every day unless given.
    #[serde(default)]
    pub days: BTreeSet<Day>,
    /// When it opens, as `02:00`; at midnight unless given.
    pub from: Option<Clock>,
    /// When it closes; at midnight unless given. What is not later than `from` is on the next day.
    pub to: Option<Clock>,
    /// The time zone of days and times, as `Europe/Zurich`.
    pub zone: Option<String>,
    /// How many transactions per second the old side may have, counted by its server over five seconds.
    #[schemars(range(min = 0))]
    pub max_transactions_per_second: Option<f64>,
}

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Day {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

impl Day {
    /// As the calendar knows it.
    #[must_use]
    pub fn weekday(self) -> jiff::civil::Weekday {
        use jiff::civil::Weekday as W;
        match self {
            Day::Mon => W::Monday,
            Day::Tue => W::Tuesday,
            Day::Wed => W::Wednesday,
            Day::Thu => W::Thursday,
            Day::Fri => W::Friday,
            Day::Sat => W::Saturday,
            Day::Sun => W::Sunday,
        }
    }
}

/// A time of day: `02:00`, `23:30:15`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Clock(pub jiff::civil::Time);

impl<'de> Deserialize<'de> for Clock {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Clock).map_err(|_| {
            serde::de::Error::custom(format!(
                "`{text}` is not a time of day; write e.g. `02:00` or `23:30:15`"
            ))
        })
    }
}

impl JsonSchema for Clock {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Clock".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?$",
            "description": "A time of day: `02:00`, `23:30:15`."
        })
    }
}

/// Asks a person before the freeze: a word, or whose and for what.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Ask {
    /// Anybody's approval.
    When(When),
    /// Somebody's.
    Whose(Whose),
}

/// When it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// When everything slow is done and proven, just before participants prepare.
    BeforeFreeze,
}

/// Whose approval is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Whose {
    /// When.
    pub when: When,
    /// What is to be approved, in words for whoever does it.
    pub message: Option<String>,
    /// Whose approval counts; anybody's unless given. As in an `approve` step.
    #[serde(default)]
    pub by: Vec<String>,
}

/// A query whose answer must survive the flip.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Survives {
    /// What it says, e.g. `live sessions per subject`.
    #[schemars(length(min = 1))]
    pub name: String,
    /// The query on the old side: one SELECT.
    pub before: String,
    /// The query on the new side; the one before unless given.
    pub after: Option<String>,
    /// Columns that identify a row, so that a changed row is shown as such.
    #[serde(default)]
    pub key: Vec<String>,
    /// Whether the order of rows matters; else results are compared as multisets.
    #[serde(default)]
    pub ordered: bool,
    /// How far numbers of rows with the same key (or place) may lie apart.
    pub tolerance: Option<f64>,
    /// Whether results without rows on both sides are fine.
    #[serde(default)]
    pub allow_empty: bool,
    /// Whether it is asked within the pause, when nothing is written any more. Else it is asked before.
    #[serde(default)]
    pub quick: bool,
}

impl Survives {
    /// As a `verify` step has it.
    #[must_use]
    pub fn invariant(&self) -> Invariant {
        Invariant {
            name: self.name.clone(),
            before: Some(self.before.clone()),
            after: self.after.clone(),
            key: self.key.clone(),
            ordered: self.ordered,
            tolerance: self.tolerance,
            allow_empty: self.allow_empty,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(value: serde_json::Value) -> Rule {
        serde_json::from_value::<Blockers>(value).unwrap().rule()
    }

    #[test]
    fn a_word_ends_all_but_dumps() {
        let rule = rule(json!("terminate"));
        assert_eq!((rule.ending, rule.older_than), (Ending::Terminate, Duration::secs(30)));
        assert!(rule.lets_be("backup", "pg_dump") && !rule.lets_be("backup", "psql"));
        assert_eq!(Blockers::default().rule().ending, Ending::Wait);
    }

    #[test]
    fn a_time_of_day_is_read_as_people_write_it() {
        let clock =
            |text: &str| serde_json::from_value::<Clock>(json!(text)).map(|clock| clock.0.to_string());
        assert_eq!(clock("02:00").unwrap(), "02:00:00");
        assert_eq!(clock("23:30:15").unwrap(), "23:30:15");
        for text in ["24:00", "2 o'clock", "02.00", ""] {
            assert!(clock(text).unwrap_err().to_string().contains("write e.g. `02:00`"), "{text}");
        }
    }

    #[test]
    fn an_exception_needs_all_that_it_says() {
        let rule = rule(json!({ "do": "cancel", "older_than": "5s", "except": [
            { "application_name": "pgBackRest*" }, { "role": "batch", "application_name": "night" }] }));
        assert_eq!((rule.ending, rule.older_than), (Ending::Cancel, Duration::secs(5)));
        assert!(rule.lets_be("x", "pgBackRest [backup]") && rule.lets_be("batch", "night"));
        assert!(
            !rule.lets_be("batch", "day") && !rule.lets_be("app", "night") && !rule.lets_be("x", "pg_dump")
        );
        assert!(serde_json::from_value::<Blockers>(json!({ "do": "cancel", "older": "5s" })).is_err());
    }
}
