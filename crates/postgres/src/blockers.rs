//! Who is in the way: sessions whose locks or snapshots a statement waits for, and prepared transactions, which hold their
//! locks without a connection and over restarts, and end only when somebody says so. Asked and shown here only, so that a
//! foreign query reaches screen and journal in one form. (<https://www.postgresql.org/docs/current/sql-prepare-transaction.html>)

use super::foreign::{KEPT, masked};
use super::{Session, TableName, catalog, quote_literal};
use handover_core::error::Result;
use std::fmt;
use std::time::Duration;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

/// How many are named at once.
const NAMED: usize = 5;

/// Somebody in the way. Its text says who, since when, and doing what.
#[derive(Debug, Clone, PartialEq)]
pub enum Blocker {
    /// A session, or a process of the server's own.
    Session {
        /// Its process id.
        pid: i32,
        /// Its role.
        user: String,
        /// What it does: a client's state, or which process of the server's it is.
        state: String,
        /// How long its transaction has been open, in seconds.
        age: Option<f64>,
        /// The beginning of its query, masked.
        query: String,
    },
    /// A prepared transaction.
    Prepared {
        /// The name it was given.
        gid: String,
        /// Who prepared it.
        owner: String,
        /// How long ago, in seconds.
        age: f64,
    },
}

impl Blocker {
    fn of_session(row: &Row) -> Self {
        Blocker::Session {
            pid: row.get(0),
            user: row.get(1),
            state: row.get(2),
            age: row.get(3),
            query: masked(row.get(4)),
        }
    }

    fn of_prepared(row: &Row) -> Self {
        Blocker::Prepared { gid: row.get(0), owner: row.get(1), age: row.get(2) }
    }

    /// What tells it from others, whatever it does meanwhile.
    fn key(&self) -> String {
        match self {
            Blocker::Session { pid, .. } => format!("pid {pid}"),
            Blocker::Prepared { gid, .. } => format!("prepared {gid}"),
        }
    }

    /// The process, if it is an autovacuum worker: it begins again by itself some other time.
    #[must_use]
    pub fn autovacuum(&self) -> Option<i32> {
        match self {
            Blocker::Session { pid, state, .. } if state == "autovacuum worker" => Some(*pid),
            _ => None,
        }
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Blocker::Session { pid, user, state, age, query } => {
                write!(f, "pid {pid} ({user}, {state}")?;
                if let Some(age) = age {
                    write!(f, ", open for {age:.0} s")?;
                }
                f.write_str(")")?;
                if query.is_empty() { Ok(()) } else { write!(f, ": {query}") }
            }
            Blocker::Prepared { gid, owner, age } => {
                let gid = quote_literal(gid);
                write!(
                    f,
                    "a transaction that {owner} prepared {age:.0} s ago, and that nobody may ever finish: \
                     `rollback prepared {gid}` (or `commit prepared {gid}`) as {owner} in this database"
                )
            }
        }
    }
}

/// What tells some of them from others.
#[must_use]
pub fn keys(blockers: &[Blocker]) -> String {
    blockers.iter().map(Blocker::key).collect::<Vec<_>>().join(" ")
}

/// All of them in words.
#[must_use]
pub fn listed(blockers: &[Blocker]) -> String {
    blockers.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Who keeps a backend waiting right now: by a table's lock, or, as concurrent builds and new slots do, by not ending.
pub async fn of_backend(session: &Session, pid: i32) -> Result<Vec<Blocker>> {
    let row = session.query_one("select pg_blocking_pids($1)", &[&pid]).await?;
    let pids: Vec<i32> = row.get(0);
    if pids.is_empty() {
        return Ok(Vec::new());
    }
    let mut out = sessions(session, "where a.pid = any($1)", &[&pids]).await?;
    // What has no process is shown as none.
    if pids.contains(&0) {
        let waited = "exists (select from pg_locks w where w.pid = $1 and not w.granted
                              and (w.transactionid = p.transaction or w.relation = any(h.relations)))";
        out.extend(prepared(session, waited, &[&pid]).await?);
    }
    Ok(out)
}

/// Who keeps the process of a replication connection waiting, by its `application_name`.
pub async fn of_walsender(session: &Session, application: &str) -> Result<Vec<Blocker>> {
    let sql =
        "select pid from pg_stat_activity where application_name = $1 and backend_type = 'walsender' limit 1";
    match session.query_opt(sql, &[&application]).await? {
        Some(row) => of_backend(session, row.get(0)).await,
        None => Ok(Vec::new()),
    }
}

/// Who has held a lock on a table for a moment that its writers or a schema change hold.
pub async fn of_table(session: &Session, table: &TableName) -> Result<Vec<Blocker>> {
    let held = format!(
        "where a.pid <> pg_backend_pid() and a.xact_start < clock_timestamp() - interval '200 milliseconds'
           and exists (select from pg_locks l where l.pid = a.pid and l.relation = to_regclass($1) and {HELD}
                       and l.mode not in ('AccessShareLock', 'RowShareLock'))"
    );
    let mut out = sessions(session, &held, &[&table.sql()]).await?;
    out.extend(prepared_on(session, table).await?);
    Ok(out)
}

/// Prepared transactions that hold a lock on a table which its writers or a schema change hold.
pub async fn prepared_on(session: &Session, table: &TableName) -> Result<Vec<Blocker>> {
    prepared(session, "to_regclass($1) = any(h.relations)", &[&table.sql()]).await
}

/// Transactions that are some seconds old: a concurrent build would wait for their snapshots.
pub async fn of_snapshots(session: &Session) -> Result<Vec<Blocker>> {
    let old = "where a.datname = current_database() and a.pid <> pg_backend_pid()
                 and a.xact_start < clock_timestamp() - interval '5 seconds'";
    sessions(session, old, &[]).await
}

/// Sessions that have held, for longer than that, a lock which a freeze of the application's tables would wait for.
pub async fn of_freeze(session: &Session, older_than: Duration) -> Result<Vec<Blocker>> {
    let held = format!("where {}", holding_against_freeze());
    sessions(session, &held, &[&older_than.as_secs_f64()]).await
}

/// As a condition on `pg_stat_activity a`: others in this database whose transaction is older than `$1` seconds, and
/// holds a lock which a freeze would wait for.
pub(crate) fn holding_against_freeze() -> String {
    format!(
        "a.datname = current_database() and a.pid <> pg_backend_pid()
           and a.xact_start < clock_timestamp() - make_interval(secs => $1)
           and exists (
               select from pg_locks l join pg_class c on c.oid = l.relation join pg_namespace n on n.oid = c.relnamespace
               where l.pid = a.pid and {HELD}
                 and l.mode in ('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock',
                                'ExclusiveLock', 'AccessExclusiveLock')
                 and ({} or c.oid = 'pg_largeobject'::regclass and a.backend_xid is not null))",
        catalog::is_application("'r', 'p'")
    )
}

/// Prepared transactions of that kind.
pub async fn prepared_of_freeze(session: &Session, older_than: Duration) -> Result<Vec<Blocker>> {
    let held = format!(
        "p.prepared < clock_timestamp() - make_interval(secs => $1)
         and exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                     where c.oid = any(h.relations) and {})",
        catalog::is_application("'r', 'p'")
    );
    prepared(session, &held, &[&older_than.as_secs_f64()]).await
}

/// A lock that is had, in this database.
const HELD: &str =
    "l.granted and l.database = (select oid from pg_database where datname = current_database())";

/// Sessions, those with the oldest transactions first. Without `pg_read_all_stats` the columns of other roles' are null.
async fn sessions(session: &Session, which: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Blocker>> {
    let sql = format!(
        "select a.pid, coalesce(a.usename::text, '?'),
                coalesce(case when a.backend_type <> 'client backend' then a.backend_type else a.state end, '?'),
                extract(epoch from clock_timestamp() - a.xact_start)::float8, left(coalesce(a.query, ''), {KEPT})
         from pg_stat_activity a {which} order by a.xact_start limit {NAMED}"
    );
    Ok(session.query(&sql, params).await?.iter().map(Blocker::of_session).collect())
}

/// Prepared transactions, oldest first. One's locks are found by the one on its own number: until a restart they go by the
/// virtual number of the session that prepared it, afterwards by another one.
async fn prepared(session: &Session, which: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Blocker>> {
    let sql = format!(
        "select p.gid, p.owner::text, extract(epoch from clock_timestamp() - p.prepared)::float8
         from pg_prepared_xacts p
         cross join lateral (
             select array_agg(l.relation) filter (where l.mode not in ('AccessShareLock', 'RowShareLock')) as relations
             from pg_locks x join pg_locks l on l.virtualtransaction = x.virtualtransaction and l.pid is null
             where x.locktype = 'transactionid' and x.transactionid = p.transaction and x.pid is null
               and l.locktype = 'relation' and {HELD}
         ) h where p.database = current_database() and {which} order by p.prepared limit {NAMED}"
    );
    Ok(session.query(&sql, params).await?.iter().map(Blocker::of_prepared).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_the_way_is_shown_in_one_form() {
        let session = |age, query: &str| Blocker::Session {
            pid: 7,
            user: "app".into(),
            state: "idle in transaction".into(),
            age,
            query: query.into(),
        };
        let shown = [
            (session(Some(2.6), "lock t"), "pid 7 (app, idle in transaction, open for 3 s): lock t"),
            (session(None, ""), "pid 7 (app, idle in transaction)"),
        ];
        for (blocker, text) in &shown {
            assert_eq!(blocker.to_string(), *text);
        }
        let prepared = Blocker::Prepared { gid: "it's".into(), owner: "app".into(), age: 9.0 };
        assert!(prepared.to_string().contains("`rollback prepared 'it''s'`"), "{prepared}");
        assert_eq!(listed(&shown.map(|(blocker, _)| blocker)).matches("pid 7").count(), 2);
    }
}
