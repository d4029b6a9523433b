//! Starting programs. Our own environment holds every URL of a plan, and whatever else its shell knew: a program gets
//! nothing of it but what any program needs to run, and the rest is given to it by name.

use std::ffi::OsStr;
use tokio::process::Command;

/// What a program takes over from our environment.
pub const INHERITED: &[&str] = &["PATH", "HOME", "LANG", "TZ"];

/// A command with no other variables than [`INHERITED`].
#[must_use]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    for name in INHERITED {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}
