//! What a digest is made of, kept in the journal: so that a refusal can name what changed, and a run can be looked at
//! and rolled back when its plan's file cannot be read.

use super::{Plan, secrets};
use crate::error::{Error, Result};
use crate::event::Reviewed;
use crate::postgres::Databases;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

impl Plan {
    /// What this plan is on these databases. Only reads.
    ///
    /// # Errors
    /// A file or a database that cannot be read.
    pub async fn reviewed(&self, databases: &Databases) -> Result<Reviewed> {
        self.reviewed_without(databases, &BTreeSet::new()).await
    }

    /// The same without some databases, which are not asked.
    ///
    /// # Errors
    /// As [`Plan::reviewed`].
    pub async fn reviewed_without(
        &self,
        databases: &Databases,
        absent: &BTreeSet<String>,
    ) -> Result<Reviewed> {
        let mut out = self.reviewed_files()?;
        for (name, identity) in self.identities_without(databases, absent).await? {
            let what = format!("database {} of the server {}", identity.database, identity.system_identifier);
            out.parts.insert(format!("database {name}"), what);
        }
        Ok(out)
    }

    /// The part of it that no database has to be asked for.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn reviewed_files(&self) -> Result<Reviewed> {
        let mut parts = BTreeMap::new();
        for step in self.steps.iter() {
            for file in step.kind.files() {
                let name = file.to_string_lossy();
                add(&mut parts, &self.base.join(&file), &name).map_err(|e| self.locate(e, &step.id))?;
            }
        }
        let file = std::path::absolute(&self.file).unwrap_or_else(|_| self.file.clone());
        Ok(Reviewed { file: file.display().to_string(), text: self.text.clone(), parts })
    }
}

fn add(parts: &mut BTreeMap<String, String>, path: &Path, name: &str) -> Result<()> {
    let unreadable = |e: std::io::Error| {
        Error::usage(format!("cannot read `{name}`, which the plan names ({e})"))
            .hint("restore it, or change the plan")
    };
    if !path.is_dir() {
        let digest = Sha256::digest(std::fs::read(path).map_err(unreadable)?);
        let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        parts.insert(format!("file {name}"), hex);
        return Ok(());
    }
    parts.insert(format!("folder {name}"), String::new());
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?.file_name();
        let entry = entry.to_string_lossy();
        add(parts, &path.join(&*entry), &format!("{name}/{entry}"))?;
    }
    Ok(())
}

/// What differs between what was reviewed and what is there now, in words; the plan first.
#[must_use]
pub fn differences(then: &Reviewed, now: &Reviewed) -> Vec<String> {
    let mut out = Vec::new();
    if then.text != now.text {
        out.push(lines(&then.text, &now.text));
    }
    for (name, was) in &then.parts {
        match now.parts.get(name) {
            Some(is) if is == was => {}
            Some(is) if name.starts_with("database ") => out.push(format!("{name} is {is}, and was {was}")),
            Some(_) => out.push(format!("{name} has another content")),
            None => out.push(format!("{name} is gone")),
        }
    }
    out.extend(
        now.parts.keys().filter(|name| !then.parts.contains_key(*name)).map(|name| format!("{name} is new")),
    );
    out
}

/// Where two texts of a plan begin to differ.
fn lines(then: &str, now: &str) -> String {
    let (mut was, mut is) = (then.lines(), now.lines());
    let mut number = 1;
    loop {
        let shown = |line: Option<&str>| match line {
            Some(line) => {
                let line = secrets::masked(line.trim()).0;
                let cut: String = line.chars().take(60).collect();
                if cut.len() < line.len() { format!("`{cut}…`") } else { format!("`{cut}`") }
            }
            None => "the end".to_owned(),
        };
        match (was.next(), is.next()) {
            (Some(a), Some(b)) if a == b => number += 1,
            (None, None) => return "the plan's line ends or its last line".to_owned(),
            (a, b) => return format!("the plan from line {number} on: {} is now {}", shown(a), shown(b)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reviewed(text: &str, parts: &[(&str, &str)]) -> Reviewed {
        let parts = parts.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        Reviewed { file: "plan.yaml".into(), text: text.into(), parts }
    }

    #[test]
    fn each_change_is_named() {
        let then = reviewed(
            "a: 1\nb: 2\n",
            &[("file x.sql", "1"), ("file y.sql", "1"), ("database blue", "database a of the server 7")],
        );
        let now = reviewed(
            "a: 1\nb: 3\n",
            &[("file x.sql", "2"), ("file z.sql", "1"), ("database blue", "database b of the server 7")],
        );
        let words = differences(&then, &now);
        assert_eq!(
            words,
            [
                "the plan from line 2 on: `b: 2` is now `b: 3`",
                "database blue is database b of the server 7, and was database a of the server 7",
                "file x.sql has another content",
                "file y.sql is gone",
                "file z.sql is new",
            ]
        );
        assert!(differences(&then, &then.clone()).is_empty());
        assert!(lines("a", "a\nb").contains("the end is now `b`"));
    }
}
