//! One finding, and how paths, values and schemas are called in it.

use crate::plan::schema::Part;
use crate::problem::{Path, Segment};
use jsonschema::ValidationError;
use serde_json::Value;

/// One finding, before it is known whether another explains it.
#[derive(Debug)]
pub struct Found {
    pub path: Path,
    pub at_key: bool,
    pub message: String,
    pub hint: String,
    /// The field that an unknown one was most likely meant to be.
    pub meant: Option<Path>,
    /// The field that is missing.
    pub missing: Option<Path>,
}

impl Found {
    pub fn new(path: &Path, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Found {
            path: path.clone(),
            at_key: false,
            message: message.into(),
            hint: hint.into(),
            meant: None,
            missing: None,
        }
    }
}

/// The path of a JSON pointer within a value; only the value knows whether `0` is an index or a key.
pub fn path_of(pointer: &str, root: &Value, base: &Path) -> Path {
    let mut path = base.clone();
    let mut at = Some(root);
    for raw in pointer.split('/').skip(1) {
        let name = raw.replace("~1", "/").replace("~0", "~");
        let index = name.parse::<usize>().ok().filter(|_| at.is_some_and(Value::is_array));
        at = match index {
            Some(i) => at.and_then(|v| v.get(i)),
            None => at.and_then(|v| v.get(&name)),
        };
        path.0.push(index.map_or(Segment::Key(name), Segment::Index));
    }
    path
}

/// The last key of a path, for sentences: `jobs`, or `an entry of indexes`.
pub fn name_of(path: &Path) -> String {
    match path.0.as_slice() {
        [] => "the plan".into(),
        [.., Segment::Key(key)] => format!("`{key}`"),
        [Segment::Key(list), Segment::Index(i)] if list == "steps" => format!("step {}", i + 1),
        [.., Segment::Key(list), Segment::Index(i)] => format!("entry {} of `{list}`", i + 1),
        [.., Segment::Index(i)] => format!("entry {}", i + 1),
    }
}

/// What a value is, in words. Short texts are quoted, except where they may hold a secret.
pub fn found(value: &Value, path: &Path) -> String {
    let quiet = matches!(path.0.first(), Some(Segment::Key(k)) if ["databases", "control", "queue"].contains(&k.as_str()));
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(b) => format!("`{b}`"),
        Value::Number(n) => format!("the number `{n}`"),
        Value::String(s) if !quiet && s.chars().count() <= 40 && !s.contains(['\n', '@']) => {
            format!("the text `{s}`")
        }
        Value::String(_) => "a text".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a mapping".into(),
    }
}

/// The schema node that holds the violated keyword, and its parent where the keyword is a field's own.
pub fn node<'a>(part: &'a Part, error: &ValidationError<'_>) -> Option<&'a Value> {
    let pointer = error.schema_path().as_str();
    part.schema.pointer(&pointer[..pointer.rfind('/')?])
}

/// The first sentence of a schema's description.
pub fn description(node: Option<&Value>) -> Option<String> {
    let text = node?.get("description")?.as_str()?;
    let first = text.split("\n\n").next()?.replace('\n', " ");
    Some(first.trim_end_matches('.').to_owned())
}

/// Names in a row.
pub fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// For words in the middle of a sentence; abbreviations stay.
pub fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match (chars.next(), chars.clone().next()) {
        (Some(first), Some(second)) if !second.is_uppercase() => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}
