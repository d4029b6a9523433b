//! What people get to read about a broken plan: every file under `tests/plans/broken` with its snapshot beside it.

use crate::support::servers::{self, Database};
use handover::plan::{Plan, PlanErrors};
use handover::postgres::Databases;
use handover::postgres::connect::Target;
use handover::problem::Severity;
use handover::steps::kinds;
use handover::value::Secret;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Here rather than a whole path, so that messages do not depend on where the repository lies.
fn folder(name: &str) -> PathBuf {
    Path::new("tests/plans").join(name)
}

fn files(name: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder(name))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    files
}

/// Whether a variable is set depends on who runs the tests.
fn without_environment(mut errors: PlanErrors) -> PlanErrors {
    errors.problems.retain(|problem| !problem.message.starts_with("the environment variable"));
    errors
}

/// A new kind must not change what is snapshot here.
fn hide_kinds(text: &str) -> String {
    let kinds: Vec<String> = kinds().iter().map(|kind| format!("`{}`", kind.name)).collect();
    let kinds = kinds.join(", ");
    ["step kinds are ", "give it one of "]
        .iter()
        .fold(text.to_owned(), |text, lead| text.replace(&format!("{lead}{kinds}"), &format!("{lead}(all)")))
}

#[test]
fn every_broken_plan_is_refused_with_place_caret_and_help() {
    let files = files("broken");
    assert!(files.len() >= 60, "{} plans", files.len());
    let mut failures = Vec::new();
    for path in files {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let errors = match Plan::load(&path) {
            Ok(_) => {
                failures.push(format!("{name} was accepted"));
                continue;
            }
            Err(errors) => without_environment(errors),
        };
        let lines = std::fs::read_to_string(&path).map(|text| text.lines().count()).unwrap();
        for problem in &errors.problems {
            let shown = problem.to_string();
            let place = format!("{}:{}:{}: ", path.display(), problem.place.line, problem.place.column);
            let ok = shown.starts_with(&place)
                && shown.contains('^')
                && shown.contains("= help: ")
                && problem.place.line <= lines.max(1);
            if !ok {
                failures.push(format!("{name} lacks a place, caret or help:\n{shown}"));
            }
            if shown.contains("hunter2") {
                failures.push(format!("{name} shows a password:\n{shown}"));
            }
        }
        insta::with_settings!({
            snapshot_path => "../plans/broken",
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, {
            insta::assert_snapshot!(name, hide_kinds(&errors.to_string()));
        });
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn every_good_plan_is_accepted_and_fits_its_schema() {
    for path in files("good") {
        let plan = Plan::load(&path).unwrap_or_else(|errors| panic!("{errors}"));
        let others: Vec<_> = plan
            .warnings
            .iter()
            .filter(|w| !w.message.starts_with("the environment variable"))
            .map(ToString::to_string)
            .collect();
        assert!(others.is_empty(), "{}", others.join("\n"));
    }
}

/// Plans that are accepted with a word: every file under `tests/plans/warned` with its snapshot beside it.
#[test]
fn every_doubtful_plan_is_accepted_with_place_caret_and_help() {
    let files = files("warned");
    assert!(!files.is_empty());
    for path in files {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let plan = Plan::load(&path).unwrap_or_else(|errors| panic!("{errors}"));
        let warnings = without_environment(PlanErrors { problems: plan.warnings });
        assert!(!warnings.problems.is_empty(), "{name}");
        for problem in &warnings.problems {
            let shown = problem.to_string();
            assert!(shown.contains('^') && shown.contains("= help: "), "{name}: {shown}");
        }
        insta::with_settings!({
            snapshot_path => "../plans/warned",
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, {
            insta::assert_snapshot!(name, warnings.to_string());
        });
    }
}

#[test]
fn problems_are_flat_objects_for_programs() {
    let errors = Plan::load(&folder("broken").join("unknown_database.yaml")).unwrap_err();
    let json = serde_json::to_value(without_environment(errors)).unwrap();
    assert_eq!(
        json,
        serde_json::json!([{
            "severity": "error",
            "file": "tests/plans/broken/unknown_database.yaml",
            "line": 9, "column": 11, "length": 4,
            "path": "steps[0].create_index.on",
            "message": "there is no database `bleu` in this plan",
            "help": "did you mean `blue`?",
        }])
    );
}

#[test]
fn a_file_that_is_not_there_or_not_text_is_named() {
    for (path, part) in
        [("tests/plans/none.yaml", "cannot read the plan"), ("tests/plans", "cannot read the plan")]
    {
        let errors = Plan::load(Path::new(path)).unwrap_err();
        assert!(errors.to_string().contains(part), "{errors}");
        assert_eq!(errors.problems[0].severity, Severity::Error);
        assert!(errors.problems[0].help.is_some());
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"handover: 1\nname: \xff\xfe\n").unwrap();
    let errors = Plan::load(file.path()).unwrap_err();
    assert_eq!((errors.problems[0].place.line, errors.problems[0].place.column), (2, 7), "{errors}");
}

fn targets(urls: &[(&str, String)]) -> Databases {
    let target = |url: &String| Target::new(Secret::new(url.as_str()));
    Databases::new(
        urls.iter().map(|(name, url)| ((*name).to_owned(), target(url))).collect::<BTreeMap<_, _>>(),
    )
}

/// The identity is open to any role, also one that may only read, on both major versions.
#[tokio::test(flavor = "multi_thread")]
async fn the_digest_knows_swapped_databases_and_changed_files() {
    let blue = Database::create(servers::blue().await, None).await;
    let other = Database::create(servers::blue().await, None).await;
    let green = Database::create(servers::green().await, None).await;
    let text = std::fs::read_to_string(folder("good").join("every_field.yaml")).unwrap();
    let plan = Plan::parse(Path::new("plan.yaml"), text.clone()).unwrap();

    let straight = targets(&[("blue", blue.handover_url()), ("green", green.handover_url())]);
    let as_reader = targets(&[("blue", blue.reader_url()), ("green", green.reader_url())]);
    let swapped = targets(&[("blue", green.handover_url()), ("green", blue.handover_url())]);
    let neighbour = targets(&[("blue", other.handover_url()), ("green", green.handover_url())]);
    let digest = plan.digest(&straight).await.unwrap();
    assert_eq!(digest, plan.digest(&as_reader).await.unwrap(), "another role, the same databases");
    assert_ne!(digest, plan.digest(&swapped).await.unwrap(), "swapped databases");
    assert_ne!(digest, plan.digest(&neighbour).await.unwrap(), "another database of the same server");
    let changed = Plan::parse(Path::new("plan.yaml"), format!("{text}# a comment\n")).unwrap();
    assert_ne!(digest, changed.digest(&straight).await.unwrap(), "another text");

    let all = targets(&[("blue", blue.handover_url()), ("green", blue.owner_url())]);
    let same = plan.identities(&all).await.unwrap();
    assert!(same["blue"].is_same_database(&same["green"]), "{same:?}");
    let two = plan.identities(&neighbour).await.unwrap();
    assert!(!two["blue"].is_same_database(&two["green"]), "{two:?}");
    let beside = targets(&[("blue", blue.handover_url()), ("green", other.handover_url())]);
    let beside = plan.identities(&beside).await.unwrap();
    assert!(!beside["blue"].is_same_database(&beside["green"]), "{beside:?}");
}

#[test]
fn check_prints_all_problems_or_one_object() {
    let check = |file: &str, more: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_handover"))
            .arg("check")
            .arg(folder(file))
            .args(more)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, out, err) = check("broken/many_at_once.yaml", &[]);
    assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
    assert!(err.contains("many_at_once.yaml:4:9: error: ") && err.contains(" errors, "), "{err}");
    assert!(!err.contains("hunter2"), "{err}");

    let (code, out, err) = check("broken/many_at_once.yaml", &["--format", "json"]);
    assert_eq!((code, err.as_str()), (Some(2), ""));
    let object: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(object["ok"], false);
    assert!(object["problems"].as_array().unwrap().len() > 8, "{out}");
    assert!(!out.contains("hunter2"), "{out}");

    let (code, out, _) = check("good/least.yaml", &["--format", "json"]);
    assert_eq!(code, Some(0), "{out}");
    let object: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&object["ok"], &object["plan"]), (&true.into(), &"least".into()), "{out}");
}
