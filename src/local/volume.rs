//! A file system of limited size that only one server sees, to try what happens when a disk is full.

use super::account::Account;
use crate::{Error, Result};
use std::process::Command;

/// A folder that every Linux has, so that there is no mount point to be removed afterwards.
const MOUNT_POINT: &str = "/mnt";

/// Mounts, gives up root, and goes on as the shell it stands for.
const SCRIPT: &str = r#"
    mount -t tmpfs -o "size=$1,uid=$2,gid=$3,mode=700" handover "$4" || exit 71
    uid=$2 gid=$3
    shift 4
    exec setpriv --reuid "$uid" --regid "$gid" --clear-groups sh "$@"
"#;

/// A file system in memory, mounted where only the guardian and its server see it (a mount namespace), and
/// gone with the last of them.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    bytes: u64,
}

impl Volume {
    /// The tablespace that lives on the volume.
    pub(crate) const TABLESPACE: &str = "limited";

    pub(crate) fn new(bytes: u64) -> Self {
        Volume { bytes }
    }

    pub(crate) fn mount_point(&self) -> &'static str {
        MOUNT_POINT
    }

    /// A shell, to be given its arguments, that runs as `account` and sees the volume.
    pub(crate) fn shell(&self, account: &Account) -> Result<Command> {
        let Account::Other { uid, gid } = account else {
            return Err(Error::external("a volume of limited size can only be mounted by root")
                .hint("run as root, or without a limit"));
        };
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh"])
            .args([self.bytes.to_string(), uid.to_string(), gid.to_string()])
            .arg(MOUNT_POINT);
        Ok(command)
    }
}
