//! `migrate`: applies folders of SQL migrations. How is said in [`handover_migrations`].

use super::{Access, CheckContext, Context, Description, Links, Midway, Need, StepKind, Undo};
use crate::error::Result;
use crate::event::StepId;
use crate::failpoint;
use crate::postgres::Session;
use crate::problem::Problems;
use async_trait::async_trait;
use handover_migrations::{Migrate, UndoBy, thrown_away};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;

#[async_trait]
impl StepKind for Migrate {
    fn link(self: Arc<Self>, id: &StepId, place: usize, links: &mut Links) {
        links.migrations.add(id, place, self);
    }

    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        cx.database(problems, "on", &self.on);
        handover_migrations::check(self, cx.base, problems);
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        vec![(&self.on, Access::Write)]
    }

    fn files(&self) -> Vec<PathBuf> {
        self.reads()
    }

    fn needs(&self, access: Access) -> &'static [Need] {
        match access {
            Access::Read => &[Need::ReadEverything, Need::Monitor],
            Access::Write => &[Need::ActAsOwners, Need::BecomeOwners, Need::CreateInSchemas],
        }
    }

    fn makes_tables(&self) -> bool {
        true
    }

    fn midway(&self, _links: &Links, _place: usize) -> Midway {
        Midway { failpoint: failpoint::MIGRATE_COMMITTED, passing: 1, place: "after its first migration" }
    }

    fn reversibility(&self) -> Undo {
        match self.undo {
            UndoBy::Down => Undo::Exact { how: "runs the down files, newest first".into() },
            UndoBy::DownWithLoss => Undo::Lossy {
                how: "runs the down files, newest first".into(),
                loses: "what was written since to columns and tables that they drop".into(),
            },
            UndoBy::None => {
                Undo::Impossible { why: "the plan says `undo: none` for these migrations".into() }
            }
            UndoBy::Throwaway => {
                Undo::Exact { how: "forgets the history; an earlier step's undo empties the database".into() }
            }
        }
    }

    fn leaves(&self) -> Option<&str> {
        (self.undo == UndoBy::Throwaway).then_some(self.on.as_str())
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        handover_migrations::describe(self, cx, cx.links.serves(&self.on)).await
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let done = handover_migrations::run(self, cx).await?;
        Ok(json!({ "applied": done.applied, "baseline": done.baseline, "before": done.before }))
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        handover_migrations::verify(self, cx).await
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        Ok(json!({ "undone": handover_migrations::undo(self, cx).await? }))
    }
}

/// The step that gave this database's content up in this rollback (`undo: throwaway`): the tables that earlier
/// steps worked on may have another shape now, or be gone, so those have nothing to take back.
pub(super) async fn gave_up<'a>(cx: &'a Context, session: &Session) -> Result<Option<&'a StepId>> {
    for (step, migrate) in cx.links.migrations.behind(cx.place()) {
        if migrate.on != session.database() || migrate.undo != UndoBy::Throwaway {
            continue;
        }
        if thrown_away::is_noted(session, cx.run, step).await? {
            return Ok(Some(step));
        }
    }
    Ok(None)
}
