//! Finds everything that is wrong with a plan in one go, without touching anything but the file system.

use super::checked::{Checked, StepPlace, is_name};
use super::file::{Common, FORMAT};
use super::schema::{COMMON, Part};
use super::{secrets, whole, words};
use crate::event::StepId;
use crate::problem::{Path, Problems, Segment, suggest};
use crate::steps::kind;
use crate::steps::{CheckContext, Kind, Step, kinds};
use crate::value::EnvString;
use serde_json::{Map, Value};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

fn root(path: &[&str]) -> Vec<Segment> {
    path.iter().map(|s| Segment::from(*s)).collect()
}

/// Checks a plan that was read from a file in the folder `base`.
pub fn check(mut plan: Value, base: &std::path::Path, problems: &mut Problems) -> Checked {
    let mut out = Checked::default();
    if plan.is_null() {
        problems.error(root(&[]), "the plan is empty").hint("begin with `handover: 1` and `name: …`");
        return out;
    }
    let parts = match (Part::envelope(), Part::common()) {
        (Ok(envelope), Ok(common)) => (envelope, common),
        (Err(e), _) | (_, Err(e)) => {
            problems
                .error(root(&[]), format!("the plan's own schema is broken ({e})"))
                .hint("this is a defect in Handover; please report it");
            return out;
        }
    };
    envelope(&parts.0, &plan, problems);
    let Some(map) = plan.as_object_mut() else { return out };
    accept_misspelt(map);

    if let Some(name) = map.get("name").and_then(Value::as_str) {
        check_name(name, problems);
        out.name = name.to_owned();
    }
    let databases_known = map.get("databases").and_then(Value::as_object).is_some_and(|all| !all.is_empty());
    out.spelled_out = map
        .get("databases")
        .and_then(Value::as_object)
        .map(|all| all.iter().filter(|(_, v)| v.is_object()).map(|(name, _)| name.clone()).collect())
        .unwrap_or_default();
    out.databases = whole::databases(map.get("databases"), problems);
    let url = |key: &str| map.get(key).and_then(Value::as_str).map(|text| EnvString(text.to_owned()));
    out.control = url("control");
    out.queue = url("queue");
    whole::urls(&out, problems);
    out.schema = whole::schema(map.get("schema"), &out.databases, problems);

    if let Some(Value::Array(steps)) = map.get("steps") {
        read_steps(steps, &parts.1, &mut out, problems);
        if databases_known {
            check_kinds(&out, base, problems);
        }
        whole::queue(&out, problems);
        whole::rollbacks(&out, problems);
        whole::files(&out, base, problems);
        if !problems.has_errors() {
            whole::unused(&out, problems);
        }
    }
    out
}

fn envelope(part: &Part, plan: &Value, problems: &mut Problems) {
    let mut shell = plan.clone();
    // The format's number has words of its own.
    match plan.get("handover") {
        Some(Value::Number(n)) if n.as_u64() != Some(FORMAT) => {
            problems
                .error(
                    ["handover"],
                    format!("this plan is of format {n}; this Handover reads format {FORMAT}"),
                )
                .hint(format!(
                    "write `handover: {FORMAT}`, or use the version of Handover that it was written for"
                ));
            shell["handover"] = FORMAT.into();
        }
        _ => {}
    }
    words::validate(part, &shell, &Path::default(), problems);
}

/// Goes on with a misspelt key as what it was meant to be, so that one slip does not hide other problems.
fn accept_misspelt(map: &mut Map<String, Value>) {
    const KEYS: &[&str] = &["handover", "name", "databases", "control", "queue", "schema", "steps"];
    let unknown: Vec<String> =
        map.keys().filter(|k| !KEYS.contains(&k.as_str()) && !k.starts_with("x-")).cloned().collect();
    for key in unknown {
        let free = KEYS.iter().copied().filter(|k| !map.contains_key(*k));
        // Paths into `steps` must stay true, so only the parts that are read as a whole are renamed.
        if let Some(meant) = suggest(&key, free)
            && meant == "databases"
            && let Some(value) = map.remove(&key)
        {
            map.insert(meant.to_owned(), value);
        }
    }
}

fn check_name(name: &str, problems: &mut Problems) {
    if !is_name(name, "-_.") {
        problems
            .error(["name"], format!("`{name}` cannot be the name of a plan"))
            .hint("use letters, digits, `-`, `_` and `.`, beginning with a letter or digit, at most 63");
    }
}

/// Reads those steps that can be read.
fn read_steps(steps: &[Value], common: &Part, out: &mut Checked, problems: &mut Problems) {
    let mut read = Vec::new();
    let mut ids: HashMap<String, usize> = HashMap::new();
    let mut parts: HashMap<&'static str, Option<Part>> = HashMap::new();
    for (i, step) in steps.iter().enumerate() {
        let path = Path(vec!["steps".into(), i.into()]);
        let Some(map) = step.as_object() else {
            problems
                .error(path.0.clone(), format!("expected a step, found {}", words::found(step, &path)))
                .hint("a step is a mapping: `- id: …`, and its kind below");
            continue;
        };
        literal_passwords(step, &path, problems);
        literal_references(step, &path, problems);
        let shared = read_common(map, common, &path, problems);
        if let Some(id) = map.get("id").and_then(Value::as_str) {
            check_id(id, i, &path, &mut ids, problems);
        }
        let kinds = find_kinds(map, &path, problems);
        let [(key, kind)] = kinds.as_slice() else {
            for (key, kind) in &kinds {
                read_kind(kind, &map[key], &path.join(key.as_str()), &mut parts, problems);
            }
            continue;
        };
        let parsed = read_kind(kind, &map[key], &path.join(key.as_str()), &mut parts, problems);
        if let (Some(shared), Some(parsed)) = (shared, parsed) {
            out.places.push(StepPlace { path, key: key.clone(), body: map[key].clone() });
            read.push(Step {
                id: StepId(shared.id),
                title: shared.title,
                timeout: shared.timeout,
                retry: shared.retry,
                on_failure: shared.on_failure,
                kind_name: kind.name,
                kind: parsed,
            });
        }
    }
    out.steps = read.into();
    out.links = kind::links(&out.steps).into();
}

fn literal_passwords(value: &Value, path: &Path, problems: &mut Problems) {
    match value {
        Value::String(text) if !secrets::in_urls(text).is_empty() => {
            problems
                .error(path.0.clone(), "a password stands in the plan")
                .hint("take it from the environment: `${NAME}` in the place of the URL or of the password");
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                literal_passwords(item, &path.join(i), problems);
            }
        }
        Value::Object(map) => {
            for (key, item) in map {
                literal_passwords(item, &path.join(key.as_str()), problems);
            }
        }
        _ => {}
    }
}

/// Keys below which `${NAME}` is filled in, or has a warning of its own (`run`, `apply` and others of a command).
const FILLED: &[&str] = &[
    "url",
    "headers",
    "body",
    "json",
    "env",
    "content",
    "connection",
    "admin",
    "through",
    "connect",
    "command",
    "file",
    "http",
    "title",
];

/// `${NAME}` where nothing is filled in: SQL, names, paths. It may be meant as it is, which `$${` says.
fn literal_references(value: &Value, path: &Path, problems: &mut Problems) {
    match value {
        Value::String(text) => {
            for (at, _) in text.match_indices("${") {
                let name = text[at + 2..].split('}').next().unwrap_or_default();
                let closed = text[at + 2..].len() > name.len();
                let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
                if closed && is_name && !text[..at].ends_with('$') {
                    problems
                        .warning(path.0.clone(), format!("`${{{name}}}` is taken literally here: nothing is filled in"))
                        .hint("only URLs, headers, bodies, a command's `env` and a file's content take values from the environment; write the value itself");
                    return;
                }
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                literal_references(item, &path.join(i), problems);
            }
        }
        Value::Object(map) => {
            for (key, item) in map.iter().filter(|(key, _)| !FILLED.contains(&key.as_str())) {
                literal_references(item, &path.join(key.as_str()), problems);
            }
        }
        _ => {}
    }
}

fn read_common(
    map: &Map<String, Value>,
    part: &Part,
    path: &Path,
    problems: &mut Problems,
) -> Option<Common> {
    let only: Map<String, Value> = map
        .iter()
        .filter(|(key, _)| COMMON.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let value = Value::Object(only);
    if !words::validate(part, &value, path, problems) {
        return None;
    }
    parse(value, path, serde_path_to_error::deserialize, problems)
}

fn check_id(id: &str, index: usize, path: &Path, ids: &mut HashMap<String, usize>, problems: &mut Problems) {
    let at = path.join("id");
    if !is_name(id, "-_") {
        problems
            .error(at.0.clone(), format!("`{id}` cannot be the id of a step"))
            .hint("use letters, digits, `-` and `_`, beginning with a letter or digit, at most 63");
    }
    match ids.get(id) {
        Some(first) => {
            problems
                .error(at.0, format!("the id `{id}` is taken by step {}", first + 1))
                .hint("ids are unique: the journal, `rollback --to` and reports go by them");
        }
        None => drop(ids.insert(id.to_owned(), index)),
    }
}

/// The kinds a step names; exactly one unless something was reported.
fn find_kinds(
    map: &Map<String, Value>,
    path: &Path,
    problems: &mut Problems,
) -> Vec<(String, &'static Kind)> {
    let names = || kinds().iter().map(|kind| kind.name);
    let all = || names().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    let by_name = |name: &str| kinds().iter().find(|kind| kind.name == name);
    let mut kinds: Vec<(String, &'static Kind)> =
        map.keys().filter_map(|key| Some((key.clone(), by_name(key)?))).collect();
    let has_kind = !kinds.is_empty();
    // `kind: copy`, as other tools have it.
    let by_value: Vec<(String, &'static Kind)> =
        map.values().filter_map(|v| by_name(v.as_str()?)).map(|kind| (kind.name.to_owned(), kind)).collect();
    let mut explained = false;
    for key in map.keys().filter(|key| !COMMON.contains(&key.as_str()) && by_name(key).is_none()) {
        let free = |name: &&str| !map.contains_key(*name);
        let meant_kind = suggest(key, names()).filter(|_| !has_kind);
        let meant_field = suggest(key, COMMON.iter().copied().filter(free));
        let at = path.join(key.as_str());
        let message = format!("`{key}` is neither a step kind nor a field of every step");
        match (meant_kind, meant_field) {
            (Some(meant), _) => {
                problems.error(at.0, message).hint(format!("did you mean `{meant}`?")).at_key();
                kinds.extend(by_name(meant).map(|kind| (key.clone(), kind)));
                explained = true;
            }
            (None, Some(meant)) => {
                problems.error(at.0, message).hint(format!("did you mean `{meant}`?")).at_key();
            }
            (None, None) => {
                let named = map[key].as_str().and_then(by_name);
                let owner = kinds.iter().chain(&by_value).find(|(_, kind)| field_names(kind).contains(key));
                let hint = match (named, owner) {
                    (Some(kind), _) => format!("the kind itself is the key: `{}: …`", kind.name),
                    (None, Some((owner, _))) => format!("it belongs below `{owner}:`, indented"),
                    _ if has_kind => {
                        format!("beside its kind a step has {}; a kind's own fields go below it", fields())
                    }
                    _ => format!("step kinds are {}", all()),
                };
                problems.error(at.0, message).hint(hint).at_key();
                explained = true;
            }
        }
    }
    if kinds.is_empty() && !explained {
        problems
            .error(path.0.clone(), "this step has no kind, so it would do nothing")
            .hint(format!("give it one of {}", all()))
            .at_key();
    }
    if kinds.len() > 1 && has_kind {
        let both = kinds.iter().map(|(key, _)| format!("`{key}`")).collect::<Vec<_>>().join(" and ");
        let second = kinds[1].0.clone();
        problems
            .error(path.join(second).0, format!("a step has exactly one kind, and this one has {both}"))
            .hint("make a step of its own for each")
            .at_key();
    }
    kinds
}

/// Names of a kind's own fields.
fn field_names(kind: &Kind) -> Vec<String> {
    let Ok(Part { schema, .. }) = Part::kind(kind) else { return Vec::new() };
    let node = schema.get("$ref").and_then(Value::as_str).and_then(|r| schema.pointer(r.strip_prefix('#')?));
    let properties = node.unwrap_or(&schema).get("properties").and_then(Value::as_object);
    properties.map(|p| p.keys().cloned().collect()).unwrap_or_default()
}

fn fields() -> String {
    COMMON.iter().map(|f| format!("`{f}`")).collect::<Vec<_>>().join(", ")
}

fn read_kind(
    kind: &'static Kind,
    body: &Value,
    path: &Path,
    parts: &mut HashMap<&'static str, Option<Part>>,
    problems: &mut Problems,
) -> Option<Arc<dyn crate::steps::StepKind>> {
    // `approve:` with nothing below it is a mapping without fields.
    let body = if body.is_null() { Value::Object(Map::new()) } else { body.clone() };
    let part = parts.entry(kind.name).or_insert_with(|| Part::kind(kind).ok()).as_ref();
    let Some(part) = part else {
        problems
            .error(path.0.clone(), format!("the schema of `{}` is broken", kind.name))
            .hint("this is a defect in Handover; please report it");
        return None;
    };
    if !words::validate(part, &body, path, problems) {
        return None;
    }
    parse(body, path, kind.parse, problems)
}

/// Reads a value whose shape is right already; what is still wrong is in single values.
fn parse<T>(
    value: Value,
    base: &Path,
    read: impl FnOnce(Value) -> Result<T, serde_path_to_error::Error<serde_json::Error>>,
    problems: &mut Problems,
) -> Option<T> {
    use serde_path_to_error::Segment as At;
    match read(value) {
        Ok(parsed) => Some(parsed),
        Err(error) => {
            let mut path = base.clone();
            for segment in error.path() {
                match segment {
                    At::Seq { index } => path.0.push((*index).into()),
                    At::Map { key } => path.0.push(key.as_str().into()),
                    At::Enum { variant } => path.0.push(variant.as_str().into()),
                    At::Unknown => break,
                }
            }
            let text = error.into_inner().to_string();
            // Our own values put the way out after a semicolon.
            let (message, hint) =
                text.split_once("; ").unwrap_or((&text, "see `handover schema` for what it takes"));
            problems.error(path.0, message).hint(hint);
            None
        }
    }
}

fn check_kinds(out: &Checked, base: &std::path::Path, problems: &mut Problems) {
    let databases: BTreeSet<String> = out.databases.keys().cloned().collect();
    for (index, (step, place)) in out.steps.iter().zip(&out.places).enumerate() {
        let cx = CheckContext {
            base,
            databases: &databases,
            has_queue: out.queue.is_some(),
            links: &out.links,
            index,
            on_failure: step.on_failure,
            ours: &out.schema,
        };
        problems.within(place.kind(), |problems| step.kind.check(&cx, problems));
    }
}
