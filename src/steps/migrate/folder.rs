//! The plan's folders as one ordered list of migrations, with everything that is wrong with them.

use super::names::{Dialect, Direction, KNOWN, Kind, Name, Names};
use super::overrides::Overrides;
use super::script::Script;
use super::sections::{sections, written_for};
use crate::error::Error;
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
    pub fn into_result(self) -> crate::Result<Self> {
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
    fn load(&self, names: Names, overrides: &mut Overrides, out: &mut Loaded) -> crate::Result<()> {
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

    fn detect(&self, paths: &[PathBuf], programs: &[PathBuf]) -> crate::Result<Names> {
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
        let names = Names::detect(listed.iter().map(String::as_str)).map_err(unclear)?;
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

type Both = (Script, Option<Script>);

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

/// Whether the file beside a migration says that it must not run in a transaction: Diesel's `metadata.toml`,
/// Flyway's `V1__name.sql.conf`.
fn settings(names: Names, path: &Path) -> crate::Result<bool> {
    let beside = match names {
        Names::Diesel => path.with_file_name("metadata.toml"),
        Names::Flyway => path.with_file_name(format!("{}.conf", file_name(path))),
        _ => return Ok(false),
    };
    let text = match std::fs::read_to_string(&beside) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => {
            return Err(Error::usage(format!("cannot read the file ({e})"))
                .in_file(beside.display(), None)
                .hint("check its permissions"));
        }
    };
    let says = |key: &str| {
        text.lines()
            .filter_map(|line| line.split_once('='))
            .any(|(k, v)| k.trim() == key && v.trim() == "false")
    };
    if says("shouldExecute") {
        return Err(Error::usage("it says that its migration is not to be executed")
            .in_file(beside.display(), None)
            .hint("list the migration under `ignore:`"));
    }
    Ok(says("run_in_transaction") || says("executeInTransaction"))
}

/// Reads a file: what it does, and what takes that back if it says so itself.
pub(super) fn parse(path: &Path, names: Names, autocommit: bool) -> crate::Result<Both> {
    let text = text_of(path)?;
    let shown = path.display().to_string();
    if names.has_sections() {
        let (up, down) = sections(names, &shown, &text)?;
        let down = down.map(|down| Script::parse(&shown, &down.sql, down.autocommit)).transpose()?;
        return Ok((Script::parse(&shown, &up.sql, up.autocommit || autocommit)?, down));
    }
    // The mark that some editors put first is no SQL; psql leaves it out too.
    let script = Script::parse(&shown, text.trim_start_matches('\u{feff}'), autocommit)?;
    if names == Names::Flyway {
        script.refuse_placeholders()?;
    }
    Ok((script, None))
}

fn text_of(path: &Path) -> crate::Result<String> {
    std::fs::read_to_string(path).map_err(|e| {
        Error::usage(format!("cannot read the file ({e})"))
            .in_file(path.display(), None)
            .hint("migration files are UTF-8 text; check the file and its permissions")
    })
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// What a file is known by: its name, after its folder's where the name alone says nothing.
pub(super) fn label(path: &Path) -> String {
    let name = file_name(path);
    match (name.as_str(), path.parent()) {
        ("up.sql" | "down.sql" | "migration.sql", Some(folder)) => format!("{}/{name}", file_name(folder)),
        _ => name,
    }
}

/// All `.sql` files below `root` by path, and the migrations that are programs. Hidden files and folders are
/// left out.
pub(super) fn walk(dir: &Path, out: &mut Vec<PathBuf>, programs: &mut Vec<PathBuf>) -> crate::Result<()> {
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
            walk(&path, out, programs)?;
        } else if name.ends_with(".sql") {
            out.push(path);
        } else if tool_of(&path).is_some() {
            programs.push(path);
        }
    }
    Ok(())
}

/// Who runs a migration that is a program. Helpers beside migrations have no number in their names.
fn tool_of(path: &Path) -> Option<&'static str> {
    let name = file_name(path);
    let (stem, extension) = name.rsplit_once('.')?;
    let numbered =
        stem.trim_start_matches(['V', 'U', 'R', 'B']).starts_with(|c: char| c.is_ascii_digit() || c == '_');
    Some(match extension {
        "rb" if numbered => "Rails",
        "py" if numbered => "Alembic or Django",
        "go" if numbered => "the vendor's Go program (goose)",
        "fizz" => "pop (fizz)",
        "rs" if numbered => "the vendor's Rust program (refinery)",
        "java" | "kt" | "class" if numbered => "Flyway with the vendor's Java",
        "js" | "ts" | "mjs" | "cjs" if numbered => "the vendor's Node program",
        "xml" | "yaml" | "yml" if numbered || stem.contains("changelog") => "Liquibase",
        _ => return None,
    })
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
