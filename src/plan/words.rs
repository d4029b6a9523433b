//! A schema's verdicts in the words of people who write plans.

use super::schema::Part;
use crate::problem::{Path, Problems, Segment, suggest};
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

/// One finding, before it is known whether another explains it.
#[derive(Debug)]
struct Found {
    path: Path,
    at_key: bool,
    message: String,
    hint: String,
    /// The field that an unknown one was most likely meant to be.
    meant: Option<Path>,
    /// The field that is missing.
    missing: Option<Path>,
}

impl Found {
    fn new(path: &Path, message: impl Into<String>, hint: impl Into<String>) -> Self {
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
fn path_of(pointer: &str, root: &Value, base: &Path) -> Path {
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
fn name_of(path: &Path) -> String {
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
fn node<'a>(part: &'a Part, error: &ValidationError<'_>) -> Option<&'a Value> {
    let pointer = error.schema_path().as_str();
    part.schema.pointer(&pointer[..pointer.rfind('/')?])
}

/// The first sentence of a schema's description.
fn description(node: Option<&Value>) -> Option<String> {
    let text = node?.get("description")?.as_str()?;
    let first = text.split("\n\n").next()?.replace('\n', " ");
    Some(first.trim_end_matches('.').to_owned())
}

fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
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
        Kind::Type { .. } => out.push(wrong_type(part, error, value, &path)),
        Kind::Enum { .. } | Kind::Constant { .. } => {
            let choices = choices(error).into_iter().collect::<Vec<_>>();
            out.push(not_among(&choices, value, &path));
        }
        Kind::AnyOf { context } | Kind::OneOfNotValid { context } => {
            alternatives(part, root, base, context, value, &path, out);
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

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match (chars.next(), chars.clone().next()) {
        (Some(first), Some(second)) if !second.is_uppercase() => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

fn wrong_type(part: &Part, error: &ValidationError<'_>, value: &Value, path: &Path) -> Found {
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
fn expected(wanted: &[&str], fields: &[&str], what: Option<String>, value: &Value, path: &Path) -> Found {
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

/// The values that an error of this kind would have accepted.
fn choices(error: &ValidationError<'_>) -> Vec<String> {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    match error.kind() {
        Kind::Enum { options } => {
            options.as_array().into_iter().flatten().filter(|v| !v.is_null()).map(text).collect()
        }
        Kind::Constant { expected_value } => vec![text(expected_value)],
        _ => Vec::new(),
    }
}

fn not_among(choices: &[String], value: &Value, path: &Path) -> Found {
    let all = list(choices.iter().map(String::as_str));
    let hint = match value.as_str().and_then(|word| suggest(word, choices.iter().map(String::as_str))) {
        Some(close) => format!("did you mean `{close}`? It can be {all}"),
        None => format!("it can be {all}"),
    };
    Found::new(path, format!("{} cannot be {}", name_of(path), found(value, path)), hint)
}

/// Errors of a value that may take several shapes: only those of the shape that was most likely meant.
fn alternatives(
    part: &Part,
    root: &Value,
    base: &Path,
    context: &[Vec<ValidationError<'static>>],
    value: &Value,
    path: &Path,
    out: &mut Vec<Found>,
) {
    let here = |error: &ValidationError<'_>| path_of(error.instance_path().as_str(), root, base) == *path;
    let is_null_branch = |branch: &[ValidationError<'_>]| {
        branch.iter().any(|e| {
            matches!(e.kind(), Kind::Type { .. })
                && here(e)
                && part.schema.pointer(e.schema_path().as_str()).and_then(Value::as_str) == Some("null")
        })
    };
    let branches: Vec<&Vec<ValidationError<'static>>> =
        context.iter().filter(|branch| !is_null_branch(branch)).collect();
    let fitting: Vec<&Vec<ValidationError<'static>>> = branches
        .iter()
        .copied()
        .filter(|branch| !branch.iter().any(|e| matches!(e.kind(), Kind::Type { .. }) && here(e)))
        .collect();

    if fitting.is_empty() {
        let mut wanted: Vec<&str> = Vec::new();
        let mut what = None;
        for error in branches.iter().copied().flatten().filter(|e| here(e)) {
            match part.schema.pointer(error.schema_path().as_str()) {
                Some(Value::String(one)) if matches!(error.kind(), Kind::Type { .. }) => {
                    if !wanted.contains(&one.as_str()) {
                        wanted.push(one);
                    }
                    what = what.or_else(|| description(node(part, error)));
                }
                _ => {}
            }
        }
        // Words of which only some are texts: the words say more than the type.
        let words: Vec<String> = branches.iter().copied().flatten().flat_map(choices).collect();
        if wanted == ["string"] && !words.is_empty() {
            let mut each = not_among(&words, value, path);
            each.message = format!("{}: expected one word, found {}", name_of(path), found(value, path));
            out.push(each);
        } else {
            out.push(expected(&wanted, &[], what, value, path));
        }
        return;
    }
    // Every shape that is left wants another word at one place: the words are the choice.
    let tags = |branch: &Vec<ValidationError<'static>>| {
        branch
            .iter()
            .filter(|e| matches!(e.kind(), Kind::Enum { .. } | Kind::Constant { .. }))
            .map(|e| (e.instance_path().as_str().to_owned(), choices(e)))
            .next()
    };
    let found_tags: Vec<_> = fitting.iter().map(|branch| tags(branch)).collect();
    if let Some(Some((place, _))) = found_tags.first()
        && found_tags.iter().all(|t| t.as_ref().is_some_and(|(p, _)| p == place))
    {
        let words: Vec<String> = found_tags.iter().flatten().flat_map(|(_, w)| w.iter().cloned()).collect();
        let at = path_of(place, root, base);
        out.push(not_among(&words, root.pointer(place).unwrap_or(value), &at));
        return;
    }
    // A shape whose mark (a required field, a tag) is there beats one whose mark is not.
    let cost = |branch: &&Vec<ValidationError<'static>>| {
        let strikes = |e: &ValidationError<'static>| match e.kind() {
            Kind::Required { .. } | Kind::Constant { .. } | Kind::Enum { .. } => 10,
            Kind::AdditionalProperties { unexpected } => 10 * unexpected.len(),
            _ => 1,
        };
        branch.iter().map(strikes).sum::<usize>()
    };
    if let Some(best) = fitting.iter().min_by_key(|branch| cost(branch)) {
        for error in *best {
            collect(part, root, base, error, out);
        }
    }
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
