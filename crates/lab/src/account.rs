//! The operating system account that servers run as: Postgres refuses to run as root.

use handover_core::{Error, Result};
use nix::unistd::{Uid, User};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An account to run a server as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Account {
    /// The one that runs us.
    Own,
    /// An unprivileged one, taken because we are root.
    Other { uid: u32, gid: u32 },
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    Uid::effective().is_root()
}

impl Account {
    /// The account to use: our own, or when we are root the first of `preferred` that exists, or `nobody`.
    pub(crate) fn choose(preferred: &[&str]) -> Result<Self> {
        if !is_root() {
            return Ok(Account::Own);
        }
        let unprivileged = |name: &str| User::from_name(name).ok().flatten().filter(|u| !u.uid.is_root());
        preferred
            .iter()
            .copied()
            .chain(["nobody"])
            .find_map(unprivileged)
            .map(|u| Account::Other { uid: u.uid.as_raw(), gid: u.gid.as_raw() })
            .ok_or_else(|| {
                Error::external("no unprivileged account is there to run servers as")
                    .hint("servers refuse to run as root: create a user `postgres`, or run as another user")
            })
    }

    /// Makes `command` run as this account.
    pub(crate) fn apply(&self, command: &mut Command) {
        if let Account::Other { uid, gid } = self {
            command.uid(*uid).gid(*gid);
        }
    }

    /// Gives `path` to this account.
    pub(crate) fn own(&self, path: &Path) -> Result<()> {
        let Account::Other { uid, gid } = self else { return Ok(()) };
        std::os::unix::fs::chown(path, Some(*uid), Some(*gid))
            .map_err(|e| Error::external(format!("cannot give {} to a server: {e}", path.display())))
    }

    /// A new, empty folder of this account's for one server. The account can remove it too, as guardians
    /// must, because the folder above is one that everybody may write in.
    pub(crate) fn folder(&self, purpose: &str) -> Result<PathBuf> {
        let mut parents = vec![std::env::temp_dir()];
        if is_root() {
            // Root's own temporary folder may be closed to others.
            parents.retain(|p| std::fs::metadata(p).is_ok_and(|m| m.permissions().mode() & 0o1007 == 0o1007));
            parents.push(PathBuf::from("/tmp"));
        }
        let parent = parents.first().cloned().unwrap_or_else(|| PathBuf::from("/tmp"));
        let made = tempfile::Builder::new()
            .prefix(&format!("handover-{purpose}-"))
            .tempdir_in(&parent)
            .map_err(|e| {
                Error::external(format!("cannot make a folder in {}: {e}", parent.display()))
                    .hint("set TMPDIR to a folder with room for a database")
            })?
            .keep();
        self.own(&made)?;
        Ok(made)
    }

    /// Writes a file of this account's that nobody else can read.
    pub(crate) fn write(&self, path: &Path, text: &str) -> Result<()> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|e| Error::external(format!("cannot write {}: {e}", path.display())))?;
        self.own(path)
    }
}
