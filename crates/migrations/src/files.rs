//! The files below a folder: found, read, and told from programs.

use crate::names::Names;
use crate::script::Script;
use crate::sections::sections;
use handover_core::{Error, Result};
use std::path::{Path, PathBuf};

/// What a file does, and what takes that back if it says so itself.
pub type Both = (Script, Option<Script>);

/// Whether the file beside a migration says that it must not run in a transaction: Diesel's `metadata.toml`,
/// Flyway's `V1__name.sql.conf`.
pub fn settings(names: Names, path: &Path) -> Result<bool> {
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

/// Reads a file.
pub fn parse(path: &Path, names: Names, autocommit: bool) -> Result<Both> {
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

pub fn text_of(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| {
        Error::usage(format!("cannot read the file ({e})"))
            .in_file(path.display(), None)
            .hint("migration files are UTF-8 text; check the file and its permissions")
    })
}

pub fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// What a file is known by: its name, after its folder's where the name alone says nothing.
pub fn label(path: &Path) -> String {
    let name = file_name(path);
    match (name.as_str(), path.parent()) {
        ("up.sql" | "down.sql" | "migration.sql", Some(folder)) => format!("{}/{name}", file_name(folder)),
        _ => name,
    }
}

/// All `.sql` files below `root` by path, and the migrations that are programs. Hidden files and folders are
/// left out.
pub fn walk(dir: &Path, out: &mut Vec<PathBuf>, programs: &mut Vec<PathBuf>) -> Result<()> {
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
pub fn tool_of(path: &Path) -> Option<&'static str> {
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
