//! An application that writes all the time on the side that takes it, and remembers what it was told: nothing of that may be
//! lost, whichever way a cutover goes.

use super::servers::Database;
use super::world::World;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_postgres::{Client, Error, NoTls};

/// A side refuses writes.
const REFUSED: &str = "25006";

const WRITERS: i32 = 3;

/// What an application writes, and what it was told.
pub trait Writes: Default + Send + 'static {
    /// Between two writes of a writer.
    const REST: Duration;

    /// What a writer writes on a side, as its number so much: 0 is blue, 1 green.
    fn sql(side: usize, writer: i32, number: i32) -> String;

    /// That was acknowledged.
    fn acknowledged(&mut self, side: usize, writer: i32, number: i32);

    /// Whether an error only ends this one write. `closed`: the connection is gone.
    fn ended(&mut self, _writer: i32, _number: i32, _error: &Error, _closed: bool) -> bool {
        false
    }
}

/// One that runs.
pub struct Application<T> {
    shared: Arc<Shared<T>>,
    writers: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared<T> {
    told: Mutex<T>,
    failures: Mutex<Vec<String>>,
    stop: AtomicBool,
    /// How much was acknowledged on each side.
    on: [AtomicU64; 2],
}

impl<T: Writes> Application<T> {
    pub fn start(world: &World) -> Self {
        let shared: Arc<Shared<T>> = Arc::default();
        let writers = (0..WRITERS)
            .map(|writer| {
                let (sides, shared) = ([world.blue.clone(), world.green.clone()], shared.clone());
                tokio::spawn(async move { write(writer, &sides, &shared).await })
            })
            .collect();
        Application { shared, writers }
    }

    /// Waits until so many more were acknowledged on a side.
    pub async fn until(&self, side: usize, more: u64) {
        let on = &self.shared.on[side];
        let goal = on.load(Ordering::SeqCst) + more;
        for _ in 0..1200 {
            if on.load(Ordering::SeqCst) >= goal {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("side {side} takes no writes: {:?}", self.shared.failures.lock().unwrap());
    }

    /// Ends it. Nothing may have failed but what a cutover makes fail.
    pub async fn told(self) -> T {
        self.shared.stop.store(true, Ordering::SeqCst);
        for writer in self.writers {
            writer.await.unwrap();
        }
        let failures = self.shared.failures.lock().unwrap();
        assert!(failures.is_empty(), "{failures:?}");
        std::mem::take(&mut self.shared.told.lock().unwrap())
    }
}

async fn write<T: Writes>(writer: i32, sides: &[Database; 2], shared: &Shared<T>) {
    let (mut side, mut client) = (0, None::<Client>);
    for number in 0.. {
        loop {
            if shared.stop.load(Ordering::SeqCst) {
                return;
            }
            tokio::time::sleep(T::REST).await;
            if client.as_ref().is_none_or(Client::is_closed) {
                let Ok((new, connection)) = tokio_postgres::connect(&sides[side].owner_url(), NoTls).await
                else {
                    continue;
                };
                tokio::spawn(connection);
                client = Some(new);
            }
            let Some(session) = client.as_ref() else { continue };
            let Err(error) = session.batch_execute(&T::sql(side, writer, number)).await else {
                shared.told.lock().unwrap().acknowledged(side, writer, number);
                shared.on[side].fetch_add(1, Ordering::SeqCst);
                break;
            };
            let closed = error.is_closed() || session.is_closed();
            match error.code().map(|code| code.code()) {
                Some(REFUSED) => (side, client) = (1 - side, None),
                // A deadlock: once more.
                Some("40P01") => {
                    let _ = session.batch_execute("rollback").await;
                }
                _ if shared.told.lock().unwrap().ended(writer, number, &error, closed) => {
                    if closed {
                        client = None;
                    } else {
                        let _ = session.batch_execute("rollback").await;
                    }
                    break;
                }
                _ => {
                    shared.failures.lock().unwrap().push(format!("on side {side}: {error:?}"));
                    return;
                }
            }
        }
    }
}

/// Proves that a database refuses a client's write.
pub async fn assert_refuses(database: &Database, sql: &str) {
    let (client, connection) = tokio_postgres::connect(&database.owner_url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    let error = client.batch_execute(sql).await.unwrap_err();
    assert_eq!(error.code().map(|c| c.code()), Some(REFUSED), "{error:?}");
}
