//! Plans: from a YAML file to steps, with every problem found at once.

mod check;
mod checked;
mod digest;
mod file;
mod locate;
mod render;
mod reviewed;
mod schema;
mod secrets;
mod whole;
mod words;

pub use digest::{DatabaseIdentity, compare_looked_at, compare_reader, digest, files_digest, refuse_same};
pub use file::DatabaseSpec;
pub use locate::Place;
pub use render::{Diagnostic, PlanErrors};
pub use reviewed::differences;
pub use schema::schema;

use crate::error::{Error, Result};
use crate::event::StepId;
use crate::postgres::connect::Target;
use crate::problem::{Path as NodePath, Problems, Severity};
use crate::steps::{Links, Step, Undo};
use crate::value::EnvString;
use locate::Locator;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A plan that was found good.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// The file, as it was named.
    pub file: PathBuf,
    /// How commands name it that accept a plan of the journal's, where that was asked for and not the file.
    pub kept_as: Option<String>,
    /// The file's folder; relative paths start there.
    pub base: PathBuf,
    /// The databases by name.
    pub databases: BTreeMap<String, DatabaseSpec>,
    /// Where the journal lives.
    pub control: EnvString,
    /// The queue.
    pub queue: Option<EnvString>,
    /// The name of our own schema.
    pub schema: String,
    /// The steps, in order.
    pub steps: Arc<[Step]>,
    /// Which of them builds on which.
    pub links: Arc<Links>,
    /// What is worth knowing before it runs.
    pub warnings: Vec<Diagnostic>,
    /// The file's text, as it was checked.
    pub text: String,
    lines: Vec<usize>,
}

impl Plan {
    /// Reads and checks a plan. No connection is opened, and no environment variable needs to be set.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Plan, PlanErrors> {
        let bytes = std::fs::read(path).map_err(|e| {
            let help = match e.kind() {
                std::io::ErrorKind::NotFound => {
                    "name the plan's file, e.g. `handover check plans/upgrade.yaml`"
                }
                std::io::ErrorKind::IsADirectory => "name a file in it",
                _ => "see that you may read it",
            };
            whole_file(path, &format!("cannot read the plan ({e})"), help)
        })?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let valid = String::from_utf8_lossy(&e.as_bytes()[..e.utf8_error().valid_up_to()]).into_owned();
            let lines = locate::lines(&valid);
            let place = Place {
                line: lines.len(),
                column: lines.last().map_or(1, |l| l.chars().count() + 1),
                length: 1,
            };
            single(path, &valid, place, "the file is not UTF-8 from here on", "save it as UTF-8")
        })?;
        Self::parse(path, text)
    }

    /// Checks a plan's text as if it were in the file `path`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(path: &Path, text: String) -> Result<Plan, PlanErrors> {
        let file = path.display().to_string();
        let base = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        // An editor's byte order mark is no part of the content.
        let source = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let locator = Locator::new(source);
        let mut problems = Problems::new();
        let value = file::read(source, &mut problems).map_err(|syntax| {
            let place = locator.clamp(syntax.place.unwrap_or(Place { line: 1, column: 1, length: 1 }));
            single(path, source, place, &syntax.message, &syntax.hint)
        })?;
        let checked = check::check(value, &base, &mut problems);

        let mut diagnostics: Vec<Diagnostic> =
            problems.iter().map(|problem| Diagnostic::new(&file, source, &locator, problem)).collect();
        let mut add = |place, path: &NodePath, message: &str, help: &str| {
            diagnostics.push(Diagnostic::at(
                &file,
                source,
                place,
                Severity::Error,
                path,
                message,
                Some(help),
            ));
        };
        for twice in locator.duplicates() {
            let message = format!("this key stands here twice, first in line {}", twice.first.line);
            add(twice.again, &twice.path, &message, "keep one of the two");
        }
        if let Some(place) = locator.second_document() {
            let help = "a file holds one plan; remove the `---` or move the rest to a file of its own";
            add(place, &NodePath::default(), "a second document begins here", help);
        }
        diagnostics.sort_by_key(|diagnostic| diagnostic.place);
        diagnostics.dedup_by(|a, b| a.place == b.place && a.message == b.message);
        let errors = PlanErrors { problems: diagnostics };
        let (0, Some(control)) = (errors.errors(), checked.control) else { return Err(errors) };
        let lines = checked.places.iter().map(|place| locator.at(&place.path, false).line).collect();
        Ok(Plan {
            name: checked.name,
            file: path.to_owned(),
            kept_as: None,
            base,
            databases: checked.databases,
            control,
            queue: checked.queue,
            schema: checked.schema,
            links: checked.links,
            steps: checked.steps,
            warnings: errors.problems,
            lines,
            text,
        })
    }

    /// The databases' URLs, with the environment filled in.
    ///
    /// # Errors
    /// A variable that is not set.
    pub fn targets(&self) -> Result<BTreeMap<String, Target>> {
        self.databases
            .iter()
            .map(|(name, spec)| {
                let resolve = |url: &EnvString| url.address().map_err(|e| e.on_database(name));
                let reader = spec.reader.as_ref().map(resolve).transpose()?;
                let search_path = spec.search_path.clone().unwrap_or_default();
                Ok((name.clone(), Target { url: resolve(&spec.url)?, reader, search_path }))
            })
            .collect()
    }

    /// The databases' URLs for commands that only look: where the plan names a reader, the working role's variable
    /// need not be set.
    ///
    /// # Errors
    /// A variable that is not set.
    pub fn targets_to_look(&self) -> Result<BTreeMap<String, Target>> {
        self.databases
            .iter()
            .map(|(name, spec)| {
                let resolve = |url: &EnvString| url.address().map_err(|e| e.on_database(name));
                let reader = spec.reader.as_ref().map(resolve).transpose()?;
                let (url, reader) = match (resolve(&spec.url), reader) {
                    (Err(_), Some(reader)) => (reader.clone(), Some(reader)),
                    // One role is to work and to look.
                    (Ok(url), Some(reader)) if reader.expose() == url.expose() => (url, None),
                    (url, reader) => (url?, reader),
                };
                let search_path = spec.search_path.clone().unwrap_or_default();
                Ok((name.clone(), Target { url, reader, search_path }))
            })
            .collect()
    }

    /// How a command names it that needs a run and not the file: `status`, `events`, `report`, `resume`, `rollback`, `abort`,
    /// `finish`.
    #[must_use]
    pub fn called(&self) -> String {
        self.kept_as.clone().unwrap_or_else(|| self.file.display().to_string())
    }

    /// A step by its id.
    #[must_use]
    pub fn step(&self, id: &StepId) -> Option<&Step> {
        self.steps.iter().find(|step| step.id == *id)
    }

    /// The line a step begins in.
    #[must_use]
    pub fn step_line(&self, id: &StepId) -> Option<usize> {
        self.lines.get(self.steps.iter().position(|step| step.id == *id)?).copied()
    }

    /// Adds the file and the line of a step to an error.
    #[must_use]
    pub fn locate(&self, error: Error, id: &StepId) -> Error {
        error.at_step(id).in_file(self.file.display(), self.step_line(id))
    }

    /// The first step after which a rollback loses something or stops, and what.
    #[must_use]
    pub fn point_of_no_return(&self) -> Option<(&Step, Undo)> {
        self.steps.iter().find_map(|step| {
            let undo = step.kind.reversibility();
            undo.loss().is_some().then_some((step, undo))
        })
    }
}

/// Whether a literal password stands in a connection string.
#[must_use]
pub fn has_password(url: &str) -> bool {
    !secrets::in_urls(url).is_empty() || !secrets::in_parameters(url).is_empty()
}

fn single(path: &Path, text: &str, place: Place, message: &str, help: &str) -> PlanErrors {
    let file = path.display().to_string();
    PlanErrors {
        problems: vec![Diagnostic::at(
            &file,
            text,
            place,
            Severity::Error,
            &NodePath::default(),
            message,
            Some(help),
        )],
    }
}

fn whole_file(path: &Path, message: &str, help: &str) -> PlanErrors {
    single(path, "", Place { line: 1, column: 1, length: 1 }, message, help)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn load(text: &str) -> Result<Plan, PlanErrors> {
        Plan::parse(Path::new("dir/plan.yaml"), text.to_owned())
    }

    const GOOD: &str = "handover: 1
name: a-plan
databases: {blue: '${PLAN_TEST_UNSET_URL}'}
control: ${PLAN_TEST_UNSET_URL}
steps:
  - id: one
    create_index: {on: blue, indexes: [{name: i, table: t, columns: [c]}]}
  - id: two
    timeout: 2h
    create_index:
      on: blue
      indexes: [{name: j, table: t, columns: [c]}]
";

    #[test]
    fn a_good_plan_loads_without_its_environment() {
        let plan = load(GOOD).unwrap();
        assert_eq!((plan.name.as_str(), plan.steps.len()), ("a-plan", 2));
        assert_eq!(plan.step_line(&"two".into()), Some(8));
        assert_eq!(plan.base, Path::new("dir"));
        assert_eq!(plan.warnings.len(), 2, "{:?}", plan.warnings);
        assert!(plan.targets().unwrap_err().message().contains("PLAN_TEST_UNSET_URL"));
        assert!(load(&format!("\u{feff}{GOOD}")).is_ok());
        assert!(load(&GOOD.replace('\n', "\r\n")).is_ok());
    }

    #[test]
    fn problems_stand_in_the_order_of_the_file_and_become_one_error() {
        let errors =
            load(&GOOD.replace("on: blue", "on: bleu").replace("timeout: 2h", "timout: 2h")).unwrap_err();
        let lines: Vec<usize> = errors.problems.iter().map(|p| p.place.line).collect();
        assert!(lines.is_sorted(), "{errors}");
        assert_eq!(errors.errors(), 3, "{errors}");
        let error = Error::from(errors);
        assert!(error.to_string().contains("(and 2 more)"), "{error}");
        assert!(error.next_step().unwrap().contains("handover check"));
    }

    proptest! {
        #[test]
        fn loading_never_panics(text in "(handover: 1|name: |databases:|steps:|control: |\\$\\{A\\}|- id: a|create_index:|indexes: |\\[|\\]|\\{|\\}|,|: |\n|\n  |\n    |\"|'|&a |\\*a|<<: |!t |\\||1|true|~|\t|\u{85}|é){0,40}") {
            if let Err(errors) = load(&text) {
                prop_assert!(!errors.to_string().is_empty());
            }
        }

        #[test]
        fn a_damaged_plan_never_panics(at in 0usize..400, len in 0usize..30, with in "\\PC{0,4}") {
            let mut chars: Vec<char> = GOOD.chars().collect();
            let from = at.min(chars.len());
            let to = (from + len).min(chars.len());
            chars.splice(from..to, with.chars());
            if let Err(errors) = load(&chars.into_iter().collect::<String>()) {
                prop_assert!(errors.errors() > 0, "{errors}");
            }
        }
    }
}
