//! A value that may take several words or shapes, and takes none of them.

use super::finding::{Found, description, found, list, name_of, node, path_of};
use super::types::expected;
use crate::plan::schema::Part;
use crate::problem::{Path, suggest};
use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind as Kind;
use serde_json::Value;

/// The values that an error of this kind would have accepted.
pub fn choices(error: &ValidationError<'_>) -> Vec<String> {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    match error.kind() {
        Kind::Enum { options } => {
            options.as_array().into_iter().flatten().filter(|v| !v.is_null()).map(text).collect()
        }
        Kind::Constant { expected_value } => vec![text(expected_value)],
        _ => Vec::new(),
    }
}

/// A word that is none of those.
pub fn not_among(choices: &[String], value: &Value, path: &Path) -> Found {
    let all = list(choices.iter().map(String::as_str));
    let hint = match value.as_str().and_then(|word| suggest(word, choices.iter().map(String::as_str))) {
        Some(close) => format!("did you mean `{close}`? It can be {all}"),
        None => format!("it can be {all}"),
    };
    Found::new(path, format!("{} cannot be {}", name_of(path), found(value, path)), hint)
}

/// What words one error.
pub type Collect = fn(&Part, &Value, &Path, &ValidationError<'_>, &mut Vec<Found>);

/// Errors of a value that may take several shapes: only those of the shape that was most likely meant.
pub fn closest(
    part: &Part,
    root: &Value,
    base: &Path,
    context: &[Vec<ValidationError<'static>>],
    value: &Value,
    path: &Path,
    (collect, out): (Collect, &mut Vec<Found>),
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
