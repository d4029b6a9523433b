//! The entries of the dump: those that rows need first, in batches; the rest after the rows, in phases.

use super::dump::{Dump, Entry};
use super::state::{State, units};
use super::{Copy, created, state};
use crate::error::{Class, Error, Result};
use crate::event::Measure;
use crate::failpoint;
use crate::postgres::Session;
use crate::steps::Context;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;

/// Entries per transaction: each holds locks until its end, and the server's lock table is finite.
const BATCH: usize = 300;
/// Attempts at an entry that loses a deadlock against its neighbours.
const ATTEMPTS: u32 = 5;

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

/// Creates what rows need.
///
/// # Errors
/// What the server says of an entry.
pub async fn create(cx: &Context, copy: &Copy, state: &State, before: &[Entry]) -> Result<()> {
    let mut session = executor(cx, copy, &state.settings).await?;
    for (i, batch) in before.chunks(BATCH).enumerate() {
        cx.proceed()?;
        cx.progress("schema", (i * BATCH) as u64, Some(before.len() as u64), Measure::Items);
        let tx = session.transaction().await?;
        for entry in batch {
            tx.batch(&entry.sql).await.map_err(|e| explain(e, entry))?;
        }
        created::record(&tx, cx, &state.before, &format!("schema:{i}")).await?;
        tx.commit().await?;
        failpoint::hit(failpoint::COPY_SCHEMA_CREATED);
    }
    cx.unit_done("schema");
    Ok(())
}

fn explain(error: Error, entry: &Entry) -> Error {
    error
        .context(format!("creating {} {}", entry.kind.to_lowercase(), entry.name))
        .hint("make it possible on the target (a role, a privilege, an extension), or exclude the object; then `handover resume`")
}

/// A session that executes entries: the dump's own settings, and no limits of time.
async fn executor(cx: &Context, copy: &Copy, settings: &str) -> Result<Session> {
    let mut session = cx.writer(&copy.to).await?;
    session.client().batch_execute(settings).await.map_err(|e| {
        crate::postgres::error::from_postgres(&e, &copy.to)
            .hint("pg_dump is newer than the target; name an older one's folder with `programs:`")
    })?;
    if let Some(memory) = &copy.maintenance_work_mem {
        session.set("maintenance_work_mem", memory).await?;
    }
    Ok(session)
}

/// When an entry after the rows is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Indexes and keys: in parallel.
    Keys,
    /// What foreign keys may need: partitions' indexes attached, checks.
    Attach,
    /// Foreign keys: in parallel.
    ForeignKeys,
    /// Triggers, policies, materialized views, comments.
    Rest,
}

impl Phase {
    fn of(entry: &Entry) -> Self {
        match entry.kind.as_str() {
            "INDEX" | "CONSTRAINT" => Phase::Keys,
            "INDEX ATTACH" | "CHECK CONSTRAINT" | "STATISTICS" | "RULE" => Phase::Attach,
            "FK CONSTRAINT" => Phase::ForeignKeys,
            _ => Phase::Rest,
        }
    }

    fn jobs(self, copy: &Copy) -> usize {
        match self {
            Phase::Keys | Phase::ForeignKeys => copy.jobs(),
            Phase::Attach | Phase::Rest => 1,
        }
    }
}

/// Builds indexes and keys.
///
/// # Errors
/// What the server says of an entry.
pub async fn build_keys(cx: &Context, copy: &Copy, state: &State) -> Result<()> {
    phase(cx, copy, state, Phase::Keys).await?;
    phase(cx, copy, state, Phase::Attach).await
}

/// Adds foreign keys, then everything that is left.
///
/// # Errors
/// What the server says of an entry.
pub async fn complete(cx: &Context, copy: &Copy, state: &State) -> Result<()> {
    phase(cx, copy, state, Phase::ForeignKeys).await?;
    phase(cx, copy, state, Phase::Rest).await
}

struct Shared {
    cx: Context,
    copy: Copy,
    state: State,
    queue: Mutex<VecDeque<Entry>>,
}

async fn phase(cx: &Context, copy: &Copy, state: &State, phase: Phase) -> Result<()> {
    let done = units(&super::target_reader(cx, copy).await?, cx.run, &cx.step).await?;
    let queue: VecDeque<Entry> =
        state.after.iter().filter(|e| Phase::of(e) == phase && !done.contains(&unit(e))).cloned().collect();
    let jobs = phase.jobs(copy).min(queue.len());
    let shared = Arc::new(Shared {
        cx: cx.clone(),
        copy: copy.clone(),
        state: state.clone(),
        queue: Mutex::new(queue),
    });
    let mut workers = JoinSet::new();
    for _ in 0..jobs {
        workers.spawn(work(shared.clone()));
    }
    loop {
        tokio::select! {
            () = cx.stop.cancelled() => {
                workers.shutdown().await;
                return Err(Error::cancelled());
            }
            ended = workers.join_next() => match ended {
                None => return Ok(()),
                Some(Ok(result)) => result?,
                Some(Err(e)) => return Err(Error::internal(format!("a building task broke off: {e}"))),
            },
        }
    }
}

fn unit(entry: &Entry) -> String {
    format!("entry:{}", entry.id)
}

async fn work(shared: Arc<Shared>) -> Result<()> {
    let (cx, copy) = (&shared.cx, &shared.copy);
    let mut session = executor(cx, copy, &shared.state.settings).await?;
    loop {
        let next = shared.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(entry) = next else { return Ok(()) };
        let mut attempt = 1;
        loop {
            cx.proceed()?;
            match execute(cx, &mut session, &entry, &shared.state).await {
                Ok(()) => break,
                Err(e) if e.class() == Class::Contention && attempt < ATTEMPTS => attempt += 1,
                Err(e) => return Err(explain(e, &entry)),
            }
            cx.sleep(Duration::from_millis(200 * u64::from(attempt))).await?;
        }
        cx.unit_done(&entry.name);
        failpoint::hit(failpoint::COPY_OBJECT_BUILT);
    }
}

async fn execute(cx: &Context, session: &mut Session, entry: &Entry, state: &State) -> Result<()> {
    cx.progress(&entry.name, 0, Some(1), Measure::Items);
    let tx = session.transaction().await?;
    tx.batch(&entry.sql).await?;
    if ["EVENT TRIGGER", "RULE", "PUBLICATION"].contains(&entry.kind.as_str()) {
        created::record(&tx, cx, &state.before, &unit(entry)).await?;
    }
    state::mark(&tx, cx.run, &cx.step, &unit(entry)).await?;
    tx.commit().await
}

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
