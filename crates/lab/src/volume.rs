//! A file system of limited size that only one server sees, to try what happens when a disk is full.

use super::account::Account;
use nix::unistd::{Gid, Uid};
use std::process::Command;

/// A folder that every Linux has, so that there is no mount point to be removed afterwards.
const MOUNT_POINT: &str = "/mnt";

/// Mounts, gives up root, and goes on as the shell it stands for. Its first arguments are size, uid and gid.
const AS_ROOT: &str = r#"
    mount -t tmpfs -o "size=$1,uid=$2,gid=$3,mode=700" handover /mnt || exit 71
    uid=$2 gid=$3
    shift 3
    exec setpriv --reuid "$uid" --regid "$gid" --clear-groups sh "$@"
"#;

/// The same for an ordinary user, who is root within a user namespace of the kernel's just long enough to
/// mount, and then itself again within another.
const AS_USER: &str = r#"
    mount -t tmpfs -o "size=$1,mode=700" handover /mnt || exit 71
    uid=$2 gid=$3
    shift 3
    exec unshare --user --map-user "$uid" --map-group "$gid" sh "$@"
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
    pub(crate) fn shell(&self, account: &Account) -> Command {
        let mut command = Command::new("unshare");
        let (script, uid, gid) = match account {
            Account::Other { uid, gid } => (AS_ROOT, *uid, *gid),
            Account::Own => {
                command.args(["--user", "--map-root-user"]);
                (AS_USER, Uid::current().as_raw(), Gid::current().as_raw())
            }
        };
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]).args([
            self.bytes.to_string(),
            uid.to_string(),
            gid.to_string(),
        ]);
        command
    }
}
