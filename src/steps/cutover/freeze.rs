//! Holding writers off, and refusing them for good.
//!
//! SHARE ROW EXCLUSIVE conflicts with what every writing statement takes, and lets readers through.
//! (<https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES>)

use super::gate::{self, Gate};
use super::options::Cutover;
use crate::error::{Class, Error, Result};
use crate::postgres::catalog;
use crate::postgres::ours::OURS;
use crate::postgres::{Session, TableName, Tx};
use crate::steps::{Context, Port};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Tables that are frozen and that a write to an excepted one reaches: the rows of its children and partitions are found
/// through it, and refusing triggers are those of the table that a statement names.
pub async fn reached_by_excepted(
    session: &Session,
    cutover: &Cutover,
) -> Result<Vec<(TableName, TableName)>> {
    if cutover.except.is_empty() {
        return Ok(Vec::new());
    }
    let rows = session
        .query(
            "with recursive below (top, oid) as (
                 select i.inhparent, i.inhrelid from pg_inherits i
                 union select b.top, i.inhrelid from below b join pg_inherits i on i.inhparent = b.oid)
             select tn.nspname::text, t.relname::text, n.nspname::text, c.relname::text
             from below b join pg_class t on t.oid = b.top join pg_namespace tn on tn.oid = t.relnamespace
             join pg_class c on c.oid = b.oid join pg_namespace n on n.oid = c.relnamespace order by 1, 2, 3, 4",
            &[],
        )
        .await?;
    let name = |row: &tokio_postgres::Row, at| {
        TableName::new(row.get::<_, String>(at), row.get::<_, String>(at + 1))
    };
    let pairs = rows.iter().map(|row| (name(row, 0), name(row, 2)));
    Ok(pairs.filter(|(top, below)| cutover.except.contains(top) && !cutover.except.contains(below)).collect())
}

/// The fact that names the rows a cutover hands over to; see [`super::served`].
pub const SUCCESSOR: &str = "successor";

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

/// What locks writers out.
pub fn locking(tables: &[TableName]) -> String {
    let list: Vec<String> = tables.iter().map(|t| format!("only {}", t.sql())).collect();
    format!("lock table {} in share row exclusive mode", list.join(", "))
}

/// What records the decision.
pub fn deciding() -> String {
    format!("insert into {OURS}.decision (run, step, plan, successor) values ($1, $2, $3, $4)")
}

/// Locks writers out. One statement takes the locks in turn, and holds those that it has while it waits for the
/// next: a writer that took its tables in another order then waits for us, and we for it. Whose `deadlock_timeout`
/// ends first is cancelled, and that must not be the writer: we give up before any writer's can have run out.
/// (<https://www.postgresql.org/docs/current/runtime-config-locks.html>)
///
/// From here on the server ends the transaction when nothing is heard of us for what is left of the budget, which is
/// counted from `begun`: our own end of the pause may never reach it.
pub async fn lock(tx: &Tx<'_>, tables: &[TableName], budget: Duration, begun: Instant) -> Result<()> {
    if tables.is_empty() {
        return Err(Error::data("there is no table to freeze")
            .on_database(tx.database())
            .hint("is `freeze:` the right database?"));
    }
    let patience = tx.wait_for_locks((budget / 2).max(Duration::from_millis(10))).await?;
    tx.batch(&format!("set local statement_timeout = '{}ms'", patience.as_millis())).await?;
    tx.batch(&locking(tables)).await.map_err(|e| {
        if e.message().contains("42P01") {
            // Dropped since we looked; the next attempt looks again.
            return e.with_class(Class::Contention).hint("stop schema changes on the old side");
        }
        e
    })?;
    let left = budget.saturating_sub(begun.elapsed()).as_millis().max(1);
    tx.batch(&format!(
        "set local statement_timeout = '{}ms'; set local idle_in_transaction_session_timeout = '{left}ms'",
        budget.as_millis()
    ))
    .await
}

/// Makes writes impossible and records the decision, in the transaction that holds the locks.
pub async fn decide(
    tx: &Tx<'_>,
    cx: &Context,
    cutover: &Cutover,
    gate: &Gate,
    successor: &str,
) -> Result<()> {
    gate.shut(tx, cutover).await?;
    tx.execute(&deciding(), &[&cx.run.0, &cx.step.as_str(), &&*cx.plan, &successor]).await.map(drop)
}

/// Proves that a durable commit comes back, as the decision's must, which holds writers off until it does. None, or what
/// it waits for, in words.
pub async fn confirms(session: &mut Session, cx: &Context, limit: Duration) -> Result<Option<String>> {
    let tx = session.transaction().await?;
    tx.durable().await?;
    tx.wait_for_locks(limit).await?;
    // What is written and gone again is in the log all the same. Under a run of nobody's: a decision may stand here.
    let written = tx
        .query_one(
            &format!("insert into {OURS}.decision (run, step, plan) values (gen_random_uuid(), $1, '') returning run"),
            &[&cx.step.as_str()],
        )
        .await?;
    let run: uuid::Uuid = written.get(0);
    tx.execute(&format!("delete from {OURS}.decision where run = $1"), &[&run]).await?;
    let name = tx.database().to_owned();
    Ok((!tx.commit_within(limit).await?)
        .then(|| format!(
            "a commit on {name} takes longer than {limit:?}: its synchronous standby does not confirm it, or its disk is slow"
        )))
}

/// Whether the decision of this run and step is there.
pub async fn is_decided(session: &Session, cx: &Context) -> Result<bool> {
    let row = session
        .query_opt(
            &format!("select 1 from {OURS}.decision where run = $1 and step = $2"),
            &[&cx.run.0, &cx.step.as_str()],
        )
        .await?;
    Ok(row.is_some())
}

/// Proves that each frozen table refuses writes.
pub async fn assert_refusing(session: &Session, cx: &Context, cutover: &Cutover) -> Result<()> {
    Gate::of(cx).assert_shut(session, cutover).await
}

/// After the decision, when nobody waits any more: stops apply workers, too, which fire no statement triggers.
pub async fn bolt(cx: &Context, cutover: &Cutover, gate: Gate) {
    let Some(name) = &cutover.freeze else { return };
    // It is quick, and nobody would come back to it: a stop that was asked for waits for it.
    let port = Port { stop: CancellationToken::new(), ..cx.port.clone() };
    let cx = &Context { port, ..cx.clone() };
    let bolted = async { gate.bolt(&mut cx.writer(name).await?, cx, cutover).await };
    let trouble = match bolted.await {
        Ok(None) => return,
        Ok(Some(waits)) => waits,
        Err(error) => error.to_string(),
    };
    cx.warn(format!(
        "a subscription that is made on {name} from now on may write there: {trouble}; make none"
    ));
}

/// Opens a side again and takes the decision that shut it back, in one transaction.
///
/// # Errors
/// What the server says.
pub async fn open(session: &mut Session, cx: &Context) -> Result<()> {
    session.wait_for_locks(Duration::from_secs(5)).await?;
    let earlier = gate::earlier(session).await?;
    let tx = session.transaction().await?;
    Gate::of(cx).open(&tx, &earlier).await?;
    tx.execute(
        &format!("delete from {OURS}.decision where run = $1 and step = $2"),
        &[&cx.run.0, &cx.step.as_str()],
    )
    .await?;
    tx.commit().await
}

/// As [`open`], where what was written on the successor stays there: that the decision stood is kept; see
/// [`super::served`].
pub async fn open_with_loss(session: &mut Session, cx: &Context) -> Result<()> {
    // The decision may be gone, where the old side was restored or failed over.
    let successor: Option<String> = cx.recall(SUCCESSOR)?;
    session.wait_for_locks(Duration::from_secs(5)).await?;
    let earlier = gate::earlier(session).await?;
    let tx = session.transaction().await?;
    Gate::of(cx).open(&tx, &earlier).await?;
    tx.execute(
        &format!("with gone as (delete from {OURS}.decision where run = $1 and step = $2 returning *)
         insert into {OURS}.taken_back (run, step, plan, successor, decided_at)
         select $1, $2, $3, w.successor, w.at from (
             select coalesce(nullif(g.successor, ''), $4) as successor, coalesce(g.decided_at, clock_timestamp()) as at,
                    g.run is not null as known
             from (select) one left join gone g on true) w
         where w.successor is not null
           and (w.known or not exists (select from {OURS}.taken_back t
                                       where t.run = $1 and t.step = $2 and t.successor = w.successor))"),
        &[&cx.run.0, &cx.step.as_str(), &&*cx.plan, &successor],
    )
    .await?;
    tx.commit().await
}

/// Takes away what an attempt that was called off, or a decision that was taken back, left on a side.
pub async fn clear(cx: &Context, side: Option<&String>) {
    let Some(name) = side else { return };
    let gate = Gate::of(cx);
    let removed = async { gate.remove(&mut cx.writer(name).await?).await };
    let why = match removed.await {
        Ok(0) => return,
        Ok(left) => format!("{left} of their tables are in use"),
        Err(error) => error.to_string(),
    };
    cx.warn(format!(
        "triggers stay on {name} that let every write through ({why}); when it is quiet there, `{}`",
        gate.drop_sql()
    ));
}
