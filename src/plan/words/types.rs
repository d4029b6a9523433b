//! A value of a type that does not fit: what was expected, and how to write it.

use super::finding::{Found, description, found, list, lower_first, name_of, node};
use crate::plan::schema::Part;
use crate::problem::Path;
use jsonschema::ValidationError;
use serde_json::Value;

/// A value that violates the `type` of its schema.
pub fn wrong_type(part: &Part, error: &ValidationError<'_>, value: &Value, path: &Path) -> Found {
    let wanted: Vec<&str> = match part.schema.pointer(error.schema_path().as_str()) {
        Some(Value::String(one)) => vec![one.as_str()],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).filter(|t| *t != "null").collect(),
        _ => Vec::new(),
    };
    let node = node(part, error);
    let fields = node.and_then(|n| n.get("properties")).and_then(Value::as_object);
    let fields: Vec<&str> = fields.into_iter().flat_map(|f| f.keys().map(String::as_str)).collect();
    expected(&wanted, &fields, description(node), value, path)
}

/// `wanted` are JSON Schema type names; `fields` are those of a wanted mapping.
pub fn expected(wanted: &[&str], fields: &[&str], what: Option<String>, value: &Value, path: &Path) -> Found {
    let words: Vec<&str> = wanted
        .iter()
        .map(|t| match *t {
            "string" => "a text",
            "integer" => "a whole number",
            "number" => "a number",
            "boolean" => "`true` or `false`",
            "array" => "a list",
            "object" => "a mapping",
            other => other,
        })
        .collect();
    let message = format!("{}: expected {}, found {}", name_of(path), words.join(" or "), found(value, path));
    let is_duration = what.as_deref().is_some_and(|w| w.starts_with("A length of time"));
    let takes = |t: &str| wanted.contains(&t);
    let hint = match value {
        Value::Number(n) if is_duration => format!("say of what, e.g. `{n}s`, `{n}m` or `{n}ms`"),
        Value::Null if !takes("array") && !takes("object") => {
            "give it a value, or remove the line if nothing is meant".into()
        }
        Value::Number(_) | Value::Bool(_) if takes("string") => format!("put it in quotes: `\"{value}\"`"),
        Value::Number(n) if takes("integer") && n.is_f64() => "write it without a fraction".into(),
        Value::String(s) if takes("boolean") && ["true", "false"].contains(&s.as_str()) => {
            "write it without quotes".into()
        }
        Value::String(s) if takes("boolean") && ["yes", "on", "y"].contains(&s.to_lowercase().as_str()) => {
            "write `true`: only `true` and `false` are truth values".into()
        }
        Value::String(s) if takes("boolean") && ["no", "off", "n"].contains(&s.to_lowercase().as_str()) => {
            "write `false`: only `true` and `false` are truth values".into()
        }
        Value::String(s) if (takes("integer") || takes("number")) && s.parse::<f64>().is_ok() => {
            "write it without quotes".into()
        }
        Value::String(s) if takes("integer") && s.replace('_', "").parse::<i64>().is_ok() => {
            "write it without underscores".into()
        }
        Value::Object(_) | Value::Array(_) if takes("string") => match &what {
            Some(what) => format!("it takes {}", lower_first(what)),
            None => "write one text; quote it if it begins with `{` or `[`".into(),
        },
        Value::String(s) if takes("array") && found(value, path) != "a text" => {
            format!("write it as a list: `[{s}]`")
        }
        _ if takes("array") => "write each entry on its own line below, after `- `".into(),
        _ if takes("object") && !fields.is_empty() => {
            format!("write its fields below it, indented: {}", list(fields.iter().copied()))
        }
        _ if takes("object") => "write its fields below it, indented: `field: value`".into(),
        _ if takes("boolean") => match &what {
            Some(what) => format!("write `true` or `false` ({})", lower_first(what)),
            None => "write `true` or `false`".into(),
        },
        _ => match &what {
            Some(what) => format!("it takes {}", lower_first(what)),
            None => format!("write {}", words.join(" or ")),
        },
    };
    Found::new(path, message, hint)
}
