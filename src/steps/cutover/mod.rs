//! `cutover`: flips all participants from the old side to the new one at one instant.
//!
//! The decision is one commit on the old side: it records the decision and makes writes impossible there in the
//! same transaction that has been holding them off. Before it, everything can be called off and the old side
//! serves on; after it, there is only forward. Where the old side stays (an upgrade in place, without
//! `freeze:`), the decision is the journal's own record.

mod book;
mod forecast;
mod freeze;
mod gate;
mod large_objects;
mod partial;
mod participant;
mod preflight;
mod protocol;
mod quarantine;
mod sequences;
mod served;
mod state;
mod statements;
mod subscriptions;
mod turn_back;
mod uncaptured;
mod watched;

use super::{Access, AtStake, CheckContext, Context, Description, StepKind, Undo};
use crate::error::{Error, Result};
use crate::postgres::TableName;
use crate::problem::Problems;
use crate::value::Duration;
use async_trait::async_trait;
use handover_actions::Actions;
pub use participant::Participant;
pub use quarantine::Allowed;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
pub use state::{FACT, Flip};
use std::collections::BTreeSet;

/// Flips participants together, with writes on the old side held off meanwhile and refused afterwards.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cutover {
    /// The database that is handed over; its writes are held off, then refused. Without it only participants flip.
    pub freeze: Option<String>,
    /// The database that takes over; its sequences are set from the old side's.
    pub to: Option<String>,
    /// Tables that are not frozen, such as logs that may be lost. What is written to them after the copy and not
    /// captured is left behind.
    #[serde(default)]
    pub except: BTreeSet<TableName>,
    /// The budget for the time in which writes are held off until the decision. An attempt that does not keep it
    /// is called off, and the old side serves on.
    #[serde(default = "default_pause")]
    pub write_pause: Duration,
    /// How long participants may take to prepare, all together.
    #[serde(default = "default_prepare")]
    pub prepare_timeout: Duration,
    /// How long a participant that cannot commit is tried again before the step fails. The decision stands then, and
    /// `handover resume` goes on.
    #[serde(default = "default_commit")]
    pub commit_timeout: Duration,
    /// How often the whole is tried before the step fails.
    #[serde(default = "default_attempts")]
    #[schemars(range(min = 1))]
    pub attempts: u32,
    /// The wait between two attempts.
    #[serde(default = "default_backoff")]
    pub backoff: Duration,
    /// How long to wait, before anything is paused, for replay to catch up and for long transactions to end.
    #[serde(default = "default_patience")]
    pub patience: Duration,
    /// How many captured events may be waiting for replay when the pause begins.
    #[serde(default = "default_backlog")]
    pub max_backlog: u32,
    /// Whether captured events may be set aside (`handover.event_quarantine`) when the new side takes over: `true`, or
    /// how many at most. Otherwise the cutover refuses while any is.
    #[serde(default)]
    pub allow_quarantined: Allowed,
    /// How old a transaction that wrote to the frozen tables may be when the pause begins.
    #[serde(default = "default_transaction_age")]
    pub max_transaction_age: Duration,
    /// How many steps beyond the old side's position each sequence of the new side begins, for values that are drawn
    /// during the pause without a write to a table. Never more than a hundredth of what a sequence has left.
    #[serde(default = "default_margin")]
    pub sequence_margin: u32,
    /// What may have changed on the old side since earlier steps relied on it, as the refusal names it: `column
    /// public.payment.note`.
    #[serde(default)]
    pub allow_drift: BTreeSet<String>,
    /// Whether the new side may hold what was written on it while an earlier decision stood, which was taken back.
    #[serde(default)]
    pub allow_served: bool,
    /// The systems that flip.
    #[schemars(length(min = 1))]
    pub participants: Vec<Participant>,
}

fn default_pause() -> Duration {
    Duration::secs(2)
}
fn default_prepare() -> Duration {
    Duration::secs(10)
}
fn default_commit() -> Duration {
    Duration::secs(300)
}
fn default_attempts() -> u32 {
    10
}
fn default_backoff() -> Duration {
    Duration::secs(5)
}
fn default_patience() -> Duration {
    Duration::secs(600)
}
fn default_backlog() -> u32 {
    1000
}
fn default_margin() -> u32 {
    1000
}
fn default_transaction_age() -> Duration {
    Duration::secs(1)
}

#[async_trait]
impl StepKind for Cutover {
    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        if let Some(freeze) = &self.freeze {
            cx.database(problems, "freeze", freeze);
            if self.to.as_ref() == Some(freeze) {
                problems
                    .error(["to"], "a database cannot take over from itself")
                    .hint("name the new side, or leave `freeze:` and `to:` out for an upgrade in place");
            }
            if self.to.is_none() {
                problems
                    .error(["freeze"], "`freeze:` needs `to:`, the database that takes over")
                    .at_key()
                    .hint(
                        "its sequences are set from the frozen side, and replay into it must have caught up",
                    );
            }
        } else if self.to.is_some() {
            problems
                .error(["to"], "`to:` needs `freeze:`, the database that is handed over")
                .at_key()
                .hint("leave both out for an upgrade in place");
        }
        if let Some(to) = &self.to {
            cx.database(problems, "to", to);
        }
        if let Some(freeze) = &self.freeze {
            let captures = super::of_kind::<handover_events::capture::Capture>(cx.earlier())
                .filter(|(_, c)| c.from == *freeze);
            for (id, _) in captures {
                if !protocol::is_replayed(cx.earlier(), id) {
                    problems
                        .warning(["freeze"], format!("what step `{id}` captures is not replayed before the cutover"))
                        .at_key()
                        .hint("put a `replay` step before this one: then nothing that was revoked is honoured by the new side, not even for a moment");
                }
            }
        }
        if self.write_pause.0 < std::time::Duration::from_millis(50) {
            problems.error(["write_pause"], "no pause can be this short").hint("one or two seconds is usual");
        }
        super::capture::coverage::check_uncarried(self, cx, problems);
        participant::check(&self.participants, cx, problems);
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        let own = self.freeze.iter().chain(&self.to).map(|name| (name.as_str(), Access::Write));
        own.chain(self.participants.iter().flat_map(Participant::databases).map(|d| (d, Access::Write)))
            .collect()
    }

    fn reversibility(&self) -> Undo {
        if let Some(name) = self.participants.iter().find(|p| !p.can_revert()).map(|p| &p.name) {
            return Undo::Impossible { why: format!("participant `{name}` says nothing under `revert:`") };
        }
        let how = "turns the participants back".to_owned();
        match &self.freeze {
            Some(freeze) => Undo::Lossy {
                how: format!("opens {freeze} again and {how}"),
                loses: format!(
                    "what was written on {} since the cutover",
                    self.to.as_deref().unwrap_or("the new side")
                ),
            },
            None => Undo::Exact { how },
        }
    }

    fn at_stake(&self) -> Option<AtStake> {
        Some(state::is_at_stake)
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        preflight::describe(self, cx).await
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        protocol::run(self, cx).await
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        if !protocol::is_decided(self, cx).await? {
            return Err(
                Error::data("the cutover has not been decided").hint("continue with `handover resume`")
            );
        }
        if let Some(freeze) = &self.freeze {
            freeze::assert_refusing(&cx.reader(freeze).await?, cx, self).await?;
        }
        let actions = Actions::new(cx);
        for participant in &self.participants {
            participant.verify(&actions).await?;
        }
        Ok(())
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        cx.proceed()?;
        turn_back::run(self, &cx.critical("the cutover is being turned back")).await
    }

    async fn finish(&self, cx: &Context) -> Result<()> {
        // The old side stays closed: a late writer must not believe that it still counts.
        let actions = Actions::new(cx);
        self.participants.iter().try_for_each(|p| p.forget(cx, &actions))
    }
}
