//! Locks that a migration takes beside an application that takes them in another order.

use crate::migrate::{says, world_of};
use crate::support::servers::Database;
use crate::support::world::World;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Traffic that writes to two tables in one transaction, and counts what became of it.
struct Traffic {
    stop: Arc<AtomicBool>,
    victims: Arc<AtomicU64>,
    written: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Traffic {
    /// Several writers, each `first` and a little later `second`, in one transaction.
    async fn start(database: &Database, first: &'static str, second: &'static str) -> Traffic {
        let (stop, victims, written) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut tasks = Vec::new();
        for i in 0..6_u64 {
            let mut client = database.admin().await;
            let (stop, victims, written) = (stop.clone(), victims.clone(), written.clone());
            tasks.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let once = async {
                        let tx = client.transaction().await?;
                        tx.execute(first, &[]).await?;
                        tokio::time::sleep(Duration::from_millis(15)).await;
                        tx.execute(second, &[]).await?;
                        tx.commit().await
                    };
                    match once.await {
                        Ok(()) => drop(written.fetch_add(1, Ordering::Relaxed)),
                        Err(e) if e.code().is_some_and(|c| c.code() == "40P01") => {
                            victims.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(e) => panic!("{e}"),
                    }
                    tokio::time::sleep(Duration::from_millis(10 + 3 * i)).await;
                }
            }));
        }
        Traffic { stop, victims, written, tasks }
    }

    /// Stops it; how many statements fell victim to a deadlock, and how many transactions were written.
    async fn stop(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        (self.victims.load(Ordering::Relaxed), self.written.load(Ordering::Relaxed))
    }
}

const HOT: &str =
    "create table a (x int); create table b (x int); alter table a owner to app; alter table b owner to app;";

async fn under_traffic(step: &str, files: &[(&str, &str)]) -> (World, u64) {
    let world = world_of(step, files).await;
    world.blue.execute(HOT).await;
    let traffic = Traffic::start(&world.blue, "insert into a values (1)", "insert into b values (1)").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    world.handover("run", &[]).await.success();
    let (victims, written) = traffic.stop().await;
    assert!(written > 20, "the traffic stood still: {written}");
    (world, victims)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_locks_in_another_order_loses_no_statement() {
    // One after the other, with work between: the second lock would be wanted while the first is held.
    let files = [
        (
            "m/V1__columns.sql",
            "alter table b add column y int;\nselect pg_sleep(0.7);\nalter table a add column y int;",
        ),
        ("m/V2__more.sql", "create index on b (x);\nselect pg_sleep(0.7);\ncreate index on a (x);"),
        (
            "m/V3__drops.sql",
            "alter table b drop column y;\nselect pg_sleep(0.6);\nalter table a drop column y;",
        ),
    ];
    let (_, victims) = under_traffic("dir: m, undo: none", &files).await;
    assert_eq!(victims, 0, "the application's statements were chosen");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_block_locks_is_found_out_and_locked_first_the_next_time() {
    let files = [(
        "m/V1__block.sql",
        "do $$ begin\n execute 'alter table b add column y int';\n perform pg_sleep(0.7);\n execute 'alter table a add column y int';\nend $$;",
    )];
    let (world, victims) = under_traffic("dir: m, undo: none", &files).await;
    assert_eq!(victims, 0, "the application's statements were chosen");
    let there = "select count(*) from information_schema.columns where column_name = 'y'";
    assert_eq!(world.blue.value(there).await.as_deref(), Some("2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_is_shorter_than_the_servers_deadlock_timeout_whatever_the_plan_says() {
    let files = [("m/V1__a.sql", "alter table token add column y int;")];
    let world = world_of("dir: m, undo: none, lock_timeout: 10m, lock_attempts: 1", &files).await;
    world.blue.execute("alter table token owner to app").await;
    let mut admin = world.blue.admin().await;
    let holder = admin.transaction().await.unwrap();
    holder.query("select count(*) from token", &[]).await.unwrap();
    let begun = std::time::Instant::now();
    let ended = world.handover("run", &[]).await;
    assert_ne!(ended.code, Some(0), "{ended}");
    says(&ended, &["V1__a.sql:1:", "locking token", "lock timeout"]);
    assert!(begun.elapsed() < Duration::from_secs(120), "it waited as long as the plan said");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_names_files_that_lock_two_tables() {
    let files = [
        (
            "m/V1__both.sql",
            "create table c (x int);\nalter table a add column y int;\nalter table c add column y int;\nalter table b add constraint f foreign key (x) references token (id) not valid;",
        ),
        ("m/V2__one.sql", "alter table a add column z int;"),
    ];
    let world = world_of("dir: m, undo: none", &files).await;
    world.blue.execute(HOT).await;
    let ended = world.handover("dry-run", &[]).await;
    let told = format!("{}{}", ended.stdout, ended.stderr);
    assert!(told.contains("V1__both.sql:2: one transaction locks a and b and token"), "{told}");
    assert!(!told.contains("V2__one.sql:1: one transaction"), "{told}");
}
