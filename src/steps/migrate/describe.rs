//! What a dry run says: which files would run, how, and what to look at before.

use super::folder::{Loaded, Migration};
use super::lint::{created_table, heavy};
use super::{Migrate, history};
use crate::error::Result;
use crate::postgres::Session;
use crate::steps::{Context, Description};
use std::collections::BTreeSet;

/// Describes the step through a read-only session, with queries of ours only.
pub(super) async fn describe(step: &Migrate, cx: &Context, loaded: &Loaded) -> Result<Description> {
    let session = cx.reader(&step.on).await?;
    let mut out = Description::default();
    let table = history::table_name(&cx.plan, cx.step.as_str());
    let rows = history::read(&session, &table).await?;
    let standing = match history::compare(&rows, &loaded.migrations) {
        Ok(standing) => standing,
        Err(error) => {
            out.blocker(match error.next_step() {
                Some(hint) => format!("{error}; {hint}"),
                None => error.to_string(),
            });
            return Ok(out);
        }
    };
    if !rows.is_empty() {
        out.action(format!("nothing for {} migrations that are applied already", rows.len()));
    }
    if loaded.passed_over > 0 {
        out.action(format!("nothing for {} files that are for other databases", loaded.passed_over));
    }
    let baseline = step.baseline_of(&loaded.migrations);
    for (migration, file) in &standing.pending {
        out.action(format!("{}: {}", migration.version(), line(file, baseline.contains(&file.key()))));
    }
    if let Some(role) = &step.role {
        check_role(&session, role, &mut out).await?;
    }
    let pending = standing.pending.iter().map(|(_, f)| *f).filter(|f| !baseline.contains(&f.key()));
    warn_of_locks(&session, step, pending, &mut out).await?;
    let (statements, files) =
        standing.pending.iter().fold((0, 0), |(s, f), (_, m)| (s + m.up.statements().count(), f + 1));
    out.estimate =
        Some(format!("{statements} statements in {files} files; how long each takes depends on the data"));
    Ok(out)
}

fn line(file: &Migration, baseline: bool) -> String {
    let mut text = file.key();
    if let Some(path) = &file.replaced_by {
        text.push_str(&format!(", replaced by {path}"));
    }
    text.push_str(&match (&file.up.stepwise, baseline, file.up.is_blank()) {
        (_, true, _) => ": recorded as applied, not run".to_owned(),
        (_, _, true) => ": blank, recorded only".to_owned(),
        (Some(why), _, _) => format!(": outside a transaction, statement by statement ({why})"),
        (None, _, _) => ": in one transaction".to_owned(),
    });
    if file.down.is_none() {
        text.push_str("; no down file");
    }
    text
}

async fn check_role(session: &Session, role: &str, out: &mut Description) -> Result<()> {
    let row = session
        .query_opt(
            "select pg_has_role(current_user, oid, 'MEMBER') from pg_roles where rolname = $1",
            &[&role],
        )
        .await?;
    match row.map(|row| row.get::<_, bool>(0)) {
        None => drop(out.blocker(format!("there is no role {role}"))),
        // The reader may be another role than the one that will act.
        Some(false) => drop(
            out.warning(format!("the role of this dry run is no member of {role}; the plan's user must be")),
        ),
        Some(true) => {}
    }
    Ok(())
}

async fn warn_of_locks(
    session: &Session,
    step: &Migrate,
    files: impl Iterator<Item = &Migration>,
    out: &mut Description,
) -> Result<()> {
    let mut created = BTreeSet::new();
    for file in files {
        for statement in file.up.statements() {
            created.extend(created_table(&statement.words));
            for lint in heavy(&statement.words) {
                if created.contains(&lint.relation) {
                    continue;
                }
                let name = step.qualify(&lint.relation);
                let found = session
                    .query_opt(
                        "select pg_size_pretty(pg_table_size(c.oid)), c.reltuples::float8, pg_table_size(c.oid)
                         from pg_class c where c.oid = any (array(select to_regclass(n) from unnest($1::text[]) n))
                         limit 1",
                        &[&name],
                    )
                    .await?;
                let Some(found) = found else { continue };
                let (size, rows): (String, f64) = (found.get(0), found.get(1));
                let rows = if rows >= 0.0 { format!("about {rows:.0} rows, {size}") } else { size };
                out.warning(format!(
                    "{}:{}: {} ({rows}) {}; safer: {}",
                    file.up.path, statement.line, lint.relation, lint.what, lint.instead
                ));
            }
        }
    }
    Ok(())
}
