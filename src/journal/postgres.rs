//! The journal in Postgres: one short transaction a record, and a connection that is replaced when it breaks.

use super::lease::{Held, LeaseRow};
use crate::error::{Class, Error, Result};
use crate::event::{Entry, Holder, Record, RunId, StepId};
use crate::failpoint;
use crate::postgres::connect;
use crate::postgres::error::from_postgres;
use crate::postgres::install::{Part, install};
use crate::postgres::ours::OURS;
use crate::postgres::plain::assert_plain;
use crate::postgres::profile::Profile;
use crate::postgres::session::{Params, Session};
use crate::value::Secret;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio_postgres::types::Json;
use tokio_postgres::{Client, Row};

/// What the control database is called in messages.
const CONTROL: &str = "control";

/// How long one attempt at a statement may take at least, if there is patience for it.
const ATTEMPT: Duration = Duration::from_secs(3);

/// A run, as lists show it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunRow {
    /// Its id.
    pub run: RunId,
    /// The plan's name.
    pub plan: String,
    /// When it began.
    pub started: Timestamp,
}

/// What somebody asked of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RequestRow {
    /// `approve` or `abort`.
    pub kind: String,
    /// The step, for an approval.
    pub step: Option<StepId>,
    /// Who.
    pub by: String,
    /// In their words.
    pub note: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// The journal of one control database.
#[derive(Debug)]
pub struct Journal {
    url: Secret,
    client: Mutex<Option<Client>>,
    patience: Duration,
    read_only: bool,
}

impl Journal {
    /// Connects and, unless it is only looked at, creates or upgrades the tables.
    ///
    /// # Errors
    /// No connection, or missing privileges.
    pub async fn open(url: Secret, patience: Duration) -> Result<Self> {
        let client = connect::open(&url, CONTROL, "handover/journal").await?;
        let mut session = Session::unleased(client, CONTROL);
        install(&mut session, Part::Control).await?;
        Ok(Journal { url, client: Mutex::new(Some(session.into_client())), patience, read_only: false })
    }

    /// Connects without creating anything: for commands that only look.
    ///
    /// # Errors
    /// No connection; a control database without a journal.
    pub async fn open_existing(url: Secret, patience: Duration) -> Result<Self> {
        let client = connect::open(&url, CONTROL, "handover/journal").await?;
        assert_plain(&client, CONTROL).await?;
        let found = client
            .query_opt(&format!("select 1 where to_regclass('{OURS}.record') is not null"), &[])
            .await
            .map_err(|e| from_postgres(&e, CONTROL))?;
        if found.is_none() {
            return Err(Error::usage(format!(
                "the control database has no journal in schema {OURS}: nothing ever ran from it"
            ))
            .on_database(CONTROL)
            .hint("check `control:` and `schema:` in the plan, or begin with `handover run`"));
        }
        Ok(Journal { url, client: Mutex::new(Some(client)), patience, read_only: false })
    }

    /// Connects for looking only: every transaction is read-only. None when the control database has no journal.
    ///
    /// # Errors
    /// No connection.
    pub async fn look(url: Secret, patience: Duration) -> Result<Option<Self>> {
        let client = reach(&url, true).await?;
        assert_plain(&client, CONTROL).await?;
        let found = client
            .query_opt(&format!("select 1 where to_regclass('{OURS}.record') is not null"), &[])
            .await
            .map_err(|e| from_postgres(&e, CONTROL))?;
        Ok(found.map(|_| Journal { url, client: Mutex::new(Some(client)), patience, read_only: true }))
    }

    /// Executes one statement, over a new connection if the old one broke. Everything sent through here can
    /// be repeated without harm.
    async fn rows(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        self.rows_at(sql, params, |_| Ok(())).await
    }

    /// The same, with a place for a test to fail at when the server has answered.
    async fn rows_at(
        &self,
        sql: &str,
        params: Params<'_>,
        answered: impl Fn(&[Row]) -> Result<()>,
    ) -> Result<Vec<Row>> {
        let begun = Instant::now();
        let mut guard = self.client.lock().await;
        loop {
            let attempt = async {
                let client = match guard.take() {
                    Some(client) if !client.is_closed() => client,
                    _ => reach(&self.url, self.read_only).await?,
                };
                let client = guard.insert(client);
                let rows = client.query(sql, params).await.map_err(|e| from_postgres(&e, CONTROL))?;
                answered(&rows)?;
                Ok(rows)
            };
            // A connection that has gone silent must leave time for another.
            let left = self.patience.saturating_sub(begun.elapsed());
            let limit = left.min((self.patience / 3).max(ATTEMPT)).max(Duration::from_secs(1));
            let error = match tokio::time::timeout(limit, attempt).await {
                Ok(Ok(rows)) => return Ok(rows),
                Ok(Err(error)) => error,
                Err(_) => {
                    Error::new(Class::Connection, "the control database does not answer").on_database(CONTROL)
                }
            };
            *guard = None;
            if !error.class().is_transient() {
                return Err(error);
            }
            if begun.elapsed() >= self.patience {
                // Anew, because the error's own hint speaks of a server that is merely away.
                let message = format!("the journal cannot be written or read: {}", error.message());
                return Err(Error::new(Class::Journal, message).on_database(CONTROL).hint(
                    "the run stops here, and every database keeps serving; bring the control database back, then `handover resume`",
                ));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Creates a run's row.
    ///
    /// # Errors
    /// The control database failing.
    pub async fn create_run(&self, run: RunId, plan: &str) -> Result<()> {
        self.rows(
            &format!("insert into {OURS}.run (id, plan) values ($1, $2) on conflict do nothing"),
            &[&run.0, &plan],
        )
        .await
        .map(drop)
    }

    /// Appends a record if `token` still holds the lease of `plan`; returns when it was written. Durable when
    /// it returns.
    ///
    /// # Errors
    /// [`Class::LeaseLost`], or the control database failing.
    pub async fn append(
        &self,
        plan: &str,
        token: i64,
        run: RunId,
        seq: i64,
        record: &Record,
    ) -> Result<Entry> {
        self.append_record(plan, token, run, seq, record).await.map_err(|e| match e.class() {
            Class::LeaseLost | Class::Journal => e,
            // A full disk, a missing privilege: whatever it is, the run must not go on without its journal.
            _ => e.context("the journal cannot be written").with_class(Class::Journal).hint(
                "the run stops here, and every database keeps serving; mend the control database, then `handover resume`",
            ),
        })
    }

    async fn append_record(
        &self,
        plan: &str,
        token: i64,
        run: RunId,
        seq: i64,
        record: &Record,
    ) -> Result<Entry> {
        let json = storable(record)?;
        // Only an answer that says so can be lost: the look that follows must be heard.
        let landed =
            |rows: &[Row]| if rows.is_empty() { Ok(()) } else { failpoint::at(failpoint::JOURNAL_APPENDED) };
        let rows = self
            .rows_at(
                &format!(
                    "with mine as (select from {OURS}.lease where plan = $5 and token = $3 for share)
                 insert into {OURS}.record (run, seq, token, record) select $1, $2, $3, $4 from mine
                 on conflict (run, seq) do nothing returning at"
                ),
                &[&run.0, &seq, &token, &Json(&json), &plan],
                landed,
            )
            .await?;
        if let Some(row) = rows.first() {
            return Ok(Entry { seq, at: row.get(0), record: record.clone() });
        }
        // Either the lease is gone, or a broken connection hid that an earlier attempt at this insert landed.
        let rows = self
            .rows(
                &format!(
                    "select at from {OURS}.record where run = $1 and seq = $2 and token = $3 and record = $4"
                ),
                &[&run.0, &seq, &token, &Json(&json)],
            )
            .await?;
        match rows.first() {
            // Compared by the server: jsonb writes some numbers differently from what was sent.
            Some(row) => Ok(Entry { seq, at: row.get(0), record: record.clone() }),
            None => Err(crate::postgres::lease::lost()),
        }
    }

    /// All records of a run, in order.
    ///
    /// # Errors
    /// The control database failing, or records of a newer Handover.
    pub async fn entries(&self, run: RunId) -> Result<Vec<Entry>> {
        self.entries_after(run, 0).await
    }

    /// The records of a run that follow number `after`, in order.
    ///
    /// # Errors
    /// The control database failing, or records of a newer Handover.
    pub async fn entries_after(&self, run: RunId, after: i64) -> Result<Vec<Entry>> {
        let rows = self
            .rows(
                &format!(
                    "select seq, at, record from {OURS}.record where run = $1 and seq > $2 order by seq"
                ),
                &[&run.0, &after],
            )
            .await?;
        rows.iter()
            .map(|row| Ok(Entry { seq: row.get(0), at: row.get(1), record: decode(row, 2)? }))
            .collect()
    }

    /// Runs, newest first.
    ///
    /// # Errors
    /// The control database failing.
    pub async fn runs(&self, plan: Option<&str>) -> Result<Vec<RunRow>> {
        let rows = self
            .rows(
                &format!(
                    "select id, plan, started_at from {OURS}.run where $1::text is null or plan = $1
                 order by started_at desc, id desc"
                ),
                &[&plan],
            )
            .await?;
        Ok(rows.iter().map(|r| RunRow { run: RunId(r.get(0)), plan: r.get(1), started: r.get(2) }).collect())
    }

    /// Leaves a request for whoever acts on the run.
    ///
    /// # Errors
    /// The control database failing.
    pub async fn request(
        &self,
        run: RunId,
        kind: &str,
        step: Option<&str>,
        by: &str,
        note: Option<&str>,
    ) -> Result<()> {
        self.rows(
            &format!("insert into {OURS}.request (run, kind, step, by, note) values ($1, $2, $3, $4, $5)"),
            &[&run.0, &kind, &step, &by, &note],
        )
        .await
        .map(drop)
    }

    /// All requests made of a run, oldest first.
    ///
    /// # Errors
    /// The control database failing.
    pub async fn requests(&self, run: RunId) -> Result<Vec<RequestRow>> {
        let rows = self
            .rows(
                &format!("select kind, step, by, note, at from {OURS}.request where run = $1 order by id"),
                &[&run.0],
            )
            .await?;
        Ok(rows
            .iter()
            .map(|r| RequestRow {
                kind: r.get(0),
                step: r.get::<_, Option<String>>(1).map(StepId),
                by: r.get(2),
                note: r.get(3),
                at: r.get(4),
            })
            .collect())
    }

    /// Asks for the lease of a plan. It is granted when nobody holds it, when it has run out, or when its
    /// holder was a process of this host that is gone.
    ///
    /// # Errors
    /// The control database failing.
    pub async fn acquire(&self, plan: &str, run: RunId, holder: &Holder, ttl: Duration) -> Result<Held> {
        let dead = self.lease(plan).await?.filter(LeaseRow::holder_is_dead).map(|row| row.token);
        let rows = self
            .rows(
                &format!("insert into {OURS}.lease as l (plan, token, holder, run, expires)
                 values ($1, 1, $2, $3, clock_timestamp() + make_interval(secs => $4))
                 on conflict (plan) do update set token = l.token + 1, holder = excluded.holder, run = excluded.run,
                    since = clock_timestamp(), expires = excluded.expires
                 where l.holder is null or l.expires < clock_timestamp() or l.token = $5
                 returning token"),
                &[&plan, &Json(holder), &run.0, &ttl.as_secs_f64(), &dead],
            )
            .await?;
        if let Some(row) = rows.first() {
            return Ok(Held::Ours(row.get(0)));
        }
        match self.lease(plan).await? {
            // A broken connection may have hidden that our own request was granted.
            Some(row) if row.holder.as_ref() == Some(holder) && row.run == Some(run) => {
                Ok(Held::Ours(row.token))
            }
            Some(row) => Ok(Held::Other(Box::new(row))),
            None => Err(Error::internal("a lease was refused that does not exist")),
        }
    }

    /// Prolongs the lease; false when it is no longer ours.
    ///
    /// # Errors
    /// The control database failing.
    pub async fn renew(&self, plan: &str, token: i64, ttl: Duration) -> Result<bool> {
        let rows = self
            .rows(
                &format!(
                    "update {OURS}.lease set expires = clock_timestamp() + make_interval(secs => $3)
                 where plan = $1 and token = $2 returning 1"
                ),
                &[&plan, &token, &ttl.as_secs_f64()],
            )
            .await?;
        Ok(!rows.is_empty())
    }

    /// Gives the lease back. Somebody else's is left alone.
    ///
    /// # Errors
    /// The control database failing; the lease then runs out by itself.
    pub async fn release(&self, plan: &str, token: i64) -> Result<()> {
        self.rows(
            &format!(
                "update {OURS}.lease set holder = null, run = null, expires = clock_timestamp()
             where plan = $1 and token = $2"
            ),
            &[&plan, &token],
        )
        .await
        .map(drop)
    }

    /// The lease of a plan as it stands.
    ///
    /// # Errors
    /// The control database failing.
    pub async fn lease(&self, plan: &str) -> Result<Option<LeaseRow>> {
        let rows = self
            .rows(
                &format!(
                    "select plan, token, holder, run, since, expires, expires < clock_timestamp()
                 from {OURS}.lease where plan = $1"
                ),
                &[&plan],
            )
            .await?;
        rows.first()
            .map(|row| {
                let holder: Option<Json<Holder>> = row
                    .try_get(2)
                    .map_err(|e| Error::internal(format!("the lease's holder cannot be read ({e})")))?;
                Ok(LeaseRow {
                    plan: row.get(0),
                    token: row.get(1),
                    holder: holder.map(|Json(h)| h),
                    run: row.get::<_, Option<uuid::Uuid>>(3).map(RunId),
                    since: row.get(4),
                    expires: row.get(5),
                    expired: row.get(6),
                })
            })
            .transpose()
    }
}

/// A connection of the journal's.
async fn reach(url: &Secret, read_only: bool) -> Result<Client> {
    connect::open_as(url, CONTROL, "handover/journal", &Profile::Catalog, read_only).await
}

/// A record as jsonb can hold it: Postgres refuses U+0000 in text, which the output of a command may contain.
fn storable(record: &Record) -> Result<Value> {
    fn clean(value: &mut Value) {
        match value {
            Value::String(text) if text.contains('\0') => *text = text.replace('\0', "\u{fffd}"),
            Value::Array(items) => items.iter_mut().for_each(clean),
            Value::Object(fields) => fields.values_mut().for_each(clean),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(record).map_err(|e| Error::internal(e.to_string()))?;
    clean(&mut value);
    Ok(value)
}

fn decode(row: &Row, column: usize) -> Result<Record> {
    row.try_get::<_, Json<Record>>(column).map(|Json(record)| record).map_err(|e| {
        Error::new(Class::Journal, format!("a record cannot be read ({e})"))
            .on_database(CONTROL)
            .hint("it was written by a newer Handover: use that version")
    })
}
