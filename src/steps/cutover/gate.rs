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
//! after the decision, when nobody waits any more, each table gets a row trigger of the same function besides.
//! (A stream back into this side would have to drop those first.)

use super::options::Cutover;
use crate::error::{Class, Error, Result};
use crate::event::{RunId, StepId};
use crate::postgres::ours::OURS;
use crate::postgres::routine::Routine;
use crate::postgres::{Session, TableName, Tx, blockers, catalog, quote_ident, quote_literal};
use crate::steps::Context;
use crate::value::fingerprint;
use std::time::Duration;

/// What the names of our triggers begin with. Digits put them before an application's own.
const PREFIX: &str = "00_handover_refuse";
/// Tables whose triggers are made in one transaction, while their writers wait for some milliseconds.
const TOGETHER: usize = 100;
/// How long the writers of one table may wait for us when somebody else holds it.
const PATIENCE: Duration = Duration::from_millis(300);
/// What a body that refuses begins with.
const SHUT: &str = "-- shut";
/// The function behind the triggers of decisions by earlier versions, which were made in the pause.
const EARLIER: &str = "refuse_write";

/// One cutover's function and the names of its triggers.
#[derive(Debug, Clone)]
pub struct Gate {
    function: String,
    statement: String,
    row: String,
    plan: String,
}

/// What kind of trigger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Statement,
    Row,
}

fn mark(run: RunId, step: &StepId) -> String {
    fingerprint(&format!("{run}/{step}"), 4)
}

/// The names of a cutover's triggers: of statements, and of rows.
#[must_use]
pub fn triggers(run: RunId, step: &StepId) -> [String; 2] {
    let mark = mark(run, step);
    [format!("{PREFIX}_{mark}"), format!("{PREFIX}_row_{mark}")]
}

impl Gate {
    /// The gate of the step `cx` is of.
    #[must_use]
    pub fn of(cx: &Context) -> Self {
        // Of the run and the step: a gate that another cutover shut is never opened by making one's own.
        let [statement, row] = triggers(cx.run, &cx.step);
        Gate {
            function: format!("refuse_{}", mark(cx.run, &cx.step)),
            statement,
            row,
            plan: cx.plan.to_string(),
        }
    }

    fn body(&self, shut: bool) -> String {
        let (head, body) = if shut {
            let message = format!("this database was handed over to its successor by plan \"{}\"", self.plan);
            (
                SHUT,
                format!(
                    "raise exception using message = {}, errcode = 'read_only_sql_transaction',
        hint = 'Connect to the successor. Opening this side again loses what was written on the successor since.';",
                    quote_literal(&message)
                ),
            )
        } else {
            (
                "-- open",
                "if tg_level = 'STATEMENT' then return null; end if;
    if tg_op = 'DELETE' then return old; end if;
    return new;"
                    .to_owned(),
            )
        };
        Routine {
            name: &self.function,
            definer: false,
            settings: "set search_path = pg_catalog, pg_temp",
            head,
            body: &body,
            // Its triggers on partitioned tables are for statements, which partitions do not inherit.
            tables: &[],
        }
        .sql()
    }

    fn trigger_sql(&self, table: &TableName, level: Level) -> String {
        let (name, events, each) = match level {
            Level::Statement => (&self.statement, "insert or update or delete or truncate", "statement"),
            Level::Row => (&self.row, "insert or update or delete", "row"),
        };
        let (name, table) = (quote_ident(name), table.sql());
        format!(
            "create trigger {name} before {events} on {table} for each {each} execute function {OURS}.{}();
             alter table {table} enable always trigger {name};",
            quote_ident(&self.function)
        )
    }

    /// What takes function and triggers away.
    #[must_use]
    pub fn drop_sql(&self) -> String {
        format!("drop function {OURS}.{}() cascade", quote_ident(&self.function))
    }

    /// Frozen tables that lack their trigger, or have it in another state than `ENABLE ALWAYS`.
    async fn missing(&self, session: &Session, cutover: &Cutover, level: Level) -> Result<Vec<Lacking>> {
        Ok(lacking(&session.query(&self.lacking_sql(level), &[]).await?, cutover))
    }

    fn lacking_sql(&self, level: Level) -> String {
        // Rows are in tables, not in partitioned ones, and those of a table's partitions are looked for by themselves.
        let (kinds, name) = match level {
            Level::Statement => ("'r', 'p'", &self.statement),
            Level::Row => ("'r'", &self.row),
        };
        format!(
            "select n.nspname::text, c.relname::text,
                    exists (select from pg_trigger t where t.tgrelid = c.oid and t.tgname = {0})
             from {1}
             and not exists (select from pg_trigger t join pg_proc p on p.oid = t.tgfoid
                             join pg_namespace pn on pn.oid = p.pronamespace and pn.nspname = '{OURS}'
                             where t.tgrelid = c.oid and t.tgname = {0} and t.tgenabled = 'A' and t.tgqual is null
                               and p.proname = {2})
             order by n.nspname::text collate \"C\", c.relname::text collate \"C\"",
            quote_literal(name),
            catalog::application(kinds),
            quote_literal(&self.function)
        )
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
        let there = session
            .query_opt(
                &format!(
                    "select p.prosrc from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                 where n.nspname = '{OURS}' and p.proname = $1"
                ),
                &[&self.function],
            )
            .await?;
        match there.map(|row| row.get::<_, String>(0)) {
            Some(body) if body.starts_with(SHUT) => {
                return Err(Error::internal("the old side refuses writes, and no decision says so")
                    .on_database(session.database()));
            }
            Some(_) => {}
            None => {
                let tx = session.transaction().await?;
                tx.batch(&self.body(false)).await?;
                tx.batch(&format!(
                    "comment on function {OURS}.{}() is {}",
                    quote_ident(&self.function),
                    quote_literal(&format!(
                        "Behind the triggers by which the cutover {} of plan {} keeps this database from being written to, once it is decided.",
                        cx.step, self.plan
                    ))
                ))
                .await?;
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
        let missing = self.missing(session, cutover, level).await?;
        let name = if level == Level::Row { &self.row } else { &self.statement };
        let (altered, fresh): (Vec<Lacking>, Vec<Lacking>) =
            missing.into_iter().partition(|one| one.disabled);
        // One that is to be dropped first takes a stronger lock: each by itself.
        for some in fresh.chunks(TOGETHER).chain(altered.chunks(1)) {
            cx.proceed()?;
            match self.hang_on(session, some, name, level, "nowait").await {
                Ok(()) => continue,
                Err(e) if passes(&e) => {}
                Err(e) => return Err(e.context("making the triggers that will refuse writes")),
            }
            for one in some {
                cx.proceed()?;
                let table = &one.table;
                match self.hang_on(session, std::slice::from_ref(one), name, level, "").await {
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
        name: &str,
        level: Level,
        wait: &str,
    ) -> Result<()> {
        let tx = session.transaction().await?;
        let list: Vec<String> = tables.iter().map(|t| format!("only {}", t.table.sql())).collect();
        tx.wait_for_locks(PATIENCE).await?;
        let mode = if tables.iter().any(|t| t.disabled) { "access exclusive" } else { "share row exclusive" };
        tx.batch(&format!("lock table {} in {mode} mode {wait}", list.join(", "))).await?;
        let mut sql = String::new();
        for Lacking { table, disabled } in tables {
            if *disabled {
                sql.push_str(&format!("drop trigger if exists {} on {};", quote_ident(name), table.sql()));
            }
            sql.push_str(&self.trigger_sql(table, level));
        }
        tx.batch(&sql).await?;
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
        tx.batch(&self.body(true)).await
    }

    /// Proves that every frozen table refuses writes.
    ///
    /// # Errors
    /// One that does not.
    pub async fn assert_shut(&self, session: &Session, cutover: &Cutover) -> Result<()> {
        let shut = session
            .query_opt(
                &format!(
                    "select 1 from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                 where n.nspname = '{OURS}' and p.proname = $1 and starts_with(p.prosrc, $2)"
                ),
                &[&self.function, &SHUT],
            )
            .await?;
        let mut open: Vec<TableName> = match shut {
            Some(_) => {
                let missing = self.missing(session, cutover, Level::Statement).await?;
                missing.into_iter().map(|l| l.table).collect()
            }
            None => {
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

    /// Takes the open gate away. Dropping a trigger keeps readers off for a moment, so a table that is in use is
    /// passed over; returns how many were.
    pub async fn remove(&self, session: &mut Session) -> Result<usize> {
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

/// A frozen table without its trigger.
#[derive(Debug, Clone)]
struct Lacking {
    table: TableName,
    /// Whether one by that name is there, disabled or of another function.
    disabled: bool,
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
