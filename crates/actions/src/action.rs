//! One action of a plan, whatever it is.

use crate::actions::Actions;
use crate::command::Command;
use crate::file::FileWrite;
use crate::http::Http;
use crate::sql::Sql;
use crate::words::{line, one_of};
use handover_core::error::{Error, Result};
use handover_core::problem::{Problems, Segment};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

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

impl Actions<'_> {
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
}
