//! The entries of the dump: those that rows need first, in batches; those that hang on tables; and the rest.

use crate::dependents::LeftOut;
use crate::dump::{Dump, Entry};
use crate::options::Copy;
use crate::state::{Analyze, Object, State, units};
use crate::{created, graph, state, violation};
use handover_core::error::{Class, Error, Result};
use handover_core::event::Measure;
use handover_core::failpoint;
use handover_port::Port;
use handover_postgres::{Session, quote_ident};
use std::collections::BTreeSet;

/// Entries per transaction: each holds locks until its end, and the server's lock table is finite.
const BATCH: usize = 300;
/// Kinds of entries that pg_dump puts after the rows (`SECTION_POST_DATA`).
const AFTER: &[&str] = &[
    "INDEX",
    "INDEX ATTACH",
    "STATISTICS",
    "CONSTRAINT",
    "FK CONSTRAINT",
    "CHECK CONSTRAINT",
    "TRIGGER",
    "EVENT TRIGGER",
    "RULE",
    "POLICY",
    "ROW SECURITY",
    "MATERIALIZED VIEW DATA",
    "PUBLICATION",
    "PUBLICATION TABLE",
    "PUBLICATION TABLES IN SCHEMA",
    "DEFAULT ACL",
];

/// Splits a dump into what comes before the rows and what comes after.
#[must_use]
pub fn split(dump: Dump) -> (String, Vec<Entry>, Vec<Entry>) {
    let mut late: BTreeSet<i64> = BTreeSet::new();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for entry in dump.entries {
        // A comment on an index follows the index.
        if AFTER.contains(&entry.kind.as_str())
            || takes_from_owner(&entry)
            || entry.depends.iter().any(|id| late.contains(id)) && entry.class == 0
        {
            late.insert(entry.id);
            after.push(entry);
        } else {
            before.push(entry);
        }
    }
    (dump.settings, before, after)
}

/// Grants that leave an owner less than all rights: they would keep the owner's members from loading the rows.
fn takes_from_owner(entry: &Entry) -> bool {
    let revoke = |line: &str| line.starts_with("REVOKE ") && !line.ends_with(" FROM PUBLIC;");
    entry.kind == "ACL" && entry.sql.lines().any(revoke)
}

/// Drops entries, and the comments and grants that hang on them.
pub fn without(entries: &mut Vec<Entry>, unwanted: impl Fn(&Entry) -> bool) {
    let mut gone = BTreeSet::new();
    entries.retain(|entry| {
        let drop = unwanted(entry) || entry.class == 0 && entry.depends.iter().any(|id| gone.contains(id));
        if drop {
            gone.insert(entry.id);
        }
        !drop
    });
}

/// Leaves schema `public` on green to whom it belongs there, where it belongs to the source's first superuser and
/// we could not give it to the role of that name. That owner is nobody's choice but initdb's, before Postgres 15
/// and in databases that came from there by pg_upgrade. What is granted on the schema is copied all the same.
///
/// # Errors
/// What a server says.
pub async fn public_stays(blue: &Session, green: &Session, before: &mut [Entry]) -> Result<()> {
    // Initdb's superuser has this number everywhere.
    let owner = blue
        .query_opt(
            "select pg_get_userbyid(nspowner)::text from pg_namespace where nspname = 'public' and nspowner = 10",
            &[],
        )
        .await?;
    let Some(owner) = owner else { return Ok(()) };
    let owner: String = owner.get(0);
    let may = green
        .query_one("select coalesce((select pg_has_role(r, 'member') from to_regrole(quote_ident($1)) r where r is not null), false)", &[&owner])
        .await?;
    if may.get(0) {
        return Ok(());
    }
    let change = format!("ALTER SCHEMA \"public\" OWNER TO {};", quote_ident(&owner));
    for entry in before.iter_mut().filter(|e| e.kind == "SCHEMA" && e.name == "public") {
        let kept: Vec<&str> = entry.sql.lines().filter(|line| line.trim_end() != change).collect();
        entry.sql = kept.join("\n");
    }
    Ok(())
}

/// Drops what stays behind, and the comments and grants that hang on it.
pub fn leave_out(before: &mut Vec<Entry>, after: &mut Vec<Entry>, left: &LeftOut) {
    let mut gone = BTreeSet::new();
    for entries in [before, after] {
        entries.retain(|entry| {
            let hangs = entry.class == 0 && entry.depends.iter().any(|id| gone.contains(id));
            let drop = hangs || left.has(entry);
            if drop {
                gone.insert(entry.id);
            }
            !drop
        });
    }
}

/// Creates what rows need and an earlier attempt did not.
///
/// # Errors
/// What the server says of an entry.
pub async fn create(port: &Port, copy: &Copy, state: &State) -> Result<()> {
    let mut session = executor(port, copy, &state.settings).await?;
    let done = units(&session, port.run, &port.step).await?;
    for (i, batch) in state.before.chunks(BATCH).enumerate() {
        let unit = format!("schema:{i}");
        if done.contains(&format!("created:{unit}")) {
            continue;
        }
        port.proceed()?;
        port.progress("schema", (i * BATCH) as u64, Some(state.before.len() as u64), Measure::Items);
        let tx = session.transaction().await?;
        for entry in batch {
            tx.batch(&entry.sql).await.map_err(|e| explain(e, entry, &copy.from))?;
        }
        created::record(&tx, port, &state.existing, &unit).await?;
        tx.commit().await?;
        failpoint::at(failpoint::COPY_SCHEMA_CREATED)?;
    }
    port.unit_done("schema");
    Ok(())
}

fn explain(error: Error, entry: &Entry, blue: &str) -> Error {
    error
        .context(format!("creating {} {}", entry.kind.to_lowercase(), entry.name))
        .hint(format!(
            "make it possible on the target (a role, a privilege, an extension), then `handover resume`; the schema was read when the copy began, so what has to change on {blue}, or in `exclude`, needs `handover rollback` and another run"
        ))
}

/// Executes all entries in a transaction that is rolled back, so that everything the target refuses is told at once and
/// before any row is copied. Rows that do not fit are found only when they are there.
///
/// # Errors
/// All that was refused; or what the server says of anything else.
pub async fn rehearse(port: &Port, copy: &Copy, settings: &str, entries: &[&Entry]) -> Result<()> {
    let mut session = executor(port, copy, settings).await?;
    let mut refused: Vec<(&Entry, Error)> = Vec::new();
    let mut gone = BTreeSet::new();
    let tx = session.transaction().await?;
    for (i, entry) in entries.iter().enumerate() {
        port.proceed()?;
        if i % 100 == 0 {
            port.progress("rehearsal of the schema", i as u64, Some(entries.len() as u64), Measure::Items);
        }
        // What hangs on something that was refused says nothing of its own.
        if entry.depends.iter().any(|id| gone.contains(id)) {
            gone.insert(entry.id);
            continue;
        }
        // Content can only be told when that of others is there.
        if entry.kind == "MATERIALIZED VIEW DATA" {
            continue;
        }
        tx.batch("savepoint entry").await?;
        match tx.batch(&entry.sql).await {
            Ok(()) => tx.batch("release entry").await?,
            Err(e) if e.class() == Class::Data || e.class() == Class::Privilege => {
                gone.insert(entry.id);
                refused.push((entry, e));
                tx.batch("rollback to savepoint entry").await?;
            }
            // One transaction for all takes more locks than the copy itself will.
            Err(e) if e.class() == Class::Resources => {
                port.warn(format!(
                    "the schema could be rehearsed only as far as {} of {} entries: {}",
                    i,
                    entries.len(),
                    e.message()
                ));
                break;
            }
            Err(e) => return Err(explain(e, entry, &copy.from)),
        }
    }
    tx.rollback().await?;
    port.unit_done("rehearsal of the schema");
    if refused.is_empty() {
        return Ok(());
    }
    let class = if refused.iter().all(|(_, e)| e.class() == Class::Privilege) {
        Class::Privilege
    } else {
        Class::Data
    };
    let words: Vec<String> = refused
        .iter()
        .take(REFUSED)
        .map(|(entry, e)| format!("{} {}: {}", entry.kind.to_lowercase(), entry.name, e.message()))
        .collect();
    let more = refused.len().saturating_sub(REFUSED);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    Err(Error::new(class, format!("{} cannot have {} objects of {}: {}{more}", copy.to, refused.len(), copy.from, words.join("; ")))
        .on_database(&copy.to)
        .hint(format!(
            "nothing was changed. Mend them on {} or make them possible on {} (a role, a privilege, an extension); tables, views and whole schemas can also be left out with `exclude`; then `handover resume`, which reads the schema again",
            copy.from, copy.to
        )))
}

/// Objects that are named when the target refuses them.
const REFUSED: usize = 20;

/// A session that executes entries: the dump's own settings, and no limits of time.
///
/// # Errors
/// No connection, or a setting that the target does not know.
pub async fn executor(port: &Port, copy: &Copy, settings: &str) -> Result<Session> {
    let mut session = port.writer(&copy.to).await?;
    session.client().batch_execute(settings).await.map_err(|e| {
        handover_postgres::error::from_postgres(&e, &copy.to)
            .hint("pg_dump is newer than the target; name an older one's folder with `programs:`")
    })?;
    if let Some(memory) = &copy.maintenance_work_mem {
        session.set("maintenance_work_mem", memory).await?;
    }
    Ok(session)
}

/// Builds one object; `idle` workers leave their cores to it. Rows that do not fit it are named, or set aside.
///
/// # Errors
/// What the server says of it.
pub async fn build(
    port: &Port,
    copy: &Copy,
    session: &mut Session,
    object: &Object,
    state: &State,
    idle: usize,
) -> Result<()> {
    let mut in_vain = 0;
    loop {
        match build_once(port, session, object, state, idle).await {
            Err(e) if violation::is(&e) && in_vain < 3 => {
                if !violation::handle(port, copy, session, object).await? {
                    in_vain += 1;
                }
            }
            result => return result.map_err(|e| explain(e, &object.entry, &copy.from)),
        }
    }
}

async fn build_once(
    port: &Port,
    session: &mut Session,
    object: &Object,
    state: &State,
    idle: usize,
) -> Result<()> {
    let entry = &object.entry;
    // The server says how far an index is; of the rest only that it is under way is known.
    if !["INDEX", "CONSTRAINT"].contains(&entry.kind.as_str()) {
        port.progress(&entry.name, 0, Some(1), Measure::Items);
    }
    let tx = session.transaction().await?;
    tx.batch(&format!("set local max_parallel_maintenance_workers = {idle}")).await?;
    tx.batch(&entry.sql).await?;
    if ["EVENT TRIGGER", "RULE", "PUBLICATION"].contains(&entry.kind.as_str()) {
        created::record(&tx, port, &state.existing, &object.unit()).await?;
    }
    state::mark(&tx, port.run, &port.step, &object.unit()).await?;
    tx.commit().await?;
    port.unit_done(&entry.name);
    failpoint::at(failpoint::COPY_OBJECT_BUILT)?;
    Ok(())
}

/// Analyzes one table: a copy without statistics is not finished.
pub async fn analyze(port: &Port, session: &mut Session, analyze: &Analyze) -> Result<()> {
    let tx = session.transaction().await?;
    tx.batch(&format!("analyze {}", analyze.table.sql())).await?;
    state::mark(&tx, port.run, &port.step, &analyze.unit()).await?;
    tx.commit().await?;
    failpoint::at(failpoint::COPY_ANALYZED)?;
    Ok(())
}

/// Triggers, policies, rules, materialized views, comments: what the workers left, in the dump's order. Nothing
/// else is done meanwhile, so `idle` jobs may help.
///
/// # Errors
/// What the server says of an entry.
pub async fn complete(port: &Port, copy: &Copy, state: &State, idle: usize) -> Result<()> {
    let mut session = executor(port, copy, &state.settings).await?;
    let done = units(&session, port.run, &port.step).await?;
    let left = |o: &&Object| !graph::parallel(o) && !done.contains(&o.unit());
    let mut wanted: Vec<&Object> = state.after.iter().filter(left).collect();
    loop {
        let (mut again, mut failed) = (Vec::new(), None);
        let before = wanted.len();
        for object in wanted {
            port.proceed()?;
            match build(port, copy, &mut session, object, state, idle).await {
                // A materialized view that reads another one through a function, of which no catalog knows.
                Err(e)
                    if object.entry.kind == "MATERIALIZED VIEW DATA"
                        && e.message().contains(NOT_POPULATED) =>
                {
                    again.push(object);
                    failed = Some(e);
                }
                result => result?,
            }
        }
        match failed {
            None => return Ok(()),
            Some(e) if again.len() == before => return Err(e),
            Some(_) => wanted = again,
        }
    }
}

/// What a server says of a materialized view without content that is read.
const NOT_POPULATED: &str = "[SQLSTATE 55000]";

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: i64, kind: &str, class: u32, depends: &[i64]) -> Entry {
        Entry {
            id,
            class,
            oid: 1,
            depends: depends.to_vec(),
            kind: kind.into(),
            name: String::new(),
            sql: String::new(),
        }
    }

    #[test]
    fn comments_follow_what_they_speak_of() {
        let entries = vec![
            entry(1, "TABLE", 1259, &[]),
            entry(2, "COMMENT", 0, &[1]),
            entry(3, "INDEX", 1259, &[1]),
            entry(4, "COMMENT", 0, &[3]),
            entry(5, "EXTENSION", 3079, &[]),
            entry(6, "COMMENT", 0, &[5]),
        ];
        let (_, mut before, after) = split(Dump { settings: String::new(), entries });
        assert_eq!(after.iter().map(|e| e.id).collect::<Vec<_>>(), [3, 4]);
        without(&mut before, |e| e.kind == "EXTENSION");
        assert_eq!(before.iter().map(|e| e.id).collect::<Vec<_>>(), [1, 2]);
    }
}
