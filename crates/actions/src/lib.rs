//! Actions outside the transactions of the plan's databases: commands, HTTP requests, files, and single SQL statements.
//!
//! Nothing here can be committed together with a checkpoint. So [`Actions`] keeps the intention before it acts, ends or
//! waits for what an interrupted runner left, and restores a file byte by byte; whoever uses it must name an effect that
//! is safe to repeat. A secret never comes out: not in an error, not in what is quoted of a command's output.
//!
//! It needs a port ([`handover_port::Port`]), and for commands a Unix system.
//!
//! ```
//! use handover_actions::Command;
//!
//! let command: Command = serde_json::from_value(serde_json::json!(["sh", "-c", "true"]))?;
//! assert!(format!("{command:?}").contains("sh"));
//! # Ok::<(), serde_json::Error>(())
//! ```

pub mod command;
pub mod file;
pub mod http;
pub mod process;
pub mod sql;

pub use command::{Command, Ran};
pub use file::{FileWrite, Original};
pub use http::{Answer, Http, Verb};
pub use sql::Sql;

use handover_core::error::{Error, Result};
use handover_core::problem::{Problems, Segment};
use handover_core::redact::Redactor;
use handover_core::value::EnvString;
use handover_port::Port;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// Does acts outside for one step. Several may go on at once, each under a `unit` of its own.
pub struct Actions<'a> {
    port: &'a Port,
    clients: Mutex<BTreeMap<(bool, Option<PathBuf>), reqwest::Client>>,
}

impl<'a> Actions<'a> {
    /// For the step behind `port`.
    #[must_use]
    pub fn new(port: &'a Port) -> Self {
        Actions { port, clients: Mutex::default() }
    }

    /// Does an action and requires that it succeeds. `unit` names it within the step. Returns a few words for
    /// the step's summary. A file is written without keeping what it was; see [`Actions::file_keep`].
    ///
    /// # Errors
    /// Whatever the action fails with.
    pub async fn perform(&self, unit: &str, action: &Action) -> Result<Value> {
        Ok(match action.act()? {
            Act::Command(command) => {
                let ran = self.command(unit, command).await?;
                ran.succeeded()?;
                json!({ "command": command.shown(), "seconds": ran.took.as_secs_f64() })
            }
            Act::Http(http) => {
                let answer = self.request(http).await?;
                json!({ "http": http.shown(), "status": answer.status, "seconds": answer.took.as_secs_f64() })
            }
            Act::Sql(sql) => json!({ "sql": line(&sql.execute), "rows": self.execute(sql).await? }),
            Act::File(file) => {
                self.file_write(unit, file).await?;
                json!({ "file": file.path })
            }
        })
    }

    /// A number that rises with every act of a plan, whoever does it: of the lease's token, which rises with each process
    /// that acts, and of the acts of this one. Who keeps the highest that it saw and refuses lower ones is never told
    /// something old by what was held up on its way. None for who only looks, and asks for nothing that could overtake.
    fn next_number(&self) -> Option<String> {
        static ACTS: AtomicU32 = AtomicU32::new(0);
        let token = self.port.own_databases().lease().ok()?.token();
        Some(((i128::from(token) << 32) + i128::from(ACTS.fetch_add(1, Ordering::Relaxed)) + 1).to_string())
    }

    /// Sleeps, unless the run is asked to stop.
    async fn pause(&self, time: std::time::Duration) -> Result<()> {
        tokio::select! {
            () = self.port.stop.cancelled() => Err(Error::cancelled()),
            () = tokio::time::sleep(time) => Ok(()),
        }
    }

    /// Knows what the process knows, and the databases' URLs and passwords whoever gave them.
    fn redactor(&self) -> Redactor {
        let mut redactor = Redactor::of_process();
        let databases = self.port.own_databases();
        for name in databases.names() {
            if let Ok(url) = databases.url(name) {
                redactor.add_url(url);
            }
        }
        redactor
    }
}

/// One thing to do: exactly one of the keys.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// Run a program.
    pub command: Option<Command>,
    /// Send a request.
    pub http: Option<Http>,
    /// Execute a statement.
    pub sql: Option<Sql>,
    /// Replace a file.
    pub file: Option<FileWrite>,
}

/// The one thing an [`Action`] says.
#[derive(Debug, Clone, Copy)]
pub enum Act<'a> {
    /// Run a program.
    Command(&'a Command),
    /// Send a request.
    Http(&'a Http),
    /// Execute a statement.
    Sql(&'a Sql),
    /// Replace a file.
    File(&'a FileWrite),
}

impl Action {
    fn acts(&self) -> Vec<Act<'_>> {
        let acts = [
            self.command.as_ref().map(Act::Command),
            self.http.as_ref().map(Act::Http),
            self.sql.as_ref().map(Act::Sql),
            self.file.as_ref().map(Act::File),
        ];
        acts.into_iter().flatten().collect()
    }

    /// What it says to do.
    ///
    /// # Errors
    /// None or several of the keys (which `check` reports earlier and better).
    pub fn act(&self) -> Result<Act<'_>> {
        match self.acts()[..] {
            [act] => Ok(act),
            _ => Err(Error::usage("an action is exactly one of `command`, `http`, `sql` and `file`")
                .hint("see `handover check`")),
        }
    }

    /// Finds what is wrong with it; `path` is relative to the problems' base. The database that its SQL names
    /// is for the caller to check ([`Action::database`]).
    pub fn check(&self, path: &[Segment], problems: &mut Problems) {
        one_of(self.acts().len(), &["command", "http", "sql", "file"], path, problems);
        for act in self.acts() {
            let at = |key: &str| -> Vec<Segment> { path.iter().cloned().chain([key.into()]).collect() };
            match act {
                Act::Command(command) => command.check(&at("command"), problems),
                Act::Http(http) => http.check(&at("http"), problems),
                Act::Sql(sql) => sql.check(&at("sql"), problems),
                Act::File(file) => file.check(&at("file"), problems),
            }
        }
    }

    /// The database it writes to.
    #[must_use]
    pub fn database(&self) -> Option<&str> {
        self.sql.as_ref().map(|sql| sql.on.as_str())
    }

    /// It in a line, without secrets.
    #[must_use]
    pub fn shown(&self) -> String {
        match self.act() {
            Ok(Act::Command(command)) => format!("run `{}`", command.shown()),
            Ok(Act::Http(http)) => format!("send {}", http.shown()),
            Ok(Act::Sql(sql)) => format!("on {}: {}", sql.on, line(&sql.execute)),
            Ok(Act::File(file)) => format!("replace {}", file.path.display()),
            Err(_) => "nothing".to_owned(),
        }
    }
}

/// Reports a mapping that has none or several of the keys of which it must have one.
pub fn one_of(count: usize, keys: &[&str], path: &[Segment], problems: &mut Problems) {
    let list = keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    match count {
        1 => {}
        0 => {
            problems.error(path.iter().cloned(), format!("one of {list} is missing"));
        }
        _ => {
            problems
                .error(path.iter().cloned(), format!("only one of {list} can stand here"))
                .hint("write a step or an entry for each");
        }
    }
}

/// Reports references in a text that are not well formed.
pub fn check_env(text: &EnvString, path: &[Segment], problems: &mut Problems) {
    if let Err(e) = text.variables() {
        let problem = problems.error(path.iter().cloned(), e.message());
        if let Some(hint) = e.next_step() {
            problem.hint(hint);
        }
    }
}

/// Text as one line of bounded length.
#[must_use]
pub fn line(text: &str) -> String {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match flat.char_indices().nth(160) {
        Some((at, _)) => format!("{}…", &flat[..at]),
        None => flat,
    }
}
