//! What a plan says of a pooler.

use crate::entry::{PROBE, Target};
use handover_core::problem::{Problems, Segment};
use handover_core::value::{Duration, EnvString};
use schemars::JsonSchema;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// A PgBouncer, or several side by side, whose entry is turned to another server: held while the cutover decides, and let
/// go on afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PgBouncer {
    /// The entry of `[databases]` that is turned, by the name that clients connect to.
    #[schemars(length(min = 1))]
    pub database: String,
    /// The processes, each with a console of its own; all are held before anything is decided.
    #[schemars(length(min = 1))]
    pub instances: Vec<Instance>,
    /// The plan's database that the entry leads to afterwards; host, port and name are taken from its URL.
    pub to: Option<String>,
    /// In the place of `to`'s URL, where the pooler reaches that server by another way: `host=… port=… dbname=…`.
    pub connect: Option<EnvString>,
    /// How long transactions may take to end when the entry is paused. Nothing new begins meanwhile; when it has passed,
    /// the attempt is called off and clients go on, or are disconnected.
    #[serde(default = "default_pause")]
    pub pause: Duration,
    /// Whether clients that are still at work after `pause` are disconnected. Session pooling needs it, because a client
    /// holds its server there for as long as it is connected.
    #[serde(default)]
    pub disconnect: bool,
}

/// One process of PgBouncer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// URL of its console, for a user of `admin_users`.
    pub admin: EnvString,
    /// The file in which the entry stands; a relative path starts at the plan's folder. Several instances may share one.
    pub config: PathBuf,
    /// URL of any role that may connect through it to `database`, on both sides: with it, the servers behind the entry are
    /// asked who they are, before and afterwards.
    pub through: Option<EnvString>,
}

fn default_pause() -> Duration {
    Duration::secs(2)
}

impl PgBouncer {
    /// Finds what is wrong with it; `path` is relative to the problems' base.
    pub fn check(&self, path: &[Segment], databases: &BTreeSet<String>, problems: &mut Problems) {
        let at = |key: &str| -> Vec<Segment> { path.iter().cloned().chain([key.into()]).collect() };
        if self.database == "pgbouncer" || self.database == "*" || self.database == PROBE {
            problems
                .error(at("database"), format!("`{}` is not an entry that can be turned", self.database))
                .hint("name the entry of [databases] that clients connect to; one that only `*` covers needs a line of its own");
        }
        if let Some(to) = &self.to
            && !databases.contains(to)
        {
            let known: Vec<&str> = databases.iter().map(String::as_str).collect();
            problems
                .error(at("to"), format!("there is no database `{to}` in this plan"))
                .hint(format!("the plan has: {}", known.join(", ")));
        }
        match (&self.to, &self.connect) {
            (None, None) => {
                problems
                    .error(path.iter().cloned(), "nothing says where the entry is to lead")
                    .hint("give `to:`, a database of the plan, or `connect: \"host=… port=… dbname=…\"`");
            }
            // Where variables are, only their values tell.
            (_, Some(connect)) => match connect.variables() {
                Err(_) => handover_actions::check_env(connect, &at("connect"), problems),
                Ok(variables) if variables.is_empty() => {
                    if let Err(why) = Target::parse(&connect.0, &self.database) {
                        problems
                            .error(at("connect"), format!("this is not where an entry can lead: {why}"))
                            .hint("write `host=… port=… dbname=…`; the entry's other parameters stay as they are");
                    }
                }
                Ok(_) => {}
            },
            (Some(_), None) => {}
        }
        if self.pause.0.is_zero() {
            problems
                .error(at("pause"), "transactions need some time to end")
                .hint("one or two seconds is usual");
        }
        for (i, instance) in self.instances.iter().enumerate() {
            let at = |key: &str| [at("instances"), vec![i.into(), key.into()]].concat();
            for (key, url) in [("admin", Some(&instance.admin)), ("through", instance.through.as_ref())] {
                if let Some(url) = url {
                    handover_actions::check_env(url, &at(key), problems);
                }
            }
            if instance.config.file_name().is_none() {
                problems
                    .error(at("config"), format!("`{}` is not the path of a file", instance.config.display()))
                    .hint("name the file in which the entry stands, e.g. /etc/pgbouncer/pgbouncer.ini");
            }
            if self.instances[..i].iter().any(|other| other.admin == instance.admin) {
                problems.error(at("admin"), "this console is named twice").hint(
                    "each process has a console of its own: processes that share a port need a socket each",
                );
            }
        }
    }

    /// It in a line.
    #[must_use]
    pub fn shown(&self) -> String {
        let to = match (&self.to, &self.connect) {
            (Some(to), _) => to.clone(),
            (None, Some(connect)) => connect.to_string(),
            (None, None) => "nowhere".to_owned(),
        };
        let files: BTreeSet<String> = self.instances.iter().map(|i| i.config.display().to_string()).collect();
        let rest = if self.disconnect { "disconnect who is still at work then" } else { "else call it off" };
        format!(
            "prepare: PAUSE {} on {} for at most {} of waiting, {rest}; commit: let it lead to {to} in {}, RELOAD and RESUME",
            self.database,
            handover_core::problem::count(self.instances.len(), "PgBouncer"),
            self.pause,
            files.into_iter().collect::<Vec<_>>().join(", ")
        )
    }
}
