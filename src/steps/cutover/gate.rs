//! What refuses writes on the old side, and how it is shut in an instant whatever the number of tables.
//!
//! Every frozen table gets a trigger `ENABLE ALWAYS` *before* the pause, while the application writes; all of them
//! call one function of this cutover's, which lets everything through. The decision replaces the body of that
//! function: one row of a catalog, in the transaction that holds the writers off.
//!
//! Why that is safe, and a flag in a table would not be: a trigger that reads a table does so with its transaction's
//! snapshot, which in REPEATABLE READ and SERIALIZABLE may be older than the decision, and the write would go
//! through and be lost. A function's body is not looked up in a snapshot but in the system cache. A writer that
//! waits for our lock processes the invalidations that our commit sends before it lets go of the locks, and asks
//! for the function only when its trigger fires, which is after it has the lock; a writer that had the table's
//! lock before us had to end before we got ours. So each write either committed before the decision, and was
//! drained, or meets the shut gate.
//!
//! Apply workers of a subscription fire no statement triggers. Subscriptions are refused before the pause, and
//! after the decision, when nobody waits any more, each table gets a row trigger of the same function besides. The
//! workers of a stream back ([`super::reverse`]) are let through by name.

pub use super::gate_sql::{Gate, triggers};
use super::gate_sql::{Lacking, Level, PREFIX, SHUT, TOGETHER, batches};
use super::options::Cutover;
use crate::error::{Class, Error, Result};
use crate::postgres::ours::OURS;
use crate::postgres::{Session, TableName, Tx, blockers, catalog, quote_ident};
use crate::steps::{Context, Description};
use std::time::Duration;

/// How long the writers of one table may wait for us when somebody else holds it.
const PATIENCE: Duration = Duration::from_millis(300);
/// The function behind the triggers of decisions by earlier versions, which were made in the pause.
const EARLIER: &str = "refuse_write";

impl Gate {
    /// Says what [`Gate::raise`] executes as things are now, of the tables whose triggers are made together the first.
    pub async fn describe_raise(
        &self,
        session: &Session,
        cx: &Context,
        cutover: &Cutover,
        out: &mut Description,
    ) -> Result<()> {
        if self.found(session).await?.is_none() {
            for sql in self.making(&cx.step) {
                out.statement(session.database(), &sql);
            }
        }
        self.describe_hang(session, cutover, Level::Statement, out).await
    }

    /// As [`Gate::describe_raise`], for [`Gate::bolt`].
    pub async fn describe_bolt(
        &self,
        session: &Session,
        cutover: &Cutover,
        out: &mut Description,
    ) -> Result<()> {
        self.describe_hang(session, cutover, Level::Row, out).await
    }

    async fn describe_hang(
        &self,
        session: &Session,
        cutover: &Cutover,
        level: Level,
        out: &mut Description,
    ) -> Result<()> {
        let mut missing = self.missing(session, cutover, level).await?;
        for (i, some) in batches(&mut missing).into_iter().enumerate() {
            match i {
                0 => {
                    for sql in self.hanging(some, level, "nowait") {
                        out.statement(session.database(), &sql);
                    }
                }
                _ => drop(out.more(2)),
            }
        }
        Ok(())
    }

    /// The body of its function, if it is there.
    async fn found(&self, session: &Session) -> Result<Option<String>> {
        let row = session
            .query_opt(
                &format!(
                    "select p.prosrc from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                 where n.nspname = '{OURS}' and p.proname = $1"
                ),
                &[&self.function],
            )
            .await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Frozen tables that lack their trigger, or have it in another state than `ENABLE ALWAYS`.
    async fn missing(&self, session: &Session, cutover: &Cutover, level: Level) -> Result<Vec<Lacking>> {
        Ok(lacking(&session.query(&self.lacking_sql(level), &[]).await?, cutover))
    }

    /// Makes the open gate: function, and a trigger on each frozen table that lacks one. Returns what was in the way,
    /// in words. Each lock is held for some milliseconds and for one table is waited for at most a moment, with no
    /// other held meanwhile: nobody can deadlock with us.
    pub async fn raise(
        &self,
        session: &mut Session,
        cx: &Context,
        cutover: &Cutover,
    ) -> Result<Option<String>> {
        match self.found(session).await? {
            Some(body) if body.starts_with(SHUT) => {
                return Err(Error::internal("the old side refuses writes, and no decision says so")
                    .on_database(session.database()));
            }
            Some(_) => {}
            None => {
                let tx = session.transaction().await?;
                for sql in self.making(&cx.step) {
                    tx.batch(&sql).await?;
                }
                tx.commit().await?;
            }
        }
        self.hang(session, cx, cutover, Level::Statement).await
    }

    /// Makes the row triggers that stop apply workers, too. The gate is shut: nobody is held up.
    pub async fn bolt(
        &self,
        session: &mut Session,
        cx: &Context,
        cutover: &Cutover,
    ) -> Result<Option<String>> {
        self.hang(session, cx, cutover, Level::Row).await
    }

    async fn hang(
        &self,
        session: &mut Session,
        cx: &Context,
        cutover: &Cutover,
        level: Level,
    ) -> Result<Option<String>> {
        let mut missing = self.missing(session, cutover, level).await?;
        for some in batches(&mut missing) {
            cx.proceed()?;
            match self.hang_on(session, some, level, "nowait").await {
                Ok(()) => continue,
                Err(e) if passes(&e) => {}
                Err(e) => return Err(e.context("making the triggers that will refuse writes")),
            }
            for one in some {
                cx.proceed()?;
                let table = &one.table;
                match self.hang_on(session, std::slice::from_ref(one), level, "").await {
                    Ok(()) => {}
                    Err(e) if passes(&e) => {
                        let holders = blockers::of_table(session, table).await?;
                        let who = if holders.is_empty() {
                            e.message().to_owned()
                        } else {
                            blockers::listed(&holders)
                        };
                        return Ok(Some(format!("{table} is held by {who}")));
                    }
                    Err(e) => {
                        return Err(
                            e.context(format!("making the trigger on {table} that will refuse writes"))
                        );
                    }
                }
            }
        }
        Ok(None)
    }

    async fn hang_on(
        &self,
        session: &mut Session,
        tables: &[Lacking],
        level: Level,
        wait: &str,
    ) -> Result<()> {
        let tx = session.transaction().await?;
        tx.wait_for_locks(PATIENCE).await?;
        for sql in self.hanging(tables, level, wait) {
            tx.batch(&sql).await?;
        }
        tx.commit().await
    }

    /// Whether every frozen table has its trigger.
    pub async fn is_hung(&self, tx: &Tx<'_>, cutover: &Cutover) -> Result<bool> {
        let rows = tx.query(&self.lacking_sql(Level::Statement), &[]).await?;
        Ok(lacking(&rows, cutover).is_empty())
    }

    /// Shuts it, in the transaction that holds writers off. A table that has no trigger, as one that was made since,
    /// is found here, and nothing is shut.
    ///
    /// # Errors
    /// Such a table (it passes: the next attempt sees to it), or what the server says.
    pub async fn shut(&self, tx: &Tx<'_>, cutover: &Cutover) -> Result<()> {
        let rows = tx.query(&self.lacking_sql(Level::Statement), &[]).await?;
        let open: Vec<TableName> = lacking(&rows, cutover).into_iter().map(|l| l.table).collect();
        if !open.is_empty() {
            return Err(Error::new(
                Class::Contention,
                format!("made or altered while the pause began: {}", crate::problem::few(&open)),
            )
            .on_database(tx.database())
            .hint("stop schema changes on the old side; the next attempt sees to these tables"));
        }
        tx.batch(&self.shutting()).await
    }

    /// Proves that every frozen table refuses writes.
    ///
    /// # Errors
    /// One that does not.
    pub async fn assert_shut(&self, session: &Session, cutover: &Cutover) -> Result<()> {
        let mut open: Vec<TableName> = match self.is_shut(session).await? {
            true => {
                let missing = self.missing(session, cutover, Level::Statement).await?;
                missing.into_iter().map(|l| l.table).collect()
            }
            false => {
                catalog::tables(session).await?.into_iter().filter(|t| !cutover.except.contains(t)).collect()
            }
        };
        if !open.is_empty() {
            let earlier: std::collections::BTreeSet<TableName> =
                earlier(session).await?.into_iter().collect();
            open.retain(|table| !earlier.contains(table));
        }
        match open.first() {
            None => Ok(()),
            Some(table) => Err(Error::new(
                Class::Invariant,
                format!("table {table} can still be written to on the old side"),
            )
            .on_database(session.database())
            .hint("it was made after the cutover, or its trigger was dropped: see who still uses this side")),
        }
    }

    /// Opens it, in a transaction that also takes the decision back. Waits for nobody, unless it was decided by an
    /// earlier version, whose triggers are dropped.
    pub async fn open(&self, tx: &Tx<'_>, earlier: &[TableName]) -> Result<()> {
        let there = tx
            .query_opt(
                &format!(
                    "select 1 from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                 where n.nspname = '{OURS}' and p.proname = $1"
                ),
                &[&self.function],
            )
            .await?;
        match there {
            Some(_) => tx.batch(&self.body(false)).await,
            None => {
                for table in earlier {
                    tx.batch(&format!("drop trigger {} on {}", quote_ident(PREFIX), table.sql())).await?;
                }
                Ok(())
            }
        }
    }

    /// Whether it is there, and shut.
    pub async fn is_shut(&self, session: &Session) -> Result<bool> {
        let sql = format!(
            "select 1 from pg_proc p join pg_namespace n on n.oid = p.pronamespace
             where n.nspname = '{OURS}' and p.proname = $1 and starts_with(p.prosrc, $2)"
        );
        Ok(session.query_opt(&sql, &[&self.function, &SHUT]).await?.is_some())
    }

    /// Takes the open gate away. Dropping a trigger keeps readers off for a moment, so a table that is in use is
    /// passed over; returns how many were. One that is shut stays.
    pub async fn remove(&self, session: &mut Session) -> Result<usize> {
        if self.is_shut(session).await? {
            return Ok(0);
        }
        let rows = session
            .query(
                &format!(
                    "select n.nspname::text, c.relname::text, t.tgname::text from pg_trigger t
                 join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
                 join pg_proc p on p.oid = t.tgfoid join pg_namespace pn on pn.oid = p.pronamespace
                 where pn.nspname = '{OURS}' and p.proname = $1 and t.tgparentid = 0 order by 1, 2, 3"
                ),
                &[&self.function],
            )
            .await?;
        let hung: Vec<(TableName, String)> = rows
            .iter()
            .map(|row| (TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)), row.get(2)))
            .collect();
        let mut left = 0;
        for some in hung.chunks(TOGETHER) {
            if drop_all(session, some, "nowait").await? {
                continue;
            }
            for one in some {
                left += usize::from(!drop_all(session, std::slice::from_ref(one), "").await?);
            }
        }
        if left == 0 {
            let tx = session.transaction().await?;
            tx.batch(&format!("drop function if exists {OURS}.{}()", quote_ident(&self.function))).await?;
            tx.commit().await?;
        }
        Ok(left)
    }
}

/// Drops triggers in one transaction; whether it had the locks in time. Several are locked without waiting: nobody can
/// deadlock with us.
async fn drop_all(session: &mut Session, hung: &[(TableName, String)], wait: &str) -> Result<bool> {
    let tx = session.transaction().await?;
    let tables: std::collections::BTreeSet<String> =
        hung.iter().map(|(t, _)| format!("only {}", t.sql())).collect();
    let tables: Vec<String> = tables.into_iter().collect();
    let drops: Vec<String> = hung
        .iter()
        .map(|(table, name)| format!("drop trigger if exists {} on {}", quote_ident(name), table.sql()))
        .collect();
    tx.wait_for_locks(PATIENCE).await?;
    let sql =
        format!("lock table {} in access exclusive mode {wait}; {}", tables.join(", "), drops.join(";"));
    match tx.batch(&sql).await {
        Ok(()) => tx.commit().await.map(|()| true),
        Err(e) if passes(&e) => tx.rollback().await.map(|()| false),
        Err(e) => Err(e),
    }
}

/// Tables that refuse writes by the triggers of an earlier version.
pub async fn earlier(session: &Session) -> Result<Vec<TableName>> {
    let rows = session
        .query(
            &format!("select n.nspname::text, c.relname::text from pg_trigger t join pg_class c on c.oid = t.tgrelid
             join pg_namespace n on n.oid = c.relnamespace join pg_proc p on p.oid = t.tgfoid
             join pg_namespace pn on pn.oid = p.pronamespace
             where t.tgname = $1 and t.tgenabled = 'A' and pn.nspname = '{OURS}' and p.proname = $2"),
            &[&PREFIX, &EARLIER],
        )
        .await?;
    Ok(rows.iter().map(|r| TableName::new(r.get::<_, String>(0), r.get::<_, String>(1))).collect())
}

fn lacking(rows: &[tokio_postgres::Row], cutover: &Cutover) -> Vec<Lacking> {
    let all = rows.iter().map(|r| Lacking {
        table: TableName::new(r.get::<_, String>(0), r.get::<_, String>(1)),
        disabled: r.get(2),
    });
    all.filter(|lacking| !cutover.except.contains(&lacking.table)).collect()
}

/// A lock that others have, or a table that went since we looked.
fn passes(error: &Error) -> bool {
    error.class() == Class::Contention || error.message().contains("42P01")
}
