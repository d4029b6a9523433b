//! What a dry run says: which files would run, how, and what to look at before.

use crate::folder::Migration;
use crate::lex::Words;
use crate::lint::{created_table, heavy};
use crate::locks;
use crate::options::{History, Migrate, UndoBy};
use crate::script::Script;
use crate::star;
use crate::status::{Status, few};
use crate::vendor::Tool;
use crate::{history, role};
use handover_core::error::{Class, Error, Result};
use handover_core::problem::count;
use handover_port::{Description, Port};
use handover_postgres::Session;
use handover_postgres::profile::SearchPath;
use std::collections::BTreeSet;
use std::path::Path;

/// Says what a run would do, through a read-only session and with queries of ours only.
///
/// `serves`: whether the application uses the database while the step runs.
///
/// # Errors
/// What the server says, or folders that cannot be read.
pub async fn describe(step: &Migrate, port: &Port, serves: bool) -> Result<Description> {
    let loaded = step.load(&port.base).into_result()?;
    let session = port.operator_reader(&step.on).await?;
    session.set("search_path", &step.path(port)?.sql()).await?;
    let mut out = Description::default();
    let table = history::table_name(&port.plan, port.step.as_str());
    let read = Status::read(&session, None, step, &port.base, &table, loaded.migrations.clone()).await;
    let status = match read {
        Ok(status) => status,
        // The role of the dry run is another than the one that will act.
        Err(error) if error.class() == Class::Privilege => {
            out.warning(format!(
                "the vendor's history cannot be read by the role of this dry run, so what it says is not in this list ({error})"
            ));
            let own = Migrate { history: History::Own, ..step.clone() };
            Status::read(&session, None, &own, &port.base, &table, loaded.migrations).await?
        }
        Err(error) if matches!(error.class(), Class::Data | Class::Usage) => return Ok(refused(out, &error)),
        Err(error) => return Err(error),
    };
    let standing = match history::compare(&status.rows, &status.migrations) {
        Ok(standing) => standing,
        Err(error) => return Ok(refused(out, &error)),
    };
    if !status.rows.is_empty() {
        out.action(format!("nothing for {} migrations that are applied already", status.rows.len()));
    }
    let pending = status.to_run(&standing);
    if let Some(error) = step.without_way_back(&pending) {
        out = refused(out, &error);
    }
    for file in &pending {
        warn_of_several(&session, &file.up, "", &mut out).await?;
        if let (UndoBy::Down | UndoBy::DownWithLoss, Some(down)) = (step.undo, &file.down) {
            warn_of_several(&session, down, "a rollback: ", &mut out).await?;
        }
    }
    if loaded.passed_over > 0 {
        out.action(format!("nothing for {} files that are for other databases", loaded.passed_over));
    }
    for (migration, file) in &standing.pending {
        let known = status.vendors.of(file).filter(|v| v.covers(file)).map(|v| v.table.to_string());
        let before = known.or_else(|| status.is_baseline(file).then(|| "`baseline`".to_owned()));
        out.action(format!("{}: {}", migration.version(), line(file, before.as_deref())));
    }
    for (migration, file) in &standing.again {
        out.action(format!("{}: {}, again, because it changed", migration.version(), line(file, None)));
    }
    vendors(step, &status, &pending, &mut out);
    if let Some(role) = &step.role {
        role::describe(port, &session, &step.on, role, &mut out).await?;
    }
    warn_of_locks(&session, pending.iter().copied(), Way::Forward, &mut out).await?;
    if serves {
        let readers = star::readers(&session, statements(step, &pending)).await?;
        for text in readers.warnings {
            out.warning(text);
        }
        if let Some(text) = readers.unknown {
            out.action(text);
        }
    }
    let statements: usize = pending.iter().map(|m| m.up.statements().count()).sum();
    let mut estimate = format!(
        "{} in {}; how long each takes depends on the data",
        count(statements, "statement"),
        count(pending.len(), "file")
    );
    if matches!(step.undo, UndoBy::Down | UndoBy::DownWithLoss) {
        // A rollback runs under the same traffic.
        warn_of_locks(&session, pending.iter().rev().copied(), Way::Back, &mut out).await?;
        let back: usize =
            pending.iter().filter_map(|m| m.down.as_ref()).map(|down| down.statements().count()).sum();
        estimate.push_str(&format!("; a rollback runs {} of the down files", count(back, "statement")));
    }
    out.estimate = Some(estimate);
    Ok(out)
}

/// Who reads whole rows of tables whose columns change here, and would fail once.
///
/// # Errors
/// What the server says, or a folder that cannot be read.
pub async fn whole_rows(
    step: &Migrate,
    session: &Session,
    path: &SearchPath,
    base: &Path,
    plan: &str,
    id: &str,
) -> Result<star::Readers> {
    let table = history::table_name(plan, id);
    let loaded = step.load(base).into_result()?;
    session.set("search_path", &step.search_path.as_ref().unwrap_or(path).sql()).await?;
    let status = Status::read(session, None, step, base, &table, loaded.migrations).await?;
    let standing = history::compare(&status.rows, &status.migrations)?;
    star::readers(session, statements(step, &status.to_run(&standing))).await
}

/// What these files execute, now and in a rollback.
fn statements<'f>(step: &Migrate, files: &'f [&Migration]) -> impl Iterator<Item = &'f Words> {
    let back = matches!(step.undo, UndoBy::Down | UndoBy::DownWithLoss);
    files
        .iter()
        .flat_map(move |file| [Some(&file.up), file.down.as_ref().filter(|_| back)])
        .flatten()
        .flat_map(|script| script.statements().map(|statement| &statement.words))
}

fn refused(mut out: Description, error: &Error) -> Description {
    out.blocker(match error.next_step() {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    });
    out
}

/// What the vendors' tables have to do with it.
fn vendors(step: &Migrate, status: &Status, pending: &[&Migration], out: &mut Description) {
    for (folder, vendor) in status.vendors.iter() {
        let (table, tool) = (&vendor.table, vendor.tool);
        out.action(if vendor.is_missing() {
            format!("create {table}, in which {tool} keeps what was applied, and record there what runs from {folder}")
        } else {
            format!("record what runs from {folder} in {table} too, as {tool} does")
        });
        let unknown = vendor.unknown(folder, &status.migrations);
        if let [first, ..] = &unknown[..] {
            out.warning(format!(
                "{table} has {} numbers that no file of {folder} has, such as {first}: is it the folder of an older release?",
                unknown.len()
            ));
        }
    }
    let unknown = status.unknown_to_vendor();
    if !unknown.is_empty() {
        out.warning(format!(
            "{} of Handover's history are not in the vendor's table, and its tool would run them again: {}",
            count(unknown.len(), "file"),
            few(&unknown)
        ));
    }
    let none = status.vendors.iter().next().is_none();
    let known = |f: &Migration| !Tool::candidates(f.names, false, || true).is_empty();
    if step.history == History::Auto && none && pending.iter().any(|f| known(f)) {
        out.action("no vendor's history table is here, so only Handover's own is written; a service that migrates when it starts needs `history: vendor`");
    }
}

fn line(file: &Migration, before: Option<&str>) -> String {
    let mut text = file.key();
    if let Some(path) = &file.replaced_by {
        text.push_str(&format!(", replaced by {path}"));
    }
    text.push_str(&match (&file.up.stepwise, before, file.up.is_blank()) {
        (_, Some(says), _) => format!(": recorded as applied, not run ({says} says so)"),
        (_, _, true) => ": blank, recorded only".to_owned(),
        (Some(why), _, _) => format!(": outside a transaction, statement by statement ({why})"),
        (None, _, _) => ": in one transaction".to_owned(),
    });
    if file.down.is_none() {
        text.push_str("; no down file");
    }
    text
}

/// Tables that one transaction holds against the application at once.
async fn warn_of_several(
    session: &Session,
    script: &Script,
    when: &str,
    out: &mut Description,
) -> Result<()> {
    for unit in &script.units {
        let held = locks::seen(session, unit.statements().iter()).await?;
        if let [first, _, ..] = &held[..] {
            let names: Vec<String> = held.iter().map(|lock| lock.table.to_string()).collect();
            out.warning(format!(
                "{when}{}:{}: one transaction locks {}: all are locked together at its beginning, and who writes to any of them waits until it ends; safer: a file for each",
                script.path,
                held.iter().map(|lock| lock.line).min().unwrap_or(first.line),
                names.join(" and ")
            ));
        }
    }
    Ok(())
}

/// Whether one of these functions is volatile here. What the server does not know yet is made by these files, and
/// volatile unless it says otherwise.
async fn is_volatile(session: &Session, functions: &[String]) -> Result<bool> {
    let row = session
        .query_one(
            "select coalesce(bool_or(volatile), false)
             from (select coalesce(bool_or(p.provolatile = 'v'), true) as volatile
                   from unnest($1::text[]) f (name) left join pg_proc p on p.proname = f.name group by f.name) x",
            &[&functions],
        )
        .await?;
    Ok(row.get(0))
}

/// Which way a file is gone through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Forward,
    Back,
}

async fn warn_of_locks(
    session: &Session,
    files: impl Iterator<Item = &Migration>,
    way: Way,
    out: &mut Description,
) -> Result<()> {
    let mut created = BTreeSet::new();
    for file in files {
        let script = match way {
            Way::Forward => Some(&file.up),
            Way::Back => file.down.as_ref(),
        };
        let when = if way == Way::Back { "a rollback: " } else { "" };
        let Some(script) = script else { continue };
        for statement in script.statements() {
            if let Some(name) = created_table(&statement.words) {
                // With IF NOT EXISTS a table that is there stays what it is.
                let is_new =
                    !statement.words.has(&["if", "not", "exists"]) || size(session, &name).await?.is_none();
                created.extend(is_new.then_some(name));
            }
            for lint in heavy(&statement.words) {
                if created.contains(&lint.relation)
                    || (!lint.if_volatile.is_empty() && !is_volatile(session, &lint.if_volatile).await?)
                {
                    continue;
                }
                let Some(rows) = size(session, &lint.relation).await? else { continue };
                out.warning(format!(
                    "{when}{}:{}: {} ({rows}) {}; safer: {}",
                    script.path, statement.line, lint.relation, lint.what, lint.instead
                ));
            }
        }
    }
    Ok(())
}

/// How large a table is, in words; none if it is not there. A name means what it means on the step's path.
async fn size(session: &Session, name: &str) -> Result<Option<String>> {
    let found = session
        .query_opt(
            "select pg_size_pretty(pg_table_size(c.oid)), c.reltuples::float8
             from pg_class c where c.oid = to_regclass($1)",
            &[&name],
        )
        .await?;
    Ok(found.map(|found| {
        let (size, rows): (String, f64) = (found.get(0), found.get(1));
        if rows >= 0.0 { format!("about {rows:.0} rows, {size}") } else { size }
    }))
}
