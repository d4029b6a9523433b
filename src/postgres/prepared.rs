//! Who holds a table: sessions, and prepared transactions, which hold their locks without a connection and over
//! restarts, and end only when somebody says so. (<https://www.postgresql.org/docs/current/sql-prepare-transaction.html>)

use super::{Session, TableName, catalog, quote_literal};
use crate::error::Result;
use std::time::Duration;

/// Prepared transactions that hold a lock that a freeze would wait for, oldest first, in words.
///
/// # Errors
/// What the server says.
pub async fn holding(session: &Session, older_than: Duration) -> Result<Vec<String>> {
    let sql = format!(
        "{PREPARED} and p.prepared < clock_timestamp() - make_interval(secs => $1)
           and exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                       where c.oid = any(h.relations) and {})
         order by p.prepared limit 5",
        catalog::is_application("'r', 'p'")
    );
    let rows = session.query(&sql, &[&older_than.as_secs_f64()]).await?;
    Ok(rows.iter().map(in_words).collect())
}

/// Prepared transactions that a backend waits for right now, in words: by a table's lock, or, as concurrent builds do,
/// by their end.
///
/// # Errors
/// What the server says.
pub async fn blocking(session: &Session, pid: i32) -> Result<Vec<String>> {
    let sql = format!(
        "{PREPARED} and exists (select from pg_locks w where w.pid = $1 and not w.granted
                                and (w.transactionid = p.transaction or w.relation = any(h.relations)))
         order by p.prepared limit 5"
    );
    let rows = session.query(&sql, &[&pid]).await?;
    Ok(rows.iter().map(in_words).collect())
}

/// Prepared transactions that hold a lock on a table which its writers or a schema change hold, in words.
///
/// # Errors
/// What the server says.
pub async fn of_table(session: &Session, table: &TableName) -> Result<Vec<String>> {
    let sql = format!("{PREPARED} and to_regclass($1) = any(h.relations) order by p.prepared limit 5");
    let rows = session.query(&sql, &[&table.sql()]).await?;
    Ok(rows.iter().map(in_words).collect())
}

/// Transactions that hold a lock on a table which its writers or a schema change hold, in words.
///
/// # Errors
/// What the server says.
pub async fn holders(session: &Session, table: &TableName) -> Result<Vec<String>> {
    let rows = session
        .query(
            "select a.pid, coalesce(a.usename::text, '?'), coalesce(a.state, a.backend_type, '?'),
                    extract(epoch from clock_timestamp() - coalesce(a.xact_start, a.backend_start))::float8, min(l.mode)
             from pg_locks l join pg_stat_activity a on a.pid = l.pid
             join pg_class c on c.oid = l.relation join pg_namespace n on n.oid = c.relnamespace
             where n.nspname = $1 and c.relname = $2 and l.granted and l.pid <> pg_backend_pid()
               and l.database = (select oid from pg_database where datname = current_database())
               and l.mode not in ('AccessShareLock', 'RowShareLock')
               and a.xact_start < clock_timestamp() - interval '200 milliseconds'
             group by 1, 2, 3, 4 order by 4 desc limit 5",
            &[&table.schema, &table.name],
        )
        .await?;
    let mut out: Vec<String> = rows
        .iter()
        .map(|row| {
            let (pid, user, state): (i32, String, String) = (row.get(0), row.get(1), row.get(2));
            let (age, mode): (f64, String) = (row.get(3), row.get(4));
            format!("pid {pid} ({user}, {state}, {mode}, open for {age:.1} s)")
        })
        .collect();
    out.extend(of_table(session, table).await?);
    Ok(out)
}

/// A prepared transaction's locks are found by the one on its own number: until a restart they go by the virtual number
/// of the session that prepared it, afterwards by another one.
const PREPARED: &str = "select p.gid, p.owner::text, extract(epoch from clock_timestamp() - p.prepared)::float8
    from pg_prepared_xacts p
    cross join lateral (
        select array_agg(l.relation) filter (where l.mode not in ('AccessShareLock', 'RowShareLock')) as relations
        from pg_locks x join pg_locks l on l.virtualtransaction = x.virtualtransaction and l.pid is null
        where x.locktype = 'transactionid' and x.transactionid = p.transaction and x.pid is null
          and l.locktype = 'relation' and l.database = (select oid from pg_database where datname = current_database())
    ) h where p.database = current_database()";

fn in_words(row: &tokio_postgres::Row) -> String {
    let (gid, owner, age): (String, String, f64) = (row.get(0), row.get(1), row.get(2));
    let gid = quote_literal(&gid);
    format!(
        "a transaction that {owner} prepared {age:.0} s ago, and that nobody may ever finish: `rollback prepared {gid}` (or `commit prepared {gid}`) as {owner} in this database"
    )
}
