//! Clients that book entries through a pooler all the time, and a ledger of what they were told, which must balance.

use crate::support::servers::Database;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls};

const WRITERS: i32 = 3;
/// An answer that does not come in this time is not waited for: whether the entry was booked is not known then.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the clients were told.
#[derive(Debug, Default)]
struct Told {
    /// Each entry that was tried, by writer and number, and whether it was acknowledged.
    tried: BTreeMap<(i32, i32), bool>,
    acknowledged: u64,
    /// When the last was, and the longest time without one.
    last: Option<Instant>,
    longest: Duration,
}

/// The clients, as long as this lives.
pub struct Ledger {
    told: Arc<Mutex<Told>>,
    stop: Arc<AtomicBool>,
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Ledger {
    /// Opens the clients, on what the URL leads to.
    pub fn open(url: &str) -> Self {
        let ledger = Ledger { told: Arc::default(), stop: Arc::default() };
        for writer in 0..WRITERS {
            let (url, told, stop) = (url.to_owned(), ledger.told.clone(), ledger.stop.clone());
            tokio::spawn(async move { book(writer, &url, &told, &stop).await });
        }
        ledger
    }

    /// How many entries were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.told.lock().unwrap().acknowledged
    }

    /// Waits until so many more entries are acknowledged.
    pub async fn more(&self, entries: u64) -> Result<(), String> {
        let (goal, begun) = (self.acknowledged() + entries, Instant::now());
        while self.acknowledged() < goal {
            if begun.elapsed() > PATIENCE {
                return Err("clients are not served".into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// The longest time in which no client was told anything, since this was last asked.
    pub fn longest_silence(&self) -> Duration {
        let mut told = self.told.lock().unwrap();
        let longest = told.longest.max(told.last.map_or(Duration::ZERO, |last| last.elapsed()));
        told.longest = Duration::ZERO;
        longest
    }

    /// Holds it against the side that serves: each entry that was acknowledged is there once and whole, nothing is there twice
    /// or from nowhere, and each writer's gauge shows its last entry.
    pub async fn balances(&self, side: &Database, green: bool) -> Result<(), String> {
        let acknowledged: Vec<(i32, i32)> = {
            let told = self.told.lock().unwrap();
            told.tried.iter().filter_map(|(key, acknowledged)| acknowledged.then_some(*key)).collect()
        };
        let (table, amount, level) =
            if green { ("movement", "debit + credit", "level") } else { ("entry", "amount", "value") };
        let entries =
            format!("select writer, number, count(*), sum({amount})::bigint from {table} group by 1, 2");
        let gauges = format!(
            "select writer, {level}, (select coalesce(max(number), -1) from {table} e where e.writer = g.writer) from gauge g"
        );
        let admin = side.admin().await;
        let mut there = BTreeSet::new();
        for row in admin.query(&entries, &[]).await.map_err(|e| e.to_string())? {
            let key: (i32, i32) = (row.get(0), row.get(1));
            let (count, sum): (i64, i64) = (row.get(2), row.get(3));
            if count != 1 || sum != i64::from(amount_of(key)) {
                return Err(format!("entry {key:?} is there {count} times, with {sum} in all"));
            }
            there.insert(key);
        }
        if let Some(lost) = acknowledged.iter().find(|key| !there.contains(key)) {
            return Err(format!("entry {lost:?} was acknowledged and is not there"));
        }
        let unknown = {
            let told = self.told.lock().unwrap();
            there.iter().find(|key| !told.tried.contains_key(key)).copied()
        };
        if let Some(key) = unknown {
            return Err(format!("entry {key:?} comes from nowhere"));
        }
        for row in admin.query(&gauges, &[]).await.map_err(|e| e.to_string())? {
            let (writer, level, last): (i32, i32, i32) = (row.get(0), row.get(1), row.get(2));
            if level != last {
                return Err(format!("the gauge of writer {writer} shows {level}, its last entry is {last}"));
            }
        }
        Ok(())
    }
}

fn amount_of((writer, number): (i32, i32)) -> i32 {
    writer * 1_000_000 + number
}

async fn book(writer: i32, url: &str, told: &Mutex<Told>, stop: &AtomicBool) {
    let (mut client, mut number) = (None::<Client>, 0);
    while !stop.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let Some(session) = &client else {
            if let Ok((new, connection)) = tokio_postgres::connect(url, NoTls).await {
                tokio::spawn(connection);
                client = Some(new);
            }
            continue;
        };
        told.lock().unwrap().tried.insert((writer, number), false);
        let sql = format!("select book({writer}, {number})");
        match tokio::time::timeout(PATIENCE, session.batch_execute(&sql)).await {
            Ok(Ok(())) => {
                let mut told = told.lock().unwrap();
                told.tried.insert((writer, number), true);
                told.acknowledged += 1;
                let silence = told.last.map_or(Duration::ZERO, |last| last.elapsed());
                (told.longest, told.last) = (told.longest.max(silence), Some(Instant::now()));
            }
            // Whether it was booked is not known: it is not tried again.
            _ => client = None,
        }
        number += 1;
    }
}
