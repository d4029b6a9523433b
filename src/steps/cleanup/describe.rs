//! What the checker and a dry run say of a cleanup.

use super::count::{COUNT_LIMIT, Count, SAMPLE_LIMIT, count};
use super::expected;
use super::table::{Catalog, Table};
use super::{Action, Children, Cleanup};
use crate::error::{Class, Result};
use crate::event::StepId;
use crate::postgres::Session;
use crate::problem::{Problems, suggest};
use crate::steps::{CheckContext, Context, Description, of_kind};

pub(super) fn check(step: &Cleanup, cx: &CheckContext<'_>, problems: &mut Problems) {
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
        let known: Vec<&str> = of_kind::<Cleanup>(cx.earlier())
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
        expected::check(expect, problems);
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

pub(super) async fn describe(step: &Cleanup, cx: &Context) -> Result<Description> {
    let session = cx.operator_reader(&step.on).await?;
    let mut out = Description::default();
    if let Err(e) = fill(step, cx, &session, &mut out).await {
        // What the catalog or the SQL rules out is the finding; a lost connection is not.
        if e.class() != Class::Data {
            return Err(e);
        }
        out.refusal(&e);
    }
    Ok(out)
}

async fn fill(step: &Cleanup, cx: &Context, session: &Session, out: &mut Description) -> Result<()> {
    if step.action == Action::EndSync {
        let (_, of) = step.synced(cx)?;
        out.action(format!("drop the triggers that `{of}` keeps on {}", step.table));
        return Ok(());
    }
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
            if let Some(objection) = expected::nearly_all(step, session, &table, &count).await? {
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
    if moved.is_some() {
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
    out.action(format!("the rows: select * {}", base.replace('\n', " ")));
    if let (Count::Exact(n @ 1..), true) = (&count, expected::may_surprise(step)) {
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
