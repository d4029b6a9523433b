//! Programs that steps start: pg_dump for `copy`, in a version that reads the source and that the target
//! understands (<https://www.postgresql.org/docs/current/app-pgdump.html>, Notes).

use super::{Finding, Notes};
use crate::plan::Plan;
use crate::steps::Access;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use tokio::process::Command;

pub(super) async fn examine(plan: &Plan, versions: &BTreeMap<String, u32>) -> Vec<Finding> {
    let mut notes = Notes::new("programs");
    let mut found: Option<Vec<(u32, PathBuf)>> = None;
    for step in plan.steps.iter().filter(|step| step.kind_name == "copy") {
        let databases = step.kind.databases();
        let version = |access| {
            databases.iter().find(|(_, a)| *a == access).and_then(|(name, _)| versions.get(*name)).copied()
        };
        let (Some(blue), Some(green)) = (version(Access::Read), version(Access::Write)) else { continue };
        let found = match &found {
            Some(found) => found,
            None => found.insert(installed().await),
        };
        match found.iter().filter(|(major, _)| (blue..=green).contains(major)).max() {
            Some((major, path)) => {
                notes.ok(format!("step `{}`: pg_dump {major} ({})", step.id, path.display()));
            }
            None => {
                let seen: Vec<String> =
                    found.iter().map(|(major, path)| format!("{major} ({})", path.display())).collect();
                let seen = if seen.is_empty() {
                    "none was found".to_owned()
                } else {
                    format!("found {}", seen.join(", "))
                };
                notes.error(
                    format!("step `{}` needs a pg_dump of version {blue} to {green}; {seen}", step.id),
                    format!("install the client programs of Postgres {green}, or name their folder with `programs:`"),
                );
            }
        }
    }
    notes.findings
}

async fn installed() -> Vec<(u32, PathBuf)> {
    let mut folders: Vec<PathBuf> = [crate::local::GREEN_VARIABLE, crate::local::BLUE_VARIABLE]
        .into_iter()
        .filter_map(std::env::var_os)
        .map(PathBuf::from)
        .collect();
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    for (parent, prefix) in
        [("/usr/lib/postgresql", ""), ("/usr", "pgsql-"), ("/opt/homebrew/opt", "postgresql")]
    {
        let Ok(children) = std::fs::read_dir(parent) else { continue };
        folders.extend(
            children
                .flatten()
                .filter(|child| child.file_name().to_string_lossy().starts_with(prefix))
                .map(|child| child.path().join("bin")),
        );
    }
    let mut out = Vec::new();
    for program in folders.into_iter().map(|folder| folder.join("pg_dump")).filter(|path| path.is_file()) {
        if let Some(major) = major(&program).await
            && !out.iter().any(|(other, _)| *other == major)
        {
            out.push((major, program));
        }
    }
    out
}

/// The number in `pg_dump (PostgreSQL) 18.1`.
async fn major(program: &PathBuf) -> Option<u32> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().await.ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_once(") ")?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
