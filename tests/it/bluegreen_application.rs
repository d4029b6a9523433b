//! The application of the whole way: it writes to blue until it is refused there, then to green, and keeps what it was told.

use crate::support::servers::Database;
use crate::support::world::World;
use rand::RngExt;
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;

/// What writers were told.
#[derive(Default)]
pub struct Told {
    /// Acknowledged rows: active and note, or that the row is gone.
    pub rows: BTreeMap<i32, Option<(bool, String)>>,
    /// Ids of which the last answer never came.
    pub unknown: HashSet<i32>,
    /// Ids that were written on green.
    pub green: HashSet<i32>,
    pub revoked: Vec<i32>,
    pub failures: Vec<String>,
    pub on_blue: usize,
}

/// The application: writes to blue until it is refused there, then to green.
pub struct Application {
    pub told: Arc<Mutex<Told>>,
    pub stop: Arc<AtomicBool>,
    pub flipped: Arc<AtomicBool>,
    pub tasks: Vec<JoinHandle<()>>,
}

impl Application {
    /// `patient`: connections may break, and are made again.
    pub fn start(world: &World, patient: bool) -> Self {
        let application = Application {
            told: Arc::default(),
            stop: Arc::default(),
            flipped: Arc::default(),
            tasks: Vec::new(),
        };
        let tasks = (0..3).map(|n| {
            let (told, stop, flipped) =
                (application.told.clone(), application.stop.clone(), application.flipped.clone());
            let (blue, green) = (world.blue.clone(), world.green.clone());
            tokio::spawn(async move { write(n, &blue, &green, &told, &stop, &flipped, patient).await })
        });
        let mut tasks: Vec<_> = tasks.collect();
        let (told, stop, flipped) =
            (application.told.clone(), application.stop.clone(), application.flipped.clone());
        let green = world.green.clone();
        tasks.push(tokio::spawn(async move { poll(&green, &told, &stop, &flipped).await }));
        Application { tasks, ..application }
    }

    /// Ends it after some more writes on green, and compares what it was told with what is there.
    pub async fn end(self, world: &World) {
        tokio::time::sleep(Duration::from_millis(300)).await;
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.unwrap();
        }
        let told = self.told.lock().unwrap();
        assert!(told.failures.is_empty(), "{:?}", told.failures);
        assert!(told.on_blue > 20, "only {} writes on blue", told.on_blue);
        assert!(!told.green.is_empty() && self.flipped.load(Ordering::SeqCst), "nobody wrote on green");
        let (green, blue) = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let green = content(&world.green, "oauth_token").await;
                (green, content(&world.blue, "token").await)
            })
        });
        for (id, row) in told.rows.iter().filter(|(id, _)| !told.unknown.contains(id)) {
            assert_eq!(green.get(id), row.as_ref(), "token {id}");
        }
        let rest = |all: &BTreeMap<i32, (bool, String)>| -> BTreeMap<i32, (bool, String)> {
            let kept = all.iter().filter(|(id, _)| !told.green.contains(id));
            kept.map(|(id, row)| (*id, row.clone())).collect()
        };
        assert_eq!(rest(&blue), rest(&green), "blue (left) and green, but for what was written on green");
    }
}

/// Everything but orphans.
pub async fn content(database: &Database, table: &str) -> BTreeMap<i32, (bool, String)> {
    let sql = format!("select id, active, note from {table} where subject <> 'orphan'");
    let rows = database.admin().await.query(&sql, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect()
}

pub async fn connect(database: &Database) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(&database.owner_url(), tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn write(
    writer: i32,
    blue: &Database,
    green: &Database,
    told: &Mutex<Told>,
    stop: &AtomicBool,
    flipped: &AtomicBool,
    patient: bool,
) {
    let mut side = (blue, "token", false);
    let mut client: Option<tokio_postgres::Client> = None;
    let mut own: Vec<(i32, bool)> =
        (1..400).filter(|id| id % 3 == writer && id % 30 != 0).map(|id| (id, true)).collect();
    let mut round = 0;
    while !stop.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if client.as_ref().is_none_or(tokio_postgres::Client::is_closed) {
            match connect(side.0).await {
                Ok(new) => client = Some(new),
                Err(_) if patient => continue,
                Err(e) => return told.lock().unwrap().failures.push(format!("connecting: {e}")),
            }
        }
        let Some(session) = client.as_mut() else { continue };
        round += 1;
        let note = format!("{writer}.{round}");
        let (dice, index, delay) = {
            let mut rng = rand::rng();
            (rng.random_range(0..10), rng.random_range(0..own.len()), rng.random_range(0..8))
        };
        let (id, active) = own[index];
        let result = async {
            let tx = session.transaction().await?;
            let outcome = match dice {
                0..4 => {
                    let sql = format!(
                        "insert into {} (subject, active, note) values ('new', true, $1) returning id",
                        side.1
                    );
                    let id = tx.query_one(&sql, &[&note]).await?.get::<_, i32>(0);
                    (id, Some((true, note.clone())))
                }
                4..7 => {
                    tx.execute(&format!("update {} set note = $2 where id = $1", side.1), &[&id, &note])
                        .await?;
                    (id, Some((active, note.clone())))
                }
                7..9 => {
                    let sql = format!("update {} set active = false, note = $2 where id = $1", side.1);
                    tx.execute(&sql, &[&id, &note]).await?;
                    (id, Some((false, note.clone())))
                }
                _ => {
                    tx.execute(&format!("delete from {} where id = $1", side.1), &[&id]).await?;
                    (id, None)
                }
            };
            tokio::time::sleep(Duration::from_millis(delay)).await;
            tx.commit().await.map(|()| outcome)
        }
        .await;
        let mut told = told.lock().unwrap();
        match result {
            Ok((id, row)) => {
                own.retain(|(known, _)| *known != id);
                if let Some((active, _)) = &row {
                    own.push((id, *active));
                    if !active {
                        told.revoked.push(id);
                    }
                }
                if side.2 {
                    told.green.insert(id);
                } else {
                    told.on_blue += 1;
                }
                told.rows.insert(id, row);
            }
            Err(error) => match error.code().map(|c| c.code()) {
                Some("25006") if !side.2 => {
                    flipped.store(true, Ordering::SeqCst);
                    side = (green, "oauth_token", true);
                    client = None;
                }
                _ if patient
                    && (error.is_closed()
                        || matches!(error.code(), Some(c) if c.code().starts_with("57P"))) =>
                {
                    told.unknown.insert(id);
                    own.retain(|(known, _)| *known != id);
                }
                _ => told.failures.push(format!("on {}: {error:?}", side.1)),
            },
        }
    }
}

/// From the flip on, green honours no revoked token, not even for a moment.
async fn poll(green: &Database, told: &Mutex<Told>, stop: &AtomicBool, flipped: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) && !flipped.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let client = green.admin().await;
    while !stop.load(Ordering::SeqCst) {
        let revoked = told.lock().unwrap().revoked.clone();
        let sql = "select id from oauth_token where active and id = any($1)";
        if let Some(row) = client.query_opt(&format!("{sql} limit 1"), &[&revoked]).await.unwrap() {
            let id = row.get::<_, i32>(0);
            return told.lock().unwrap().failures.push(format!("revoked token {id} is honoured"));
        }
    }
}

/// Nothing of ours is left but what refuses writes on blue.
pub async fn assert_clean(world: &World) {
    let triggers = "select string_agg(distinct regexp_replace(tgname, '_[0-9a-f]{8}$', ''), ',')
                    from pg_trigger where tgname like '%handover%'";
    assert_eq!(
        world.blue.value(triggers).await.as_deref(),
        Some("00_handover_refuse,00_handover_refuse_row")
    );
    assert_eq!(world.green.value(triggers).await, None);
    for database in [&world.blue, &world.green] {
        let rows = "select (select count(*) from handover.outbox) + (select count(*) from handover.outbox_numbered)
                    + (select count(*) from handover.outbox_partition) + (select count(*) from handover.capture)
                    + (select count(*) from handover.replay)
                    + (select count(*) from pg_proc where proname like 'capture\\_%')";
        assert_eq!(database.value(rows).await.unwrap(), "0");
    }
    let admin = world.blue.admin().await;
    for table in ["token", "setting"] {
        let error = admin.batch_execute(&format!("delete from {table}")).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "25006");
    }
}
