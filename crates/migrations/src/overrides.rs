//! Files of the operator's that stand in for a vendor's, or add a way back.

use crate::files::{label, parse, walk};
use crate::names::Names;
use crate::script::Script;
use handover_core::error::Error;
use handover_core::problem::suggest;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The files that stand in for the vendor's, and what became of each.
#[derive(Default)]
pub struct Overrides {
    files: BTreeMap<String, PathBuf>,
    used: BTreeMap<String, usize>,
    not_ours: BTreeSet<String>,
    known: BTreeSet<String>,
}

impl Overrides {
    /// Reads the folder.
    pub fn read(base: &Path, dir: &Path, problems: &mut Vec<(&'static str, Error)>) -> Self {
        let mut paths = Vec::new();
        if let Err(error) = walk(&base.join(dir), &mut paths, &mut Vec::new()) {
            problems.push(("override", error));
        }
        Overrides { files: paths.into_iter().map(|p| (label(&p), p)).collect(), ..Self::default() }
    }

    /// A file that is not for Postgres.
    pub fn other_dialect(&mut self, file: &str) {
        self.not_ours.insert(file.to_owned());
    }

    /// The file that stands in for this one.
    pub fn take(&mut self, file: &str) -> Option<PathBuf> {
        self.known.insert(file.to_owned());
        let path = self.files.get(file)?;
        *self.used.entry(file.to_owned()).or_default() += 1;
        Some(path.clone())
    }

    /// A down file that the vendor does not have may be added: its name is the up file's with `down`.
    pub fn added_down(&mut self, up: &str, problems: &mut Vec<(&'static str, Error)>) -> Option<Script> {
        let name = match (up.strip_suffix(".up.sql"), up.rsplit_once('/')) {
            (_, Some((folder, _))) => format!("{folder}/down.sql"),
            (Some(stem), None) => format!("{stem}.down.sql"),
            (None, None) => format!("{}.down.sql", up.strip_suffix(".sql")?),
        };
        let path = self.take(&name)?;
        let down = parse(&path, Names::Numbered, name.contains(".autocommit."));
        down.map(|(script, _)| script).map_err(|error| problems.push(("override", error))).ok()
    }

    /// What is wrong with the files that stand in for none, or for several.
    pub fn report(&self, problems: &mut Vec<(&'static str, Error)>) {
        for (file, path) in &self.files {
            let error = match self.used.get(file) {
                Some(1) => continue,
                Some(n) => Error::usage(format!("{n} folders have a file of this name"))
                    .hint("which one is meant? give the step one folder, or make two steps"),
                None if self.not_ours.contains(file) => Error::usage(
                    "it stands in for a file that Postgres does not run",
                )
                .hint(
                    "name it like the `.postgres.` file, or like the one for all databases if there is none",
                ),
                None => match suggest(file, self.known.iter().map(String::as_str)) {
                    Some(close) => Error::usage("no migration has this file name")
                        .hint(format!("did you mean `{close}`?")),
                    None => Error::usage("no migration has this file name")
                        .hint("a file here replaces one of the same name; it would silently not run"),
                },
            };
            problems.push(("override", error.in_file(path.display(), None)));
        }
    }
}
