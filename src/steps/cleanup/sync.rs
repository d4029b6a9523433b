//! The triggers that keep moved columns in step while old and new code run side by side.
//!
//! They are created before the first batch, and CREATE TRIGGER waits for every transaction that wrote to the
//! table before it, so each row is either written under the triggers or seen by the batches. A batch locks its
//! source rows before it reads them, so no writer can come between its reading and its writing: a writer that
//! waits for such a row fires its trigger afterwards, upon what the batch wrote.

use super::table::{Column, Table};
use super::{MoveTo, batch};
use crate::error::{Class, Error, Result};
use crate::event::StepId;
use crate::failpoint;
use crate::postgres::ours::OURS;
use crate::postgres::patience::Patience;
use crate::postgres::profile::ROUTINE_FORMAT;
use crate::postgres::routine::Routine;
use crate::postgres::{Session, TableName, Tx, quote_ident, quote_literal};
use crate::steps::Context;
use handover_port::Turns;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long an attempt at the triggers waits for the tables.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);

/// What a backfill moves, resolved against the catalog.
#[derive(Debug)]
pub(super) struct Move {
    pub source: Table,
    /// Which rows of the source it is about.
    pub condition: String,
    pub shape: Shape,
    /// Source columns and how to derive them from the new ones, for writes of new code; empty: one way only.
    pub back: Vec<(Column, String)>,
}

/// Where the columns go.
#[derive(Debug)]
pub(super) enum Shape {
    /// Other columns of the same row.
    Columns(Vec<(Column, String)>),
    /// A row of another table: its key and its other columns, each with its expression over the source.
    Table { target: Table, key: Vec<(Column, String)>, columns: Vec<(Column, String)> },
}

fn select(pairs: &[(Column, String)]) -> String {
    let parts: Vec<String> = pairs.iter().enumerate().map(|(i, (_, e))| format!("({e}\n) as f{i}")).collect();
    parts.join(", ")
}

fn idents(pairs: &[(Column, String)], prefix: &str) -> Vec<String> {
    pairs.iter().map(|(c, _)| format!("{prefix}{}", c.ident())).collect()
}

/// The name of a step's triggers; sorts last, so that other triggers have had their say.
fn name(cx: &Context, step: &StepId) -> String {
    format!("zz_handover_sync_{}", crate::value::fingerprint(&format!("{}/{step}", cx.plan), 5))
}

/// Whether this step has left anything in the database: a checkpoint, an archived row or a trigger.
pub async fn touched(cx: &Context, session: &Session) -> Result<bool> {
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

impl Shape {
    pub fn resolve(
        database: &str,
        source: &Table,
        target: Option<Table>,
        set: &BTreeMap<String, String>,
        to: Option<&MoveTo>,
    ) -> Result<Shape> {
        let pairs = |table: &Table, map: &BTreeMap<String, String>| -> Result<Vec<(Column, String)>> {
            map.iter().map(|(n, e)| Ok((table.writable(n, database)?.clone(), e.clone()))).collect()
        };
        let (Some(to), Some(target)) = (to, target) else {
            return Ok(Shape::Columns(pairs(source, set)?));
        };
        let key = pairs(&target, &to.key)?;
        let columns = pairs(&target, &to.columns)?;
        Ok(Shape::Table { target, key, columns })
    }
}

/// Drops the triggers; the functions go with them.
pub(super) async fn remove(cx: &Context, session: &mut Session, step: &StepId) -> Result<()> {
    let mut turns = Turns::new("dropping the triggers that keep columns in step");
    while let Err(error) = remove_once(cx, session, step).await {
        turns.again(cx, error).await?;
    }
    Ok(())
}

async fn remove_once(cx: &Context, session: &mut Session, step: &StepId) -> Result<()> {
    let tx = session.transaction().await?;
    let mut patience = Patience::of(&tx, LOCK_TIMEOUT).await?;
    tx.batch("set local client_min_messages = warning").await?;
    let name = name(cx, step);
    // CASCADE reaches exactly the triggers that call these functions, on tables that may be gone by now.
    for name in [name.clone(), format!("{name}_back")] {
        patience.apply(&tx).await?;
        tx.batch(&format!("drop function if exists {OURS}.{}() cascade", quote_ident(&name))).await?;
        patience.begin();
    }
    tx.execute(
        &format!("delete from {OURS}.checkpoint where run = $1 and step = $2 and unit = 'sync'"),
        &[&cx.run.0, &step.as_str()],
    )
    .await?;
    tx.commit().await
}

impl Move {
    /// `t.c is distinct from s.f0 or …`, with the values' names given.
    fn differs(columns: &[(Column, String)], left: &str, right: impl Fn(usize, &Column) -> String) -> String {
        let parts: Vec<String> = columns
            .iter()
            .enumerate()
            .map(|(i, (c, _))| c.differs(&format!("{left}{}", c.ident()), &right(i, c)))
            .collect();
        if parts.is_empty() { "false".into() } else { parts.join(" or ") }
    }

    /// Which source rows the batches must still handle.
    pub fn matching(&self) -> String {
        match &self.shape {
            Shape::Columns(set) => {
                let parts: Vec<String> =
                    set.iter().map(|(c, e)| c.differs(&c.ident(), &format!("{e}\n"))).collect();
                format!("({}\n) and ({})", self.condition, parts.join(" or "))
            }
            Shape::Table { .. } => self.condition.clone(),
        }
    }

    /// What the batches do.
    pub fn effect(&self) -> batch::Effect {
        match &self.shape {
            Shape::Columns(set) => batch::Effect::Update { set: set.clone() },
            Shape::Table { target, key, columns } => {
                let joined: Vec<String> = key
                    .iter()
                    .enumerate()
                    .map(|(i, (c, _))| format!("handover_t.{} = handover_s.k{i}", c.ident()))
                    .collect();
                batch::Effect::Move {
                    insert: self.upsert(&self.source.name.sql(), "{among}"),
                    remaining: format!(
                        "select 1 from {} left join {} as handover_t on {} where handover_t.{} is null or {}",
                        self.derived("true"),
                        target.name.sql(),
                        joined.join(" and "),
                        key.first().map(|(c, _)| c.ident()).unwrap_or_default(),
                        Self::differs(columns, "handover_t.", |i, _| format!("handover_s.f{i}")),
                    ),
                }
            }
        }
    }

    /// The batches of the undo: deletes the new rows that the source can bring forth again.
    pub fn undo_effect(&self) -> Option<batch::Effect> {
        let Shape::Table { target, key, columns } = &self.shape else { return None };
        let joined: Vec<String> = key
            .iter()
            .enumerate()
            .map(|(i, (c, _))| format!("handover_t.{} = handover_s.k{i}", c.ident()))
            .collect();
        Some(batch::Effect::Move {
            insert: format!(
                "delete from {} as handover_t using {} where {} and not ({})",
                target.name.sql(),
                self.derived("{among}"),
                joined.join(" and "),
                Self::differs(columns, "handover_t.", |i, _| format!("handover_s.f{i}")),
            ),
            remaining: "select 1 where false".into(),
        })
    }

    /// The source rows as the new table should have them: keys `k0…`, columns `f0…`.
    fn derived(&self, among: &str) -> String {
        let Shape::Table { key, columns, .. } = &self.shape else { return String::new() };
        let mut parts: Vec<String> =
            key.iter().enumerate().map(|(i, (_, e))| format!("({e}\n) as k{i}")).collect();
        parts.extend(columns.iter().enumerate().map(|(i, (_, e))| format!("({e}\n) as f{i}")));
        parts.extend(self.back.iter().map(|(c, _)| c.ident()));
        format!(
            "(select {} from {} where {among} and ({}\n)) as handover_s",
            parts.join(", "),
            self.source.name.sql(),
            self.condition
        )
    }

    fn upsert(&self, from: &str, among: &str) -> String {
        let Shape::Table { target, key, columns } = &self.shape else { return String::new() };
        let all: Vec<(Column, String)> = key.iter().chain(columns).cloned().collect();
        let values: Vec<String> = all.iter().map(|(_, e)| format!("({e}\n)")).collect();
        let update: Vec<String> =
            columns.iter().map(|(c, _)| format!("{0} = excluded.{0}", c.ident())).collect();
        let conflict = if update.is_empty() {
            "do nothing".to_owned()
        } else {
            format!(
                "do update set {} where {}",
                update.join(", "),
                Self::differs(columns, "handover_t.", |_, c| format!("excluded.{}", c.ident()))
            )
        };
        format!(
            "insert into {} as handover_t ({}) select {} from {from} where {among} and ({}\n) on conflict ({}) {conflict}",
            target.name.sql(),
            idents(&all, "").join(", "),
            values.join(", "),
            self.condition,
            idents(key, "").join(", "),
        )
    }

    /// Creates the triggers, unless the checkpoint says that they are there.
    pub async fn install(&self, cx: &Context, session: &mut Session, step: &StepId) -> Result<()> {
        let mut turns = Turns::new("creating the triggers that keep columns in step");
        while let Err(error) = self.install_once(cx, session, step).await {
            turns.again(cx, error).await?;
        }
        Ok(())
    }

    async fn install_once(&self, cx: &Context, session: &mut Session, step: &StepId) -> Result<()> {
        let tx = session.transaction().await?;
        if tx.checkpoint::<serde_json::Value>(cx.run, step, "sync").await?.is_some() {
            return self.enable_always(cx, tx, step).await;
        }
        let mut patience = Patience::of(&tx, LOCK_TIMEOUT).await?;
        if let Shape::Table { target, .. } = &self.shape {
            // Writers wait until the triggers are there; a row that came before them could not be told from ours.
            tx.batch(&format!("lock table {} in share row exclusive mode", target.name.sql())).await?;
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
        let path = cx.databases.search_path(tx.database())?.sql_of_routine();
        patience.apply(&tx).await?;
        tx.batch(&self.triggers(cx, step, &path)).await?;
        tx.save_checkpoint(cx.run, step, "sync", &json!({ "triggers": name(cx, step) })).await?;
        tx.commit().await?;
        failpoint::at(failpoint::CLEANUP_SYNCED)?;
        Ok(())
    }

    /// Triggers of an older version fired for ordinary writers only.
    async fn enable_always(&self, cx: &Context, tx: Tx<'_>, step: &StepId) -> Result<()> {
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

    /// Drops this backfill's triggers.
    pub async fn remove(&self, cx: &Context, session: &mut Session, step: &StepId) -> Result<()> {
        remove(cx, session, step).await
    }

    /// Whether the new table was ever taken into use by this step.
    pub async fn begun(&self, cx: &Context, session: &mut Session) -> Result<bool> {
        let tx = session.transaction().await?;
        let begun = tx.checkpoint::<bool>(cx.run, &cx.step, "begun").await?.is_some();
        tx.rollback().await?;
        Ok(begun)
    }

    /// Refuses to end the triggers while a row is stale, or while they might have missed one. Writes that come
    /// meanwhile fire the triggers, which are still there.
    pub async fn settled(&self, cx: &Context, session: &Session, step: &StepId) -> Result<()> {
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

    /// Queries for rows that are not in step, each with what is wrong with them. Where both sides may be written to, a
    /// row is in step if either is what the other derives.
    fn stale(&self) -> Vec<(String, String)> {
        let source = self.source.name.sql();
        let behind = format!("{} are not in step with what they are filled from", self.source.name);
        match &self.shape {
            Shape::Columns(_) => {
                let mut sql = format!("select * from {source} where {}", self.matching());
                if !self.back.is_empty() {
                    let differs: Vec<String> =
                        self.back.iter().map(|(c, e)| c.differs(&c.ident(), &format!("({e}\n)"))).collect();
                    sql.push_str(&format!(" and ({})", differs.join(" or ")));
                }
                vec![(behind, sql)]
            }
            Shape::Table { target, key, columns } => {
                let joined: Vec<String> = key
                    .iter()
                    .enumerate()
                    .map(|(i, (c, _))| format!("handover_t.{} = handover_s.k{i}", c.ident()))
                    .collect();
                let mut differs = Self::differs(columns, "handover_t.", |i, _| format!("handover_s.f{i}"));
                if !self.back.is_empty() {
                    differs = format!(
                        "({differs}) and exists (select from (select {} from (select handover_t.*) as {}) handover_b where {})",
                        select(&self.back),
                        quote_ident(&target.name.name),
                        Self::differs(&self.back, "handover_s.", |i, _| format!("handover_b.f{i}")),
                    );
                }
                let mut out = vec![(
                    behind,
                    format!(
                        "select handover_s.* from {} left join {} as handover_t on {} where handover_t.{} is null or {differs}",
                        self.derived("true"),
                        target.name.sql(),
                        joined.join(" and "),
                        key.first().map(|(c, _)| c.ident()).unwrap_or_default(),
                    ),
                )];
                if self.back.is_empty() {
                    out.push((
                        format!("{} have nothing that they are filled from", target.name),
                        format!(
                            "select handover_t.* from {} as handover_t where not exists (select from {} where {})",
                            target.name.sql(),
                            self.derived("true"),
                            joined.join(" and ")
                        ),
                    ));
                }
                out
            }
        }
    }

    /// Whether the triggers are there and enabled for every writer, also one that applies what is replicated.
    pub async fn installed(&self, cx: &Context, session: &Session, step: &StepId) -> Result<bool> {
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

    /// The functions run in the sessions of whoever writes: their `path` has the plan's schemas between the server's
    /// own and the writer's temporary one.
    fn triggers(&self, cx: &Context, step: &StepId, path: &str) -> String {
        let name = name(cx, step);
        let settings = format!("set search_path = {path} {ROUTINE_FORMAT}");
        match &self.shape {
            Shape::Columns(set) => self.same_table(cx, &name, &settings, set),
            Shape::Table { target, key, columns } => {
                let mut sql = self.forth(cx, &name, &settings, target, key);
                if !self.back.is_empty() {
                    let names = (format!("{name}_back"), name);
                    sql.push_str(&self.back(cx, (&names.0, &names.1), &settings, target, key, columns));
                }
                sql
            }
        }
    }

    fn same_table(&self, cx: &Context, name: &str, settings: &str, set: &[(Column, String)]) -> String {
        let row = |which: &str| format!("from (select {which}.*) as {}", quote_ident(&self.source.name.name));
        let assign: Vec<String> = set
            .iter()
            .enumerate()
            .map(|(i, (c, _))| format!("new.{} := handover_f.f{i};", c.ident()))
            .collect();
        let forth = select(set);
        let mut body = String::new();
        if !self.back.is_empty() {
            let targets = |which: &str| {
                format!("row({})::pg_catalog.text", idents(set, &format!("{which}.")).join(", "))
            };
            let given: Vec<String> = idents(set, "new.").iter().map(|c| format!("{c} is not null")).collect();
            let derive: Vec<String> = self
                .back
                .iter()
                .enumerate()
                .map(|(i, (c, _))| format!("new.{} := handover_f.f{i};", c.ident()))
                .collect();
            // Old code never names the new columns, so a value in an insert, or a change while what they are
            // derived from stays, is the word of new code.
            body = format!(
                "if pg_catalog.current_setting('handover.batch', true) is distinct from 'on' then
                   if tg_op = 'UPDATE' then
                     select {forth} into handover_was {old};
                     select {forth} into handover_f {new};
                     handover_back := handover_was::pg_catalog.text is not distinct from handover_f::pg_catalog.text
                       and {new_values} is distinct from {old_values};
                   else
                     handover_back := {given};
                   end if;
                   if handover_back then
                     select {back} into handover_f {new};
                     {derive}
                     return new;
                   end if;
                 end if;",
                old = row("old"),
                new = row("new"),
                new_values = targets("new"),
                old_values = targets("old"),
                given = given.join(" or "),
                back = select(&self.back),
                derive = derive.join(" "),
            );
        }
        let body = format!(
            "{body}
               select {forth} into handover_f {row} where ({condition}\n);
               if found then {assign} end if;
               return new;",
            row = row("new"),
            condition = self.condition,
            assign = assign.join(" "),
        );
        let function = Routine {
            name,
            definer: false,
            settings,
            head: "#variable_conflict use_column
             declare handover_f record; handover_was record; handover_back boolean;",
            body: &body,
            tables: &[&self.source.name],
        };
        format!(
            "{function}
             comment on function {OURS}.{name}() is {comment};
             create trigger {name} before insert or update on {table} for each row execute function {OURS}.{name}();
             alter table {table} enable always trigger {name};",
            function = function.sql(),
            name = quote_ident(name),
            comment = batch::comment(cx),
            table = self.source.name.sql(),
        )
    }

    /// Old table to new. SECURITY DEFINER: the old code's role need not know the new table.
    fn forth(
        &self,
        cx: &Context,
        name: &str,
        settings: &str,
        target: &Table,
        key: &[(Column, String)],
    ) -> String {
        let row = |which: &str| format!("(select {which}.*) as {}", quote_ident(&self.source.name.name));
        let keys: Vec<String> = key.iter().map(|(_, e)| format!("({e}\n)")).collect();
        let old_key = format!("select {} from {}", keys.join(", "), row("old"));
        let new_key = format!("select {} from {} where ({}\n)", keys.join(", "), row("new"), self.condition);
        let list = idents(key, "handover_t.").join(", ");
        let body = format!(
            "if pg_catalog.current_setting('handover.sync', true) = {marker} then return null; end if;
               perform pg_catalog.set_config('handover.sync', {marker}, true);
               if tg_op = 'DELETE' then
                 delete from {target} as handover_t where ({list}) in ({old_key});
               elsif tg_op = 'UPDATE' then
                 delete from {target} as handover_t where ({list}) in ({old_key}) and ({list}) not in ({new_key});
               end if;
               if tg_op <> 'DELETE' then
                 {upsert};
               end if;
               perform pg_catalog.set_config('handover.sync', '', true);
               return null;",
            marker = quote_literal(name),
            target = target.name.sql(),
            upsert = self.upsert(&row("new"), "true"),
        );
        let function = Routine {
            name,
            definer: true,
            settings,
            head: "#variable_conflict use_column",
            body: &body,
            tables: &[&self.source.name],
        };
        format!(
            "{function}
             comment on function {OURS}.{name}() is {comment};
             create trigger {name} after insert or update or delete on {source} for each row execute function {OURS}.{name}();
             alter table {source} enable always trigger {name};",
            function = function.sql(),
            name = quote_ident(name),
            comment = batch::comment(cx),
            source = self.source.name.sql(),
        )
    }

    /// New table to old. A deleted new row empties the old columns.
    fn back(
        &self,
        cx: &Context,
        (name, marker): (&str, &str),
        settings: &str,
        target: &Table,
        key: &[(Column, String)],
        columns: &[(Column, String)],
    ) -> String {
        let matches = |which: &str| -> String {
            let parts: Vec<String> =
                key.iter().map(|(c, e)| format!("({e}\n) = {which}.{}", c.ident())).collect();
            parts.join(" and ")
        };
        let source = self.source.name.sql();
        let set: Vec<String> = self
            .back
            .iter()
            .enumerate()
            .map(|(i, (c, _))| format!("{} = handover_f.f{i}", c.ident()))
            .collect();
        let differs =
            Self::differs(&self.back, &format!("{}.", quote_ident(&self.source.name.name)), |i, _| {
                format!("handover_f.f{i}")
            });
        let empty: Vec<String> = self.back.iter().map(|(c, _)| format!("{} = null", c.ident())).collect();
        let values = |which: &str| {
            format!("row({})::pg_catalog.text", idents(columns, &format!("{which}.")).join(", "))
        };
        let body = format!(
            "if pg_catalog.current_setting('handover.sync', true) = {marker} or pg_catalog.current_setting('handover.batch', true) = 'on' then
                 return null;
               end if;
               if tg_op = 'UPDATE' and {new_values} is not distinct from {old_values} then return null; end if;
               perform pg_catalog.set_config('handover.sync', {marker}, true);
               if tg_op = 'DELETE' then
                 update {source} set {empty} where {old_matches};
               else
                 select {back} into handover_f from (select new.*) as {target_name};
                 update {source} set {set} where {new_matches} and ({differs});
               end if;
               perform pg_catalog.set_config('handover.sync', '', true);
               return null;",
            marker = quote_literal(marker),
            new_values = values("new"),
            old_values = values("old"),
            empty = empty.join(", "),
            old_matches = matches("old"),
            new_matches = matches("new"),
            back = select(&self.back),
            target_name = quote_ident(&target.name.name),
            set = set.join(", "),
        );
        let function = Routine {
            name,
            definer: true,
            settings,
            head: "#variable_conflict use_column
             declare handover_f record;",
            body: &body,
            tables: &[&target.name],
        };
        format!(
            "{function}
             comment on function {OURS}.{name}() is {comment};
             create trigger {name} after insert or update or delete on {target} for each row execute function {OURS}.{name}();
             alter table {target} enable always trigger {name};",
            function = function.sql(),
            name = quote_ident(name),
            comment = batch::comment(cx),
            target = target.name.sql(),
        )
    }

    /// Rows of the new table that the old one does not account for; after an undo they are somebody's own.
    pub async fn left_over(&self, session: &Session) -> Result<u64> {
        let Shape::Table { target, .. } = &self.shape else { return Ok(0) };
        let n: i64 =
            session.query_one(&format!("select count(*) from {}", target.name.sql()), &[]).await?.get(0);
        Ok(n.unsigned_abs())
    }
}
