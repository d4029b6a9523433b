//! `replicate`: keeps the copy in step with its source until the cutover. How is said in [`handover_replication`].

use super::{Access, CheckContext, Context, Description, Links, StepKind, Undo};
use crate::error::{Error, Result};
use crate::event::StepId;
use crate::postgres::{Session, TableName};
use crate::problem::Problems;
use async_trait::async_trait;
use handover_copy::Copy;
use handover_replication::{Following, Leave, Link, Replicate};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The replication from one database to the other that an earlier step of the plan left. Whether it is still
/// there is another matter: [`handover_replication::Gauge::open`] says.
#[must_use]
pub fn between(cx: &Context, from: &str, to: &str) -> Option<Link> {
    cx.links.replicated(cx.place(), from, to).map(|(id, r)| Link::new(cx.run, id, r))
}

/// The replication that follows the copy step `cx` is of; none when there is none.
#[must_use]
pub fn following(cx: &Context) -> Option<Following<'_>> {
    let found = cx.links.following(&cx.step);
    found.map(|(id, replicate)| Following { port: cx, replicate, link: Link::new(cx.run, id, replicate) })
}

/// Drops what belongs to the replication that follows the copy step `cx` is of, if there is one.
///
/// # Errors
/// See [`handover_replication::discard`].
pub async fn discard_after_copy(cx: &Context) -> Result<()> {
    match following(cx) {
        Some(following) => handover_replication::discard(cx, &following.link).await,
        None => Ok(()),
    }
}

/// The tables that a link carries, as the publisher's catalog says; before there is a publication, those that it
/// would have.
pub async fn published(cx: &Context, blue: &Session, link: &Link) -> Result<BTreeSet<TableName>> {
    if let Some(tables) = handover_replication::published(blue, link).await? {
        return Ok(tables);
    }
    let Some(replicate) = cx.links.replications.get(&link.step) else { return Ok(BTreeSet::new()) };
    let copy = source(replicate, cx, &link.step)?;
    Ok(handover_replication::tables(blue, copy).await?.into_iter().collect())
}

/// Ends a replication after the decision of a cutover, by the step that `cx` is of.
///
/// # Errors
/// The lease or the journal. What a server says is only told: `finish` takes away what is left.
pub async fn end(cx: &Context, link: &Link, leave: Leave) -> Result<()> {
    cx.ledger.end_standing(&link.step, &cx.step).await?;
    handover_replication::end(cx, link, leave).await
}

/// The copy that it follows.
fn source<'a>(replicate: &Replicate, cx: &'a Context, step: &StepId) -> Result<&'a Copy> {
    let found = cx.links.copied(cx.links.place(step), &replicate.from, &replicate.to).map(|(_, copy)| copy);
    found.ok_or_else(|| {
        Error::usage("there is no copy for this replication").hint("put a `copy` step before it")
    })
}

fn own(replicate: &Replicate, cx: &Context) -> Link {
    Link::new(cx.run, &cx.step, replicate)
}

#[async_trait]
impl StepKind for Replicate {
    fn link(self: Arc<Self>, id: &StepId, place: usize, links: &mut Links) {
        links.replications.add(id, place, self);
    }

    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        cx.database(problems, "from", &self.from);
        cx.database(problems, "to", &self.to);
        if self.from == self.to {
            problems
                .error(["to"], format!("`{}` cannot follow itself", self.to))
                .hint("name the database that the copy filled");
            return;
        }
        let Some((copy, _)) = cx.links.copied(cx.index, &self.from, &self.to) else {
            problems
                .error(["from"], format!("no step before this one copies {} to {}", self.from, self.to))
                .at_key()
                .hint("put a `copy` step with the same `from` and `to` right before it: the stream begins at the copy's own point in time");
            return;
        };
        let at = cx.links.place(copy);
        let same = |(id, other): &(&StepId, &Replicate)| {
            cx.links.place(id) > at && other.from == self.from && other.to == self.to
        };
        if let Some((other, _)) = cx.links.replications.before(cx.index).find(same) {
            problems
                .error(["from"], format!("step `{other}` replicates the same copy already"))
                .at_key()
                .hint("remove one of the two");
        }
        if let Some(between) = cx.links.ids.get(at + 1..cx.index).and_then(<[StepId]>::first) {
            problems
                .warning(
                    ["from"],
                    format!(
                        "while step `{}` runs, {} keeps its log for this step, and nobody watches how much",
                        between, self.from
                    ),
                )
                .at_key()
                .hint(format!("put this step right behind `{copy}`"));
        }
        handover_replication::check(self, problems);
        let ends = cx.links.cutovers.behind(cx.index).any(|(_, cutover)| {
            cutover.freeze.as_ref() == Some(&self.from) && cutover.to.as_ref() == Some(&self.to)
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
        let copy = source(self, cx, &cx.step)?;
        handover_replication::describe(self, cx, copy).await
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let summary = handover_replication::run(self, cx, &own(self, cx)).await?;
        serde_json::to_value(summary).map_err(|e| Error::internal(e.to_string()))
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        handover_replication::verify(self, cx, &own(self, cx)).await
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        cx.ledger.end_standing(&cx.step, &cx.step).await?;
        let link = own(self, cx);
        handover_replication::undo(cx, &link).await?;
        Ok(json!({ "dropped": link.name }))
    }

    async fn finish(&self, cx: &Context) -> Result<()> {
        handover_replication::discard(cx, &own(self, cx)).await
    }

    fn stands(&self) -> bool {
        true
    }

    async fn stand(&self, cx: &Context) -> Result<()> {
        handover_replication::stand(self, cx, &own(self, cx)).await
    }
}
