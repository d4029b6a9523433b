//! Who holds a plan's lease, and whether a holder on this host is still alive.

use crate::error::{Class, Error};
use crate::event::{Holder, RunId};
use jiff::Timestamp;
use nix::errno::Errno;
use serde::Serialize;

/// The lease row of a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LeaseRow {
    /// The plan's name.
    pub plan: String,
    /// The fencing token.
    pub token: i64,
    /// Who holds it; nobody when none.
    pub holder: Option<Holder>,
    /// The run they act on.
    pub run: Option<RunId>,
    /// Since when.
    pub since: Timestamp,
    /// Until when, unless renewed.
    pub expires: Timestamp,
    /// Whether it has run out by the control database's clock.
    pub expired: bool,
}

/// The answer to a request for a lease.
#[derive(Debug)]
pub enum Held {
    /// It is ours, with this token.
    Ours(i64),
    /// Somebody else has it.
    Other(Box<LeaseRow>),
}

impl LeaseRow {
    /// The error for whoever was refused.
    #[must_use]
    pub fn refusal(&self) -> Error {
        let holder = self.holder.as_ref().map_or_else(|| "somebody".to_owned(), ToString::to_string);
        Error::new(
            Class::LeaseHeld,
            format!("plan `{}` is being worked on by {holder} since {}", self.plan, self.since.strftime("%Y-%m-%d %H:%M:%S UTC")),
        )
        .hint(format!(
            "follow it with `handover status`; if that runner is dead its lease ends at {}, and `--wait 1m` waits for it",
            self.expires.strftime("%H:%M:%S UTC")
        ))
    }

    /// Whether the holder was a process of this very host and boot that no longer exists.
    #[must_use]
    pub fn holder_is_dead(&self) -> bool {
        let Some(holder) = &self.holder else { return true };
        holder.incarnation == incarnation()
            && !holder.incarnation.is_empty()
            && match start_time(holder.pid) {
                Ok(started) => started != Some(holder.started),
                // Mounted with `hidepid`, /proc hides the processes of other users; a signal still tells.
                Err(_) => {
                    nix::sys::signal::kill(nix::unistd::Pid::from_raw(holder.pid), None) == Err(Errno::ESRCH)
                }
            }
    }
}

/// This process, as the lease names it.
#[must_use]
pub fn this_process() -> Holder {
    let pid = nix::unistd::getpid();
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten();
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    Holder {
        host: host.unwrap_or_else(|| "unknown host".into()),
        user: user.map_or_else(|| "unknown user".into(), |u| u.name),
        pid: pid.as_raw(),
        incarnation: incarnation(),
        started: start_time(pid.as_raw()).ok().flatten().unwrap_or(0),
    }
}

/// Boot id and pid namespace; empty where there is no `/proc`, and then no holder is ever taken for dead.
fn incarnation() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let boot = boot.trim();
    if boot.is_empty() { String::new() } else { format!("{boot} {}", namespace.display()) }
}

/// A process's start time in clock ticks since boot (field 22 of `/proc/PID/stat`), none if it is a zombie.
/// Fails when there is no such process that we may see.
fn start_time(pid: i32) -> std::io::Result<Option<u64>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the command in parentheses and may contain anything.
    let Some((_, rest)) = stat.rsplit_once(')') else { return Ok(None) };
    let mut fields = rest.split_whitespace();
    if matches!(fields.next(), None | Some("Z" | "X")) {
        return Ok(None);
    }
    Ok(fields.nth(18).and_then(|ticks| ticks.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_are_alive() {
        let me = this_process();
        assert_eq!(start_time(me.pid).unwrap(), Some(me.started));
        assert!(start_time(i32::MAX).is_err());
    }
}
