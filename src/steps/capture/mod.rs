//! `capture`: from this step on, every write to the named tables is also written to an outbox, in the writer's
//! own transaction, and a standing relay carries it to the queue.
//!
//! Triggers catch what logical decoding would, without a replication slot that could hold back WAL, and let the
//! plan say which changes count and what of a row may travel. They cost the writer one row more. Order is kept
//! for each key; that needs a key that identifies its row.

mod cascades;
pub mod coverage;
mod look;
mod relay;

use super::{Access, CheckContext, Context, Description, StepKind, Undo};
use crate::error::{Class, Error, Result};
use crate::event::{RunId, StepId};
use crate::failpoint;
use crate::postgres::ours::OURS;
use crate::postgres::profile::SearchPath;
use crate::postgres::{Session, TableName, blockers, quote_ident};
use crate::problem::{Problems, Segment};
use crate::queue::{self, Queue};
use crate::value::Duration;
use async_trait::async_trait;
use coverage::Rest;
use handover_events::catalog::{Form, TableFacts, inspect};
use handover_events::trigger::{Operation, Spec, find, function_pattern};
use handover_events::{Stream, books};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

/// How long all attempts to get a table's lock may take together.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

/// Captures every write to some tables into an outbox, and relays it to the queue.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Capture {
    /// The database whose writes are captured.
    pub from: String,
    /// What is captured, by table.
    #[schemars(extend("minProperties" = 1))]
    pub tables: BTreeMap<TableName, Table>,
    /// In how many partitions keys fall: that many are replayed at once. Order is kept for each key, and across
    /// keys only with 1.
    #[serde(default = "default_partitions")]
    #[schemars(range(min = 1, max = 256))]
    pub partitions: u32,
    /// What the stream's name in the queue begins with; the run's id follows. `handover.` and the step unless given.
    pub stream: Option<String>,
    /// How long one attempt to get a table's lock may hold up its writers; it is tried again for two minutes.
    #[serde(default = "default_lock_timeout")]
    pub lock_timeout: Duration,
    /// Above how many MiB of outbox the relay warns, as when the queue is down for long.
    #[serde(default = "default_budget")]
    pub outbox_budget_mb: u64,
}

fn default_partitions() -> u32 {
    4
}

fn default_lock_timeout() -> Duration {
    Duration::millis(500)
}

fn default_budget() -> u64 {
    1024
}

/// What is captured of one table.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Which operations.
    #[schemars(length(min = 1))]
    pub on: Vec<Operation>,
    /// Which of their rows: an SQL condition over `old` and `new`, without subqueries, for all operations or for
    /// each its own.
    pub when: Option<When>,
    /// The columns that identify a row; the primary key unless given. They must be NOT NULL and hold the columns
    /// of a unique index.
    pub key: Option<Vec<String>>,
    /// The columns that events carry besides the key; all of them unless given. What is left out never travels.
    pub columns: Option<Vec<String>>,
    /// What a TRUNCATE meets.
    #[serde(default)]
    pub truncate: Truncate,
    /// What becomes of writes that `on`, `when` and `columns` leave out of a table that is copied.
    #[serde(default)]
    pub rest: Rest,
}

/// A condition on rows.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum When {
    /// The same for every operation.
    All(String),
    /// For each operation its own; those that are not named have none.
    Each(BTreeMap<Operation, String>),
}

/// What to do about TRUNCATE, which names no rows and so cannot be captured in order with the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Truncate {
    /// It fails with a message that says why. An application that truncates is stopped from losing rows silently.
    #[default]
    Refuse,
    /// It goes through, and the new side keeps the rows.
    Ignore,
}

impl Table {
    fn condition(&self, operation: Operation) -> Option<&str> {
        match &self.when {
            None => None,
            Some(When::All(text)) => Some(text),
            Some(When::Each(each)) => each.get(&operation).map(String::as_str),
        }
    }

    fn operations(&self) -> Vec<(Operation, Option<&str>)> {
        let distinct: BTreeSet<Operation> = self.on.iter().copied().collect();
        distinct.into_iter().map(|operation| (operation, self.condition(operation))).collect()
    }
}

#[async_trait]
impl StepKind for Capture {
    fn check(&self, cx: &CheckContext<'_>, problems: &mut Problems) {
        cx.database(problems, "from", &self.from);
        if !cx.has_queue {
            problems
                .error(["from"], "the plan has no queue to carry what is captured")
                .hint("add `queue: ${QUEUE_URL}` (amqp://… for RabbitMQ, postgres://… for the embedded one)");
        }
        if self.tables.is_empty() {
            problems.error(["tables"], "no table is captured").hint("name at least one");
        }
        for (name, table) in &self.tables {
            look::check_table(name, table, problems);
        }
        coverage::check(self, cx, problems);
        for (id, other) in super::of_kind::<Capture>(cx.earlier()) {
            for name in
                self.tables.keys().filter(|name| other.from == self.from && other.tables.contains_key(name))
            {
                problems
                    .warning(
                        [Segment::from("tables"), name.to_string().into()],
                        format!(
                            "the table {name} is captured by step `{id}` too, and each writer pays twice"
                        ),
                    )
                    .hint("one capture can serve several replays");
            }
        }
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        vec![(&self.from, Access::Write)]
    }

    fn uses_queue(&self) -> bool {
        true
    }

    fn reversibility(&self) -> Undo {
        Undo::Exact { how: "drops the triggers, the queue's stream and the outbox's rows".into() }
    }

    async fn describe(&self, cx: &Context) -> Result<Description> {
        look::describe(self, cx).await
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let mut session = cx.writer(&self.from).await?;
        let tx = session.transaction().await?;
        let stream =
            Stream::register(&tx, cx.run, &cx.step, &self.stream_name(cx.run, &cx.step), self.partitions)
                .await?;
        tx.commit().await?;
        connect_queue(cx).await?.declare(&stream.name, stream.partitions).await?;
        session.wait_for_locks(self.lock_timeout.0).await?;
        let path = cx.databases.search_path(&self.from)?;
        for (index, (name, table)) in self.tables.iter().enumerate() {
            cx.proceed()?;
            let facts = inspect(&session, name).await?;
            let key = self.settle(name, table, facts.as_ref())?;
            let forms = facts.map(|facts| facts.forms).unwrap_or_default();
            let spec = self.spec(&stream, index, name, table, &key, &forms);
            let begun = Instant::now();
            let mut rest = std::time::Duration::from_millis(200);
            while let Err(error) = install(&mut session, &spec, path).await {
                if error.class() != Class::Contention || begun.elapsed() > PATIENCE {
                    let holders = blockers::of_table(&session, name).await.unwrap_or_default();
                    let place = format!("creating triggers on {name}");
                    return Err(if holders.is_empty() {
                        error.context(place)
                    } else {
                        error.context(format!("{place}, which is held by {}", blockers::listed(&holders)))
                    });
                }
                // Writers that queued up behind us pass before the next attempt.
                let holders = blockers::of_table(&session, name).await?;
                cx.warn(format!(
                    "the triggers on {name} wait for {}",
                    if holders.is_empty() { "a lock".into() } else { blockers::listed(&holders) }
                ));
                cx.sleep(rest).await?;
                rest = (rest * 2).min(std::time::Duration::from_secs(5));
            }
            failpoint::at(failpoint::CAPTURE_TRIGGER)?;
        }
        for unseen in cascades::unseen(&session, self).await? {
            cx.warn(unseen);
        }
        super::watched::keep_for_capture(cx, self).await?;
        let names: Vec<String> = self.tables.keys().map(ToString::to_string).collect();
        Ok(json!({ "stream": stream.name, "partitions": stream.partitions, "tables": names }))
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        let session = cx.reader(&self.from).await?;
        let stream = Stream::get(&session, cx.run, &cx.step).await?;
        for (index, (name, table)) in self.tables.iter().enumerate() {
            let spec = self.spec(&stream, index, name, table, &[], &[]);
            let rows = session.query(&find(), &[&function_pattern(stream.id)]).await?;
            for trigger in spec.triggers() {
                let found = rows.iter().find(|row| {
                    (row.get::<_, &str>(0), row.get::<_, &str>(1), row.get::<_, &str>(2))
                        == (name.schema.as_str(), name.name.as_str(), trigger.as_str())
                });
                if found.is_none_or(|row| row.get::<_, &str>(3) != "A") {
                    return Err(Error::data(format!("the trigger {trigger} on {name} is not there or not enabled"))
                        .on_database(&self.from)
                        .hint("somebody dropped or disabled it: `handover rollback` to before this step and begin again, since writes may have been missed"));
                }
            }
        }
        connect_queue(cx).await?.depth(&stream.name).await.map(drop)
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        cx.ledger.end_standing(&cx.step, &cx.step).await?;
        let mut session = cx.writer(&self.from).await?;
        let Some(stream) = Stream::find(&session, cx.run, &cx.step).await? else {
            return Ok(json!({ "dropped": 0 }));
        };
        let dropped = self.remove(cx, &mut session, &stream).await?;
        Ok(json!({ "dropped": dropped }))
    }

    async fn finish(&self, cx: &Context) -> Result<()> {
        self.undo(cx).await.map(drop)
    }

    fn stands(&self) -> bool {
        true
    }

    async fn stand(&self, cx: &Context) -> Result<()> {
        relay::relay(self, cx).await
    }
}

impl Capture {
    /// What the stream of this step is called in a run.
    #[must_use]
    pub fn stream_name(&self, run: RunId, step: &StepId) -> String {
        let prefix = self.stream.clone().unwrap_or_else(|| {
            let step: String = step
                .as_str()
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
                .take(100)
                .collect();
            format!("handover.{step}")
        });
        format!("{prefix}.{}", run.0.simple())
    }

    fn spec<'a>(
        &'a self,
        stream: &Stream,
        index: usize,
        name: &'a TableName,
        table: &'a Table,
        key: &'a [String],
        forms: &'a [(String, Form)],
    ) -> Spec<'a> {
        Spec {
            capture: stream.id,
            partitions: stream.partitions,
            index,
            table: name,
            key,
            columns: table.columns.as_deref(),
            forms,
            operations: table.operations(),
            refuse_truncate: table.truncate == Truncate::Refuse,
        }
    }

    /// The key's columns, or why the table cannot be captured.
    fn settle(&self, name: &TableName, table: &Table, facts: Option<&TableFacts>) -> Result<Vec<String>> {
        match look::obstacles(name, table, facts).into_iter().next() {
            Some((problem, hint)) => Err(Error::data(problem).on_database(&self.from).hint(hint)),
            None => Ok(look::key_of(table, facts)),
        }
    }

    async fn remove(&self, cx: &Context, session: &mut Session, stream: &Stream) -> Result<usize> {
        session.wait_for_locks(self.lock_timeout.0).await?;
        let found = session.query(&find(), &[&function_pattern(stream.id)]).await?;
        for row in &found {
            let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
            let sql = format!("drop trigger if exists {} on {}", quote_ident(row.get(2)), table.sql());
            let begun = Instant::now();
            loop {
                let tx = session.transaction().await?;
                match tx.execute(&sql, &[]).await {
                    Ok(_) => {
                        tx.commit().await?;
                        break;
                    }
                    Err(e) if e.class() == Class::Contention && begun.elapsed() < PATIENCE => {
                        tx.rollback().await?;
                        cx.sleep(std::time::Duration::from_millis(500)).await?;
                    }
                    Err(e) => return Err(e.context(format!("dropping a trigger on {table}"))),
                }
            }
        }
        failpoint::at(failpoint::CAPTURE_DROPPED)?;
        connect_queue(cx).await?.delete(&stream.name).await?;
        let tx = session.transaction().await?;
        let functions = tx
            .query(
                &format!(
                    "select proname::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                 where n.nspname = '{OURS}' and proname like $1"
                ),
                &[&function_pattern(stream.id)],
            )
            .await?;
        for function in &functions {
            tx.execute(&format!("drop function {OURS}.{}()", quote_ident(function.get(0))), &[]).await?;
        }
        for table in ["outbox", "outbox_numbered", "outbox_written", "outbox_partition"] {
            tx.execute(&format!("delete from {OURS}.{table} where capture = $1"), &[&stream.id]).await?;
        }
        tx.execute(&format!("delete from {OURS}.capture where id = $1"), &[&stream.id]).await?;
        tx.commit().await?;
        Ok(found.len())
    }
}

/// Makes a table's function and triggers in one transaction, unless they are there.
async fn install(session: &mut Session, spec: &Spec<'_>, path: &SearchPath) -> Result<()> {
    let there = session.query(&find(), &[&function_pattern(spec.capture)]).await?;
    let ours = |row: &tokio_postgres::Row| {
        (row.get::<_, &str>(0), row.get::<_, &str>(1))
            == (spec.table.schema.as_str(), spec.table.name.as_str())
    };
    if there.iter().any(ours) {
        // They were committed together.
        return Ok(());
    }
    let tx = session.transaction().await?;
    tx.batch(&spec.function_sql()).await?;
    // `when` is the plan's own: its names are looked up here, once.
    tx.execute("select set_config('search_path', $1, true)", &[&path.sql()]).await?;
    for sql in spec.trigger_sql() {
        tx.execute(&sql, &[]).await?;
    }
    tx.commit().await
}

/// Connects to the plan's queue.
pub(super) async fn connect_queue(cx: &Context) -> Result<Arc<dyn Queue>> {
    let url = cx
        .queue
        .as_ref()
        .ok_or_else(|| Error::usage("the plan has no queue").hint("add `queue: ${QUEUE_URL}` to the plan"))?;
    let options = queue::Options { name: format!("handover {}", cx.step), ..Default::default() };
    queue::connect(url.address()?.expose(), options).await
}

/// How many events wait for the queue, for people and for the relay's report.
pub(super) async fn unsent(session: &Session, stream: &Stream) -> Result<i64> {
    let waiting: i64 = session
        .query_one(&format!("select count(*) from {OURS}.outbox where capture = $1"), &[&stream.id])
        .await?
        .get(0);
    let books = books::read(session, stream).await?;
    Ok(waiting + books.iter().map(|b| (b.last - b.published.max(b.trimmed)).max(0)).sum::<i64>())
}
