//! What a lever looks like in a plan.

use crate::postgres::Session;
use crate::value::{Duration, EnvString};
use handover_actions::{Command, FileWrite, Http, sql};
use handover_port::Description;
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A reversible operational setting, or an external job that is held: raised here, restored by a later
/// `lever: { revert: ID }` step or by a rollback. Exactly one of `command`, `http`, `sql`, `file`, `revert`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lever {
    /// Programs that raise and restore it.
    pub command: Option<CommandLever>,
    /// Requests that raise and restore it.
    pub http: Option<HttpLever>,
    /// Statements that raise and restore it.
    pub sql: Option<SqlLever>,
    /// A file whose content is replaced; what it was is kept beside it.
    pub file: Option<FileWrite>,
    /// The id of an earlier lever step, which is restored here.
    pub revert: Option<String>,
    /// How long `check` may take to agree after a change; ten seconds unless given.
    pub within: Option<Duration>,
}

/// A lever moved by programs.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandLever {
    /// Raises it. Must be safe to repeat.
    pub apply: Command,
    /// Restores it. Must be safe to repeat.
    pub revert: Command,
    /// Looks whether it is raised: exit code 0 means yes, 1 means no, any other that it cannot tell.
    pub check: Option<Command>,
    /// Variables for all three.
    #[serde(default)]
    pub env: BTreeMap<String, EnvString>,
    /// Time limit for each of the three.
    pub timeout: Option<Duration>,
}

impl CommandLever {
    pub(super) fn with_defaults(&self, command: &Command) -> Command {
        command.with_defaults(&self.env, self.timeout)
    }
}

/// A lever moved by requests.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpLever {
    /// Raises it. Must be safe to repeat.
    pub apply: Http,
    /// Restores it. Must be safe to repeat.
    pub revert: Http,
    /// Looks whether it is raised: the expected answer means yes, any other below status 500 no.
    pub check: Option<Http>,
}

/// A lever in a database.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqlLever {
    /// The database.
    pub on: String,
    /// Raises it.
    pub apply: String,
    /// Restores it; `$previous` stands for what `read` gave before.
    pub revert: String,
    /// A query that gives true while it is raised.
    pub check: Option<String>,
    /// A query for the setting's value, remembered (in the journal: not for secrets) before it is raised.
    pub read: Option<String>,
    /// `statement_timeout`; one minute unless given.
    pub timeout: Option<Duration>,
    /// `lock_timeout`; five seconds unless given.
    pub lock_timeout: Option<Duration>,
    /// False for statements that refuse to run in a transaction, such as `ALTER SYSTEM`. They must be safe to
    /// repeat; the others are executed exactly once.
    pub transaction: Option<bool>,
}

impl SqlLever {
    pub(super) fn in_transaction(&self) -> bool {
        self.transaction != Some(false)
    }

    pub(super) async fn limit(&self, session: &Session) -> crate::Result<()> {
        sql::limits(session, self.timeout, self.lock_timeout).await
    }
}

impl Lever {
    /// Relative programs are files of the plan.
    pub(super) fn programs(&self) -> Vec<PathBuf> {
        self.commands()
            .iter()
            .filter_map(|command| command.run.first())
            .filter(|program| program.contains('/') && !program.starts_with('/'))
            .map(PathBuf::from)
            .collect()
    }

    fn commands(&self) -> Vec<Command> {
        let reload = self.file.as_ref().and_then(|file| file.reload.clone());
        let own = self.command.iter().flat_map(|lever| {
            [Some(&lever.apply), Some(&lever.revert), lever.check.as_ref()]
                .into_iter()
                .flatten()
                .map(|command| lever.with_defaults(command))
        });
        own.chain(reload).collect()
    }

    /// Says what is missing on this machine: programs and environment variables.
    pub(super) fn describe_needs(&self, base: &Path, out: &mut Description) {
        let mut texts: Vec<EnvString> = Vec::new();
        for command in self.commands() {
            if command.program(base).is_none() {
                out.blocker(format!("the program of `{}` is not here or not executable", command.shown()));
            }
            texts.extend(command.env.values().cloned());
        }
        if let Some(lever) = &self.http {
            for http in [Some(&lever.apply), Some(&lever.revert), lever.check.as_ref()].into_iter().flatten()
            {
                texts.push(http.url.clone());
                texts.extend(http.headers.values().chain(&http.body).cloned());
            }
        }
        texts.extend(self.file.iter().map(|file| file.content.clone()));
        let mut missing: Vec<&str> = texts
            .iter()
            .flat_map(|text| text.variables().unwrap_or_default())
            .filter(|name| std::env::var_os(name).is_none())
            .collect();
        missing.sort_unstable();
        missing.dedup();
        for name in missing {
            out.blocker(format!("environment variable {name} is not set"));
        }
    }

    /// How it is raised and how it is restored, in a line each.
    pub(super) fn shown(&self) -> (String, String) {
        if let Some(lever) = &self.command {
            (format!("run `{}`", lever.apply.shown()), format!("run `{}`", lever.revert.shown()))
        } else if let Some(lever) = &self.http {
            (format!("send {}", lever.apply.shown()), format!("send {}", lever.revert.shown()))
        } else if let Some(lever) = &self.sql {
            let show = |sql: &str| format!("on {}: {}", lever.on, handover_actions::line(sql));
            (show(&lever.apply), show(&lever.revert))
        } else if let Some(file) = &self.file {
            let path = file.path.display();
            (format!("replace {path}"), format!("put back what {path} was"))
        } else {
            let target = self.revert.as_deref().unwrap_or("?");
            (format!("restore lever `{target}`"), format!("raise lever `{target}` again"))
        }
    }
}
