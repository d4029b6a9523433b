//! A small process beside each local server, which ends the server when we are gone.
//!
//! A process that is killed with SIGKILL cannot tidy up, and nobody wants a database left behind by a test
//! that was stopped. So every server belongs to a shell that reads from a pipe whose other end only we hold
//! (Rust makes pipes close-on-exec, so no other child of ours inherits it): when we end, it reads the end of
//! the file, stops the server and removes its folder. All that is done to the server goes through that shell
//! too, one verb after the other, so that a start which is under way when we die is finished before it is
//! undone, and no server comes up behind the guardian's back.

use super::account::Account;
use super::volume::Volume;
use handover_core::{Error, Result};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

const GUARD: &str = include_str!("guard.sh");

/// What a guardian can be asked to do with its server.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verb {
    /// Create the server's files.
    Prepare,
    /// Start it.
    Start,
    /// Stop it, in good order.
    Stop,
    /// Stop it as a crash would.
    Kill,
    /// Leave it running, and its folder in place, when we end.
    Keep,
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Verb::Prepare => "prepare",
            Verb::Start => "start",
            Verb::Stop => "stop",
            Verb::Kill => "kill_server",
            Verb::Keep => "keep",
        }
    }
}

/// The guardian of one server. Dropping it ends the server and removes its folder, unless it was told to
/// keep them.
#[derive(Debug)]
pub(crate) struct Guardian {
    folder: PathBuf,
    kept: AtomicBool,
    child: Mutex<Child>,
    pipes: Mutex<Option<(ChildStdin, BufReader<ChildStdout>)>>,
}

impl Guardian {
    /// Starts a guardian for the server in `folder`. `variables` and `functions` are the shell text that
    /// says how the server is prepared, started and ended (see `guard.sh`).
    /// With a volume, the server sees a file system of that size.
    pub(crate) fn start(
        account: &Account,
        folder: &Path,
        variables: &[(&str, &str)],
        functions: &str,
        volume: Option<&Volume>,
    ) -> Result<Self> {
        Self::spawn(account, folder, variables, functions, volume).inspect_err(|_| {
            // Without a guardian nobody else will. What cannot be removed is only a folder.
            let _ = std::fs::remove_dir_all(folder);
        })
    }

    fn spawn(
        account: &Account,
        folder: &Path,
        variables: &[(&str, &str)],
        functions: &str,
        volume: Option<&Volume>,
    ) -> Result<Self> {
        let mut script = format!("folder={}\n", quote(&folder.display().to_string()));
        for (name, value) in variables {
            script.push_str(&format!("export {name}={}\n", quote(value)));
        }
        script.push_str(functions);
        script.push_str(GUARD);
        let path = folder.join("server.sh");
        account.write(&path, &script)?;

        let log = folder.join("guardian.log");
        account.write(&log, "")?;
        let log = std::fs::OpenOptions::new()
            .append(true)
            .open(&log)
            .map_err(|e| Error::external(format!("cannot write {}: {e}", log.display())))?;
        let mut command = match volume {
            None => {
                let mut command = Command::new("sh");
                account.apply(&mut command);
                command
            }
            Some(volume) => volume.shell(account),
        };
        command
            .arg(&path)
            .arg("serve")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
            .env("HOME", folder)
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .current_dir("/")
            // Ctrl-C in a terminal goes to the whole process group; the server must outlive it until we say.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Never ours: a pipe that we write to would stay open for as long as the guardian lives.
            .stderr(log);
        let mut child = command
            .spawn()
            .map_err(|e| Error::external(format!("cannot start `sh` for a local server: {e}")))?;
        let pipes = child.stdin.take().zip(child.stdout.take()).map(|(i, o)| (i, BufReader::new(o)));
        Ok(Guardian {
            folder: folder.to_owned(),
            kept: AtomicBool::new(false),
            child: Mutex::new(child),
            pipes: Mutex::new(pipes),
        })
    }

    /// Asks for one verb and waits until it is done. Blocks the thread.
    pub(crate) fn ask(&self, verb: Verb) -> Result<()> {
        let word = verb.word();
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = || {
            Error::external(format!("the guardian of {} is gone", self.folder.display()))
                .hint(self.log_tail())
        };
        let (input, output) = pipes.as_mut().ok_or_else(gone)?;
        let mut answer = String::new();
        writeln!(input, "{word}").and_then(|()| input.flush()).map_err(|_| gone())?;
        output.read_line(&mut answer).map_err(|_| gone())?;
        match answer.trim() {
            "0" => {
                self.kept.fetch_or(matches!(verb, Verb::Keep), Ordering::Relaxed);
                Ok(())
            }
            "" => Err(gone()),
            status => Err(Error::external(format!("`{word}` of a local server failed with status {status}"))
                .hint(self.log_tail())),
        }
    }

    /// The end of the server's logs, for a message.
    pub(crate) fn log_tail(&self) -> String {
        let mut lines = Vec::new();
        for name in ["guardian.log", "server.log"] {
            let text = std::fs::read(self.folder.join(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            let kept = text.lines().filter(|l| !l.trim().is_empty()).map(str::to_owned).collect::<Vec<_>>();
            lines.extend(kept.into_iter().rev().take(8).rev());
        }
        if lines.is_empty() {
            return format!("it left no log in {}", self.folder.display());
        }
        format!("its log ends: {}", lines.join(" | "))
    }

    /// The folder that holds everything of the server.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The guardian's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).id()
    }

    /// The command that ends a kept server and removes its folder.
    pub(crate) fn remove_command(&self) -> String {
        format!("sh {} remove", quote(&self.folder.join("server.sh").display().to_string()))
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.pipes.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        // Ends within seconds: each of its waits has a limit.
        let _ = self.child.get_mut().unwrap_or_else(PoisonError::into_inner).wait();
        if !*self.kept.get_mut() && self.folder.exists() {
            // The guardian was killed, or never got as far as its loop.
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// A word for the shell.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(super::quote("/usr/lib/x-1.0"), "/usr/lib/x-1.0");
        assert_eq!(super::quote("it's"), r"'it'\''s'");
        assert_eq!(super::quote(""), "''");
    }
}
