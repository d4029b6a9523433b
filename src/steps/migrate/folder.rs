//! The plan's folders as one ordered list of migrations, with everything that is wrong with them.

use super::names::{Dialect, Direction, Name, Names};
use super::script::Script;
use crate::error::Error;
use crate::problem::suggest;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// One migration: a number within a folder, the file that applies it, the file that takes it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// The folder as the plan writes it.
    pub folder: String,
    /// The number as the file has it.
    pub number: String,
    /// The file's name.
    pub file: String,
    /// Whether it may appear after later ones were applied.
    pub may_be_late: bool,
    /// What applies it.
    pub up: Script,
    /// What takes it back, if there is such a file.
    pub down: Option<Script>,
    /// The file that stands in for the vendor's, if any.
    pub replaced_by: Option<String>,
}

impl Migration {
    /// Its name in checkpoints and messages.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.folder, self.file)
    }
}

/// What the folders hold.
#[derive(Debug, Default)]
pub struct Loaded {
    /// In the order they run.
    pub migrations: Vec<Migration>,
    /// Files of other dialects that were passed over.
    pub passed_over: usize,
    /// What is wrong: the plan's field, and the error.
    pub problems: Vec<(&'static str, Error)>,
}

impl Loaded {
    /// The migrations, unless something is wrong.
    ///
    /// # Errors
    /// The first problem; `handover check` shows all.
    pub fn into_result(self) -> crate::Result<Self> {
        match self.problems.first() {
            Some((_, error)) => Err(error.clone()),
            None => Ok(self),
        }
    }
}

struct File {
    name: Name,
    file: String,
    path: PathBuf,
}

/// Reads the folders.
#[must_use]
pub fn load(base: &Path, dirs: &[&Path], names: Names, replace: Option<&Path>, ignore: &[String]) -> Loaded {
    let mut out = Loaded::default();
    let mut overrides = replace.map(|dir| Overrides::read(base, dir, &mut out.problems)).unwrap_or_default();
    let mut seen = BTreeSet::new();
    for dir in dirs {
        if !seen.insert(dir) {
            out.problems.push((
                "dirs",
                Error::usage(format!("{} is listed twice", dir.display())).hint("list each folder once"),
            ));
            continue;
        }
        if let Err(error) = load_dir(base, dir, names, ignore, &mut overrides, &mut out) {
            out.problems.push(("dirs", error));
        }
    }
    overrides.report(&mut out.problems);
    out
}

fn load_dir(
    base: &Path,
    dir: &Path,
    names: Names,
    ignore: &[String],
    overrides: &mut Overrides,
    out: &mut Loaded,
) -> crate::Result<()> {
    let root = base.join(dir);
    let mut paths = Vec::new();
    walk(&root, &mut paths)?;
    let top: Vec<&PathBuf> = paths.iter().filter(|p| p.parent() == Some(&root)).collect();
    let kept = |path: &Path| !ignore.iter().any(|pattern| matches(pattern, &file_name(path)));
    let names = if names == Names::Auto {
        let listed: Vec<String> = top.iter().filter(|p| kept(p)).map(|p| file_name(p)).collect();
        Names::detect(listed.iter().map(String::as_str)).map_err(|why| {
            Error::usage(format!("cannot tell which tool's names this folder uses: {why}"))
                .in_file(root.display(), None)
                .hint("say so with `names:` (refinery, golang_migrate, sqlx or popx), and leave other files out with `ignore:`")
        })?
    } else {
        names
    };
    let mut groups: BTreeMap<(bool, String), Vec<File>> = BTreeMap::new();
    for path in paths {
        if (!names.recurses() && path.parent() != Some(&root)) || !kept(&path) {
            continue;
        }
        let file = file_name(&path);
        let name = match names.parse(&file) {
            Ok(name) => name,
            Err(why) => {
                out.problems.push((
                    "dirs",
                    Error::usage(format!("the file is not a migration: {why}"))
                        .in_file(path.display(), None)
                        .hint("it would silently not run: rename it, or list its name under `ignore:`"),
                ));
                continue;
            }
        };
        if name.dialect == Dialect::Other {
            overrides.other_dialect(&file);
            out.passed_over += 1;
            continue;
        }
        let group = (name.direction == Direction::Up, key(names, &name.number));
        groups.entry(group).or_default().push(File { name, file, path });
    }
    let mut ups: Vec<File> = Vec::new();
    let mut downs: BTreeMap<String, File> = BTreeMap::new();
    for ((up, key), files) in groups {
        // popx: a dialect's own file goes before the one for all databases.
        let own = files.iter().any(|f| f.name.dialect == Dialect::Postgres);
        let (mut chosen, others): (Vec<File>, Vec<File>) =
            files.into_iter().partition(|f| !own || f.name.dialect == Dialect::Postgres);
        for other in others {
            overrides.other_dialect(&other.file);
        }
        if let [first, second, ..] = &chosen[..] {
            out.problems.push((
                "dirs",
                Error::usage(format!("the number {key} is used twice, also by {}", first.path.display()))
                    .in_file(second.path.display(), None)
                    .hint(
                        "numbers are unique within a folder; list the one that is not meant under `ignore:`",
                    ),
            ));
        }
        match chosen.pop() {
            Some(file) if up => ups.push(file),
            Some(file) => drop(downs.insert(key, file)),
            None => {}
        }
    }
    ups.sort_by(|a, b| names.compare(&a.name.number, &b.name.number));
    if ups.is_empty() && out.problems.is_empty() {
        return Err(Error::usage("there is no migration in this folder")
            .in_file(root.display(), None)
            .hint("check the path; it is relative to the plan's folder"));
    }
    for up in ups {
        let down = downs.remove(&key(names, &up.name.number));
        let (script, replaced_by) = read(&up, overrides, &mut out.problems);
        let down = match &down {
            Some(file) => read(file, overrides, &mut out.problems).0,
            None => overrides.added_down(&up.file, &mut out.problems),
        };
        if let Some(up_script) = script {
            out.migrations.push(Migration {
                folder: dir.display().to_string(),
                number: up.name.number,
                file: up.file,
                may_be_late: up.name.may_be_late,
                up: up_script,
                down,
                replaced_by,
            });
        }
    }
    // A popx folder may take back for all databases what it did for another one only.
    for lonely in downs.into_values().filter(|_| names != Names::Popx) {
        out.problems.push((
            "dirs",
            Error::usage("a down file without the migration it takes back")
                .in_file(lonely.path.display(), None)
                .hint("see whether a file is missing; otherwise list this one under `ignore:`"),
        ));
    }
    Ok(())
}

fn key(names: Names, number: &str) -> String {
    if names == Names::Popx { number.to_owned() } else { number.trim_start_matches('0').to_owned() }
}

fn read(
    file: &File,
    overrides: &mut Overrides,
    problems: &mut Vec<(&'static str, Error)>,
) -> (Option<Script>, Option<String>) {
    let replaced_by = overrides.take(&file.file);
    let path = replaced_by.as_ref().unwrap_or(&file.path);
    let field = if replaced_by.is_some() { "override" } else { "dirs" };
    let script = parse(path, file.name.autocommit).map_err(|error| problems.push((field, error))).ok();
    (script, replaced_by.map(|p| p.display().to_string()))
}

fn parse(path: &Path, autocommit: bool) -> crate::Result<Script> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Error::usage(format!("cannot read the file ({e})"))
            .in_file(path.display(), None)
            .hint("migration files are UTF-8 text; check the file and its permissions")
    })?;
    // The mark that some editors put first is no SQL; psql leaves it out too.
    Script::parse(&path.display().to_string(), text.trim_start_matches('\u{feff}'), autocommit)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// All `.sql` files below `root`, by path. Hidden files and folders are left out.
fn walk(dir: &Path, out: &mut Vec<PathBuf>) -> crate::Result<()> {
    let failed = |e: std::io::Error| {
        Error::usage(format!("cannot read the folder ({e})"))
            .in_file(dir.display(), None)
            .hint("paths are relative to the plan's folder")
    };
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        entries.push(entry.map_err(failed)?.path());
    }
    entries.sort();
    for path in entries {
        let name = file_name(&path);
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            walk(&path, out)?;
        } else if name.ends_with(".sql") {
            out.push(path);
        }
    }
    Ok(())
}

/// Whether a file name fits a pattern in which `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => {
            let Some(rest) = name.strip_prefix(head) else { return false };
            (0..=rest.len()).filter(|i| rest.is_char_boundary(*i)).any(|i| matches(tail, &rest[i..]))
        }
    }
}

/// The files that stand in for the vendor's, and what became of each.
#[derive(Default)]
struct Overrides {
    files: BTreeMap<String, PathBuf>,
    used: BTreeMap<String, usize>,
    not_ours: BTreeSet<String>,
    known: BTreeSet<String>,
}

impl Overrides {
    fn read(base: &Path, dir: &Path, problems: &mut Vec<(&'static str, Error)>) -> Self {
        let mut paths = Vec::new();
        if let Err(error) = walk(&base.join(dir), &mut paths) {
            problems.push(("override", error));
        }
        Overrides { files: paths.into_iter().map(|p| (file_name(&p), p)).collect(), ..Self::default() }
    }

    fn other_dialect(&mut self, file: &str) {
        self.not_ours.insert(file.to_owned());
    }

    fn take(&mut self, file: &str) -> Option<PathBuf> {
        self.known.insert(file.to_owned());
        let path = self.files.get(file)?;
        *self.used.entry(file.to_owned()).or_default() += 1;
        Some(path.clone())
    }

    /// A down file that the vendor does not have may be added: its name is the up file's with `down`.
    fn added_down(&mut self, up: &str, problems: &mut Vec<(&'static str, Error)>) -> Option<Script> {
        let name = match up.strip_suffix(".up.sql") {
            Some(stem) => format!("{stem}.down.sql"),
            None => format!("{}.down.sql", up.strip_suffix(".sql")?),
        };
        let path = self.take(&name)?;
        parse(&path, name.contains(".autocommit.")).map_err(|error| problems.push(("override", error))).ok()
    }

    fn report(&self, problems: &mut Vec<(&'static str, Error)>) {
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
