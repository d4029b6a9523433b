//! Documents are held to the program: what they show is accepted, what they name is there.

use crate::support::sources::sources;
use handover::plan::Plan;
use handover::problem::Severity;
use handover::steps::kinds;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A fenced block of a document.
struct Block {
    /// The words after the fence, such as `yaml plan`.
    info: String,
    line: usize,
    text: String,
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn blocks(text: &str) -> Vec<Block> {
    let mut out = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in text.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => {
                open = Some(Block { info: info.trim().to_owned(), line: number + 1, text: String::new() });
            }
            (Some(_), Some("")) => out.extend(open.take()),
            (Some(block), _) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a fence is not closed");
    out
}

/// A plan around steps that are shown alone. Steps that need an earlier one stand in one block with it.
fn around(steps: &str) -> String {
    let steps: String = steps.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "handover: 1
name: documented
databases:
  blue: ${{BLUE_URL}}
  green: ${{GREEN_URL}}
  registry: ${{REGISTRY_URL}}
control: ${{CONTROL_URL}}
queue: ${{QUEUE_URL}}
steps:
{steps}"
    )
}

/// The example plans' folder: relative paths in documents start there, as they do in the examples.
const PLAN: &str = "plans/documented.yaml";

/// What is wrong with a plan, without what depends on who runs the tests or on what was left out around a step.
fn problems(text: &str) -> Vec<String> {
    let (problems, errors) = match Plan::parse(Path::new(PLAN), text.to_owned()) {
        Ok(plan) => (plan.warnings, false),
        Err(errors) => (errors.problems, true),
    };
    let kept: Vec<String> = problems
        .iter()
        .filter(|problem| {
            problem.severity == Severity::Error
                || !["the environment variable", "no step uses"]
                    .iter()
                    .any(|start| problem.message.starts_with(start))
        })
        .map(ToString::to_string)
        .collect();
    assert!(!errors || !kept.is_empty());
    kept
}

#[test]
fn every_plan_and_step_that_is_shown_is_accepted() {
    let mut shown = BTreeSet::new();
    let mut failures = Vec::new();
    for file in ["docs/plans.md", "docs/participants.md", "README.md"] {
        for block in blocks(&read(Path::new(file))) {
            let text = match block.info.as_str() {
                "yaml plan" => block.text.clone(),
                "yaml step" => around(&block.text),
                "yaml part" => continue,
                info if info.starts_with("yaml") => {
                    failures
                        .push(format!("{file}:{}: say `yaml plan`, `yaml step` or `yaml part`", block.line));
                    continue;
                }
                _ => continue,
            };
            for problem in problems(&text) {
                failures.push(format!("{file}:{}:\n{problem}", block.line));
            }
            if let Ok(plan) = Plan::parse(Path::new(PLAN), text) {
                shown.extend(plan.steps.iter().map(|step| step.kind_name));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    for kind in kinds() {
        assert!(shown.contains(kind.name), "no example of `{}`", kind.name);
    }
}

/// The part of a page under a heading of the second rank.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let heading = format!("\n## {heading}\n");
    let at = text.find(&heading).unwrap_or_else(|| panic!("no section `{}`", heading.trim()));
    text[at + heading.len()..].split("\n## ").next().unwrap_or_default()
}

/// The name of the definition that a schema refers to.
fn referred(schema: &Value) -> Option<&str> {
    schema.get("$ref")?.as_str()?.rsplit('/').next()
}

/// The schema knows every field of a kind; a field that nobody explains is one that nobody finds.
#[test]
fn every_kind_has_a_section_that_names_its_fields() {
    let text = read(Path::new("docs/plans.md"));
    let mut generator = schemars::SchemaGenerator::default();
    for kind in kinds() {
        let section = section(&text, kind.name);
        let reference = Value::from((kind.schema)(&mut generator));
        let name = referred(&reference)
            .unwrap_or_else(|| panic!("the schema of {} is not a reference", kind.name))
            .to_owned();
        let fields = generator.definitions()[&name]["properties"].as_object().unwrap().clone();
        assert!(!fields.is_empty());
        for field in fields.keys() {
            assert!(section.contains(&format!("`{field}`")), "`{}` does not explain `{field}`", kind.name);
        }
    }
}

/// The rows of a text's tables: what each is about, in backticks in its first cell, and what its second cell says.
fn rows(text: &str) -> Vec<(BTreeSet<&str>, &str)> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| "))
        .filter_map(|line| line.split_once('|'))
        .map(|(first, rest)| {
            let names = first.split('`').skip(1).step_by(2).collect();
            (names, rest.split('|').next().unwrap_or_default().trim())
        })
        .collect()
}

/// The definitions that a schema leads to, in whatever depth.
fn reached(schema: &Value, definitions: &serde_json::Map<String, Value>, seen: &mut BTreeSet<String>) {
    if let Some(name) = referred(schema)
        && seen.insert(name.to_owned())
    {
        reached(&definitions[name], definitions, seen);
    }
    match schema {
        Value::Object(map) => map.values().for_each(|inner| reached(inner, definitions, seen)),
        Value::Array(items) => items.iter().for_each(|inner| reached(inner, definitions, seen)),
        _ => {}
    }
}

/// Every option that the schema knows is in a table, those of the kind in its own section, and with the default that
/// the schema has.
#[test]
fn every_option_of_every_kind_is_in_a_table() {
    let text = read(Path::new("docs/plans.md"));
    let everywhere: BTreeSet<&str> = rows(&text).into_iter().flat_map(|(names, _)| names).collect();
    let mut generator = schemars::SchemaGenerator::default();
    let mut missing = Vec::new();
    let mut defaults = 0;
    for kind in kinds() {
        let reference = Value::from((kind.schema)(&mut generator));
        let definitions = generator.definitions().clone();
        let table = rows(section(&text, kind.name));
        let own = referred(&reference).unwrap();
        for (field, schema) in definitions[own]["properties"].as_object().unwrap() {
            let Some((_, given)) = table.iter().find(|(names, _)| names.contains(field.as_str())) else {
                missing.push(format!("`{}`: no row for `{field}`", kind.name));
                continue;
            };
            let default = match schema.get("default") {
                Some(Value::String(text)) => text.clone(),
                Some(default @ (Value::Number(_) | Value::Bool(_))) => default.to_string(),
                _ => continue,
            };
            defaults += 1;
            if !given.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == default) {
                missing.push(format!("`{}`: `{field}` is {default} unless given, not {given}", kind.name));
            }
        }
        let mut inner = BTreeSet::new();
        reached(&reference, &definitions, &mut inner);
        for name in inner {
            for field in definitions[&name]["properties"].as_object().into_iter().flat_map(|map| map.keys()) {
                if !everywhere.contains(field.as_str()) {
                    missing.push(format!("`{}`: no row for `{field}` of `{name}`", kind.name));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(defaults > 30, "{defaults} defaults");
}

fn markdown() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir("docs")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
        .collect();
    files.extend(["README.md".into(), "CHANGELOG.md".into()]);
    files.sort();
    files
}

/// The anchors that a page's headings get from the usual renderers.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut out = BTreeSet::new();
    for line in text.lines() {
        fenced ^= line.starts_with("```");
        let title = line.trim_start_matches('#');
        if fenced || title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let title = title.trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        out.insert(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
    }
    out
}

#[test]
fn every_relative_link_leads_somewhere() {
    let mut seen = 0;
    for file in markdown() {
        let text = read(&file);
        let folder = file.parent().unwrap().to_owned();
        for (at, _) in text.match_indices("](") {
            let link = text[at + 2..].split(')').next().unwrap_or_default();
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            seen += 1;
            let (path, anchor) = link.split_once('#').map_or((link, None), |(p, a)| (p, Some(a)));
            let target = if path.is_empty() { file.clone() } else { folder.join(path) };
            assert!(target.exists(), "{}: {link} leads nowhere", file.display());
            if let Some(anchor) = anchor {
                assert!(
                    anchors(&read(&target)).contains(anchor),
                    "{}: {link}: there is no such heading",
                    file.display()
                );
            }
        }
    }
    assert!(seen > 10, "{seen} links");
}

/// Hints, help texts and comments send people to files; those must be there.
#[test]
fn every_file_that_the_program_names_is_there() {
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    sources(Path::new("crates"), &mut files);
    files.extend(markdown());
    let mut seen = 0;
    for file in files {
        let text = read(&file);
        for folder in ["docs/", "scripts/"] {
            for (at, _) in text.match_indices(folder) {
                // A longer path or a URL, not ours.
                if text[..at].ends_with(|c: char| c.is_alphanumeric() || "/.-_".contains(c)) {
                    continue;
                }
                let path: String =
                    text[at..].chars().take_while(|c| c.is_alphanumeric() || "/._-#".contains(*c)).collect();
                let (path, anchor) =
                    path.split_once('#').map_or((path.as_str(), None), |(p, a)| (p, Some(a)));
                let path = path.trim_end_matches('.');
                if path == folder {
                    continue;
                }
                seen += 1;
                assert!(Path::new(path).exists(), "{} names {path}, which is not there", file.display());
                if let Some(anchor) = anchor {
                    assert!(
                        anchors(&read(Path::new(path))).contains(anchor),
                        "{}: {path}#{anchor}",
                        file.display()
                    );
                }
            }
        }
    }
    assert!(seen > 10, "{seen} paths");
}

/// Whoever copies `.env.example` must be able to run the example plans with it.
#[test]
fn the_example_environment_has_every_variable_of_the_example_plans() {
    let environment = read(Path::new(".env.example"));
    let set: BTreeSet<&str> = environment
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('=').map(|(name, _)| name))
        .collect();
    let compose = read(Path::new("docker-compose.yml"));
    let mut wanted = BTreeSet::new();
    for entry in std::fs::read_dir("plans").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            wanted.extend(variables(&read(&path)));
        }
    }
    assert!(wanted.contains("BLUE_URL") && wanted.contains("OAUTH_URL"), "{wanted:?}");
    wanted.extend(variables(&compose));
    let missing: Vec<&String> = wanted.iter().filter(|name| !set.contains(name.as_str())).collect();
    assert!(missing.is_empty(), ".env.example lacks {missing:?}");
}

/// The names in `${NAME}` and `${NAME:?message}`.
fn variables(text: &str) -> BTreeSet<String> {
    text.match_indices("${")
        .map(|(at, _)| {
            text[at + 2..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
        })
        .collect()
}
