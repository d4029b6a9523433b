//! `copy`: fills an empty database with everything another one holds at one point in time. See [`handover_copy`].

use super::{
    Access, CheckContext, Context, Description, Links, Locks, Midway, Need, StepKind, Undo, migrate,
    replicate,
};
use crate::error::{Error, Result};
use crate::event::StepId;
use crate::failpoint;
use crate::postgres::ours;
use crate::problem::Problems;
use async_trait::async_trait;
use handover_copy::{Copy, Follower, Program};
use handover_migrations::thrown_away;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

#[async_trait]
impl StepKind for Copy {
    fn link(self: Arc<Self>, id: &StepId, place: usize, links: &mut Links) {
        links.copies.add(id, place, self);
    }

    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        cx.database(problems, "from", &self.from);
        cx.database(problems, "to", &self.to);
        handover_copy::check(self, problems);
        for schema in ours::both(cx.ours) {
            if self.include.schemas.contains(&schema) {
                problems
                    .error(["include"], format!("schema `{schema}` is Handover's own and is never copied"))
                    .hint("remove it");
            }
        }
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        vec![(&self.from, Access::Read), (&self.to, Access::Write)]
    }

    fn needs(&self, access: Access) -> &'static [Need] {
        match access {
            Access::Read => &[Need::ReadEverything, Need::Monitor],
            Access::Write => &[
                Need::ActAsOwners,
                Need::BecomeOwners,
                Need::CreateInSchemas,
                Need::ReplicationRole,
                Need::ReadEverything,
            ],
        }
    }

    fn makes_tables(&self) -> bool {
        true
    }

    fn locks_every_table(&self) -> Option<Locks> {
        Some(Locks { what: "a copy", each: 2 })
    }

    async fn programs(&self, versions: &BTreeMap<String, u32>) -> Vec<Result<String>> {
        let (Some(blue), Some(green)) = (versions.get(&self.from), versions.get(&self.to)) else {
            return Vec::new();
        };
        let found = Program::find(self.programs.as_deref(), *blue, *green).await;
        vec![found.map(|program| format!("pg_dump {} ({})", program.major, program.path.display()))]
    }

    fn midway(&self, _links: &Links, _place: usize) -> Midway {
        Midway {
            failpoint: failpoint::COPY_CHUNK_COMMITTED,
            passing: 3,
            place: "after the third of its tables",
        }
    }

    fn reversibility(&self) -> Undo {
        Undo::Exact {
            how: format!("drops everything that it created on {}, which was empty before", self.to),
        }
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        handover_copy::describe(self, cx).await
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let following = replicate::following(cx);
        let follower = following.as_ref().map(|following| following as &dyn Follower);
        let summary = handover_copy::run(self, cx, follower).await?;
        serde_json::to_value(summary).map_err(|e| Error::internal(e.to_string()))
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        handover_copy::verify(self, cx).await
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        replicate::discard_after_copy(cx).await?;
        let undo = handover_copy::Undo::begin(self, cx).await?;
        let given_up = migrate::gave_up(cx, undo.target()).await?.map(|_| thrown_away::UNIT);
        let undone = undo.complete(given_up).await?;
        let mut out = json!({ "objects_dropped": undone.dropped });
        if !undone.left_behind.is_empty() {
            out["left_behind"] = json!(undone.left_behind);
        }
        Ok(out)
    }

    fn fills(&self) -> Option<&str> {
        Some(&self.to)
    }

    async fn finish(&self, cx: &Context) -> Result<()> {
        replicate::discard_after_copy(cx).await
    }
}
