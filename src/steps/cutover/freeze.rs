//! Holding writers off, and refusing them for good.
//!
//! SHARE ROW EXCLUSIVE conflicts with what every writing statement takes, and lets readers through; it is also
//! what `CREATE TRIGGER` and `ENABLE ALWAYS TRIGGER` take, so the decision needs no stronger lock.
//! (<https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES>)

use super::Cutover;
use crate::error::{Class, Error, Result};
use crate::postgres::catalog;
use crate::postgres::{Session, TableName, Tx, quote_ident, quote_literal};
use crate::steps::Context;
use std::time::Duration;

/// Name of the triggers that refuse writes. Digits put them before an application's own.
const TRIGGER: &str = "00_handover_refuse";

/// The tables that a freeze covers, in the order of their names: partitions too, which can be written to directly.
pub async fn tables(session: &Session, cutover: &Cutover) -> Result<Vec<TableName>> {
    let all = catalog::tables(session).await?.into_iter();
    Ok(all.filter(|table| !cutover.except.contains(table)).collect())
}

/// Limits for a session that freezes. If we are stopped or cut off in the pause, the server ends the session
/// within twice the budget, and its locks go with it.
pub async fn limit(session: &Session, budget: Duration) -> Result<()> {
    let ms = |time: Duration| format!("{}ms", time.as_millis());
    session.set("idle_in_transaction_session_timeout", &ms(budget * 2)).await?;
    session.set("lock_timeout", &ms((budget / 2).max(Duration::from_millis(50)))).await?;
    session.set("statement_timeout", &ms(budget)).await?;
    // Only a superuser may change deadlock_timeout; without it an autovacuum is waited for a second.
    Ok(())
}

/// Locks writers out. One statement takes the locks in turn, and holds those that it has while it waits for the
/// next: a writer that took its tables in another order then waits for us, and we for it. Whose `deadlock_timeout`
/// ends first is cancelled, and that must not be the writer: we give up before any writer's can have run out.
/// (<https://www.postgresql.org/docs/current/runtime-config-locks.html>)
pub async fn lock(tx: &Tx<'_>, tables: &[TableName], budget: Duration) -> Result<()> {
    if tables.is_empty() {
        return Err(Error::data("there is no table to freeze")
            .on_database(tx.database())
            .hint("is `freeze:` the right database?"));
    }
    let list: Vec<String> = tables.iter().map(|t| format!("only {}", t.sql())).collect();
    let deadlock: String =
        tx.query_one("select setting from pg_settings where name = 'deadlock_timeout'", &[]).await?.get(0);
    let deadlock = deadlock.parse().map_or(budget, Duration::from_millis);
    let patience = (budget / 2).min(deadlock * 4 / 5).max(Duration::from_millis(10));
    tx.batch(&format!("set local statement_timeout = '{}ms'", patience.as_millis())).await?;
    tx.execute(&format!("lock table {} in share row exclusive mode", list.join(", ")), &[]).await?;
    tx.batch(&format!("set local statement_timeout = '{}ms'", budget.as_millis())).await
}

/// Makes writes impossible and records the decision, in the transaction that holds the locks.
pub async fn decide(tx: &Tx<'_>, cx: &Context, tables: &[TableName]) -> Result<()> {
    let plan = quote_literal(&cx.plan);
    let replaces: bool =
        tx.query_one("select current_setting('server_version_num')::int >= 140000", &[]).await?.get(0);
    // Before Postgres 14 a trigger is not replaced, but dropped, for which there must be no reader; so only where
    // one is left from an earlier run.
    let create = if replaces { "create or replace" } else { "create" };
    let old: Vec<TableName> = if replaces {
        Vec::new()
    } else {
        let rows = tx
            .query(
                "select n.nspname::text, c.relname::text from pg_trigger t join pg_class c on c.oid = t.tgrelid
                 join pg_namespace n on n.oid = c.relnamespace where t.tgname = $1 and t.tgparentid = 0",
                &[&TRIGGER],
            )
            .await?;
        rows.iter().map(|r| TableName::new(r.get::<_, String>(0), r.get::<_, String>(1))).collect()
    };
    let mut script = String::new();
    for name in tables {
        let (table, trigger) = (name.sql(), quote_ident(TRIGGER));
        if old.contains(name) {
            script.push_str(&format!("drop trigger {trigger} on {table};"));
        }
        script.push_str(&format!(
            "{create} trigger {trigger} before insert or update or delete or truncate on {table}
                 for each statement execute function handover.refuse_write({plan});
             alter table {table} enable always trigger {trigger};"
        ));
    }
    tx.batch(&script).await?;
    tx.execute(
        "insert into handover.decision (run, step, plan) values ($1, $2, $3)",
        &[&cx.run.0, &cx.step.as_str(), &&*cx.plan],
    )
    .await
    .map(drop)
}

/// Whether the decision of this run and step is there.
pub async fn is_decided(session: &Session, cx: &Context) -> Result<bool> {
    let row = session
        .query_opt(
            "select 1 from handover.decision where run = $1 and step = $2",
            &[&cx.run.0, &cx.step.as_str()],
        )
        .await?;
    Ok(row.is_some())
}

/// Proves that each frozen table refuses writes.
pub async fn assert_refusing(session: &Session, cutover: &Cutover) -> Result<()> {
    let refusing: Vec<TableName> = refusing(session).await?;
    match tables(session, cutover).await?.into_iter().find(|t| !refusing.contains(t)) {
        None => Ok(()),
        Some(open) => {
            Err(Error::new(Class::Invariant, format!("table {open} can still be written to on the old side"))
                .on_database(session.database())
                .hint(
                    "it was made after the cutover, or its trigger was dropped: see who still uses this side",
                ))
        }
    }
}

async fn refusing(session: &Session) -> Result<Vec<TableName>> {
    let rows = session
        .query(
            "select n.nspname::text, c.relname::text from pg_trigger t join pg_class c on c.oid = t.tgrelid
             join pg_namespace n on n.oid = c.relnamespace
             where t.tgname = $1 and t.tgenabled = 'A' and t.tgfoid = 'handover.refuse_write'::regproc",
            &[&TRIGGER],
        )
        .await?;
    Ok(rows.iter().map(|r| TableName::new(r.get::<_, String>(0), r.get::<_, String>(1))).collect())
}

/// Opens the old side again and takes the decision back, in one transaction.
pub async fn open_again(session: &mut Session, cx: &Context) -> Result<()> {
    session.set("lock_timeout", "5s").await?;
    let tables = refusing(session).await?;
    let tx = session.transaction().await?;
    for table in tables {
        tx.execute(&format!("drop trigger {} on {}", quote_ident(TRIGGER), table.sql()), &[]).await?;
    }
    tx.execute("delete from handover.decision where run = $1 and step = $2", &[&cx.run.0, &cx.step.as_str()])
        .await?;
    tx.commit().await
}
