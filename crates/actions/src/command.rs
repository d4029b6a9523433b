//! Commands: programs of the operator's, started without a shell, bounded in time and output.

use crate::actions::Actions;
use crate::process::{self, GroupGuard, MARK, Seen, Trace};
use crate::words::{check_env, line};
use handover_core::child;
use handover_core::error::{Class, Error, Result};
use handover_core::failpoint;
use handover_core::problem::{Problems, Segment};
use handover_core::redact::Redactor;
use handover_core::value::{Duration, EnvString};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Instant;

/// How long a command may take unless the plan says otherwise.
const TIMEOUT: Duration = Duration::secs(60);
/// How much of each output stream is kept in memory and shown at most.
const TAIL: u64 = 8 * 1024;
/// A stream is cut back when it has grown to this size on disk.
const CUT: u64 = 16 * 1024 * 1024;

/// The variable that holds [`Actions::next_number`].
const SEQUENCE: &str = "HANDOVER_SEQUENCE";

/// A program with its arguments: a list, or a mapping with `run`, `env` and `timeout`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments as they are: no shell, nothing is filled in. A program with a `/` in its name is
    /// looked for from the plan's folder, any other on PATH.
    pub run: Vec<String>,
    /// The environment, beside PATH, HOME, LANG and TZ, which are taken over; the way to hand over a secret.
    pub env: BTreeMap<String, EnvString>,
    /// How long it may take; one minute unless given. Then its process group gets SIGTERM, and SIGKILL five
    /// seconds later.
    pub timeout: Option<Duration>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Full {
    /// Program and arguments.
    #[schemars(length(min = 1))]
    run: Vec<String>,
    /// Its environment, beside PATH, HOME, LANG and TZ, which are taken over.
    #[serde(default)]
    env: BTreeMap<String, EnvString>,
    /// How long it may take.
    timeout: Option<Duration>,
}

/// Only for the schema: reading goes through a visitor, whose errors name the wrong key.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code)]
enum Shape {
    List(#[schemars(length(min = 1))] Vec<String>),
    Full(Full),
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Command;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(
                    "a command: a list like [\"systemctl\", \"stop\", \"purger\"], or a mapping with `run`",
                )
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<Command, A::Error> {
                let run = Vec::deserialize(de::value::SeqAccessDeserializer::new(seq))?;
                Ok(Command { run, env: BTreeMap::new(), timeout: None })
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Command, A::Error> {
                let full = Full::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Command { run: full.run, env: full.env, timeout: full.timeout })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Command {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Command".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        Shape::json_schema(generator)
    }
}

impl Command {
    /// The same command with variables and a time limit where it says none itself.
    #[must_use]
    pub fn with_defaults(&self, env: &BTreeMap<String, EnvString>, timeout: Option<Duration>) -> Self {
        let mut command = self.clone();
        for (name, value) in env {
            command.env.entry(name.clone()).or_insert_with(|| value.clone());
        }
        command.timeout = command.timeout.or(timeout);
        command
    }

    /// Finds what is wrong with it; `path` is relative to the problems' base.
    pub fn check(&self, path: &[Segment], problems: &mut Problems) {
        match self.run.first() {
            None => {
                problems
                    .error(path.iter().cloned(), "the command is empty")
                    .hint("name the program and its arguments, e.g. [\"systemctl\", \"stop\", \"purger\"]");
            }
            Some(program) if program.trim().is_empty() => {
                problems.error(path.iter().cloned(), "the program's name is empty");
            }
            Some(program) if program.contains(char::is_whitespace) && self.run.len() == 1 => {
                problems
                    .warning(path.iter().cloned(), format!("`{program}` is taken as one program's name"))
                    .hint("give the arguments as separate items; a shell only runs if you write [\"sh\", \"-c\", \"…\"]");
            }
            Some(_) => {}
        }
        let shell = self.run.first().is_some_and(|p| {
            matches!(p.rsplit('/').next(), Some("sh" | "bash" | "dash" | "ash" | "zsh" | "ksh"))
        });
        if !shell && self.run.iter().any(|argument| argument.contains("${")) {
            problems
                .warning(path.iter().cloned(), "`${…}` in an argument is passed on as it is")
                .hint("arguments show in `ps`, so nothing is filled in; put the value under `env:` and let the program, or [\"sh\", \"-c\", …], read it there");
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) {
                problems.error(path.iter().cloned(), format!("`{name}` cannot be the name of a variable"));
            }
            check_env(value, path, problems);
        }
    }

    /// The command as people would type it, cut to a line.
    #[must_use]
    pub fn shown(&self) -> String {
        let words: Vec<String> = self
            .run
            .iter()
            .map(|word| {
                let plain =
                    !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || "-_./:=,@%+".contains(c));
                if plain { word.clone() } else { format!("'{}'", word.replace('\'', "'\\''")) }
            })
            .collect();
        line(&words.join(" "))
    }

    /// Where its program is; none when it cannot be found or executed.
    #[must_use]
    pub fn program(&self, base: &Path) -> Option<PathBuf> {
        let program = self.run.first()?;
        let runs =
            |path: &Path| path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok();
        if program.contains('/') {
            return Some(base.join(program)).filter(|path| runs(path));
        }
        std::env::split_paths(&std::env::var_os("PATH")?)
            .map(|folder| folder.join(program))
            .find(|path| runs(path))
    }

    fn limit(&self) -> std::time::Duration {
        self.timeout.unwrap_or(TIMEOUT).0
    }
}

/// A command that ended by itself.
#[derive(Debug, Clone)]
pub struct Ran {
    status: ExitStatus,
    shown: String,
    /// The last of its standard output, without the secrets we know.
    pub stdout: String,
    /// The last of its standard error, without the secrets we know.
    pub stderr: String,
    /// How long it took.
    pub took: std::time::Duration,
}

impl Ran {
    /// Its exit code; none when a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// How it ended, in words.
    #[must_use]
    pub fn ended(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("ended by signal {signal}"),
            (None, None) => "ended in an unknown way".to_owned(),
        }
    }

    /// Refuses anything but exit code 0.
    ///
    /// # Errors
    /// [`Class::External`] with the last of what the command wrote.
    pub fn succeeded(&self) -> Result<()> {
        if self.status.success() {
            return Ok(());
        }
        Err(Error::external(format!("`{}`: {}{}", self.shown, self.ended(), self.tail()))
            .hint("mend what the command complains about, then `handover resume`"))
    }

    /// What it wrote, for an error message: standard error, or else standard output.
    #[must_use]
    pub fn tail(&self) -> String {
        let text = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        match text.trim() {
            "" => ", and it wrote nothing".to_owned(),
            text => format!("; it wrote:\n{text}"),
        }
    }
}

impl Actions<'_> {
    /// Runs a command that changes something. It is remembered in the journal under `unit` while it runs; one
    /// that a killed runner left under the same name is waited for first.
    ///
    /// # Errors
    /// The program cannot be started; time ran out; the run is asked to stop. How it ended is in [`Ran`].
    pub async fn command(&self, unit: &str, command: &Command) -> Result<Ran> {
        self.await_orphan(unit).await?;
        let mark = format!("{}/{unit}/{}", self.port.mark(), uuid::Uuid::now_v7().simple());
        let mut trace = Trace::new(mark, command.limit());
        let key = fact(unit);
        self.remember_trace(&key, &trace).await?;
        let result = self.spawn_and_wait(command, Some((&key, &mut trace))).await;
        // A failing journal stops the run anyway; the command's own failure says more.
        let forgotten = self.port.memory.remember(&self.port.step, &key, Value::Null).await;
        let ran = result?;
        forgotten?;
        Ok(ran)
    }

    /// Runs a command that only looks. It is not remembered: one that outlives us does no harm.
    ///
    /// # Errors
    /// As [`Actions::command`].
    pub async fn look(&self, command: &Command) -> Result<Ran> {
        self.spawn_and_wait(command, None).await
    }

    /// Waits until a command that a killed runner left under `unit` has ended; when its time is over, ends it.
    /// [`Actions::command`] does this by itself; call it before an act of another kind that must not overlap.
    ///
    /// # Errors
    /// The run is asked to stop; the journal failing.
    pub async fn await_orphan(&self, unit: &str) -> Result<()> {
        let key = fact(unit);
        let Some(value) = self.port.memory.recall(&self.port.step, &key).filter(|value| !value.is_null())
        else {
            return Ok(());
        };
        let trace: Trace = serde_json::from_value(value)
            .map_err(|e| Error::internal(format!("the journal's fact `{key}` cannot be read ({e})")))?;
        match trace.seen() {
            Seen::Gone => {}
            Seen::Elsewhere => self.port.warn(format!(
                "a command that was started on host {} at {} may still be running there; this host cannot tell",
                trace.host, trace.at
            )),
            Seen::Here => {
                let limit = std::time::Duration::from_millis(trace.timeout_ms);
                let age = jiff::Timestamp::now().duration_since(trace.at).unsigned_abs();
                let mut left = limit.saturating_sub(age);
                if let Some(group) = trace.groups().first() {
                    self.port.note(format!(
                        "waiting for a command that an interrupted runner left (process group {group}, at most {} s more)",
                        left.as_secs()
                    ));
                }
                while !trace.groups().is_empty() && !left.is_zero() {
                    let pause = left.min(std::time::Duration::from_millis(100));
                    self.pause(pause).await?;
                    left -= pause;
                }
                for group in trace.groups() {
                    self.port.warn(format!("ending the command that an interrupted runner left (process group {group})"));
                    process::end_group(group, || trace.groups().contains(&group)).await;
                }
            }
        }
        self.port.memory.remember(&self.port.step, &key, Value::Null).await
    }

    async fn remember_trace(&self, key: &str, trace: &Trace) -> Result<()> {
        let value = serde_json::to_value(trace).map_err(|e| Error::internal(e.to_string()))?;
        self.port.memory.remember(&self.port.step, key, value).await
    }

    async fn spawn_and_wait(&self, command: &Command, mut record: Option<(&str, &mut Trace)>) -> Result<Ran> {
        let shown = command.shown();
        let (stdout, stderr) = (output_file()?, output_file()?);
        let (mut child, redactor) = self.prepare(command, record.as_ref().map(|(_, t)| t.mark.as_str()))?;
        child.stdout(clone_of(&stdout)?).stderr(clone_of(&stderr)?);
        // The last look at the lease and at a request to stop.
        self.port.proceed()?;
        let begun = Instant::now();
        let mut child = child.spawn().map_err(|e| {
            Error::external(format!("`{shown}` cannot be started ({e})"))
                .hint("install the program, or correct its path (relative ones start at the plan's folder)")
        })?;
        let group = child.id().and_then(|id| i32::try_from(id).ok());
        let mut guard = group.map(GroupGuard::new);
        failpoint::at(failpoint::COMMAND_STARTED)?;
        if let Some((key, trace)) = record.as_mut() {
            trace.pid = group;
            trace.started = group.and_then(process::stat).map(|stat| stat.started);
            self.remember_trace(key, trace).await?;
        }
        let limit = command.limit();
        let deadline = tokio::time::sleep(limit);
        tokio::pin!(deadline);
        let status = loop {
            let why = tokio::select! {
                status = child.wait() => break status.map_err(|e| Error::external(format!("`{shown}`: {e}")))?,
                () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {
                    cut(&stdout);
                    cut(&stderr);
                    continue;
                }
                () = &mut deadline => Error::new(
                        Class::Timeout,
                        format!("`{shown}` took longer than {}", humantime::format_duration(limit)),
                    )
                    .hint("raise the command's `timeout:`, or mend what holds it up, then `handover resume`"),
                () = self.port.stop.cancelled() => Error::cancelled(),
            };
            if let Some(group) = group {
                let alive = || process::stat(group).is_some_and(|stat| stat.running);
                tokio::select! {
                    () = process::end_group(group, alive) => {}
                    _ = child.wait() => process::signal_group(group, nix::sys::signal::Signal::SIGKILL),
                }
            }
            // Reaps it; a failure would mean that somebody else did.
            let _ = child.wait().await;
            if let Some(guard) = &mut guard {
                guard.disarm();
            }
            return Err(match (why.class(), redactor.clean(&tail(&stderr)).trim()) {
                (Class::Cancelled, _) | (_, "") => why,
                (class, text) => {
                    let hint = why.next_step().unwrap_or_default().to_owned();
                    Error::new(class, format!("{}; it wrote:\n{text}", why.message())).hint(hint)
                }
            });
        };
        if let Some(guard) = &mut guard {
            guard.disarm();
        }
        Ok(Ran {
            status,
            shown,
            stdout: redactor.clean(&tail(&stdout)),
            stderr: redactor.clean(&tail(&stderr)),
            took: begun.elapsed(),
        })
    }

    fn prepare(&self, command: &Command, mark: Option<&str>) -> Result<(tokio::process::Command, Redactor)> {
        let Some(program) = command.run.first() else {
            return Err(Error::usage("the command is empty").hint("name a program in the plan"));
        };
        // A relative program with a folder would otherwise be looked for from our own folder on some systems.
        let base = std::path::absolute(&*self.port.base).unwrap_or_else(|_| (*self.port.base).clone());
        let program = if program.contains('/') { base.join(program) } else { PathBuf::from(program) };
        // What a command needs of our environment the plan says; a program cannot leak what it never had.
        let mut child = child::command(program);
        child.args(&command.run[1..]).current_dir(&base).stdin(Stdio::null()).process_group(0);
        if let Some(mark) = mark {
            child.env(MARK, mark);
        }
        if let Some(number) = self.next_number() {
            child.env(SEQUENCE, number);
        }
        let mut redactor = self.redactor();
        for (name, value) in &command.env {
            let resolved = value.resolve()?;
            redactor.add_env(value);
            child.env(name, resolved.expose());
        }
        Ok((child, redactor))
    }
}

fn fact(unit: &str) -> String {
    format!("command:{unit}")
}

/// Output goes to a file without a name rather than through a pipe: a command that outlives us is not killed
/// by SIGPIPE, and one that leaves a background process holding its output does not hold us up.
fn output_file() -> Result<File> {
    tempfile::Builder::new().append(true).tempfile().map(tempfile::NamedTempFile::into_file).map_err(|e| {
        Error::new(Class::Resources, format!("no temporary file for the command's output ({e})"))
            .hint("free space in TMPDIR, then `handover resume`")
    })
}

fn clone_of(file: &File) -> Result<Stdio> {
    file.try_clone().map(Stdio::from).map_err(|e| Error::external(format!("no file handle ({e})")))
}

fn length(file: &File) -> u64 {
    file.metadata().map(|m| m.len()).unwrap_or(0)
}

/// Empties an output that has grown too large, keeping its tail. The file is in append mode, so the command
/// writes on at the new end.
fn cut(mut file: &File) {
    use std::io::Write;
    if length(file) > CUT {
        let kept = tail(file);
        if file.set_len(0).is_ok() {
            let _ = file.write_all(kept.as_bytes());
        }
    }
}

fn tail(file: &File) -> String {
    let length = length(file);
    let start = length.saturating_sub(TAIL);
    let mut buffer = vec![0; usize::try_from(length - start).unwrap_or(0)];
    let read = file.read_at(&mut buffer, start).unwrap_or(0);
    buffer.truncate(read);
    String::from_utf8_lossy(&buffer).into_owned()
}
