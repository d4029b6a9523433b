//! The YAML of a plan: the shapes of its outer part, and the way from text to plain JSON values.
//!
//! Only this file knows `serde_yaml`. Values are read one by one rather than into `serde_yaml::Value`, because
//! that one gives up at the first duplicate key, and a plan's problems are to be reported all at once.

use super::locate::Place;
use crate::postgres::profile::SearchPath;
use crate::problem::{Path, Problems};
use crate::steps::{OnFailure, Retry};
use crate::value::{Duration, EnvString};
use schemars::JsonSchema;
use serde::de::{EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// The plan format this version reads.
pub const FORMAT: u64 = 1;

/// An upgrade plan.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Plan", extend("patternProperties" = {"^x-": true}))]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read only for its schema; check.rs takes a broken plan apart piece by piece")]
pub struct PlanShape {
    /// The plan format: 1.
    #[schemars(extend("const" = 1))]
    pub handover: u64,
    /// The plan's name: letters, digits, `-`, `_` and `.`, at most 63. Runs, leases and fences go by it.
    pub name: String,
    /// The databases by the names that steps use for them.
    #[schemars(extend("minProperties" = 1))]
    pub databases: BTreeMap<String, DatabaseShape>,
    /// Where the journal lives, e.g. `${CONTROL_URL}`; may be one of the databases.
    pub control: EnvString,
    /// The queue: `amqp://`, `amqps://` (RabbitMQ) or `postgres://` (the embedded queue), e.g. `${QUEUE_URL}`.
    pub queue: Option<EnvString>,
    /// The name of Handover's own schema in each database, `handover` unless given; the queue's in Postgres is
    /// `NAME_queue`. Small letters, digits and `_`, at most 40. For an application that has a schema `handover`.
    pub schema: Option<String>,
    /// The steps, executed in order.
    #[schemars(length(min = 1))]
    pub steps: Vec<Value>,
}

/// A database: its URL, or its URL with that of a role that may only read.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Database")]
#[serde(untagged)]
#[expect(dead_code, reason = "read only for its schema")]
pub enum DatabaseShape {
    /// The URL, e.g. `${BLUE_URL}`.
    Url(EnvString),
    /// The URL and a reader's.
    Spec(DatabaseSpec),
}

/// A database with more than its URL.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DatabaseSpec {
    /// URL of the role that executes the plan, e.g. `${BLUE_URL}`.
    pub url: EnvString,
    /// URL of a role that may only read, for dry runs; else `url` is used in read-only transactions.
    pub reader: Option<EnvString>,
    /// The schemas in which SQL of the plan finds names that stand without one; `public` unless given. A role's or
    /// database's own default does not count.
    pub search_path: Option<SearchPath>,
}

/// What every step may say beside its kind.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Common {
    /// Unique within the plan: letters, digits, `-` and `_`, at most 63.
    pub id: String,
    /// A few words for people.
    pub title: Option<String>,
    /// How long the step may take in all, e.g. `2h`.
    pub timeout: Option<Duration>,
    /// What to do about failures that pass.
    #[serde(default)]
    pub retry: Retry,
    /// What to do about failures that stay.
    #[serde(default)]
    pub on_failure: OnFailure,
}

/// Text that is not YAML: where and why.
#[derive(Debug)]
pub struct Syntax {
    /// Where, if the reader knew.
    pub place: Option<Place>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// Reads a text as one YAML document into a JSON value, and reports what JSON has no word for.
///
/// # Errors
/// A text that is not YAML.
pub fn read(text: &str, problems: &mut Problems) -> Result<Value, Syntax> {
    let Some(document) = serde_yaml::Deserializer::from_str(text).next() else { return Ok(Value::Null) };
    let yaml = Yaml::deserialize(document).map_err(|e| syntax(text, &e))?;
    Ok(yaml.into_json(&Path::default(), problems))
}

/// Any YAML node.
#[derive(Debug, Clone)]
enum Yaml {
    Plain(Value),
    /// A number JSON cannot write.
    Odd(f64),
    Sequence(Vec<Yaml>),
    Mapping(Vec<(Yaml, Yaml)>),
    Tagged(String, Box<Yaml>),
}

impl Yaml {
    fn into_json(self, path: &Path, problems: &mut Problems) -> Value {
        match self {
            Yaml::Plain(value) => value,
            Yaml::Odd(number) => {
                problems
                    .error(path.0.clone(), format!("`{number}` is not a number a plan can use"))
                    .hint("write a finite number, or put it in quotes if it is meant as text");
                Value::Null
            }
            Yaml::Tagged(tag, inner) => {
                problems
                    .error(path.0.clone(), format!("the tag `{tag}` means nothing here"))
                    .hint("remove it; put the value in quotes if it is text that begins with `!`");
                inner.into_json(path, problems)
            }
            Yaml::Sequence(items) => Value::Array(
                items
                    .into_iter()
                    .enumerate()
                    .map(|(i, item)| item.into_json(&path.join(i), problems))
                    .collect(),
            ),
            Yaml::Mapping(entries) => Value::Object(mapping(entries, path, problems)),
        }
    }
}

fn mapping(
    entries: Vec<(Yaml, Yaml)>,
    path: &Path,
    problems: &mut Problems,
) -> serde_json::Map<String, Value> {
    let mut out = serde_json::Map::new();
    let mut merges = Vec::new();
    for (key, value) in entries {
        let key = match key {
            Yaml::Plain(Value::String(key)) => key,
            Yaml::Plain(other) => {
                let key = other.to_string();
                problems
                    .error(path.join(key.as_str()).0, format!("the key `{key}` is not text"))
                    .hint(format!("put it in quotes: `\"{key}\"`"))
                    .at_key();
                key
            }
            _ => {
                problems.error(path.0.clone(), "a key here is a list or a mapping").hint(
                    "keys are plain text; `{` or `[` at the beginning of a text needs quotes around it",
                );
                continue;
            }
        };
        if key == "<<" {
            merges.push(value);
        } else if !out.contains_key(&key) {
            let value = value.into_json(&path.join(key.as_str()), problems);
            out.insert(key, value);
        }
    }
    // A merge key supplies what the mapping does not say itself; earlier ones win.
    for merge in merges {
        let parts = match merge {
            Yaml::Sequence(parts) => parts,
            part => vec![part],
        };
        for part in parts {
            let Yaml::Mapping(entries) = part else {
                problems
                    .error(path.join("<<").0, "`<<` merges mappings, and this is none")
                    .hint("write `<<: *name`, where `&name` marks a mapping")
                    .at_key();
                continue;
            };
            for (key, value) in mapping(entries, path, problems) {
                out.entry(key).or_insert(value);
            }
        }
    }
    out
}

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Yaml;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any YAML")
            }
            fn visit_bool<E>(self, v: bool) -> Result<Yaml, E> {
                Ok(Yaml::Plain(v.into()))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Yaml, E> {
                Ok(Yaml::Plain(v.into()))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Yaml, E> {
                Ok(Yaml::Plain(v.into()))
            }
            #[expect(clippy::cast_precision_loss, reason = "no field of a plan is that large; it is refused")]
            fn visit_i128<E>(self, v: i128) -> Result<Yaml, E> {
                Ok(Yaml::Odd(v as f64))
            }
            #[expect(clippy::cast_precision_loss, reason = "no field of a plan is that large; it is refused")]
            fn visit_u128<E>(self, v: u128) -> Result<Yaml, E> {
                Ok(Yaml::Odd(v as f64))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Yaml, E> {
                Ok(match serde_json::Number::from_f64(v) {
                    Some(number) => Yaml::Plain(Value::Number(number)),
                    None => Yaml::Odd(v),
                })
            }
            fn visit_str<E>(self, v: &str) -> Result<Yaml, E> {
                Ok(Yaml::Plain(v.into()))
            }
            fn visit_string<E>(self, v: String) -> Result<Yaml, E> {
                Ok(Yaml::Plain(v.into()))
            }
            fn visit_unit<E>(self) -> Result<Yaml, E> {
                Ok(Yaml::Plain(Value::Null))
            }
            fn visit_none<E>(self) -> Result<Yaml, E> {
                Ok(Yaml::Plain(Value::Null))
            }
            fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Yaml, D::Error> {
                Yaml::deserialize(d)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Yaml, A::Error> {
                let mut out = Vec::new();
                while let Some(item) = seq.next_element()? {
                    out.push(item);
                }
                Ok(Yaml::Sequence(out))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Yaml, A::Error> {
                let mut out = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    out.push(entry);
                }
                Ok(Yaml::Mapping(out))
            }
            fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<Yaml, A::Error> {
                let (tag, content) = data.variant::<String>()?;
                Ok(Yaml::Tagged(format!("!{tag}"), Box::new(content.newtype_variant::<Yaml>()?)))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

/// The parser's complaints, in words that say what to do.
fn syntax(text: &str, error: &serde_yaml::Error) -> Syntax {
    let place =
        error.location().map(|l| Place { line: l.line().max(1), column: l.column().max(1), length: 1 });
    let raw = error.to_string();
    // What was never closed is better shown where it was opened, which the parser says last.
    let opened = !raw.contains("escape")
        && ["quoted scalar", "flow mapping", "flow sequence"].iter().any(|what| raw.contains(what));
    let place = if opened { last_place(&raw).or(place) } else { place };
    let line = place.and_then(|p| super::locate::lines(text).get(p.line - 1).copied()).unwrap_or_default();
    let (message, hint) = explain(&raw, line);
    Syntax { place, message, hint }
}

/// The last `at line L column C` of a message.
fn last_place(raw: &str) -> Option<Place> {
    let (_, after) = raw.rsplit_once("at line ")?;
    let (line, column) = after.split_once(" column ")?;
    let digits: String = column.chars().take_while(char::is_ascii_digit).collect();
    Some(Place { line: line.parse().ok()?, column: digits.parse().ok()?, length: 1 })
}

fn explain(raw: &str, line: &str) -> (String, String) {
    let indent = &line[..line.len() - line.trim_start().len()];
    if indent.contains('\t') {
        return ("a tab indents this line".into(), "YAML indents with spaces only".into());
    }
    let known: &[(&str, &str, &str)] = &[
        (
            "unknown escape character",
            "`\\` in a text in double quotes begins an escape that YAML does not know",
            "use '…' instead of \"…\", or write `\\\\`",
        ),
        (
            "mapping values are not allowed",
            "a `:` stands where no key can be",
            "put text that contains `: ` in quotes, or check the indentation of this line and the one above",
        ),
        (
            "quoted scalar",
            "a quoted text is not closed",
            "close the quote; in '…' a quote is written '', in \"…\" it is written \\\"",
        ),
        (
            "cannot start any token",
            "a text cannot begin with this character",
            "put the text in quotes; indentation is spaces, never tabs",
        ),
        (
            "unknown anchor",
            "this `*name` has no `&name` before it",
            "mark the node with `&name` first, or put a text that begins with `*` in quotes",
        ),
        (
            "did not find expected ',' or ']'",
            "a `[` list is not closed or lacks a comma",
            "write `[a, b]`; put texts with brackets or commas in quotes",
        ),
        (
            "did not find expected ',' or '}'",
            "a `{` mapping is not closed or lacks a comma",
            "write `{a: 1, b: 2}`; put texts with braces or commas in quotes",
        ),
        (
            "block sequence entries are not allowed",
            "a `- ` entry stands where no list can be",
            "put the list on its own lines below its key",
        ),
        (
            "did not find expected '-' indicator",
            "this line is neither an entry of the list nor part of one",
            "begin it with `- `, or indent it like the lines of its entry",
        ),
        (
            "did not find expected key",
            "this line does not line up with the mapping it is in",
            "give all keys of one mapping the same indentation, and close quotes and brackets before it",
        ),
        ("could not find expected ':'", "a key without its `:`", "write `key: value`"),
        (
            "while scanning a block scalar",
            "the text after `|` or `>` is not indented right",
            "indent all its lines deeper than its key, with spaces",
        ),
        (
            "recursion limit",
            "the plan is nested too deeply, or an anchor contains itself",
            "nest less deeply",
        ),
        ("repetition limit", "anchors are repeated too often", "write the values out"),
        (
            "control characters are not allowed",
            "the file holds a control character",
            "remove it; use an escape in a text in double quotes if you need it",
        ),
        ("invalid leading UTF-8", "the file is not UTF-8", "save it as UTF-8"),
    ];
    for (part, message, hint) in known {
        if raw.contains(part) {
            return ((*message).into(), (*hint).into());
        }
    }
    (
        format!("this is not YAML: {raw}"),
        "check indentation, quotes and brackets here and on the line above".into(),
    )
}
