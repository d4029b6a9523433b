//! `restore`: brings selected rows back from another database, or from what a cleanup set aside.

use super::migrate::gave_up;
use super::{Access, CheckContext, Context, Description, StepKind, Undo};
use crate::error::Result;
use crate::problem::{Problems, suggest};
use async_trait::async_trait;
use handover_rows::cleanup::Action;
use handover_rows::restore::{Restore, Source};
use serde_json::{Value, json};

#[async_trait]
impl StepKind for Restore {
    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        cx.database(problems, "to", &self.to);
        match &self.from {
            Source::Database(name) => {
                cx.database(problems, "from", name);
                if *name == self.to && self.from_table.as_ref().is_none_or(|t| *t == self.table) {
                    problems
                        .error(["from"], "the rows would come from where they go to")
                        .hint("name another database, or another table under `from_table`");
                }
            }
            Source::Archive { quarantine } => {
                let known: Vec<&str> = cx
                    .links
                    .cleanups
                    .before(cx.index)
                    .filter(|(_, kind)| {
                        kind.on == self.to && matches!(kind.action, Action::Quarantine | Action::Delete)
                    })
                    .map(|(id, _)| id.as_str())
                    .collect();
                if !known.contains(&quarantine.as_str()) {
                    let hint = suggest(quarantine.as_str(), known).map_or_else(
                        || "name the id of a `cleanup` step before this one, on the same database".to_owned(),
                        |close| format!("did you mean `{close}`?"),
                    );
                    problems
                        .error(
                            ["from"],
                            format!(
                                "`{quarantine}` is no earlier step that deletes or quarantines rows of {}",
                                self.to
                            ),
                        )
                        .hint(hint);
                }
            }
        }
        if self.batch == 0 {
            problems.error(["batch"], "a batch has at least one row");
        }
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        let mut out = vec![(self.to.as_str(), Access::Write)];
        if let Source::Database(name) = &self.from {
            out.push((name, Access::Read));
        }
        out
    }

    fn reversibility(&self) -> Undo {
        Undo::Exact { how: "takes away what it brought and puts back what it overwrote".into() }
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        self.dry_run(cx).await
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let brought = self.bring(cx).await?;
        Ok(json!({
            "inserted": brought.inserted,
            "overwritten": brought.overwritten,
            "there already": brought.kept,
        }))
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        self.prove(cx).await
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        let mut target = self.writer(cx).await?;
        let given_up_by = gave_up(cx, &target).await?;
        let summary = self.take_back(cx, &mut target, given_up_by).await?;
        let tx = target.transaction().await?;
        tx.forget_checkpoints(cx.run, &cx.step).await?;
        tx.commit().await?;
        Ok(summary)
    }

    async fn finish(&self, cx: &Context) -> Result<()> {
        let mut target = self.writer(cx).await?;
        self.forget(cx, &mut target).await
    }
}
