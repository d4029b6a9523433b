//! `lever`: a reversible operational setting, raised here and restored later.
//!
//! What the lever was is kept before it is raised: for a statement in the transaction of its effect, for
//! everything else in the journal. One that was up already is left alone, also by a rollback.

mod check;
mod hold;
mod movement;
mod release;
pub(super) mod shape;
mod statement;

pub use shape::{CommandLever, HttpLever, Lever, SqlLever};

use super::{Access, CheckContext, Context, Description, Links, Midway, Need, StepKind, Undo};
use crate::error::{Error, Result};
use crate::event::StepId;
use crate::failpoint;
use crate::problem::Problems;
use async_trait::async_trait;
use handover_actions::{Actions, sql};
use hold::{Hold, Phase, UNIT};
use release::{find, hold_of, raise_again, release, released_by};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;

#[async_trait]
impl StepKind for Lever {
    fn link(self: Arc<Self>, id: &StepId, place: usize, links: &mut Links) {
        links.levers.add(id, place, self);
    }

    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        self.check_shape(cx, problems);
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        self.sql.iter().map(|lever| (lever.on.as_str(), Access::Write)).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        self.programs()
    }

    fn needs(&self, _: Access) -> &'static [Need] {
        &[]
    }

    fn makes_tables(&self) -> bool {
        true
    }

    fn midway(&self, _links: &Links, _place: usize) -> Midway {
        let (failpoint, place) = match self.revert {
            None => (failpoint::LEVER_APPLIED, "with the lever raised and not yet in the journal"),
            Some(_) => (failpoint::LEVER_REVERTED, "with the lever restored and not yet in the journal"),
        };
        Midway { failpoint, passing: 1, place }
    }

    fn reversibility(&self) -> Undo {
        Undo::Exact { how: self.shown().1 }
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        let mut out = Description::default();
        let (apply, revert) = self.shown();
        if let Some(target) = &self.revert {
            out.action(apply);
            if let Some(lever) = &find(cx, target)?.1.sql {
                out.statement(&lever.on, lever.restoring()?);
            }
            return Ok(out);
        }
        self.describe_needs(&cx.base, &mut out);
        if let Some(lever) = &self.sql {
            let session = cx.operator_reader(&lever.on).await?;
            lever.limit(&session).await?;
            if let Some(query) = &lever.read {
                let row = session.query_opt(&sql::as_text(query)?, &[]).await?;
                let value: Option<String> = row.and_then(|row| row.get(0));
                out.action(format!("remember the value before: {}", value.as_deref().unwrap_or("null")));
            }
            if let Some(query) = &lever.check {
                let row = session.query_opt(&sql::as_text(query)?, &[]).await?;
                if row.and_then(|row| row.get::<_, Option<String>>(0)).as_deref() == Some("true") {
                    out.action("nothing: the lever is up already, and a rollback would leave it so");
                    return Ok(out);
                }
            }
        }
        out.action(apply);
        if let Some(lever) = &self.sql {
            out.statement(&lever.on, lever.raising()?);
        }
        out.action(match released_by(cx, &cx.step) {
            Some(step) => format!("held until step `{step}`: {revert}"),
            None => format!("held also when the run is done; only a rollback would {revert}"),
        });
        Ok(out)
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let actions = Actions::new(cx);
        actions.await_orphan(UNIT).await?;
        match &self.revert {
            Some(target) => release(cx, &actions, target).await,
            None => self.raise(cx, &actions).await,
        }
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        let actions = Actions::new(cx);
        let Some(target) = &self.revert else {
            let hold = cx.recall::<Hold>(UNIT)?.ok_or_else(|| Error::internal("the lever was not raised"))?;
            return self.agree(cx, &actions, &hold, &cx.step, true).await;
        };
        let (target, lever) = find(cx, target)?;
        match hold_of(cx, &target)? {
            Some(hold) if hold.phase != Phase::Already => {
                lever.agree(cx, &actions, &hold, &cx.step, false).await
            }
            _ => Ok(()),
        }
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        let actions = Actions::new(cx);
        actions.await_orphan(UNIT).await?;
        match &self.revert {
            Some(target) => raise_again(cx, &actions, target).await,
            None => self.lower(cx, &actions).await,
        }
    }

    async fn finish(&self, cx: &Context) -> Result<()> {
        if self.revert.is_some() {
            return Ok(());
        }
        let Some(hold) = cx.recall::<Hold>(UNIT)? else { return Ok(()) };
        if let Some(original) = &hold.original {
            Actions::new(cx).file_forget(original)?;
        }
        if hold.phase == Phase::Held && released_by(cx, &cx.step).is_none() {
            cx.warn(format!("the lever stays up; to restore it by hand: {}", self.shown().1));
        }
        Ok(())
    }
}

impl Lever {
    /// The lever that this step restores, if that is what it does.
    #[must_use]
    pub fn releases(&self) -> Option<&str> {
        self.revert.as_deref()
    }

    /// How the lever is restored, in words.
    #[must_use]
    pub fn revert_words(&self) -> String {
        self.shown().1
    }

    /// Raises the lever, unless it is up.
    async fn raise(&self, cx: &Context, actions: &Actions<'_>) -> Result<Value> {
        let before = cx.recall::<Hold>(UNIT)?;
        let ours = before.clone().filter(|hold| hold.phase != Phase::Already);
        let hold = match ours {
            Some(hold) => {
                // An interrupted attempt of ours: done already, or done again. Of a file that is written the
                // reload may still be missing.
                let whole = self.file.is_none() || hold.phase == Phase::Held;
                if whole && self.is_up(actions).await? == Some(true) {
                    cx.remember(UNIT, &hold.at(Phase::Held)).await?;
                    return Ok(self.summary(cx, false));
                }
                hold
            }
            None if self.is_up(actions).await? == Some(true) => {
                if before.is_none() {
                    cx.warn("the lever is up already; nothing was done, and a rollback will leave it so");
                    let hold = Hold { phase: Phase::Already, previous: None, original: None };
                    cx.remember(UNIT, &hold).await?;
                }
                return Ok(self.summary(cx, true));
            }
            None => {
                let mut hold = Hold { phase: Phase::Applying, previous: None, original: None };
                if let Some(lever) = self.sql.as_ref().filter(|lever| !lever.in_transaction())
                    && let Some(query) = &lever.read
                {
                    hold.previous = actions.value(&lever.on, query, lever.timeout).await?;
                }
                if let Some(file) = &self.file {
                    hold.original = Some(actions.file_keep(file, &tag(cx))?);
                }
                cx.remember(UNIT, &hold).await?;
                hold
            }
        };
        failpoint::at(failpoint::LEVER_BEFORE)?;
        cx.proceed()?;
        let section = cx.critical("the lever is being raised");
        self.apply(&section, &Actions::new(&section), &cx.step).await?;
        failpoint::at(failpoint::LEVER_APPLIED)?;
        cx.remember(UNIT, &hold.at(Phase::Held)).await?;
        drop(section);
        Ok(self.summary(cx, false))
    }

    /// Restores the lever on a rollback.
    async fn lower(&self, cx: &Context, actions: &Actions<'_>) -> Result<Value> {
        let Some(hold) = cx.recall::<Hold>(UNIT)? else {
            // A crash between keeping the file's content and telling the journal leaves a copy, no more.
            if let Some(file) = &self.file {
                actions.file_discard(file, &tag(cx))?;
            }
            return Ok(json!({ "restored": false, "why": "it was never raised" }));
        };
        if hold.phase == Phase::Already {
            cx.forget(UNIT).await?;
            return Ok(json!({ "restored": false, "why": "it was up before the run" }));
        }
        cx.proceed()?;
        let section = cx.critical("the lever is being restored");
        let was_interrupted = hold.phase == Phase::Reverting;
        let hold = hold.at(Phase::Reverting);
        cx.remember(UNIT, &hold).await?;
        let done = was_interrupted && self.file.is_none() && self.is_up(actions).await? == Some(false);
        if !done {
            self.restore(&section, &Actions::new(&section), &hold, &cx.step).await?;
        }
        drop(section);
        failpoint::at(failpoint::LEVER_UNDO_REVERTED)?;
        self.agree(cx, actions, &hold, &cx.step, false).await?;
        if let Some(lever) = self.sql.as_ref().filter(|lever| lever.in_transaction()) {
            let mut session = cx.writer(&lever.on).await?;
            let tx = session.transaction().await?;
            tx.forget_checkpoints(cx.run, &cx.step).await?;
            tx.commit().await?;
        }
        if let Some(original) = &hold.original {
            actions.file_forget(original)?;
        }
        cx.forget(UNIT).await?;
        Ok(json!({ "restored": true }))
    }

    fn summary(&self, cx: &Context, already: bool) -> Value {
        let until = released_by(cx, &cx.step);
        if !already && until.is_none() {
            cx.note("the lever stays up when the run is done; a rollback restores it");
        }
        json!({ "held": true, "was_up_already": already, "restored_by": until, "restore": self.shown().1 })
    }
}

/// Names the copy of a file.
fn tag(cx: &Context) -> String {
    format!("{}-{}", cx.run, cx.step.as_str().replace('/', "_"))
}
