//! Checks that look at a plan as a whole: its connections, and how its steps fit together.

use super::checked::{Checked, is_name};
use super::file::DatabaseSpec;
use super::secrets;
use crate::postgres::ours;
use crate::postgres::profile::SearchPath;
use crate::problem::{Path, Problems, Segment};
use crate::steps::{OnFailure, Undo};
use crate::value::EnvString;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The databases that can be read from their part of a plan.
pub fn databases(value: Option<&Value>, problems: &mut Problems) -> BTreeMap<String, DatabaseSpec> {
    let mut out = BTreeMap::new();
    for (name, value) in value.and_then(Value::as_object).into_iter().flatten() {
        if !is_name(name, "-_") {
            problems
                .error(["databases", name], format!("`{name}` cannot be the name of a database"))
                .hint("use letters, digits, `-` and `_`, beginning with a letter or digit")
                .at_key();
        }
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(|t| EnvString(t.to_owned()));
        let spec = match value {
            Value::Object(map) => DatabaseSpec {
                url: text(map.get("url")).unwrap_or_else(|| EnvString(String::new())),
                reader: text(map.get("reader")),
                search_path: map
                    .get("search_path")
                    .and_then(|path| serde_json::from_value(path.clone()).ok())
                    .filter(|SearchPath(schemas)| check_path(name, schemas, problems)),
            },
            other => DatabaseSpec {
                url: text(Some(other)).unwrap_or_else(|| EnvString(String::new())),
                reader: None,
                search_path: None,
            },
        };
        out.insert(name.clone(), spec);
    }
    out
}

/// Whether a database's path can be what the plan's author means.
fn check_path(name: &str, schemas: &[String], problems: &mut Problems) -> bool {
    let at = ["databases", name, "search_path"];
    if schemas.is_empty() || schemas.iter().any(String::is_empty) {
        problems
            .error(at, "the path names no schema")
            .hint("write e.g. `search_path: [app, public]`, or leave it out: it is `[public]` then");
        return false;
    }
    if schemas.iter().any(|schema| schema == "$user") {
        problems
            .error(
                at,
                "`$user` is the schema that is called like the role Handover works as, not the application's",
            )
            .hint("name the application's schema");
        return false;
    }
    true
}

/// The name of our own schema.
pub fn schema(
    value: Option<&Value>,
    databases: &BTreeMap<String, DatabaseSpec>,
    problems: &mut Problems,
) -> String {
    let Some(name) = value.and_then(Value::as_str) else { return ours::DEFAULT.to_owned() };
    let on_path = |spec: &DatabaseSpec| {
        let SearchPath(path) = spec.search_path.as_ref()?;
        ours::both(name).into_iter().find(|ours| path.contains(ours))
    };
    if let Some(problem) = ours::problem(name) {
        problems.error(["schema"], problem).hint(
            "leave it out (it is `handover` then), or write a name that nothing else has, such as `schema: upkeep`",
        );
    } else if let Some((database, theirs)) =
        databases.iter().find_map(|(database, spec)| Some((database, on_path(spec)?)))
    {
        problems
            .error(
                ["schema"],
                format!(
                    "schema `{theirs}` is the application's: `databases.{database}.search_path` names it"
                ),
            )
            .hint("Handover's own schema holds nothing else: choose a name that nothing else has");
    } else {
        return name.to_owned();
    }
    ours::DEFAULT.to_owned()
}

/// Every connection string of a plan, with its place and whether a queue may be there.
fn connections(plan: &Checked) -> Vec<(Path, &EnvString, bool)> {
    let mut out = Vec::new();
    for (name, spec) in &plan.databases {
        let at = Path(vec!["databases".into(), name.as_str().into()]);
        let url = if plan.spelled_out.contains(name) { at.join("url") } else { at.clone() };
        out.push((url, &spec.url, false));
        out.extend(spec.reader.as_ref().map(|reader| (at.join("reader"), reader, false)));
    }
    out.extend(plan.control.as_ref().map(|url| (Path(vec!["control".into()]), url, false)));
    out.extend(plan.queue.as_ref().map(|url| (Path(vec!["queue".into()]), url, true)));
    out
}

/// References, schemes and passwords of all connection strings.
pub fn urls(plan: &Checked, problems: &mut Problems) {
    for (path, url, is_queue) in connections(plan) {
        let variables = match url.variables() {
            Ok(variables) => variables,
            Err(error) => {
                let hint = error.next_step().unwrap_or_default().to_owned();
                // The message would repeat the text, which may hold a secret.
                problems.error(path.0, "the reference to the environment is not complete").hint(hint);
                continue;
            }
        };
        if !secrets::in_urls(&url.0).is_empty() || !secrets::in_parameters(&url.0).is_empty() {
            problems
                .error(path.0, "a password stands in the plan")
                .hint("take it from the environment: `${NAME}` in the place of the URL or of the password");
            continue;
        }
        for name in variables.iter().collect::<BTreeSet<_>>() {
            if std::env::var_os(name).is_none() {
                problems
                    .warning(path.0.clone(), format!("the environment variable {name} is not set here"))
                    .hint(format!("`run` will need it: `export {name}=…`"));
            }
        }
        scheme(plan, &path, url, is_queue, variables.is_empty(), problems);
    }
}

fn scheme(
    plan: &Checked,
    path: &Path,
    url: &EnvString,
    is_queue: bool,
    literal: bool,
    problems: &mut Problems,
) {
    let allowed: &[&str] =
        if is_queue { &["amqp", "amqps", "postgres", "postgresql"] } else { &["postgres", "postgresql"] };
    match url.0.split_once("://") {
        Some((scheme, _)) if scheme.contains("${") || allowed.contains(&scheme) => {}
        Some((scheme, _)) => {
            let what = if is_queue { "a queue" } else { "a database" };
            problems
                .error(
                    path.0.clone(),
                    format!("a URL with `{scheme}://` does not lead to {what} that Handover knows"),
                )
                .hint(if is_queue {
                    "use `amqp://`, `amqps://` or `postgres://`"
                } else {
                    "use `postgres://user@host:port/database`"
                });
        }
        // A `key=value` connection string.
        None if !is_queue && url.0.contains('=') => {}
        None if literal && !url.0.is_empty() => {
            let hint = match plan.databases.get(&url.0) {
                Some(named)
                    if !named.url.0.is_empty() && named.url.variables().is_ok_and(|v| !v.is_empty()) =>
                {
                    format!("write the URL of `{}` again: `{}`", url.0, named.url)
                }
                _ => "write a URL, by custom from the environment: `${NAME}`".to_owned(),
            };
            problems.error(path.0.clone(), "this is not a URL").hint(hint);
        }
        None => {}
    }
}

/// What is there should be used. Asked only of a plan without errors, in which each use is known.
pub fn unused(plan: &Checked, problems: &mut Problems) {
    let used: BTreeSet<&str> =
        plan.steps.iter().flat_map(|step| step.kind.databases()).map(|(name, _)| name).collect();
    for name in plan.databases.keys().filter(|name| !used.contains(name.as_str())) {
        problems
            .warning(["databases", name], format!("no step uses the database `{name}`"))
            .hint("remove it, unless it is there for later")
            .at_key();
    }
    if plan.queue.is_some() && !plan.steps.iter().any(|step| step.kind.uses_queue()) {
        problems.warning(["queue"], "no step uses the queue").hint("remove it").at_key();
    }
}

/// A queue that is used must be there.
pub fn queue(plan: &Checked, problems: &mut Problems) {
    for (step, place) in plan.steps.iter().zip(&plan.places).filter(|(step, _)| step.kind.uses_queue()) {
        let said =
            problems.iter().any(|p| p.path.0.starts_with(&place.kind().0) && p.message.contains("queue"));
        if plan.queue.is_none() && !said {
            problems
                .error(place.kind().0, format!("`{}` needs a queue, and the plan has none", step.kind_name))
                .hint("add `queue: ${QUEUE_URL}` beside `control:`")
                .at_key();
        }
    }
}

/// Policies that a step before them makes impossible.
pub fn rollbacks(plan: &Checked, problems: &mut Problems) {
    let mut barrier = None;
    for (step, place) in plan.steps.iter().zip(&plan.places) {
        if let (OnFailure::Rollback, Some((id, why))) = (step.on_failure, &barrier) {
            problems
                .warning(
                    place.path.join("on_failure").0,
                    format!("a rollback from here cannot go back past `{id}`: {why}"),
                )
                .hint("use `on_failure: halt` and decide then, or move the step before that one");
        }
        if let (None, Some(what)) = (&barrier, step.kind.reversibility().loss()) {
            let why = match step.kind.reversibility() {
                Undo::Impossible { .. } => format!("it {what}"),
                _ => format!("its undo {what}"),
            };
            barrier = Some((step.id.clone(), why));
        }
    }
}

/// Files and folders that steps name, unless the step's own check spoke of them.
pub fn files(plan: &Checked, base: &std::path::Path, problems: &mut Problems) {
    for (step, place) in plan.steps.iter().zip(&plan.places) {
        for file in step.kind.files() {
            if base.join(&file).exists() {
                continue;
            }
            let text = file.to_string_lossy();
            let at = find_text(&place.body, &text, &place.kind()).unwrap_or_else(|| place.kind());
            if problems.iter().any(|p| p.path == at) {
                continue;
            }
            problems
                .error(at.0, format!("there is no file or folder `{text}`"))
                .hint(format!("paths are relative to the plan's folder, {}", base.display()));
        }
    }
}

fn find_text(value: &Value, text: &str, path: &Path) -> Option<Path> {
    match value {
        Value::String(s) if s == text => Some(path.clone()),
        Value::Array(items) => {
            items.iter().enumerate().find_map(|(i, item)| find_text(item, text, &path.join(i)))
        }
        Value::Object(map) => {
            map.iter().find_map(|(key, item)| find_text(item, text, &path.join(Segment::from(key.as_str()))))
        }
        _ => None,
    }
}
