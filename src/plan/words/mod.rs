//! A schema's verdicts in the words of people who write plans.

mod alternatives;
mod finding;
mod types;

use super::schema::Part;
use crate::problem::{Path, Problems, suggest};
pub use finding::found;
use finding::{Found, description, list, lower_first, name_of, node, path_of};
use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind as Kind;
use serde_json::Value;
use std::collections::BTreeSet;

/// Validates `value`, which stands at `base`, and reports every error. True if there is none.
pub fn validate(part: &Part, value: &Value, base: &Path, problems: &mut Problems) -> bool {
    let mut found = Vec::new();
    for error in part.validator.iter_errors(value) {
        collect(part, value, base, &error, &mut found);
    }
    let valid = found.is_empty();
    // A misspelt field is not also reported as missing.
    let meant: BTreeSet<Path> = found.iter().filter_map(|f: &Found| f.meant.clone()).collect();
    for each in found {
        if each.missing.as_ref().is_some_and(|path| meant.contains(path)) {
            continue;
        }
        // One value, one problem: what has the wrong type also lacks the right word.
        if !each.at_key && problems.iter().any(|p| !p.at_key && p.path == each.path) {
            continue;
        }
        let problem = problems.error(each.path.0, each.message);
        problem.hint(each.hint);
        problem.at_key = each.at_key;
    }
    valid
}

fn collect(part: &Part, root: &Value, base: &Path, error: &ValidationError<'_>, out: &mut Vec<Found>) {
    let path = path_of(error.instance_path().as_str(), root, base);
    let value: &Value = error.instance();
    let node = node(part, error);
    let name = name_of(&path);
    match error.kind() {
        Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
            let known: Vec<&str> = node
                .and_then(|n| n.get("properties"))
                .and_then(Value::as_object)
                .map(|p| p.keys().map(String::as_str).collect())
                .unwrap_or_default();
            let free = |field: &&str| value.get(*field).is_none();
            for key in unexpected {
                let close = suggest(key, known.iter().copied().filter(free));
                let hint = match close {
                    Some(close) => format!("did you mean `{close}`?"),
                    None if known.is_empty() => "remove it".into(),
                    None => format!("fields here are {}", list(known.iter().copied())),
                };
                let mut each = Found::new(
                    &path.join(key.as_str()),
                    format!("there is no field `{key}` in {name}"),
                    hint,
                );
                each.at_key = true;
                each.meant = close.map(|close| path.join(close));
                out.push(each);
            }
        }
        Kind::Required { property } => {
            let field = property.as_str().unwrap_or_default();
            let what = property_description(part, node, field);
            let hint = match what {
                Some(what) => format!("add `{field}: …` ({})", lower_first(&what)),
                None => format!("add `{field}: …`"),
            };
            let mut each = Found::new(&path, format!("{name} lacks the field `{field}`"), hint);
            each.at_key = true;
            each.missing = Some(path.join(field));
            out.push(each);
        }
        Kind::Type { .. } => out.push(types::wrong_type(part, error, value, &path)),
        Kind::Enum { .. } | Kind::Constant { .. } => {
            let choices = alternatives::choices(error).into_iter().collect::<Vec<_>>();
            out.push(alternatives::not_among(&choices, value, &path));
        }
        Kind::AnyOf { context } | Kind::OneOfNotValid { context } => {
            alternatives::closest(part, root, base, context, value, &path, (collect, out));
        }
        Kind::OneOfMultipleValid { .. } => out.push(Found::new(
            &path,
            format!("{name} says more than one of the things it may say"),
            "keep one of them",
        )),
        Kind::Minimum { limit } => out.push(Found::new(
            &path,
            format!("{name} must be at least {limit}, found {}", found(value, &path)),
            format!("write {limit} or more"),
        )),
        Kind::Maximum { limit } => out.push(Found::new(
            &path,
            format!("{name} must be at most {limit}, found {}", found(value, &path)),
            format!("write {limit} or less"),
        )),
        Kind::ExclusiveMinimum { limit } => out.push(Found::new(
            &path,
            format!("{name} must be more than {limit}, found {}", found(value, &path)),
            format!("write more than {limit}"),
        )),
        Kind::ExclusiveMaximum { limit } => out.push(Found::new(
            &path,
            format!("{name} must be less than {limit}, found {}", found(value, &path)),
            format!("write less than {limit}"),
        )),
        Kind::MinLength { .. } | Kind::MinItems { .. } | Kind::MinProperties { .. } => {
            let hint = match description(node) {
                Some(what) => format!("it takes {}", lower_first(&what)),
                None => "add at least one".into(),
            };
            out.push(Found::new(&path, format!("{name} is empty"), hint));
        }
        Kind::MaxLength { limit } => {
            out.push(Found::new(&path, format!("{name} is longer than {limit} characters"), "shorten it"))
        }
        Kind::MaxItems { limit } => {
            out.push(Found::new(&path, format!("{name} has more than {limit} entries"), "remove some"));
        }
        Kind::UniqueItems => {
            out.push(Found::new(&path, format!("{name} has an entry twice"), "keep one of them"));
        }
        Kind::Pattern { pattern } => {
            let hint = match description(node) {
                Some(what) => format!("it takes {}", lower_first(&what)),
                None => format!("it must match `{pattern}`"),
            };
            out.push(Found::new(&path, format!("{name} cannot be {}", found(value, &path)), hint));
        }
        Kind::PropertyNames { .. } => out.push(Found::new(
            &path,
            format!("{name} has a key that is not allowed here"),
            "see `handover schema`",
        )),
        _ => out.push(Found::new(
            &path,
            format!("{name} is not as it should be: {}", error.masked_with("the value")),
            "see `handover schema`",
        )),
    }
}

fn property_description(part: &Part, node: Option<&Value>, field: &str) -> Option<String> {
    let property = node?.get("properties")?.get(field)?;
    description(Some(property)).or_else(|| {
        let reference = property.get("$ref")?.as_str()?;
        description(part.schema.pointer(reference.strip_prefix('#')?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What is said of `value` as the field `f` of a mapping with this schema for `f`.
    fn say(schema: Value, value: Value) -> Vec<String> {
        let schema = json!({"type": "object", "properties": {"f": schema}, "additionalProperties": false});
        let validator = jsonschema::validator_for(&schema).unwrap();
        let mut problems = Problems::new();
        validate(&Part { schema, validator }, &json!({"f": value}), &Path::default(), &mut problems);
        problems
            .into_vec()
            .into_iter()
            .map(|p| format!("{}: {} / {}", p.path, p.message, p.hint.unwrap_or_default()))
            .collect()
    }

    #[test]
    fn of_several_shapes_only_the_one_that_was_meant_is_spoken_of() {
        let target = || {
            json!({"anyOf": [
                {"type": "string"},
                {"type": "object", "properties": {"sql": {"type": "string"}, "on": {"type": "string"}},
                 "required": ["sql", "on"], "additionalProperties": false},
                {"type": "object", "properties": {"http": {"type": "string"}},
                 "required": ["http"], "additionalProperties": false},
            ]})
        };
        assert_eq!(say(target(), json!("text")), Vec::<String>::new());
        assert_eq!(
            say(target(), json!({"sql": "select 1"})),
            ["f: `f` lacks the field `on` / add `on: …`"],
            "the shape whose fields are there"
        );
        assert_eq!(
            say(target(), json!({"http": 5})),
            ["f.http: `http`: expected a text, found the number `5` / put it in quotes: `\"5\"`"]
        );
        assert_eq!(
            say(target(), json!([1])),
            [
                "f: `f`: expected a text or a mapping, found a list / write one text; quote it if it begins with `{` or `[`"
            ]
        );
    }

    #[test]
    fn a_word_is_compared_with_all_words_of_the_choice() {
        let described = json!({"oneOf": [
            {"type": "string", "const": "quarantine", "description": "a"},
            {"type": "string", "const": "delete", "description": "b"},
            {"type": "null"},
        ]});
        assert_eq!(
            say(described.clone(), json!("quarantin")),
            [
                "f: `f` cannot be the text `quarantin` / did you mean `quarantine`? It can be `quarantine`, `delete`"
            ]
        );
        assert_eq!(
            say(described, json!(["delete"])),
            ["f: `f`: expected one word, found a list / it can be `quarantine`, `delete`"]
        );
        let tagged = json!({"oneOf": [
            {"type": "object", "properties": {"kind": {"const": "table"}, "rows": {"type": "integer"}}, "required": ["kind"]},
            {"type": "object", "properties": {"kind": {"const": "view"}}, "required": ["kind"]},
        ]});
        assert_eq!(
            say(tagged.clone(), json!({"kind": "tabel"})),
            ["f.kind: `kind` cannot be the text `tabel` / did you mean `table`? It can be `table`, `view`"]
        );
        assert_eq!(
            say(tagged, json!({"kind": "table", "rows": "many"})),
            ["f.rows: `rows`: expected a whole number, found the text `many` / write a whole number"]
        );
    }

    #[test]
    fn numbers_know_their_limits_and_keys_their_paths() {
        let limits = json!({"type": "integer", "minimum": 1, "maximum": 64});
        assert_eq!(
            say(limits, json!(65)),
            ["f: `f` must be at most 64, found the number `65` / write 64 or less"]
        );
        let keyed = json!({"type": "object", "additionalProperties": {"type": "boolean"}});
        assert_eq!(
            say(keyed, json!({"a/b~c": "off"})),
            [
                "f.a/b~c: `a/b~c`: expected `true` or `false`, found the text `off` / write `false`: only `true` and `false` are truth values"
            ]
        );
    }
}
