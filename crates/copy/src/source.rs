//! The source as the copy sees it: at one point in time, which a [`SnapshotHolder`] keeps open.

use crate::counters::{operations, server_started};
use crate::dump::Entry;
use crate::follower::Follower;
use crate::options::{Copy, Selection};
use crate::snapshot_holder::{self, SnapshotHolder};
use crate::state::{Analyze, Chunk, Fact, Held, Object, Sequence, Snapshot, State, Table};
use crate::{catalog, split, violation};
use handover_core::error::{Class, Error, Result};
use handover_port::Port;
use handover_postgres::{Databases, Session, TableName, quote_literal};
use std::collections::{BTreeMap, BTreeSet};

/// Attempts to lock all tables while others alter them.
const ATTEMPTS: u32 = 10;

/// One point in time of the source.
#[derive(Debug)]
pub struct Source {
    holder: SnapshotHolder,
    look: Session,
    /// What it sees.
    pub snapshot: Snapshot,
    /// How often each table had been written just before.
    pub writes: Vec<(TableName, i64)>,
    /// The same by operation; see [`crate::counters::operations`].
    pub operations: Vec<(TableName, [i64; 3])>,
    /// When the server had started.
    pub server_started: String,
    /// The source's major version.
    pub major: u32,
}

impl Source {
    /// Locks every table that is selected and takes the snapshot after that.
    ///
    /// # Errors
    /// Tables that cannot be read or locked, or that come and go all the time.
    pub async fn open(port: &Port, copy: &Copy, follower: Option<&dyn Follower>) -> Result<Self> {
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            port.proceed()?;
            match Self::attempt(port, copy, follower).await {
                Ok(Some(source)) => return Ok(source),
                Ok(None) => {}
                Err(e) if e.class() == Class::Contention || e.message().contains("42P01") => last = Some(e),
                Err(e) => return Err(e),
            }
            if attempt == 0 {
                port.note("waiting for schema changes on the source to pass before the snapshot is taken");
            }
            port.sleep(std::time::Duration::from_millis(500 * u64::from(attempt + 1))).await?;
        }
        Err(last.unwrap_or_else(|| {
            Error::new(Class::Contention, "tables come and go on the source while the copy wants to begin")
                .on_database(&copy.from)
                .hint("stop schema changes (and jobs that create tables) during the copy, or exclude those tables")
        }))
    }

    async fn attempt(port: &Port, copy: &Copy, follower: Option<&dyn Follower>) -> Result<Option<Self>> {
        let databases = port.databases.labelled(port.step.as_str());
        // A process that died before it wrote down what it holds may have left a holder.
        snapshot_holder::release(&databases, &copy.from, port.run, &port.step).await?;
        let looker = databases.read_only(&copy.from).await?;
        let wanted = lockable(&looker, &copy.selection()).await?;
        let operations = operations(&looker).await?;
        let writes = operations.iter().map(|(table, n)| (table.clone(), n.iter().sum())).collect();
        let server_started = server_started(&looker).await?;
        let locked =
            SnapshotHolder::lock(&databases, &copy.from, port.run, &port.step, wanted.iter()).await?;
        // A replication that follows begins at the same point in time: its slot's.
        let origin = match follower {
            Some(follower) => Some(follower.begin(copy).await?),
            None => None,
        };
        if let Some(origin) = &origin {
            let sql = format!("set transaction snapshot {}", quote_literal(origin.snapshot()));
            locked.session().query(&sql, &[]).await?;
        }
        let row = locked
            .session()
            .query_one(
                "select pg_export_snapshot(), pg_current_snapshot()::text,
                        case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end::text,
                        clock_timestamp()",
                &[],
            )
            .await?;
        if let Some(origin) = origin {
            origin.release().await;
        }
        if lockable(locked.session(), &copy.selection()).await? != wanted {
            return Ok(None);
        }
        let snapshot = Snapshot { xids: row.get(1), lsn: row.get(2), taken_at: row.get(3) };
        let exported: String = row.get(0);
        let holder = locked.hold(&databases, &copy.from, exported.clone(), copy.hold()).await?;
        let look = Self::reader(&databases, &copy.from, &exported).await?;
        let major = look.major().await?;
        Ok(Some(Source { holder, look, snapshot, writes, operations, server_started, major }))
    }

    /// Joins the point in time that an earlier attempt opened; none when it is not held any more.
    pub async fn rejoin(port: &Port, copy: &Copy, state: &State) -> Result<Option<Self>> {
        let databases = port.databases.labelled(port.step.as_str());
        let holder = SnapshotHolder::join(&databases, &copy.from, port.run, &port.step, &state.held).await?;
        let Some(holder) = holder else { return Ok(None) };
        let look = Self::reader(&databases, &copy.from, &state.held.exported).await?;
        let major = look.major().await?;
        Ok(Some(Source {
            holder,
            look,
            major,
            snapshot: state.snapshot.clone(),
            writes: state.writes.clone(),
            operations: state.operations.clone(),
            server_started: state.server_started.clone(),
        }))
    }

    /// A session that sees what the holder sees, in an open transaction.
    ///
    /// # Errors
    /// No connection, or the snapshot is gone.
    pub async fn reader(databases: &Databases, database: &str, exported: &str) -> Result<Session> {
        let session = databases.read_only(database).await?;
        session.query("begin isolation level repeatable read, read only", &[]).await?;
        let sql = format!("set transaction snapshot {}", quote_literal(exported));
        session.query(&sql, &[]).await?;
        Ok(session)
    }

    /// A session for questions about that point in time.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.look
    }

    /// Who holds it, and under which name others import it.
    #[must_use]
    pub fn held(&self) -> &Held {
        self.holder.held()
    }

    /// The holder.
    #[must_use]
    pub fn holder(&self) -> &SnapshotHolder {
        &self.holder
    }

    /// Lets go of that point in time.
    ///
    /// # Errors
    /// What the server says, or a holder that does not end.
    pub async fn release(self) -> Result<()> {
        let Source { holder, look, .. } = self;
        drop(look);
        holder.release().await
    }

    /// The tables whose rows are copied, largest first, split into chunks.
    pub async fn tables(&self, copy: &Copy) -> Result<Vec<Table>> {
        tables(&self.look, copy, self.major).await
    }

    /// Entries with the tables that they lock.
    pub async fn places(&self, entries: Vec<Entry>) -> Result<Vec<Object>> {
        let rows = self.look.query(catalog::PLACES, &[]).await?;
        let name = |row: &tokio_postgres::Row, at: usize| {
            let schema: Option<String> = row.get(at);
            schema.map(|schema| TableName::new(schema, row.get::<_, String>(at + 1)))
        };
        let places: BTreeMap<(u32, u32), (Option<TableName>, Option<TableName>)> =
            rows.iter().map(|row| ((row.get(0), row.get(1)), (name(row, 2), name(row, 4)))).collect();
        let mut rules = violation::keys(&self.look).await?;
        let place = |entry: Entry| {
            let (table, references) = places.get(&(entry.class, entry.oid)).cloned().unwrap_or_default();
            let key = rules.remove(&(entry.class, entry.oid));
            Object { entry, table, references, key }
        };
        Ok(entries.into_iter().map(place).collect())
    }

    /// The tables to analyze.
    pub async fn analyzed(&self, selection: &Selection<'_>) -> Result<Vec<Analyze>> {
        let rows = self.look.query(&catalog::analyzed(), &[]).await?;
        let analyze = |row: &tokio_postgres::Row| {
            let below = std::iter::zip(row.get::<_, Vec<String>>(2), row.get::<_, Vec<String>>(3));
            Analyze {
                table: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
                below: below.map(|(s, t)| TableName::new(s, t)).filter(|t| selection.table(t)).collect(),
            }
        };
        Ok(rows.iter().map(analyze).filter(|a| selection.table(&a.table)).collect())
    }

    /// Where sequences stand. Sequences know no snapshots: these are their values now.
    pub async fn sequences(&self, selection: &Selection<'_>) -> Result<Vec<Sequence>> {
        let mut out = Vec::new();
        for row in self.look.query(&catalog::sequences(), &[]).await? {
            let name = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
            if !selection.schema(&name.schema) {
                continue;
            }
            let row = self
                .look
                .query_one(&format!("select last_value, is_called from {}", name.sql()), &[])
                .await?;
            out.push(Sequence { name, value: row.get(0), called: row.get(1) });
        }
        Ok(out)
    }
}

async fn lockable(session: &Session, selection: &Selection<'_>) -> Result<BTreeSet<TableName>> {
    let rows = session.query(&catalog::relations("'r', 'p'"), &[]).await?;
    Ok(rows
        .iter()
        .map(|row| TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)))
        .filter(|table| selection.table(table))
        .collect())
}

/// See [`Source::tables`].
pub async fn tables(session: &Session, copy: &Copy, major: u32) -> Result<Vec<Table>> {
    let selection = copy.selection();
    let rows = session.query(&catalog::tables(), &[]).await?;
    let mut out = Vec::new();
    for row in &rows {
        let name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        if !selection.table(&name) || copy.without_data.contains(&name) {
            continue;
        }
        let (bytes, blocks) = (row.get::<_, i64>(4).unsigned_abs(), row.get::<_, i64>(5).unsigned_abs());
        let root = row.get::<_, Option<String>>(6).zip(row.get::<_, Option<String>>(7));
        let root = root.map(|(schema, table)| TableName::new(schema, table));
        let (columns, binary) = (row.get(2), row.get(3));
        let mut table = Table { name, root, columns, binary, bytes, chunks: vec![Chunk::WHOLE], key: None };
        split::split(session, copy, major, &mut table, blocks).await?;
        out.push(table);
    }
    Ok(out)
}

/// Partitioned tables in whose place their partitions cannot be followed: a row's partition by a hash of an enum
/// is another one on each server. Each partition whose rows are copied, with the table that its rows are given to.
pub async fn roots(session: &Session, copy: &Copy) -> Result<BTreeMap<TableName, TableName>> {
    let rows = session.query(&catalog::tables(), &[]).await?;
    let found = rows.iter().filter_map(|row| {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let root = row.get::<_, Option<String>>(6).zip(row.get::<_, Option<String>>(7))?;
        Some((table, TableName::new(root.0, root.1)))
    });
    Ok(found.filter(|(table, _)| copy.takes_rows(table)).collect())
}

/// The catalog's facts about what is selected.
pub async fn inventory(session: &Session, selection: &Selection<'_>) -> Result<BTreeSet<Fact>> {
    let rows = session.query(&catalog::inventory(), &[]).await?;
    Ok(rows
        .iter()
        .map(|row| Fact { schema: row.get(0), relation: row.get(1), text: row.get(2) })
        .filter(|f| {
            if f.relation.is_empty() {
                selection.schema(&f.schema)
            } else {
                selection.relation(&TableName::new(&f.schema, &f.relation))
            }
        })
        .collect())
}
