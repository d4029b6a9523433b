//! refinery on a session of ours: it decides what is to apply and writes its history; each of its transactions
//! is a fenced one of ours, in which the file's effect and its row commit together.

use crate::folder::Migration;
use crate::history::{self, Standing};
use crate::status::Status;
use crate::tail::{Tail, own_columns, up_key};
use crate::vendor::Vendors;
use crate::worker::Worker;
use handover_core::error::{Error, Result};
use handover_core::failpoint;
use refinery::{Runner, Target};
use refinery_core::traits::r#async::{AsyncMigrate, AsyncQuery, AsyncTransaction};

impl AsyncTransaction for Worker<'_> {
    type Error = Error;

    /// refinery calls this with a file's text and the row for it, or with statements of its own.
    async fn execute<'a, T: Iterator<Item = &'a str> + Send + 'a>(&mut self, queries: T) -> Result<usize> {
        let queries: Vec<&str> = queries.collect();
        match (&queries[..], self.queue.front()) {
            ([sql, insert], Some((version, file))) if *sql == file.up.sql => {
                let (version, file) = (*version, *file);
                self.apply(version, file, insert).await?;
                self.queue.pop_front();
            }
            _ => self.record(&queries).await?,
        }
        Ok(queries.len())
    }
}

impl AsyncQuery<Vec<refinery::Migration>> for Worker<'_> {
    async fn query(&mut self, query: &str) -> Result<Vec<refinery::Migration>> {
        let result = self.session.client().query(query).await;
        result.map_err(|e| self.session.error(&e))
    }
}

impl AsyncMigrate for Worker<'_> {}

impl<'a> Worker<'a> {
    /// Creates the history table, with our columns beside refinery's.
    pub async fn create_history(&mut self) -> Result<()> {
        let columns = self
            .session
            .query_one(
                "select array(select attname::text from pg_attribute where attrelid = to_regclass($1) and attnum > 0)",
                &[&self.table],
            )
            .await?;
        let columns: Vec<String> = columns.get(0);
        if columns.iter().any(|column| column == "vendor") {
            return Ok(());
        }
        let tx = self.session.transaction().await?;
        if columns.is_empty() {
            tx.batch(&history::create_sql(&self.table)).await?;
        } else {
            tx.batch(&history::extend_sql(&self.table)).await?;
        }
        tx.commit().await
    }

    /// Reads the histories, as the role that the files run as; creates the vendor's table where it is to be.
    ///
    /// # Errors
    /// What the server says, or histories that contradict each other or the plan.
    pub async fn read_status(&mut self, migrations: Vec<Migration>) -> Result<Status> {
        self.prepare().await?;
        let (step, base, role) = (self.step, &self.port.base, self.step.role.as_deref());
        let status = Status::read(&self.session, role, step, base, &self.table, migrations).await?;
        self.vendors = status.vendors.clone();
        let tx = self.session.transaction().await?;
        self.vendors.create(&tx).await?;
        tx.commit().await?;
        Ok(status)
    }

    /// Reads the vendors' tables, for taking back what stands there.
    pub async fn look_at_vendors(&mut self, files: &[Migration]) -> Result<()> {
        self.prepare().await?;
        self.vendors = Vendors::find_as(&self.session, self.step.role.as_deref(), self.step, files).await?;
        Ok(())
    }

    /// Applies what is pending; what stands before `baseline` is only recorded.
    ///
    /// # Errors
    /// The first file that fails.
    pub async fn apply_all(
        &mut self,
        standing: &Standing<'a>,
        is_baseline: impl Fn(&Migration) -> bool,
    ) -> Result<()> {
        self.diverges = !standing.again.is_empty();
        let all: Vec<refinery::Migration> =
            standing.applied.iter().chain(&standing.pending).map(|(m, _)| m.clone()).collect();
        let mut rest = &standing.pending[..];
        while let Some((_, first)) = rest.first() {
            // Neighbours of one sort go to refinery together; it reads its history once for each call.
            let sort = (is_baseline(first), first.up.stepwise.is_some());
            let one = sort.1 && !sort.0;
            let more =
                rest.iter().take_while(|(_, f)| (is_baseline(f), f.up.stepwise.is_some()) == sort).count();
            let (now, later) = rest.split_at(if one { 1 } else { more });
            let items: Vec<(i64, &'a Migration)> = now.iter().map(|(m, f)| (m.version(), *f)).collect();
            let last = items.last().map_or(0, |(version, _)| *version);
            self.baseline = sort.0;
            if sort == (false, false) {
                self.queue = items.into();
                self.refinery(&all, Target::Version(last)).await?;
            } else {
                if one {
                    self.prepare().await?;
                    self.stepwise(&first.up, &up_key(first), false).await?;
                    self.renew(&first.up).await?;
                    failpoint::at(failpoint::MIGRATE_BEFORE_RECORD)?;
                }
                self.recording = items;
                self.refinery(&all, Target::FakeVersion(last)).await?;
            }
            rest = later;
        }
        for (migration, file) in &standing.again {
            self.prepare().await?;
            if file.up.stepwise.is_some() {
                self.stepwise(&file.up, &up_key(file), false).await?;
            }
            let statements = match &file.up.stepwise {
                Some(_) => &[],
                None => file.up.units.first().map_or(&[][..], |unit| unit.statements()),
            };
            let checksum = migration.checksum().to_string();
            let tail = Tail::Again { version: migration.version(), checksum: &checksum, file };
            self.together(&file.up, statements, &tail, false).await?;
            self.renew(&file.up).await?;
        }
        Ok(())
    }

    async fn refinery(&mut self, all: &[refinery::Migration], target: Target) -> Result<()> {
        // A repeatable file that changed has another checksum than its row; all else was compared before.
        let mut runner = Runner::new(all).set_target(target).set_abort_divergent(!self.diverges);
        runner.set_migration_table_name(self.table.clone());
        runner.run_async(self).await.map(drop).map_err(|error| match error.kind() {
            // Ours, on its way back through refinery.
            refinery::error::Kind::Connection(_, source) => match source.downcast_ref::<Error>() {
                Some(ours) => ours.clone(),
                None => Error::internal(error.to_string()),
            },
            // We compared before; somebody else changed the history meanwhile.
            _ => Error::data(error.to_string())
                .on_database(&self.step.on)
                .hint("see who else applies migrations here, then `handover resume`"),
        })
    }

    async fn apply(&mut self, version: i64, file: &Migration, insert: &str) -> Result<()> {
        self.prepare().await?;
        let statements = file.up.units.first().map_or(&[][..], |unit| unit.statements());
        let tail = Tail::Applied { insert, version, file };
        self.together(&file.up, statements, &tail, false).await?;
        self.renew(&file.up).await
    }

    /// Statements of refinery's own: its table, or rows for files that it does not apply.
    async fn record(&mut self, queries: &[&str]) -> Result<()> {
        let rows = queries.iter().any(|q| q.starts_with("INSERT"));
        let tx = self.session.transaction().await?;
        for query in queries {
            tx.batch(query).await?;
        }
        if rows {
            for (version, file) in std::mem::take(&mut self.recording) {
                // What the vendor's table knows already stays as it stands there.
                let known = self.baseline && self.vendors.covers(file);
                let vendor = match known {
                    true => None,
                    false => self.vendors.record(&tx, file, std::time::Duration::ZERO).await?,
                };
                own_columns(&tx, self.port, &self.table, version, file, self.baseline, vendor).await?;
            }
        }
        tx.commit().await
    }
}
