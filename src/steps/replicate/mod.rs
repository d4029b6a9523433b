//! `replicate`: keeps the copy in step with its source by Postgres's own logical replication, from server to
//! server, until the cutover.
//!
//! The slot is made by the copy, which this step follows: the copy reads from the slot's own snapshot, so the
//! stream begins where the copy ends, without a gap and without a row twice. This step subscribes, waits until
//! the other side has caught up, and leaves a task that watches. The engine is not in the way of the data: while
//! it is dead, the servers go on.
//! (<https://www.postgresql.org/docs/current/logical-replication.html>)

pub mod emptied;
mod end;
pub mod identity;
pub mod lag;
pub mod marker;
pub mod origin;
pub mod preflight;
mod slot;
mod subscription;
mod watch;

use super::{Access, CheckContext, Context, Description, Step, StepKind, Undo, of_kind};
use crate::error::{Class, Error, Result};
use crate::event::{RunId, StepId};
use crate::failpoint;
use crate::postgres::{Session, TableName};
use crate::problem::Problems;
use crate::value::{Duration, EnvString, Secret, fingerprint};
use async_trait::async_trait;
pub use end::end;
use handover_copy::{Beginning, Copy, Follower};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
pub use watch::Gauge;

/// Replicates what a copy copied, from server to server, until the cutover.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Replicate {
    /// The database that is replicated: the `from` of the copy before.
    pub from: String,
    /// The database that follows: the `to` of the copy before.
    pub to: String,
    /// How the server of `to` reaches the database `from`, when that is not by the URL that the plan has for it.
    pub connection: Option<EnvString>,
    /// How late changes may arrive to count as caught up.
    #[serde(default = "default_max_lag")]
    pub max_lag: Duration,
    /// How many MiB of log the slot may keep on the disk of `from`: a warning at 70 %, and at 100 % replication is
    /// ended before the disk is at risk. Unless given, 80 % of `max_slot_wal_keep_size` there.
    #[schemars(range(min = 1))]
    pub wal_budget_mb: Option<u64>,
    /// Replicates though `max_slot_wal_keep_size` is without limit on `from`: then only this engine, while it runs,
    /// keeps the slot from filling the disk. Needs `wal_budget_mb`.
    #[serde(default)]
    pub waive_slot_limit: bool,
    /// How long to wait, before the copy, for transactions that write on `from`: the slot begins after them.
    #[serde(default = "default_patience")]
    pub patience: Duration,
    /// Folder with psql; searched for unless given.
    pub programs: Option<PathBuf>,
}

fn default_max_lag() -> Duration {
    Duration::secs(2)
}

fn default_patience() -> Duration {
    Duration::secs(600)
}

/// Why replication was ended before its time, in the journal.
const ENDED: &str = "ended";

/// A replication between two databases of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The step that replicates.
    pub step: StepId,
    /// What slot, publication and subscription are called.
    pub name: String,
    /// The publisher.
    pub from: String,
    /// The subscriber.
    pub to: String,
    /// How late changes may arrive to count as caught up.
    pub max_lag: std::time::Duration,
}

impl Link {
    /// Names are of the run: what another run left is never taken for this one's.
    fn new(run: RunId, step: &StepId, replicate: &Replicate) -> Self {
        let short = fingerprint(step.as_str(), 4);
        // Slots are named with lower-case letters, digits and underscores, and at most 63 of them.
        let name = format!("handover_{}_{short}", run.0.simple());
        let (from, to) = (replicate.from.clone(), replicate.to.clone());
        Link { step: step.clone(), name, from, to, max_lag: replicate.max_lag.0 }
    }
}

/// The replication from one database to the other that an earlier step of the plan left. Whether it is still
/// there is another matter: [`Gauge::open`] says.
#[must_use]
pub fn between(cx: &Context, from: &str, to: &str) -> Option<Link> {
    of_kind::<Replicate>(cx.before(&cx.step))
        .filter(|(_, r)| r.from == from && r.to == to)
        .last()
        .map(|(id, r)| Link::new(cx.run, id, r))
}

/// The replication that follows a copy, as the copy's step sees it.
pub struct Following<'a> {
    cx: &'a Context,
    replicate: &'a Replicate,
    link: Link,
}

/// The replication that follows the copy step `cx` is of; none when there is none.
#[must_use]
pub fn following(cx: &Context) -> Option<Following<'_>> {
    let found = of_kind::<Replicate>(&cx.steps)
        .find(|(id, replicate)| replicate.copy(cx.before(id)).is_some_and(|(found, _)| *found == cx.step));
    found.map(|(id, replicate)| Following { cx, replicate, link: Link::new(cx.run, id, replicate) })
}

#[async_trait]
impl Follower for Following<'_> {
    async fn look(&self, copy: &Copy, blue: &Session, green: &Session, out: &mut Description) -> Result<()> {
        origin::look(self, copy, blue, green, out).await
    }

    async fn begin(&self, copy: &Copy) -> Result<Box<dyn Beginning>> {
        Ok(Box::new(origin::prepare(self, copy).await?))
    }

    async fn is_there(&self) -> Result<bool> {
        origin::is_there(self.cx, &self.link).await
    }

    async fn guard(&self) -> Error {
        watch::guard(self.cx, self.replicate, &self.link).await
    }
}

/// The tables that a link carries, as the publisher's catalog says; before there is a publication, those that it
/// would have.
///
/// # Errors
/// What the server says.
pub async fn published(cx: &Context, blue: &Session, link: &Link) -> Result<BTreeSet<TableName>> {
    let rows = blue
        .query(
            // With a table that is published for its partitions, these.
            "select distinct n.nspname::text, c.relname::text from pg_publication p
             join pg_publication_rel r on r.prpubid = p.oid
             cross join lateral (select r.prrelid union select relid from pg_partition_tree(r.prrelid)) t (oid)
             join pg_class c on c.oid = t.oid join pg_namespace n on n.oid = c.relnamespace where p.pubname = $1",
            &[&link.name],
        )
        .await?;
    if !rows.is_empty() {
        let names = rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)));
        return Ok(names.collect());
    }
    let step = of_kind::<Replicate>(&cx.steps).find(|(id, _)| **id == link.step);
    let Some((id, replicate)) = step else { return Ok(BTreeSet::new()) };
    let (_, copy) = replicate.source(cx, id)?;
    Ok(origin::tables(blue, copy).await?.into_iter().collect())
}

impl Replicate {
    /// The copy that it follows.
    #[must_use]
    pub fn copy<'a>(&self, earlier: &'a [Step]) -> Option<(&'a StepId, &'a Copy)> {
        of_kind::<Copy>(earlier).filter(|(_, copy)| copy.from == self.from && copy.to == self.to).last()
    }

    /// The copy that it follows.
    fn source<'a>(&self, cx: &'a Context, step: &StepId) -> Result<(&'a StepId, &'a Copy)> {
        self.copy(cx.before(step)).ok_or_else(|| {
            Error::usage("there is no copy for this replication").hint("put a `copy` step before it")
        })
    }

    /// Where the subscriber finds the publisher.
    fn address(&self, cx: &Context) -> Result<Secret> {
        match &self.connection {
            Some(connection) => connection.resolve(),
            None => cx.databases.url(&self.from).cloned(),
        }
    }

    /// How much log the slot may keep, given what the server allows at most.
    fn budget(&self, limit: Option<u64>) -> u64 {
        match (self.wal_budget_mb, limit) {
            (Some(mb), _) => mb << 20,
            (None, Some(limit)) => limit / 5 * 4,
            (None, None) => u64::MAX,
        }
    }

    fn link(&self, cx: &Context) -> Link {
        Link::new(cx.run, &cx.step, self)
    }
}

#[async_trait]
impl StepKind for Replicate {
    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        cx.database(problems, "from", &self.from);
        cx.database(problems, "to", &self.to);
        if self.from == self.to {
            problems
                .error(["to"], format!("`{}` cannot follow itself", self.to))
                .hint("name the database that the copy filled");
            return;
        }
        let Some((copy, _)) = self.copy(cx.earlier()) else {
            problems
                .error(["from"], format!("no step before this one copies {} to {}", self.from, self.to))
                .at_key()
                .hint("put a `copy` step with the same `from` and `to` right before it: the stream begins at the copy's own point in time");
            return;
        };
        let steps = cx.earlier();
        let at = steps.iter().position(|s| s.id == *copy).unwrap_or_default();
        if let Some((other, _)) =
            of_kind::<Replicate>(&steps[at..]).find(|(_, r)| r.from == self.from && r.to == self.to)
        {
            problems
                .error(["from"], format!("step `{other}` replicates the same copy already"))
                .at_key()
                .hint("remove one of the two");
        }
        if let Some(between) = steps.get(at + 1) {
            problems
                .warning(
                    ["from"],
                    format!(
                        "while step `{}` runs, {} keeps its log for this step, and nobody watches how much",
                        between.id, self.from
                    ),
                )
                .at_key()
                .hint(format!("put this step right behind `{copy}`"));
        }
        if self.waive_slot_limit && self.wal_budget_mb.is_none() {
            problems
                .error(["waive_slot_limit"], "without a limit on the server, this step needs one of its own")
                .at_key()
                .hint("say `wal_budget_mb:`, how much log the slot may keep on the disk there");
        }
        if self.wal_budget_mb == Some(0) {
            problems.error(["wal_budget_mb"], "a slot always keeps some log").hint("write 1024 or more");
        }
        if let Some(connection) = &self.connection {
            // One in a URL is found wherever it stands in the plan; this is for `key=value` strings.
            let lower = connection.0.to_ascii_lowercase();
            let open = lower
                .split_once("password")
                .is_none_or(|(_, rest)| rest.trim_start_matches([' ', '=', '\'']).starts_with("${"));
            if !open {
                problems.error(["connection"], "a password stands in the plan").hint(
                    "take it from the environment: `${NAME}` in the place of the URL or of the password",
                );
            } else if connection.variables().is_err() {
                problems
                    .error(["connection"], "the reference to the environment is not complete")
                    .hint("write `${NAME}`");
            }
        }
        let ends = cx.steps.get(cx.index..).unwrap_or_default().iter().any(|step| {
            step.kind.downcast::<super::cutover::Cutover>().is_some_and(|cutover| {
                cutover.freeze.as_ref() == Some(&self.from) && cutover.to.as_ref() == Some(&self.to)
            })
        });
        if !ends {
            problems
                .warning(["from"], "no later step ends this replication")
                .at_key()
                .hint(format!(
                    "add a `cutover` with `freeze: {}` and `to: {}`; without one, the slot keeps log on {} until `finish` or `rollback`, and nobody watches it once the run is done",
                    self.from, self.to, self.from
                ));
        }
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        vec![(&self.from, Access::Write), (&self.to, Access::Write)]
    }

    fn reversibility(&self) -> Undo {
        Undo::Exact {
            how: "ends the replication: subscription, slot and publication are dropped; to begin again, the copy is made again".into(),
        }
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        let (_, copy) = self.source(cx, &cx.step)?;
        let (blue, green) = (cx.reader(&self.from).await?, cx.reader(&self.to).await?);
        let mut out = Description::default();
        let tables = preflight::look(self, copy, &cx.databases, &blue, &green, &mut out).await?;
        out.action(format!(
            "before the copy: publish {} tables of {}, and make a replication slot, which waits up to {} for transactions that write; the copy reads from the slot's snapshot",
            tables.len(),
            self.from,
            self.patience
        ));
        out.action(format!(
            "subscribe {} to them, and wait until changes arrive within {}; from then on the servers keep in step by themselves",
            self.to, self.max_lag
        ));
        out.warning(format!(
            "{} keeps in its catalog pg_subscription how it reaches {}, with the password; superusers can read it",
            self.to, self.from
        ));
        Ok(out)
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let link = self.link(cx);
        if let Some(reason) = cx.recall::<String>(ENDED)? {
            return Err(end::over(&link, &reason));
        }
        origin::assert_there(cx, &link).await?;
        let made = subscription::create(cx, self, &link).await?;
        if made {
            failpoint::at(failpoint::REPLICATE_SUBSCRIBED)?;
            cx.note(format!("{} follows {} as subscription {}", self.to, self.from, link.name));
        }
        let begun = std::time::Instant::now();
        let sample = watch::catch_up(self, cx, &link).await?;
        failpoint::at(failpoint::REPLICATE_CAUGHT_UP)?;
        Ok(json!({
            "name": link.name,
            "caught_up_after_s": begun.elapsed().as_secs(),
            "bytes_behind": sample.behind(),
            "bytes_held": sample.held,
        }))
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        let link = self.link(cx);
        let mut gauge = Gauge::open(cx, &link).await?;
        let patience = self.max_lag.0.max(std::time::Duration::from_secs(5)) * 4;
        if gauge.mark(cx, "verify", patience).await? {
            return Ok(());
        }
        Err(Error::new(
            Class::Invariant,
            format!("a change on {} did not arrive on {} within {patience:?}", self.from, self.to),
        )
        .hint("see the servers' logs; then `handover resume`"))
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        cx.ledger.end_standing(&cx.step, &cx.step).await?;
        origin::discard(cx, &self.link(cx)).await?;
        if cx.recall::<String>(ENDED)?.is_some() {
            cx.forget(ENDED).await?;
        }
        Ok(json!({ "dropped": self.link(cx).name }))
    }

    async fn finish(&self, cx: &Context) -> Result<()> {
        origin::discard(cx, &self.link(cx)).await
    }

    fn stands(&self) -> bool {
        true
    }

    async fn stand(&self, cx: &Context) -> Result<()> {
        watch::stand(self, cx, &self.link(cx)).await
    }
}
