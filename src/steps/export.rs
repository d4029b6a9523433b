//! A folder into which an undo writes what it loses. A file has its name only when it is complete and on the disk, and the
//! manifest, which is replaced in one step, says what each is: whoever goes on after a crash overwrites none of them.

use crate::error::{Error, Result};
use crate::event::{RunId, StepId};
use handover_actions::file::replace;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The manifest's name.
pub const MANIFEST: &str = "manifest.json";
/// What people read.
pub const README: &str = "README.md";
/// The end of a name under which a file is being written.
const PART: &str = "part";
/// Only its owner reads what stands there: they are the application's rows.
const BITS: u32 = 0o600;

/// A file of rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The table.
    pub table: String,
    /// The file's name in the folder.
    pub file: String,
    /// The columns, in the file's order.
    pub columns: Vec<String>,
    /// How many rows it has.
    pub rows: i64,
    /// The snapshot that they were read with.
    pub snapshot: String,
    /// When.
    pub at: Timestamp,
    /// Whether they were written while the first files were, or after.
    pub late: bool,
}

/// What stands in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The run that lost it.
    pub run: RunId,
    /// The step whose undo it was.
    pub step: StepId,
    /// The database that the rows are from.
    pub database: String,
    /// Whether every table was gone through.
    pub complete: bool,
    /// The files.
    pub files: Vec<Entry>,
}

/// A folder of one step's.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// What stands in it.
    pub manifest: Manifest,
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Error {
    Error::external(format!("cannot {what} {} ({error})", path.display()))
        .hint("see that the folder can be written to and that its disk has room, then `handover resume`")
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn read(path: &Path) -> Option<Manifest> {
    serde_json::from_slice(&fs::read(path.join(MANIFEST)).ok()?).ok()
}

/// Refuses a folder that cannot be written to, or that has anything in it but what this run began to write there. Leaves
/// nothing behind.
///
/// # Errors
/// [`crate::Class::Usage`].
pub fn fits(path: &Path, run: RunId) -> Result<()> {
    let refuse = |what: String| {
        Err(Error::usage(format!("cannot export to {}: {what}; nothing was undone", path.display())).hint(
            "give `--export` a folder that is empty, or is not there yet in one that can be written to",
        ))
    };
    let writable =
        |folder: &Path| tempfile::Builder::new().prefix(".handover-").tempfile_in(folder).map(drop);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            match parent.is_dir().then(|| writable(parent)) {
                Some(Ok(())) => Ok(()),
                Some(Err(error)) => refuse(format!("{} cannot be written to ({error})", parent.display())),
                None => refuse(format!("there is no folder {}", parent.display())),
            }
        }
        Err(error) => refuse(error.to_string()),
        Ok(_) => {
            let mut entries = match fs::read_dir(path) {
                Ok(entries) => entries,
                Err(error) => return refuse(error.to_string()),
            };
            if entries.next().is_some() && read(path).is_none_or(|manifest| manifest.run != run) {
                return refuse("it is not empty".into());
            }
            match writable(path) {
                Ok(()) => Ok(()),
                Err(error) => refuse(format!("it cannot be written to ({error})")),
            }
        }
    }
}

impl Folder {
    /// Opens it, or makes it.
    ///
    /// # Errors
    /// As [`fits`]; a folder that another step's undo writes to.
    pub fn open(path: &Path, run: RunId, step: &StepId, database: &str) -> Result<Self> {
        fits(path, run)?;
        if !path.is_dir() {
            DirBuilder::new().mode(0o700).create(path).map_err(|e| failed("make", path, &e))?;
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            sync(parent).map_err(|e| failed("make", path, &e))?;
        }
        let manifest = match read(path) {
            Some(manifest) if manifest.step == *step => manifest,
            Some(manifest) => {
                return Err(Error::usage(format!(
                    "{} already has what the undo of step `{}` exported",
                    path.display(),
                    manifest.step
                ))
                .hint(format!(
                    "`handover rollback --to {}` first takes back what came after it, with a folder of its own",
                    manifest.step
                )));
            }
            None => Manifest {
                run,
                step: step.clone(),
                database: database.to_owned(),
                complete: false,
                files: Vec::new(),
            },
        };
        let folder = Folder { path: path.to_owned(), manifest };
        folder.save()?;
        // What was written as a whole, and did not get its name yet.
        for entry in &folder.manifest.files {
            let (part, whole) = (folder.part(&entry.file), folder.path.join(&entry.file));
            if part.exists() && !whole.exists() {
                folder.rename(&part, &whole)?;
            }
        }
        Ok(folder)
    }

    fn part(&self, file: &str) -> PathBuf {
        self.path.join(format!("{file}.{PART}"))
    }

    fn rename(&self, part: &Path, whole: &Path) -> Result<()> {
        fs::rename(part, whole).and_then(|()| sync(&self.path)).map_err(|e| failed("write", whole, &e))
    }

    /// Writes the manifest.
    ///
    /// # Errors
    /// The disk.
    pub fn save(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.manifest).map_err(|e| Error::internal(e.to_string()))?;
        self.put(MANIFEST, &text)
    }

    /// Writes a small file in one step.
    ///
    /// # Errors
    /// The disk.
    pub fn put(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        replace(&path, content, None, BITS).map_err(|e| failed("write", &path, &e))
    }

    /// The file of a table, if it is complete. `late`: the one with what came while the first was written.
    #[must_use]
    pub fn entry(&self, table: &str, late: bool) -> Option<&Entry> {
        self.manifest.files.iter().find(|entry| entry.table == table && entry.late == late)
    }

    /// A name for a table's file that no other has, on any file system.
    #[must_use]
    pub fn name(&self, table: &str, late: bool) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
        let base: String = table.chars().map(plain).take(120).collect();
        let end = if late { "late.csv" } else { "csv" };
        let taken =
            |name: &str| self.manifest.files.iter().any(|entry| entry.file.eq_ignore_ascii_case(name));
        let mut name = format!("{base}.{end}");
        let mut number = 2;
        while taken(&name) {
            name = format!("{base}-{number}.{end}");
            number += 1;
        }
        name
    }

    /// Begins a file under a name that says that it is not complete; what an earlier attempt left of it is gone.
    ///
    /// # Errors
    /// The disk.
    pub fn begin(&self, file: &str) -> Result<File> {
        let path = self.part(file);
        let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(BITS).open(&path);
        opened.map_err(|e| failed("write", &path, &e))
    }

    /// A file that is complete and on the disk gets its name.
    ///
    /// # Errors
    /// The disk.
    pub fn complete(&mut self, entry: Entry) -> Result<()> {
        let (part, whole) = (self.part(&entry.file), self.path.join(&entry.file));
        self.manifest.files.push(entry);
        self.save()?;
        self.rename(&part, &whole)
    }
}

/// An error of a write to one of its files.
#[must_use]
pub fn unwritten(file: &str, error: &io::Error) -> Error {
    failed("write", Path::new(file), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_something_of_others_is_refused_and_a_half_written_file_has_no_name() {
        let place = tempfile::tempdir().unwrap();
        let (run, step) = (RunId::new(), StepId::from("flip"));
        let path = place.path().join("out");
        fits(&path, run).unwrap();
        assert!(!path.exists());
        let mut folder = Folder::open(&path, run, &step, "green").unwrap();
        let name = folder.name("a/b", false);
        assert_eq!(name, "a_b.csv");
        drop(folder.begin(&name).unwrap());
        assert!(!path.join(&name).exists());
        let entry = Entry {
            table: "a/b".into(),
            file: name.clone(),
            columns: vec!["id".into()],
            rows: 0,
            snapshot: "1:1:".into(),
            at: Timestamp::now(),
            late: false,
        };
        folder.complete(entry.clone()).unwrap();
        assert!(path.join(&name).exists());
        assert_eq!(folder.name("a_B", false), "a_B-2.csv");
        fs::rename(path.join(&name), path.join("a_b.csv.part")).unwrap();
        let again = Folder::open(&path, run, &step, "green").unwrap();
        assert!(path.join(&name).exists());
        assert_eq!(again.entry("a/b", false), Some(&entry));
        assert!(fits(&path, RunId::new()).unwrap_err().message().contains("not empty"));
        assert!(Folder::open(&path, run, &StepId::from("other"), "green").is_err());
        fs::write(place.path().join("file"), "").unwrap();
        assert!(fits(&place.path().join("file"), run).is_err());
        assert!(fits(&place.path().join("no/folder"), run).is_err());
    }
}
