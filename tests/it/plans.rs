//! What people get to read about a broken plan: every file under `tests/plans/broken` with its snapshot beside it.

use handover::plan::{Plan, PlanErrors};
use handover::problem::Severity;
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
            insta::assert_snapshot!(name, errors.to_string());
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
