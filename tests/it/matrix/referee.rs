//! Tries all the time, past the pooler, whether both sides take a write at once.

use crate::support::servers::Database;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_postgres::{Client, NoTls};

/// A referee at work, as long as this lives.
pub struct Referee {
    seen: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
}

impl Drop for Referee {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Referee {
    /// Begins to watch.
    pub fn watch(sides: [Database; 2]) -> Self {
        let referee = Referee { seen: Arc::default(), stop: Arc::default() };
        let (seen, stop) = (referee.seen.clone(), referee.stop.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(50)).await;
                if let [true, true] = writable(&sides).await {
                    seen.lock().unwrap().push("both sides took a write at once".into());
                }
            }
        });
        referee
    }

    /// What it saw since this was last asked.
    pub fn verdict(&self) -> Result<(), String> {
        self.seen.lock().unwrap().pop().map_or(Ok(()), Err)
    }
}

/// Which sides take a write: the one on blue is still open when the one on green is tried, and both are rolled back.
pub async fn writable(sides: &[Database; 2]) -> [bool; 2] {
    let blue = write(&sides[0]).await;
    let green = write(&sides[1]).await;
    [blue.is_some(), green.is_some()]
}

/// A write in an open transaction, unless it is refused, or is not let through at once.
async fn write(side: &Database) -> Option<Client> {
    let (client, connection) = tokio_postgres::connect(&side.owner_url(), NoTls).await.ok()?;
    tokio::spawn(connection);
    client.batch_execute("set lock_timeout = '100ms'; begin; select book(99, 0)").await.ok()?;
    Some(client)
}
