//! Clients in the way of the freeze, of whose sessions the plan says that they may be ended: before the pause, while
//! nobody waits for us yet, and again while the locks are waited for.
//!
//! Whoever is ended is in the journal before that, with pid, role, program, age and query: an operator is asked about it
//! by somebody who lost their transaction.

use super::gates::{Ending, Rule};
use crate::error::{Class, Error, Result};
use crate::failpoint;
use crate::postgres::Session;
use crate::postgres::ending::{self, InTheWay, Way};
use crate::problem::few;
use crate::steps::Context;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;

/// The journal's fact: who was ended.
const FACT: &str = "ended_sessions";
/// The most that are named; what comes after them is only warned of.
const KEPT: usize = 100;
/// How often it is asked who keeps us waiting, within a wait that is a part of a second.
const LOOK: Duration = Duration::from_millis(20);

/// One that was told to end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// What was done.
    #[serde(rename = "do")]
    pub ending: Ending,
    /// Who it was.
    #[serde(flatten)]
    pub who: InTheWay,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let did = if self.ending == Ending::Cancel { "cancelled" } else { "ended" };
        write!(f, "{did} {}", self.who)
    }
}

fn way(ending: Ending) -> Option<(Way, &'static str)> {
    match ending {
        Ending::Wait => None,
        Ending::Cancel => Some((Way::Cancel, "cancelled the statement of")),
        Ending::Terminate => Some((Way::Terminate, "ended the session of")),
    }
}

/// Ends those who hold what the freeze would wait for. Nobody is paused yet.
///
/// # Errors
/// The journal failing, or what the server says.
pub async fn clear(rule: &Rule, cx: &Context, blue: &Session) -> Result<()> {
    if rule.ending == Ending::Wait {
        return Ok(());
    }
    let found = ending::of_freeze(blue, rule.older_than.0).await?;
    end(rule, cx, blue, found).await
}

/// Waits for locks, and ends those who keep the backend that asks for them waiting: an autovacuum always, for it begins
/// again by itself, and clients as the rule says.
///
/// # Errors
/// The wait's own; the lease lost or the journal failing.
pub async fn beside<T>(
    locks: impl Future<Output = Result<T>>,
    rule: &Rule,
    cx: &Context,
    watcher: &Session,
    pid: i32,
) -> Result<T> {
    tokio::select! {
        locked = locks => locked,
        failed = while_waiting(rule, cx, watcher, pid) => Err(failed),
    }
}

/// Returns only when the lease is lost or the journal fails; what else goes wrong is told, and the wait goes on as it would
/// without this.
async fn while_waiting(rule: &Rule, cx: &Context, watcher: &Session, pid: i32) -> Error {
    loop {
        tokio::time::sleep(LOOK).await;
        let looked = async {
            cancel_autovacuum(cx, watcher, pid).await?;
            if rule.ending == Ending::Wait {
                return Ok(());
            }
            let found = ending::of_backend(watcher, pid, rule.older_than.0).await?;
            end(rule, cx, watcher, found).await
        };
        match looked.await {
            Ok(()) => {}
            Err(error) if matches!(error.class(), Class::LeaseLost | Class::Journal) => return error,
            Err(error) => {
                cx.warn(format!("who keeps the freeze waiting cannot be ended: {error}"));
                return std::future::pending().await;
            }
        }
    }
}

/// Cancels an autovacuum that a backend waits for. The look before the pause does that, too, and the launcher may have begun
/// another one since. Where it is not allowed to us (before Postgres 18 only to a superuser) it is waited for like
/// others. By one statement, so that the signal reaches who was seen; in it who blocks is asked once, and not for each process.
async fn cancel_autovacuum(cx: &Context, watcher: &Session, pid: i32) -> Result<()> {
    cx.proceed()?;
    let sql = "select pg_cancel_backend(a.pid) from pg_stat_activity a
         where a.pid = any((select pg_blocking_pids($1))::int4[]) and a.backend_type = 'autovacuum worker'";
    match watcher.query(sql, &[&pid]).await {
        Err(error) if error.class() != Class::Privilege => Err(error),
        _ => Ok(()),
    }
}

async fn end(rule: &Rule, cx: &Context, session: &Session, found: Vec<InTheWay>) -> Result<()> {
    let Some((way, did)) = way(rule.ending) else { return Ok(()) };
    for one in found {
        if rule.lets_be(&one.role, &one.application) {
            continue;
        }
        if way == Way::Cancel && !one.is_active() {
            // Without its age, so that it is told once.
            cx.warn(format!(
                "pid {} ({}, {}) is {}: there is no statement to cancel, and it is waited for; `do: terminate` would end it",
                one.pid, one.role, one.application, one.state
            ));
            continue;
        }
        cx.proceed()?;
        let mut all = told(cx)?;
        let known = all.iter().any(|ended| ended.who.is(&one));
        if !known && all.len() < KEPT {
            all.push(Ended { ending: rule.ending, who: one.clone() });
            cx.remember(FACT, &all).await?;
        }
        match ending::end(session, &one, way).await {
            Ok(false) => {}
            Ok(true) => {
                if !known {
                    cx.warn(format!("{did} {one}, which was in the way of the cutover"));
                }
                failpoint::at(failpoint::GATE_SESSION_ENDED)?;
            }
            // A superuser's: no right that we could have been granted would do.
            Err(error) if error.class() == Class::Privilege => {
                cx.warn(format!(
                    "pid {} of {} may not be ended by this role, and is waited for",
                    one.pid, one.role
                ));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Who was told to end since the step began; see [`Ended`].
///
/// # Errors
/// A fact of another version.
pub fn told(cx: &Context) -> Result<Vec<Ended>> {
    Ok(cx.recall(FACT)?.unwrap_or_default())
}

/// Whose sessions the rule is for and the role that executes the plan may not end, in words.
///
/// # Errors
/// What the server says.
pub async fn rights(rule: &Rule, blue: &Session, role: Option<&str>) -> Result<Option<String>> {
    let (Some(role), true) = (role, rule.ending != Ending::Wait) else { return Ok(None) };
    let protected = ending::protected(blue, role).await?;
    let roles: BTreeSet<String> = protected
        .into_iter()
        .filter(|one| !rule.lets_be(&one.role, &one.application))
        .map(|one| one.role)
        .collect();
    if roles.is_empty() {
        return Ok(None);
    }
    let roles: Vec<String> = roles.into_iter().collect();
    Ok(Some(format!(
        "`blockers` ends sessions that are in the way, and {role} may not end those of {}, who are connected: as a superuser `grant pg_signal_backend to {}`, or name them under `except`",
        few(&roles),
        crate::postgres::quote_ident(role)
    )))
}

/// What a dry run says of it.
#[must_use]
pub fn words(rule: &Rule) -> Option<String> {
    let what = match rule.ending {
        Ending::Wait => return None,
        Ending::Cancel => "cancel statements",
        Ending::Terminate => "end sessions",
    };
    let except: Vec<String> = rule
        .except
        .iter()
        .map(|one| match (&one.role, &one.application_name) {
            (Some(role), Some(name)) => format!("{name} of {role}"),
            (Some(one), None) | (None, Some(one)) => one.clone(),
            (None, None) => "nobody".to_owned(),
        })
        .collect();
    let except = if except.is_empty() { String::new() } else { format!(", except of {}", few(&except)) };
    Some(format!(
        "{what} that are in the way of the freeze and whose transactions are older than {}{except}",
        rule.older_than
    ))
}
