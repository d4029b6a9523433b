//! Creating the triggers, seeing that they are there, and dropping them.

use super::moved::{Move, Shape};
use crate::table::Column;
use handover_core::error::{Class, Error, Result};
use handover_core::event::StepId;
use handover_core::failpoint;
use handover_port::{Port, Turns};
use handover_postgres::ours::OURS;
use handover_postgres::patience::Patience;
use handover_postgres::{Session, TableName, Tx, quote_ident};
use serde_json::json;
use std::time::Duration;

/// How long an attempt at the triggers waits for the tables.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// What the names of a step's triggers begin with; they sort last, so that other triggers have had their say.
#[must_use]
pub fn trigger_prefix(plan: &str, step: &StepId) -> String {
    format!("zz_handover_sync_{}", handover_core::value::fingerprint(&format!("{plan}/{step}"), 5))
}

fn name(cx: &Port, step: &StepId) -> String {
    trigger_prefix(cx.plan.as_ref(), step)
}

/// What drops a step's triggers: CASCADE reaches exactly those that call these functions, on tables that may be gone by
/// now.
#[must_use]
pub fn removal(plan: &str, step: &StepId) -> [String; 2] {
    let name = trigger_prefix(plan, step);
    [name.clone(), format!("{name}_back")]
        .map(|name| format!("drop function if exists {OURS}.{}() cascade", quote_ident(&name)))
}

/// Whether this step has left anything in the database: a checkpoint, an archived row or a trigger.
pub async fn touched(cx: &Port, session: &Session) -> Result<bool> {
    let row = session
        .query_one(
            &format!("select exists (select from {OURS}.checkpoint where run = $1 and step = $2)
                 or exists (select from {OURS}.archive where run = $1 and step = $2)
                 or exists (select from pg_catalog.pg_trigger where tgname in ($3::text, $3::text || '_back'))"),
            &[&cx.run.0, &cx.step.as_str(), &name(cx, &cx.step)],
        )
        .await?;
    Ok(row.get(0))
}

/// Drops the triggers; the functions go with them.
pub(crate) async fn remove(cx: &Port, session: &mut Session, step: &StepId) -> Result<()> {
    let mut turns = Turns::new("dropping the triggers that keep columns in step");
    while let Err(error) = remove_once(cx, session, step).await {
        turns.again(cx, error).await?;
    }
    Ok(())
}

async fn remove_once(cx: &Port, session: &mut Session, step: &StepId) -> Result<()> {
    let tx = session.transaction().await?;
    let mut patience = Patience::of(&tx, LOCK_TIMEOUT).await?;
    tx.batch("set local client_min_messages = warning").await?;
    for sql in removal(&cx.plan, step) {
        patience.apply(&tx).await?;
        tx.batch(&sql).await?;
        patience.begin();
    }
    tx.execute(
        &format!("delete from {OURS}.checkpoint where run = $1 and step = $2 and unit = 'sync'"),
        &[&cx.run.0, &step.as_str()],
    )
    .await?;
    tx.commit().await
}

/// What a step executes to install its triggers.
pub(crate) struct Installation {
    /// Writers of the new table wait until the triggers are there; a row that came before them could not be told from
    /// ours.
    lock: Option<String>,
    /// The functions and their triggers, in one batch.
    triggers: String,
}

impl Installation {
    /// The statements, in their order.
    pub fn statements(&self) -> impl Iterator<Item = &str> {
        self.lock.iter().chain([&self.triggers]).map(String::as_str)
    }
}

impl Move {
    /// What creates the triggers on the database.
    pub fn installation(&self, cx: &Port, step: &StepId, database: &str) -> Result<Installation> {
        let lock = match &self.shape {
            Shape::Table { target, .. } => {
                Some(format!("lock table {} in share row exclusive mode", target.name.sql()))
            }
            Shape::Columns(_) => None,
        };
        let path = cx.databases.search_path(database)?.sql_of_routine();
        Ok(Installation { lock, triggers: self.triggers(cx, &name(cx, step), &path) })
    }

    /// Creates the triggers, unless the checkpoint says that they are there.
    pub async fn install(&self, cx: &Port, session: &mut Session, step: &StepId) -> Result<()> {
        let mut turns = Turns::new("creating the triggers that keep columns in step");
        while let Err(error) = self.install_once(cx, session, step).await {
            turns.again(cx, error).await?;
        }
        Ok(())
    }

    async fn install_once(&self, cx: &Port, session: &mut Session, step: &StepId) -> Result<()> {
        let tx = session.transaction().await?;
        if tx.checkpoint::<serde_json::Value>(cx.run, step, "sync").await?.is_some() {
            return self.enable_always(cx, tx, step).await;
        }
        let mut patience = Patience::of(&tx, LOCK_TIMEOUT).await?;
        let Installation { lock, triggers } = self.installation(cx, step, tx.database())?;
        if let (Shape::Table { target, .. }, Some(lock)) = (&self.shape, &lock) {
            tx.batch(lock).await?;
            patience.begin();
            let sql = format!("select exists (select 1 from {})", target.name.sql());
            let resumed: bool = tx.checkpoint::<bool>(cx.run, step, "begun").await?.is_some();
            if !resumed && tx.query_one(&sql, &[]).await?.get(0) {
                return Err(Error::data(format!("table {} has rows already", target.name))
                    .on_database(tx.database())
                    .hint("a backfill fills a table that is still empty, because only then can it be undone; move the rows away, or use `restore` to merge rows"));
            }
            tx.save_checkpoint(cx.run, step, "begun", &true).await?;
        }
        patience.apply(&tx).await?;
        tx.batch(&triggers).await?;
        tx.save_checkpoint(cx.run, step, "sync", &json!({ "triggers": name(cx, step) })).await?;
        tx.commit().await?;
        failpoint::at(failpoint::CLEANUP_SYNCED)?;
        Ok(())
    }

    /// Triggers of an older version fired for ordinary writers only.
    async fn enable_always(&self, cx: &Port, tx: Tx<'_>, step: &StepId) -> Result<()> {
        let ordinary = tx
            .query(
                "select n.nspname::text, c.relname::text, t.tgname::text from pg_trigger t
                 join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
                 where t.tgname in ($1::text, $1::text || '_back') and t.tgenabled = 'O' and t.tgparentid = 0",
                &[&name(cx, step)],
            )
            .await?;
        tx.wait_for_locks(LOCK_TIMEOUT).await?;
        for row in ordinary {
            let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
            tx.batch(&format!(
                "alter table {} enable always trigger {}",
                table.sql(),
                quote_ident(row.get(2))
            ))
            .await?;
        }
        tx.commit().await
    }

    /// Whether the new table was ever taken into use by this step.
    pub async fn begun(&self, cx: &Port, session: &mut Session) -> Result<bool> {
        let tx = session.transaction().await?;
        let begun = tx.checkpoint::<bool>(cx.run, &cx.step, "begun").await?.is_some();
        tx.rollback().await?;
        Ok(begun)
    }

    /// Refuses to end the triggers while a row is stale, or while they might have missed one. Writes that come
    /// meanwhile fire the triggers, which are still there.
    pub async fn assert_in_step(&self, cx: &Port, session: &Session, step: &StepId) -> Result<()> {
        let there: i64 = session
            .query_one(
                &format!(
                    "select count(*) from {OURS}.checkpoint where run = $1 and step = $2 and unit = 'sync'"
                ),
                &[&cx.run.0, &step.as_str()],
            )
            .await?
            .get(0);
        if there == 0 {
            // They were ended by an earlier attempt.
            return Ok(());
        }
        let refuse = |message: String| Error::new(Class::Invariant, message).on_database(session.database());
        if !self.installed(cx, session, step).await? {
            let name = quote_ident(&name(cx, step));
            return Err(refuse(format!("the triggers of {step} are not there, or not enabled for every writer"))
                .hint(format!(
                    "see who disabled them, `alter table {} enable always trigger {name};` and then `handover resume`, which \
                     looks for the rows that they missed",
                    self.source.name.sql()
                )));
        }
        for (what, sql) in self.stale() {
            let n: i64 =
                session.query_one(&format!("select count(*) from ({sql} limit 1000) s"), &[]).await?.get(0);
            if n > 0 {
                let many = if n >= 1000 { "1000 or more".into() } else { n.to_string() };
                let key = self.source.key.first().map(Column::ident).unwrap_or_default();
                return Err(refuse(format!("{many} rows of {what}")).hint(format!(
                    "the triggers stay. See them: `{sql} limit 10;` An update of such rows (as `update {} set {key} = {key} \
                     where …`) has the triggers fill them again, if the old columns are right; then `handover resume`",
                    self.source.name.sql()
                )));
            }
        }
        Ok(())
    }

    /// Whether the triggers are there and enabled for every writer, also one that applies what is replicated.
    pub async fn installed(&self, cx: &Port, session: &Session, step: &StepId) -> Result<bool> {
        let row = session
            .query_one(
                "select count(*) from pg_trigger where tgname in ($1::text, $1::text || '_back') and tgenabled = 'A'
                 and tgparentid = 0",
                &[&name(cx, step)],
            )
            .await?;
        let two = !self.back.is_empty() && matches!(self.shape, Shape::Table { .. });
        Ok(row.get::<_, i64>(0) == if two { 2 } else { 1 })
    }
}
