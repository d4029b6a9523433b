//! `cleanup`: changes, deletes or sets aside rows of a table of any size, in batches; or moves columns.

use super::migrate::gave_up;
use super::{Access, CheckContext, Context, Description, Links, Midway, StepKind, Undo};
use crate::error::{Error, Result};
use crate::event::{RunId, StepId};
use crate::failpoint;
use crate::problem::{Problems, suggest};
use async_trait::async_trait;
use handover_rows::cleanup::{Action, Children, Cleanup};
use serde_json::{Value, json};
use std::sync::Arc;

#[async_trait]
impl StepKind for Cleanup {
    fn link(self: Arc<Self>, id: &StepId, place: usize, links: &mut Links) {
        links.cleanups.add(id, place, self);
    }

    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        cx.database(problems, "on", &self.on);
        check(self, cx, problems);
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        vec![(&self.on, Access::Write)]
    }

    fn can_ask_the_source(&self) -> bool {
        true
    }

    fn triggers(&self, plan: &str, step: &StepId, _runs: &[RunId]) -> Vec<String> {
        vec![handover_rows::trigger_prefix(plan, step)]
    }

    fn midway(&self, _links: &Links, _place: usize) -> Midway {
        match self.action {
            // A single act.
            Action::EndSync => Midway::default(),
            _ => Midway { failpoint: failpoint::CLEANUP_BATCH, passing: 1, place: "after its first batch" },
        }
    }

    fn reversibility(&self) -> Undo {
        match self.action {
            Action::Update => Undo::Exact { how: "sets the old values again, from the archive".into() },
            Action::Delete | Action::Quarantine => {
                Undo::Exact { how: "inserts the archived rows again".into() }
            }
            Action::Backfill => Undo::Exact { how: "drops the triggers and empties what was filled".into() },
            Action::EndSync => Undo::Lossy {
                how: "creates the triggers again".into(),
                loses:
                    "what new code wrote to the new columns since the triggers ended: the old columns lack it"
                        .into(),
            },
        }
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        let session = cx.operator_reader(&self.on).await?;
        if self.action != Action::EndSync {
            return self.dry_run(cx, &session).await;
        }
        let (_, of) = synced(self, cx)?;
        let mut out = Description::default();
        out.action(format!("drop the triggers that `{of}` keeps on {}", self.table));
        for sql in handover_rows::removal(&cx.plan, of) {
            out.statement(&self.on, &sql);
        }
        Ok(out)
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let mut session = self.session(cx).await?;
        if self.action == Action::EndSync {
            let (of, step) = synced(self, cx)?;
            of.end_sync(cx, &mut session, step).await?;
            return Ok(json!({ "ended": step }));
        }
        let walked = self.walk(cx, &mut session).await?;
        Ok(json!({ "rows": walked.rows, "walks": walked.walks }))
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        let session = self.looking(cx).await?;
        if self.action == Action::EndSync {
            let (of, step) = synced(self, cx)?;
            return of.prove_ended(cx, &session, step).await;
        }
        self.prove(cx, &session).await
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        let mut session = self.session(cx).await?;
        let summary = if self.action == Action::EndSync {
            let (of, step) = synced(self, cx)?;
            of.sync_again(cx, &mut session, step).await?;
            json!({ "triggers of": step })
        } else {
            let given_up_by = gave_up(cx, &session).await?;
            self.take_back(cx, &mut session, given_up_by).await?
        };
        let tx = session.transaction().await?;
        tx.forget_checkpoints(cx.run, &cx.step).await?;
        tx.commit().await?;
        Ok(summary)
    }

    async fn finish(&self, cx: &Context) -> Result<()> {
        let mut session = self.session(cx).await?;
        self.forget(cx, &mut session).await
    }
}

/// The backfill whose triggers a step ends.
fn synced<'a>(step: &Cleanup, cx: &'a Context) -> Result<(&'a Cleanup, &'a StepId)> {
    cx.links
        .cleanups
        .all()
        .find(|(id, kind)| Some(*id) == step.of.as_ref() && kind.action == Action::Backfill)
        .map(|(id, kind)| (kind, id))
        .ok_or_else(|| {
            Error::usage("`of` names no backfill").hint("name the id of a `backfill` step before this one")
        })
}

fn check(step: &Cleanup, cx: &CheckContext<'_>, problems: &mut Problems) {
    let word = step.action.word();
    let backfill = step.action == Action::Backfill;
    let removes = matches!(step.action, Action::Delete | Action::Quarantine);
    let mut misplaced = |field: &str, given: bool, belongs: bool, what: &str| {
        if given && !belongs {
            problems.error([field], format!("`{field}` has no meaning for `{word}`")).at_key().hint(what);
        }
    };
    misplaced(
        "set",
        !step.set.is_empty(),
        backfill || step.action == Action::Update,
        "it belongs to `update` and `backfill`",
    );
    misplaced("to", step.to.is_some(), backfill, "it belongs to `backfill`");
    misplaced("back", !step.back.is_empty(), backfill, "it belongs to `backfill`");
    misplaced("of", step.of.is_some(), step.action == Action::EndSync, "it belongs to `end_sync`");
    misplaced(
        "children",
        step.children != Children::Refuse,
        removes,
        "it belongs to `delete` and `quarantine`",
    );
    misplaced("where", step.condition.is_some(), step.action != Action::EndSync, "the backfill has it");
    if removes && step.condition.as_ref().is_none_or(|c| c.trim().is_empty()) {
        problems
            .error(["action"], format!("`{word}` without `where` would take every row"))
            .hint("say which rows; `where: \"true\"` if all of them are meant");
    }
    if step.action == Action::Update && step.set.is_empty() {
        problems
            .error(["action"], "`update` without `set`")
            .hint("add e.g. set: { email: \"lower(email)\" }");
    }
    if backfill && step.set.is_empty() == step.to.is_none() {
        problems
            .error(["action"], "`backfill` takes either `set` or `to`")
            .hint("`set` fills columns of the same table, `to` fills another table");
    }
    if step.action == Action::EndSync {
        let of = step.of.as_ref().map(StepId::as_str);
        let known: Vec<&str> = cx
            .links
            .cleanups
            .before(cx.index)
            .filter(|(_, kind)| {
                kind.action == Action::Backfill && kind.on == step.on && kind.table == step.table
            })
            .map(|(id, _)| id.as_str())
            .collect();
        if !of.is_some_and(|of| known.contains(&of)) {
            let hint = match (of.and_then(|of| suggest(of, known.iter().copied())), known.as_slice()) {
                (Some(close), _) => format!("did you mean `{close}`?"),
                (None, []) => "e.g. of: move-names".to_owned(),
                (None, known) => format!("there are: {}", known.join(", ")),
            };
            problems
                .error(["action"], "`end_sync` needs `of`: the id of an earlier backfill of this table")
                .hint(hint);
        }
    }
    if let Some(expect) = &step.expect {
        expect.check(problems);
    }
    if step.batch == 0 {
        problems.error(["batch"], "a batch has at least one row");
    }
    let texts = step
        .set
        .values()
        .chain(step.back.values())
        .chain(&step.condition)
        .chain(step.to.iter().flat_map(|to| to.key.values().chain(to.columns.values())));
    if texts.clone().any(|text| text.contains("$handover_body$")) {
        problems.error(["action"], "SQL must not contain `$handover_body$`");
    }
}
