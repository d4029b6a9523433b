//! Files: replaced atomically, with what was there kept beside them until it is not needed any more.

use crate::actions::Actions;
use crate::command::Command;
use crate::words::check_env;
use handover_core::error::{Error, Result};
use handover_core::problem::{Problems, Segment};
use handover_core::value::EnvString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// A file's wanted content.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileWrite {
    /// The file; a relative path starts at the plan's folder. Of a symbolic link, the file it leads to is
    /// replaced.
    pub path: PathBuf,
    /// The whole content.
    pub content: EnvString,
    /// Permission bits in octal, e.g. `"0640"`, for a file that is not there yet (`0600` unless given). A
    /// file that is there keeps its owner and permissions.
    pub mode: Option<String>,
    /// A command that makes whoever reads the file read it again; run after every change of it.
    pub reload: Option<Command>,
}

/// What a file was before we replaced it. Holds digests, never content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Original {
    /// The file itself, links followed.
    pub path: PathBuf,
    /// SHA-256 of its content; none when there was no file.
    pub digest: Option<String>,
    /// Where its content is kept.
    pub backup: PathBuf,
}

impl FileWrite {
    /// Finds what is wrong with it; `path` is relative to the problems' base.
    pub fn check(&self, path: &[Segment], problems: &mut Problems) {
        let at = |field: &str| -> Vec<Segment> { path.iter().cloned().chain([field.into()]).collect() };
        if self.path.file_name().is_none() {
            problems.error(at("path"), format!("`{}` is not the path of a file", self.path.display()));
        }
        check_env(&self.content, &at("content"), problems);
        if let Some(mode) = &self.mode
            && parse_mode(mode).is_none()
        {
            problems
                .error(at("mode"), format!("`{mode}` is not a file mode"))
                .hint("write permission bits in octal, in quotes: \"0640\"");
        }
        if let Some(reload) = &self.reload {
            reload.check(&at("reload"), problems);
        }
    }

    /// The file itself: relative paths start at `base`, and links are followed also where they lead to nothing.
    #[must_use]
    pub fn target(&self, base: &Path) -> PathBuf {
        target(base, &self.path)
    }

    fn bits(&self) -> u32 {
        self.mode.as_deref().and_then(parse_mode).unwrap_or(0o600)
    }
}

/// The file that a plan's path means: relative paths start at `base`, and links are followed also where they lead to
/// nothing.
#[must_use]
pub fn target(base: &Path, path: &Path) -> PathBuf {
    let mut path = base.join(path);
    // Bounded like the system's own limit, for links that lead in a circle.
    for _ in 0..40 {
        let Ok(link) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("/")).join(link);
    }
    path
}

fn parse_mode(text: &str) -> Option<u32> {
    u32::from_str_radix(text.trim_start_matches("0o"), 8).ok().filter(|bits| *bits <= 0o7777)
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn digest_of(path: &Path) -> Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(digest(&bytes))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", path, &e)),
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Error {
    Error::external(format!("cannot {what} {} ({error})", path.display()))
        .hint("see that the folder exists and that this user may write in it, then `handover resume`")
}

/// Replaces `path` in one step, durably: whoever reads sees the old content or the new, never a part.
/// Permissions and owner come from `like`, or are `bits` and ours.
///
/// # Errors
/// The folder cannot be written to, or the file not be given to its owner.
pub fn replace(path: &Path, content: &[u8], like: Option<&fs::Metadata>, bits: u32) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = tempfile::Builder::new().prefix(".handover-").tempfile_in(folder)?;
    temporary.write_all(content)?;
    let file = temporary.as_file();
    if let Some(like) = like {
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
            fchown(file, Some(like.uid()), Some(like.gid()))?;
        }
    }
    // After the owner, whose change clears the set-id bits.
    file.set_permissions(fs::Permissions::from_mode(like.map_or(bits, |m| m.mode() & 0o7777)))?;
    file.sync_all()?;
    temporary.persist(path).map_err(|e| e.error)?;
    File::open(folder)?.sync_all()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{suffix}"));
    path.with_file_name(name)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => {
            path.parent().filter(|p| !p.as_os_str().is_empty()).map_or(Ok(()), |p| File::open(p)?.sync_all())
        }
    }
}

impl Actions<'_> {
    /// Whether the file has the wanted content.
    ///
    /// # Errors
    /// A file that cannot be read; an environment variable that is not set.
    pub fn file_is(&self, file: &FileWrite) -> Result<bool> {
        let wanted = digest(file.content.resolve()?.expose().as_bytes());
        Ok(digest_of(&file.target(&self.port.base))? == Some(wanted))
    }

    /// Keeps what the file is now, beside it and with the same permissions, as `NAME.handover-TAG`. Keep the
    /// returned value in the journal before the file is replaced.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn file_keep(&self, file: &FileWrite, tag: &str) -> Result<Original> {
        let path = file.target(&self.port.base);
        let backup = beside(&path, &format!("handover-{tag}"));
        let digest = match fs::read(&path) {
            Ok(content) => {
                let like = fs::metadata(&path).map_err(|e| failed("read", &path, &e))?;
                replace(&backup, &content, Some(&like), 0o600).map_err(|e| failed("write", &backup, &e))?;
                Some(digest(&content))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(failed("read", &path, &e)),
        };
        Ok(Original { path, digest, backup })
    }

    /// Replaces the file atomically and runs its `reload`. Safe to repeat.
    ///
    /// # Errors
    /// The folder cannot be written to; `reload` failing.
    pub async fn file_write(&self, unit: &str, file: &FileWrite) -> Result<()> {
        self.port.proceed()?;
        let path = file.target(&self.port.base);
        let like = fs::metadata(&path).ok();
        let content = file.content.resolve()?;
        replace(&path, content.expose().as_bytes(), like.as_ref(), file.bits())
            .map_err(|e| failed("write", &path, &e))?;
        self.reload(unit, file).await
    }

    /// Puts back what the file was, and runs its `reload`. What somebody else wrote into it meanwhile is kept
    /// beside it and told. Safe to repeat; the kept copy stays until [`Actions::file_forget`].
    ///
    /// # Errors
    /// The kept copy is missing or was changed; the folder cannot be written to; `reload` failing.
    pub async fn file_restore(&self, unit: &str, file: &FileWrite, original: &Original) -> Result<()> {
        self.port.proceed()?;
        let path = &original.path;
        let now = digest_of(path)?;
        if now != original.digest {
            let ours = file.content.resolve().map(|c| digest(c.expose().as_bytes())).ok();
            if now.is_some() && now != ours {
                self.keep_aside(path)?;
            }
            match &original.digest {
                Some(wanted) => {
                    let content =
                        fs::read(&original.backup).map_err(|e| failed("read", &original.backup, &e))?;
                    if digest(&content) != *wanted {
                        return Err(Error::external(format!(
                            "{} is not what was kept there any more",
                            original.backup.display()
                        ))
                        .hint(format!(
                            "restore {} by hand, then `handover rollback` again",
                            path.display()
                        )));
                    }
                    let like = fs::metadata(&original.backup).ok();
                    replace(path, &content, like.as_ref(), 0o600).map_err(|e| failed("write", path, &e))?;
                }
                None => remove(path).map_err(|e| failed("remove", path, &e))?,
            }
        }
        self.reload(unit, file).await
    }

    /// Whether the file is what it was.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn file_is_original(&self, original: &Original) -> Result<bool> {
        Ok(digest_of(&original.path)? == original.digest)
    }

    /// Removes the kept copy; after this nothing can be restored.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn file_forget(&self, original: &Original) -> Result<()> {
        remove(&original.backup).map_err(|e| failed("remove", &original.backup, &e))
    }

    /// Removes a copy that [`Actions::file_keep`] made and nobody remembered.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn file_discard(&self, file: &FileWrite, tag: &str) -> Result<()> {
        let backup = beside(&file.target(&self.port.base), &format!("handover-{tag}"));
        remove(&backup).map_err(|e| failed("remove", &backup, &e))
    }

    fn keep_aside(&self, path: &Path) -> Result<()> {
        let content = fs::read(path).map_err(|e| failed("read", path, &e))?;
        let like = fs::metadata(path).map_err(|e| failed("read", path, &e))?;
        let aside = beside(path, &format!("handover-changed-{}", &digest(&content)[..8]));
        replace(&aside, &content, Some(&like), 0o600).map_err(|e| failed("write", &aside, &e))?;
        self.port.warn(format!(
            "{} was changed by somebody else meanwhile; what they wrote is kept in {}",
            path.display(),
            aside.display()
        ));
        Ok(())
    }

    async fn reload(&self, unit: &str, file: &FileWrite) -> Result<()> {
        match &file.reload {
            Some(command) => self.command(unit, command).await?.succeeded(),
            None => Ok(()),
        }
    }
}
