//! `create_index`: builds indexes with `CREATE INDEX CONCURRENTLY`, so that nobody is locked out.
//!
//! The build cannot run in a transaction, so no checkpoint can commit with it; instead each attempt looks at
//! the catalog. A failed build leaves an INVALID index that `IF NOT EXISTS` would take for a good one: ours
//! is dropped and built again, somebody else's is only reported.
//! (<https://www.postgresql.org/docs/current/sql-createindex.html#SQL-CREATEINDEX-CONCURRENTLY>)

mod decide;
mod index;
mod wanted;

use super::{Access, CheckContext, Context, Description, Links, Midway, Need, StepKind, Undo};
use crate::error::{Class, Error, Result};
use crate::event::Measure;
use crate::failpoint;
use crate::postgres::index::{Found, definition, find, is_as_wanted, obstacle};
use crate::postgres::{Session, TableName, blockers};
use crate::problem::{Problems, Segment};
use async_trait::async_trait;
use decide::{Act, Fit, Refusal, decide};
pub use index::Index;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How often a wait is reported.
const REPORT_AGAIN: Duration = Duration::from_secs(15);

/// Builds indexes without blocking writers.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateIndex {
    /// The database.
    pub on: String,
    /// The indexes, built one after the other (two concurrent builds on one table wait for each other).
    #[schemars(length(min = 1))]
    pub indexes: Vec<Index>,
    /// `maintenance_work_mem` for the build, e.g. `1GB`.
    pub maintenance_work_mem: Option<String>,
}

#[async_trait]
impl StepKind for CreateIndex {
    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        cx.database(problems, "on", &self.on);
        let mut names = BTreeSet::new();
        for (i, index) in self.indexes.iter().enumerate() {
            if !names.insert((&index.table.schema, &index.name)) {
                problems
                    .error(
                        [Segment::from("indexes"), i.into(), "name".into()],
                        format!("the index `{}` is named twice", index.name),
                    )
                    .hint("index names are unique within a schema");
            }
        }
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        vec![(&self.on, Access::Write)]
    }

    fn needs(&self, access: Access) -> &'static [Need] {
        match access {
            Access::Read => &[Need::ReadEverything, Need::Monitor],
            Access::Write => &[Need::ActAsOwners, Need::CreateInSchemas, Need::Monitor],
        }
    }

    fn can_ask_the_source(&self) -> bool {
        true
    }

    fn midway(&self, _links: &Links, _place: usize) -> Midway {
        Midway { failpoint: failpoint::INDEX_BUILT, passing: 1, place: "after its first index" }
    }

    fn reversibility(&self) -> Undo {
        Undo::Exact { how: "drops the indexes it built, concurrently".into() }
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        let session = cx.operator_reader(&self.on).await?;
        let mut out = Description::default();
        for index in &self.indexes {
            if let Some((what, hint)) = obstacle(&session, &index.table).await? {
                out.blocker(format!("{what}; {hint}"));
                continue;
            }
            self.describe_one(cx, &session, index, &mut out).await?;
        }
        let tables: BTreeSet<&TableName> = self.indexes.iter().map(|index| &index.table).collect();
        for table in tables {
            for blocker in blockers::prepared_on(&session, table).await? {
                out.warning(format!("the build would wait for {blocker}"));
            }
        }
        for blocker in blockers::of_snapshots(&session).await? {
            out.warning(format!("the build would wait for {blocker}"));
        }
        Ok(out)
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let mut session = self.session(cx).await?;
        if let Some(memory) = &self.maintenance_work_mem {
            session.set("maintenance_work_mem", memory).await?;
        }
        let mut built = Vec::new();
        for index in &self.indexes {
            cx.proceed()?;
            if self.build(cx, &mut session, index).await? {
                built.push(index.name.as_str());
            }
            failpoint::at(failpoint::INDEX_BUILT)?;
        }
        Ok(json!({ "built": built }))
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        let session = cx.operator_reader(&self.on).await?;
        for index in &self.indexes {
            if find(&session, &index.table, &index.name).await? != Found::Valid {
                return Err(Error::data(format!(
                    "index {} is not there or not valid after its build",
                    index.name
                ))
                .on_database(&self.on)
                .hint("see whether somebody dropped it meanwhile, then `handover resume`"));
            }
        }
        Ok(())
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        let session = self.session(cx).await?;
        let mut dropped = Vec::new();
        for index in &self.indexes {
            cx.proceed()?;
            // Only what the journal says is ours: one that was there before the run stays.
            if cx.recall::<bool>(&index.fact())? != Some(true) {
                continue;
            }
            match find(&session, &index.table, &index.name).await? {
                Found::Valid | Found::Invalid => {
                    self.drop(cx, &session, index).await?;
                    dropped.push(index.name.as_str());
                }
                Found::Absent => {}
                Found::Other(what) => cx.warn(format!("{} belongs to {what} now, and stays", index.name)),
            }
            cx.forget(&index.fact()).await?;
        }
        Ok(json!({ "dropped": dropped }))
    }
}

impl CreateIndex {
    /// A session whose statements may wait as long as they must.
    async fn session(&self, cx: &Context) -> Result<Session> {
        let session = cx.operator_writer(&self.on).await?;
        // The waits for older snapshots go through the lock manager: any lock_timeout would end the build there.
        Ok(session)
    }

    /// Builds one index unless it is there; returns whether this attempt built it.
    async fn build(&self, cx: &Context, session: &mut Session, index: &Index) -> Result<bool> {
        if let Some((what, hint)) = obstacle(session, &index.table).await? {
            return Err(Error::data(what).on_database(&self.on).hint(hint));
        }
        let ours = cx.recall::<bool>(&index.fact())? == Some(true);
        let found = find(session, &index.table, &index.name).await?;
        let fit = match found {
            Found::Valid => self.fit(cx, session, index).await?,
            _ => Fit::Fits,
        };
        let acts = decide(index, &found, &fit, ours).map_err(|Refusal { text, hint }| {
            Error::data(text).on_database(&self.on).hint(format!("{hint}, then `handover resume`"))
        })?;
        let mut built = false;
        for act in acts {
            match act {
                Act::Keep => {}
                Act::Drop { sql, what } => {
                    cx.note(what);
                    self.patiently(cx, session, &sql, &index.name).await?;
                }
                Act::Build { sql } => {
                    cx.remember(&index.fact(), &true).await?;
                    failpoint::at(failpoint::INDEX_BEFORE)?;
                    if let Err(error) = self.patiently(cx, session, &sql, &index.name).await {
                        return Err(self.failed(cx, session, index, error).await);
                    }
                    cx.unit_done(&index.name);
                    built = true;
                }
            }
        }
        Ok(built)
    }

    /// What would be done about one index.
    async fn describe_one(
        &self,
        cx: &Context,
        session: &Session,
        index: &Index,
        out: &mut Description,
    ) -> Result<()> {
        let ours = cx.recall::<bool>(&index.fact())? == Some(true);
        let found = find(session, &index.table, &index.name).await?;
        let there = match found {
            Found::Valid => Some(definition(session, &index.table, &index.name).await?),
            _ => None,
        };
        let fit = match found {
            Found::Absent | Found::Valid => wanted::judge(session, index, there.as_deref()).await?,
            Found::Invalid | Found::Other(_) => Fit::Fits,
        };
        let acts = match decide(index, &found, &fit, ours) {
            Ok(acts) => acts,
            Err(Refusal { text, hint }) => {
                out.blocker(format!("{text}; {hint}"));
                return Ok(());
            }
        };
        match (&fit, &there) {
            (Fit::Unknown(why), None) => {
                out.warning(format!("index {} could not be tried: {why}", index.name));
            }
            (Fit::Unknown(why), Some(_)) => {
                out.warning(format!(
                    "index {} could not be compared with the plan's ({why}): the run compares it, and halts if it differs",
                    index.name
                ));
            }
            _ => {}
        }
        for act in &acts {
            match act.sql() {
                Some(sql) => out.action(sql),
                None => out.action(format!(
                    "nothing: index {} exists already ({})",
                    index.name,
                    there.as_deref().unwrap_or("?")
                )),
            };
        }
        Ok(())
    }

    /// How the index that is there compares with the plan's.
    async fn fit(&self, cx: &Context, session: &mut Session, index: &Index) -> Result<Fit> {
        let wanted = |name: &str, table: &str| index.statement_for("", name, table);
        match is_as_wanted(session, &index.table, &index.name, wanted).await {
            Ok(Some(true)) => Ok(Fit::Fits),
            Ok(Some(false)) => Ok(Fit::Differs(definition(session, &index.table, &index.name).await?)),
            Ok(None) => {
                let why = "without the right to create temporary tables its definition cannot be compared";
                cx.warn(format!("index {} exists; {why}", index.name));
                Ok(Fit::Unknown(why.into()))
            }
            Err(error) => Err(error.context(format!("index {} as the plan defines it", index.name))),
        }
    }

    /// Drops an index without locking anybody out.
    async fn drop(&self, cx: &Context, session: &Session, index: &Index) -> Result<()> {
        self.patiently(cx, session, &index.drop_statement(), &index.name).await
    }

    /// Executes a statement that may have to wait for others, and says for whom.
    async fn patiently(&self, cx: &Context, session: &Session, sql: &str, name: &str) -> Result<()> {
        let pid = session.backend_pid().await?;
        tokio::select! {
            result = session.autocommit(sql, &[]) => result.map(drop),
            interrupted = watch(cx, &self.on, pid, name) => Err(interrupted),
        }
    }

    /// After a failed build: the server leaves an INVALID index that every write maintains, and a unique one
    /// may go on refusing rows. It is not left behind for the time until somebody looks.
    async fn failed(&self, cx: &Context, session: &Session, index: &Index, error: Error) -> Error {
        let error = if index.unique && error.message().contains("[SQLSTATE 23505]") {
            let columns = index.columns.join(", ");
            let condition = index.condition.as_ref().map_or_else(String::new, |c| format!(" where {c}"));
            // The server's words are no more than the name of the index; values may not be shown.
            Error::data(format!("index {} cannot be unique: the table has duplicates", index.name))
                .on_database(&self.on)
                .hint(format!(
                    "find them with `select {columns}, count(*) from {}{condition} group by {columns} having count(*) > 1`, \
                     resolve them (a `cleanup` step can), then `handover resume`",
                    index.table.sql()
                ))
        } else {
            error.context(format!("building index {}", index.name))
        };
        if matches!(error.class(), Class::Connection | Class::Cancelled | Class::LeaseLost | Class::Journal) {
            return error;
        }
        match find(session, &index.table, &index.name).await {
            Ok(Found::Invalid) => {
                cx.note(format!("dropping what the failed build left of index {}", index.name));
                if let Err(e) = self.drop(cx, session, index).await {
                    cx.warn(format!(
                        "an INVALID index {} is left, which resume and rollback drop: {e}",
                        index.name
                    ));
                }
            }
            Ok(_) => {}
            Err(e) => cx.warn(format!("cannot see what the failed build left: {e}")),
        }
        error
    }
}

/// Reports progress and whoever the statement waits for, until it is dropped; returns only to stop the step.
/// It only looks: when it cannot, the work goes on unseen.
async fn watch(cx: &Context, database: &str, pid: i32, name: &str) -> Error {
    let mut reported: Option<Instant> = None;
    let mut session = None;
    loop {
        if let Err(stop) = cx.sleep(Duration::from_millis(500)).await {
            return stop;
        }
        let looking = match session.take() {
            Some(open) => open,
            None => match cx.reader(database).await {
                Ok(open) => open,
                Err(_) => continue,
            },
        };
        if let Ok(waits) = look(cx, &looking, pid, name).await {
            if !waits.is_empty() && reported.is_none_or(|at| at.elapsed() > REPORT_AGAIN) {
                cx.warn(waits);
                reported = Some(Instant::now());
            }
            session = Some(looking);
        }
    }
}

/// One look; whom the statement waits for, in words.
async fn look(cx: &Context, session: &Session, pid: i32, name: &str) -> Result<String> {
    // Without pg_read_all_stats the columns of other roles' backends are null.
    let row = session
        .query_opt(
            "select phase, blocks_done, blocks_total from pg_stat_progress_create_index where pid = $1",
            &[&pid],
        )
        .await?;
    let mut phase = "waits".to_owned();
    if let Some(row) = row {
        let (done, total): (Option<i64>, Option<i64>) = (row.get(1), row.get(2));
        if let Some(text) = row.get::<_, Option<String>>(0) {
            phase = format!("is {text}");
        }
        if let (Some(done), Some(total)) = (done, total) {
            let total = Some(total.unsigned_abs()).filter(|n| *n > 0);
            cx.progress(name, done.unsigned_abs(), total, Measure::Blocks);
        }
    }
    let waits = blockers::of_backend(session, pid).await?;
    Ok(if waits.is_empty() {
        String::new()
    } else {
        format!("index {name} {phase}: {}", blockers::listed(&waits))
    })
}
