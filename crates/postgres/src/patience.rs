//! How long one of ours may wait for a lock that the application may want too.
//!
//! Two sessions that wait for each other are a deadlock, and the one whose wait has lasted `deadlock_timeout` finds
//! it and is cancelled. The application's wait is often the older one, so that its statement would be the victim
//! of our DDL, whatever we set. So ours always gives up before anybody's wait that it causes can have lasted so
//! long: within four fifths of `deadlock_timeout` from the first lock that it took.
//! (<https://www.postgresql.org/docs/current/runtime-config-locks.html>)

use super::session::{Session, Tx};
use super::{TableName, quote_literal};
use handover_core::error::{Class, Error, Result};
use std::time::{Duration, Instant};

/// What a single wait that comes when other locks are held already may take, as a part of the whole: short, since
/// others may wait for what is held, and not nothing, since most locks are free again at once.
const LATE: u32 = 8;

/// Sets `lock_timeout`, `$1` milliseconds at most, for the session or the transaction; tells what it is now.
const SET: &str = "select ms, set_config('lock_timeout', ms::text, $2)
    from (select greatest(1, least($1::bigint, setting::bigint * 4 / 5)) as ms
          from pg_settings where name = 'deadlock_timeout') s";

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX).max(1)
}

fn length(row: Option<i64>, wanted: Duration) -> Duration {
    row.map_or(wanted, |ms| Duration::from_millis(ms.unsigned_abs()))
}

/// How strongly a table is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Writers wait.
    Share,
    /// Writers wait, and others like it.
    ShareRowExclusive,
    /// Everybody waits.
    AccessExclusive,
}

impl Mode {
    /// As SQL.
    #[must_use]
    pub fn sql(self) -> &'static str {
        match self {
            Mode::Share => "share",
            Mode::ShareRowExclusive => "share row exclusive",
            Mode::AccessExclusive => "access exclusive",
        }
    }

    /// The mode that `pg_locks` shows, if it is one at which writers wait.
    #[must_use]
    pub fn shown(text: &str) -> Option<Mode> {
        match text {
            "ShareLock" => Some(Mode::Share),
            "ShareRowExclusiveLock" | "ExclusiveLock" => Some(Mode::ShareRowExclusive),
            "AccessExclusiveLock" => Some(Mode::AccessExclusive),
            _ => None,
        }
    }
}

impl Session {
    /// Lets statements wait for each lock `at_most` so long, and never so long that another's wait could be judged
    /// a deadlock. Tells how long.
    pub async fn wait_for_locks(&self, at_most: Duration) -> Result<Duration> {
        let row = self.query_opt(SET, &[&millis(at_most), &false]).await?;
        self.hurry();
        Ok(length(row.as_ref().map(|row| row.get(0)), at_most))
    }
}

/// The time in which a transaction must have its locks.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    whole: Duration,
    begun: Option<Instant>,
}

impl Patience {
    /// For a transaction that begins now: `at_most` so long for all its locks.
    pub async fn of(tx: &Tx<'_>, at_most: Duration) -> Result<Patience> {
        Ok(Patience { whole: tx.wait_for_locks(at_most).await?, begun: None })
    }

    /// How long the next wait may last. The first lock may be waited for all the time, since nobody waits for a
    /// transaction that holds none.
    #[must_use]
    pub fn left(&self) -> Duration {
        let late = self.whole / LATE;
        self.begun.map_or(self.whole, |begun| self.whole.saturating_sub(begun.elapsed()).max(late))
    }

    /// A lock is wanted now: others may wait for it from here on.
    pub fn begin(&mut self) {
        self.begun.get_or_insert_with(Instant::now);
    }

    /// Lets the next statement wait for a moment only: it may take several locks of which nobody knows.
    pub async fn apply_late(&self, tx: &Tx<'_>) -> Result<()> {
        let late = (self.whole / LATE).as_millis().max(1);
        tx.batch(&format!("set local lock_timeout = '{late}ms'")).await
    }

    /// Lets the next statement of the transaction wait as long as is left.
    pub async fn apply(&self, tx: &Tx<'_>) -> Result<()> {
        tx.batch(&format!("set local lock_timeout = '{}ms'", self.left().as_millis().max(1))).await
    }
}

impl Tx<'_> {
    /// As [`Session::wait_for_locks`], for this transaction.
    pub async fn wait_for_locks(&self, at_most: Duration) -> Result<Duration> {
        let row = self.query_opt(SET, &[&millis(at_most), &true]).await?;
        self.hurry();
        Ok(length(row.as_ref().map(|row| row.get(0)), at_most))
    }

    /// Locks tables, partitions and all, in the order of their names, in one attempt of which all waits together are bounded.
    ///
    /// # Errors
    /// [`Class::Contention`] where somebody has one of them; roll back, and try again later.
    pub async fn lock_tables(&self, tables: &[(TableName, Mode)], at_most: Duration) -> Result<()> {
        let mut sorted: Vec<&(TableName, Mode)> = tables.iter().collect();
        sorted.sort();
        let whole = self.wait_for_locks(at_most).await?;
        let begun = Instant::now();
        for (table, mode) in sorted {
            let left = whole.saturating_sub(begun.elapsed()).as_millis();
            if left == 0 {
                return Err(Error::new(
                    Class::Contention,
                    format!("{} tables could not be locked within {whole:?}", tables.len()),
                )
                .on_database(self.database())
                .hint("another session holds a lock; `handover resume` tries again"));
            }
            self.batch(&format!(
                "set local lock_timeout = {}; lock table {} in {} mode",
                quote_literal(&format!("{left}ms")),
                table.sql(),
                mode.sql()
            ))
            .await?;
        }
        Ok(())
    }
}
