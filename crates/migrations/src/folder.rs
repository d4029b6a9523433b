//! The plan's folders as one ordered list of migrations, with everything that is wrong with them.

use crate::files::{Both, file_name, parse, settings, text_of, tool_of, walk};
use crate::names::detect::detect;
use crate::names::{Dialect, Direction, KNOWN, Kind, Name, Names};
use crate::overrides::Overrides;
use crate::script::Script;
use crate::sections::written_for;
use handover_core::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// One migration: a number within a folder, the file that applies it, the file that takes it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// The folder as the plan writes it.
    pub folder: String,
    /// Whose names the folder uses.
    pub names: Names,
    /// The number as the file has it.
    pub number: String,
    /// The words after it.
    pub title: String,
    /// When it runs.
    pub kind: Kind,
    /// The file's name, after the name of its folder where each migration is one.
    pub file: String,
    /// The file's path in the folder, with `/`.
    pub script: String,
    /// Whether it may appear after later ones were applied.
    pub may_be_late: bool,
    /// What applies it.
    pub up: Script,
    /// What takes it back, if there is such a file.
    pub down: Option<Script>,
    /// The file that stands in for the vendor's, if any.
    pub replaced_by: Option<String>,
    /// The vendor's file, to the last byte, whatever stands in for it: a vendor's checksum is over this.
    pub shipped: String,
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
    pub fn into_result(self) -> Result<Self> {
        match self.problems.first() {
            Some((_, error)) => Err(error.clone()),
            None => Ok(self),
        }
    }
}

/// What a folder is read with.
struct Reader<'a> {
    root: &'a Path,
    dir: &'a Path,
    ignore: &'a [String],
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
        let reader = Reader { root: &base.join(dir), dir, ignore };
        if let Err(error) = reader.load(names, &mut overrides, &mut out) {
            out.problems.push(("dirs", error));
        }
    }
    overrides.report(&mut out.problems);
    out
}

impl Reader<'_> {
    fn load(&self, names: Names, overrides: &mut Overrides, out: &mut Loaded) -> Result<()> {
        let (mut paths, mut programs) = (Vec::new(), Vec::new());
        walk(self.root, &mut paths, &mut programs)?;
        paths.retain(|path| self.kept(path));
        let names = if names == Names::Auto { self.detect(&paths, &programs)? } else { names };
        for path in programs.iter().filter(|p| self.kept(p) && self.is_read(names, p)) {
            let tool = tool_of(path).unwrap_or("the vendor's tool");
            out.problems.push((
                "dirs",
                Error::usage(format!("this migration is a program, which only {tool} can run"))
                    .in_file(path.display(), None)
                    .hint("run it with the vendor's tool before or after this step, or put what it does into SQL; then list its name under `ignore:`"),
            ));
        }
        let mut groups: BTreeMap<(Direction, Kind, String), Vec<File>> = BTreeMap::new();
        for path in paths.into_iter().filter(|path| self.is_read(names, path)) {
            let file = if names.has_folders() { self.relative(&path) } else { file_name(&path) };
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
            let group = (name.direction, name.kind, names.identity(&name.number));
            groups.entry(group).or_default().push(File { name, file, path });
        }
        let mut ups: Vec<File> = Vec::new();
        let mut downs: BTreeMap<(Kind, String), File> = BTreeMap::new();
        for ((direction, kind, number), files) in groups {
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
                    Error::usage(format!(
                        "the number {number} is used twice, also by {}",
                        first.path.display()
                    ))
                    .in_file(second.path.display(), None)
                    .hint(
                        "numbers are unique within a folder; list the one that is not meant under `ignore:`",
                    ),
                ));
            }
            match chosen.pop() {
                Some(file) if direction == Direction::Up => ups.push(file),
                Some(file) => drop(downs.insert((kind, number), file)),
                None => {}
            }
        }
        // What Flyway's baseline stands for comes after it, and what is repeated comes last.
        ups.sort_by(|a, b| {
            let last = |file: &File| file.name.kind == Kind::Repeatable;
            last(a)
                .cmp(&last(b))
                .then_with(|| names.compare(&a.name.number, &b.name.number))
                .then_with(|| a.name.kind.cmp(&b.name.kind))
        });
        if ups.is_empty() && out.problems.is_empty() {
            return Err(Error::usage("there is no migration in this folder")
                .in_file(self.root.display(), None)
                .hint("check the path; it is relative to the plan's folder"));
        }
        for up in ups {
            let down = downs.remove(&(up.name.kind, names.identity(&up.name.number)));
            let migration = self.migration(names, up, down.as_ref(), overrides, &mut out.problems);
            out.migrations.extend(migration);
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

    fn kept(&self, path: &Path) -> bool {
        let (name, relative) = (file_name(path), self.relative(path));
        !self.ignore.iter().any(|pattern| matches(pattern, &name) || matches(pattern, &relative))
    }

    /// Whether the tool would look at a file in this place.
    fn is_read(&self, names: Names, path: &Path) -> bool {
        names.recurses() || names.has_folders() || path.parent() == Some(self.root)
    }

    fn relative(&self, path: &Path) -> String {
        let relative = path.strip_prefix(self.root).unwrap_or(path);
        relative.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
    }

    fn detect(&self, paths: &[PathBuf], programs: &[PathBuf]) -> Result<Names> {
        let unclear = |why: String| {
            Error::usage(format!("cannot tell which tool's names this folder uses: {why}"))
                .in_file(self.root.display(), None)
                .hint(format!(
                    "say so with `names:`, and leave other files out with `ignore:`; known are {KNOWN}"
                ))
        };
        let folders = |name: &str| matches!(name, "up.sql" | "down.sql" | "migration.sql");
        let top: Vec<&PathBuf> = paths.iter().filter(|p| p.parent() == Some(self.root)).collect();
        let mut listed: Vec<String> = paths
            .iter()
            .filter(|p| top.contains(p) || folders(&file_name(p)))
            .map(|p| self.relative(p))
            .collect();
        if listed.is_empty() {
            listed = paths.iter().map(|p| self.relative(p)).collect();
        }
        if let (true, Some(program)) = (listed.is_empty(), programs.iter().find(|p| self.kept(p))) {
            let tool = tool_of(program).unwrap_or("the vendor's tool");
            return Err(unclear(format!(
                "`{}` is a program, which only {tool} can run",
                self.relative(program)
            )));
        }
        let names = detect(&listed.iter().map(String::as_str).collect::<Vec<_>>()).map_err(unclear)?;
        if !matches!(names, Names::Sqlx | Names::Numbered) {
            return Ok(names);
        }
        // Only their text tells goose's and dbmate's files from others.
        let mut marked = None;
        for path in &top {
            let tool = written_for(&text_of(path)?);
            match (&marked, tool) {
                (None, _) => marked = Some((tool, path)),
                (Some((before, first)), tool) if *before != tool => {
                    let say = |tool: Option<Names>| match tool {
                        Some(Names::Goose) => "is written for goose",
                        Some(_) => "is written for dbmate",
                        None => "has no marks of goose or dbmate",
                    };
                    return Err(unclear(format!(
                        "`{}` {}, and `{}` {}",
                        file_name(first),
                        say(*before),
                        file_name(path),
                        say(tool)
                    )));
                }
                _ => {}
            }
        }
        Ok(marked.and_then(|(tool, _)| tool).unwrap_or(names))
    }

    fn migration(
        &self,
        names: Names,
        up: File,
        down: Option<&File>,
        overrides: &mut Overrides,
        problems: &mut Vec<(&'static str, Error)>,
    ) -> Option<Migration> {
        let shipped = text_of(&up.path).map_err(|error| problems.push(("dirs", error))).ok()?;
        let (read_up, replaced_by) = read(names, &up, overrides, problems);
        let (script, other) = read_up.unzip();
        let down = match down {
            Some(file) => read(names, file, overrides, problems).0.map(|(script, _)| script),
            None => other.flatten().or_else(|| overrides.added_down(&up.file, problems)),
        };
        Some(Migration {
            folder: self.dir.display().to_string(),
            names,
            number: up.name.number,
            title: up.name.title,
            kind: up.name.kind,
            script: self.relative(&up.path),
            file: up.file,
            may_be_late: up.name.may_be_late,
            up: script?,
            down,
            replaced_by,
            shipped,
        })
    }
}

fn read(
    names: Names,
    file: &File,
    overrides: &mut Overrides,
    problems: &mut Vec<(&'static str, Error)>,
) -> (Option<Both>, Option<String>) {
    let replaced_by = overrides.take(&file.file);
    let path = replaced_by.as_ref().unwrap_or(&file.path);
    let field = if replaced_by.is_some() { "override" } else { "dirs" };
    let autocommit = settings(names, &file.path).map(|says| says || file.name.autocommit);
    let script = autocommit
        .and_then(|autocommit| parse(path, names, autocommit))
        .map_err(|error| problems.push((field, error)))
        .ok();
    (script, replaced_by.map(|p| p.display().to_string()))
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
