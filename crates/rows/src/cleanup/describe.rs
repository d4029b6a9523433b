//! What a dry run says of a cleanup.

use super::{Action, Children, Cleanup};
use crate::count::{COUNT_LIMIT, Count, SAMPLE_LIMIT, count};
use crate::expected;
use crate::table::{Catalog, Table};
use handover_core::error::{Class, Result};
use handover_port::{Description, Port};
use handover_postgres::Session;

impl Cleanup {
    /// Says which rows it takes, in which batches, and what would fire or break.
    ///
    /// # Errors
    /// A lost connection; what the catalog or the SQL rules out is said.
    pub async fn dry_run(&self, cx: &Port, session: &Session) -> Result<Description> {
        let mut out = Description::default();
        if let Err(e) = fill(self, cx, session, &mut out).await {
            // What the catalog or the SQL rules out is the finding; a lost connection is not.
            if e.class() != Class::Data {
                return Err(e);
            }
            out.refusal(&e);
        }
        Ok(out)
    }
}

async fn fill(step: &Cleanup, cx: &Port, session: &Session, out: &mut Description) -> Result<()> {
    let table = Table::load(Catalog::Session(session), &step.table, step.key.as_deref()).await?;
    step.validate(session, &table).await?;
    if table.row_security {
        // Counting them would be refused.
        out.blocker(format!("row security hides rows of {} from this role", table.name));
        return Ok(());
    }
    let moved = step.maybe_moved(session).await?;
    let work = step.work(session, &table, moved.as_ref())?;
    let key: Vec<&str> = table.key.iter().map(|c| c.name.as_str()).collect();
    let base = format!("from {} where ({}\n)", table.name.sql(), work.matching);
    let count = count(session, &table, &base, &work.matching).await?;
    match &step.expect {
        Some(expect) => {
            if let Count::Exact(n) = count {
                let (low, high) = expect.range();
                if high.is_some_and(|limit| n > limit) {
                    out.blocker(format!("{n} rows match, and `expect` allows {}", high.unwrap_or_default()));
                }
                if n < low {
                    out.blocker(format!("{n} rows match, and `expect` asks for {low} or more"));
                }
            }
        }
        None => {
            if let Some(objection) = expected::nearly_all(step.meant(), session, &table, &count).await? {
                out.refusal(&objection);
            }
        }
    }
    let about = match count {
        Count::Exact(n) => format!("{n} rows"),
        Count::Sample { rows, of } => format!(
            "about {rows} rows (by a sample of {of}; counting took over {COUNT_LIMIT}, and the run's own walk reads the \
             whole table so)"
        ),
        Count::Estimate(n) => {
            out.warning(format!(
                "the condition over {} is so slow that not even a sample was counted within {SAMPLE_LIMIT}: `not exists \
                 (select … where …)` is often faster than `not in (select …)`, or an index is missing",
                table.name
            ));
            format!("an unknown number of rows (the planner guesses {n}, which may be far off)")
        }
    };
    if let Some(moved) = &moved
        && !moved.installed(cx, session, &cx.step).await?
    {
        for sql in moved.installation(cx, &cx.step, session.database())?.statements() {
            out.statement(&step.on, sql);
        }
        out.action(format!("create triggers on {} that keep the moved columns in step", table.name));
        out.warning(format!(
            "CREATE TRIGGER waits for writers of {} and holds new ones up meanwhile, for at most 3 s an attempt",
            table.name
        ));
        if step.to.is_some() && !step.back.is_empty() {
            out.warning("old code locks the old row first and new code the new one: if both write the same row at once, one of them may be told of a deadlock and has to try again");
        }
    }
    out.action(format!(
        "{} {about} of {}, in batches of {} by ({})",
        step.action.word(),
        table.name,
        step.batch,
        key.join(", ")
    ));
    for sql in work.changes(session).await? {
        out.statement(&step.on, &sql);
    }
    out.action(format!("the rows: select * {}", base.replace('\n', " ")));
    if let (Count::Exact(n @ 1..), true) = (&count, expected::may_surprise(step.meant())) {
        out.action(format!(
            "nothing in the plan says how many are expected; with `expect: {{ rows: {n} }}` the run stops before it touches {} % more or fewer",
            expected::TOLERANCE
        ));
    }
    for trigger in &table.triggers {
        out.warning(format!("this trigger fires for each row, also on undo: {trigger}"));
    }
    if matches!(step.action, Action::Delete | Action::Quarantine) {
        for fk in &table.foreign_keys {
            let fate = match (fk.on_delete.as_str(), step.children) {
                ("n" | "d", _) => {
                    "rows that refer to a deleted one stop the step: its ON DELETE SET clause would change them unarchived"
                }
                (_, Children::Refuse) => "rows that refer to a deleted one stop the step",
                (_, Children::Archive) => "rows that refer to a deleted one are archived and deleted with it",
            };
            out.warning(format!("{} ({}): {fate}", fk.child, fk.child_columns.join(", ")));
            if !fk.indexed {
                out.warning(format!(
                    "{} has no index on ({}): each deleted row reads that whole table",
                    fk.child,
                    fk.child_columns.join(", ")
                ));
            }
        }
    }
    Ok(())
}
