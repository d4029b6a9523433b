//! Finding and ending the processes of a command, also those that a killed runner left behind.
//!
//! A command runs in a process group of its own and carries a mark in its environment. After a crash the mark
//! finds it even when its process id never reached the journal. It is read from `/proc`
//! (<https://man7.org/linux/man-pages/man5/proc.5.html>); without one nothing is found, and we say so.

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, Instant};

/// The variable that carries the mark.
pub const MARK: &str = "HANDOVER_ACT";

/// How long a group has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// A command as the journal remembers it while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The machine.
    pub host: String,
    /// Its boot id and pid namespace.
    pub incarnation: String,
    /// The value of [`MARK`], unique for each attempt.
    pub mark: String,
    /// When it was started, or about to be.
    pub at: jiff::Timestamp,
    /// How long it may run, in milliseconds.
    pub timeout_ms: u64,
    /// Process id of the group's leader, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// The leader's start time in clock ticks since boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<u64>,
}

/// Whether the trace was made where we can see its processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Same machine, same boot, same pid namespace.
    Here,
    /// The machine was booted again (or the container replaced): its processes are gone.
    Gone,
    /// Another machine: nobody here can tell.
    Elsewhere,
}

impl Trace {
    /// A trace of a command that is about to start here.
    #[must_use]
    pub fn new(mark: String, timeout: Duration) -> Self {
        Trace {
            host: host(),
            incarnation: incarnation(),
            mark,
            at: jiff::Timestamp::now(),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            pid: None,
            started: None,
        }
    }

    /// Where it was made, seen from here.
    #[must_use]
    pub fn seen(&self) -> Seen {
        match (self.host == host(), self.incarnation == incarnation()) {
            (true, true) if Path::new("/proc/self/environ").exists() => Seen::Here,
            (true, true) | (false, _) => Seen::Elsewhere,
            (true, false) => Seen::Gone,
        }
    }

    /// The leaders of the groups that are still running of it.
    #[must_use]
    pub fn groups(&self) -> Vec<i32> {
        match self.pid {
            // What the leader left in the background on purpose is no longer the command.
            Some(pid) => {
                let alive = stat(pid).is_some_and(|s| Some(s.started) == self.started && s.running);
                if alive { vec![pid] } else { Vec::new() }
            }
            None => marked(&self.mark),
        }
    }
}

fn host() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn incarnation() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {}", boot.trim(), namespace.display())
}

/// What `/proc/PID/stat` says.
#[derive(Debug, Clone, Copy)]
pub struct Stat {
    /// Start time in clock ticks since boot.
    pub started: u64,
    /// Process group.
    pub group: i32,
    /// Not a zombie.
    pub running: bool,
}

/// Reads `/proc/PID/stat`; none when there is no such process.
#[must_use]
pub fn stat(pid: i32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces and parentheses; the fields begin after the last one.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(Stat {
        running: !matches!(*fields.first()?, "Z" | "X"),
        group: fields.get(2)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

fn marked(mark: &str) -> Vec<i32> {
    let wanted = format!("{MARK}={mark}");
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut groups: Vec<i32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|environ| environ.split(|b| *b == 0).any(|v| v == wanted.as_bytes()))
        })
        .filter_map(stat_group)
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

fn stat_group(pid: i32) -> Option<i32> {
    stat(pid).filter(|s| s.running).map(|s| s.group)
}

/// Sends a signal to a whole process group. A group that is gone is no error.
pub fn signal_group(group: i32, signal: Signal) {
    // Other errors mean that some member belongs to somebody else, which no caller could mend.
    let _: Result<(), Errno> = killpg(Pid::from_raw(group), signal);
}

/// Asks a group to end, then makes it, while `alive` says that there is something left of it.
pub async fn end_group(group: i32, alive: impl Fn() -> bool) {
    signal_group(group, Signal::SIGTERM);
    let begun = Instant::now();
    while alive() && begun.elapsed() < GRACE {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    signal_group(group, Signal::SIGKILL);
}

/// Kills a process group when it goes out of scope, unless it was disarmed: a step that is dropped half-way
/// (a timeout of the engine's) must not leave its command running.
#[derive(Debug)]
pub struct GroupGuard(Option<i32>);

impl GroupGuard {
    /// Guards a group.
    #[must_use]
    pub fn new(group: i32) -> Self {
        GroupGuard(Some(group))
    }

    /// The command ended by itself; what it left in the background is meant to stay.
    pub fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for GroupGuard {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            signal_group(group, Signal::SIGKILL);
        }
    }
}
