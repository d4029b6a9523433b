//! Relay and replay together: whatever happens to them or to the queue, green ends up as blue.

use crate::capture::embedded_queue;
use crate::support::bench::Bench;
use crate::support::scenario::Scenario;
use crate::support::servers;
use rand::RngExt;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const SCHEMA: &str = "
    create table account (
        id int primary key, version int not null, amount numeric, weight float8, at timestamptz, blob bytea, doc json
    );";

fn capture() -> Value {
    json!({ "from": "blue", "tables": { "account": { "on": ["insert", "update", "delete"] } } })
}

fn mirror() -> Value {
    let upsert = "insert into account select * from json_populate_record(null::account, $new)
                  on conflict (id) do update set (version, amount, weight, at, blob, doc) =
                    (excluded.version, excluded.amount, excluded.weight, excluded.at, excluded.blob, excluded.doc)";
    json!({ "to": "green", "batch": 50, "caught_up": 10, "events": { "account": {
        "apply": upsert,
        "delete": { "apply": "delete from account where id = $key.id::int",
                    "already": "select not exists (select from account where id = $key.id::int)" }
    } } })
}

fn plan() -> Vec<(&'static str, &'static str, Value)> {
    let mut drain = mirror();
    drain["mode"] = "drain".into();
    vec![("capture", "capture", capture()), ("tail", "replay", mirror()), ("drain", "replay", drain)]
}

const PLAN: &str = "
handover: 1
name: captured
databases: { blue: '${BLUE_URL}', green: '${GREEN_URL}' }
control: ${CONTROL_URL}
queue: ${QUEUE_URL}
steps:
  - id: capture
    capture: { from: blue, tables: { account: { on: [insert, update, delete] }, token: { on: [update], columns: [active] } } }
  - id: early
    cleanup: { on: blue, table: token, action: update, set: { active: 'false' }, where: id % 3 = 0, batch: 50, pause: 0ms }
  - id: tail
    replay:
      to: green
      caught_up: 0
      batch: 40
      events:
        account:
          apply: update account set version = $new.version::int where id = $key.id::int and version <> $new.version::int
          already: select not exists (select from account where id = $key.id::int and version <> $new.version::int)
          delete: { apply: 'delete from account where id = $key.id::int', already: 'select not exists (select from account where id = $key.id::int)' }
        token:
          apply: update token set active = $new.active::bool where id = $key.id::int
  - id: writes
    cleanup: { on: blue, table: account, action: update, set: { version: '1' }, where: version = 0, batch: 70, pause: 0ms }
  - id: deletes
    cleanup: { on: blue, table: account, action: delete, where: id % 5 = 0, batch: 70, pause: 0ms }
  - id: drain
    replay:
      to: green
      mode: drain
      batch: 40
      events:
        account:
          apply: update account set version = $new.version::int where id = $key.id::int and version <> $new.version::int
          already: select not exists (select from account where id = $key.id::int and version <> $new.version::int)
          delete: { apply: 'delete from account where id = $key.id::int', already: 'select not exists (select from account where id = $key.id::int)' }
        token:
          apply: update token set active = $new.active::bool where id = $key.id::int
";

const ROWS: &str = "
    create table account (id int primary key, version int not null);
    create table token (id int primary key, active bool not null, secret text);
    insert into account select n, 0 from generate_series(1, 300) n;
    insert into token select n, true, 'hush' from generate_series(1, 100) n;";

/// Only green's content is not what it was after a rollback: the events that it got stay until a copy is undone.
pub fn scenario() -> Scenario {
    Scenario {
        prefixes: &["capture", "relay", "replay"],
        plan: PLAN,
        blue: ROWS,
        green: ROWS,
        rollback_restores: false,
        ..Scenario::default()
    }
}

/// Writers that hammer the same keys from several sessions, holding their transactions open for a while.
async fn hammer(world: &Bench, writers: usize, rounds: usize) {
    let mut tasks = Vec::new();
    for _ in 0..writers {
        let mut client = world.blue.admin().await;
        tasks.push(tokio::spawn(async move {
            for _ in 0..rounds {
                let tx = client.transaction().await.unwrap();
                let (ids, pause): (Vec<i32>, u64) = {
                    let mut rng = rand::rng();
                    let mut ids: Vec<i32> = (0..3).map(|_| rng.random_range(0..12)).collect();
                    // In one order, so that writers do not deadlock.
                    ids.sort_unstable();
                    (ids, rng.random_range(0..6))
                };
                for id in ids {
                    let sql = match rand::rng().random_range(0..10) {
                        0..2 => "delete from account where id = $1",
                        _ => "insert into account (id, version, amount, weight, at, blob, doc)
                              values ($1, 0, 1.10, 'Infinity', 'infinity', '\\x00ff', '{\"b\":1,  \"a\":1.50}')
                              on conflict (id) do update set version = account.version + 1, at = clock_timestamp(),
                                amount = (account.version + 1)::numeric / 7, weight = random() * 1e300",
                    };
                    tx.execute(sql, &[&id]).await.unwrap();
                }
                tokio::time::sleep(Duration::from_millis(pause)).await;
                if rand::rng().random_range(0..8) == 0 { tx.rollback().await } else { tx.commit().await }.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

async fn content(database: &servers::Database) -> BTreeMap<i32, String> {
    let rows = database.admin().await.query("select id, a::text from account a", &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn survives(queue: &str) {
    let world = Bench::new(SCHEMA, SCHEMA, queue, &plan()).await;
    world.run("capture").await.unwrap();
    hammer(&world, 4, 20).await;
    world.run("tail").await.unwrap();
    let stream = world.blue.value("select stream from handover.capture").await.unwrap();
    let queue = handover::queue::connect(queue, Default::default()).await.unwrap();
    let trouble = async {
        for round in 0..12 {
            tokio::time::sleep(Duration::from_millis(rand::rng().random_range(20..250))).await;
            match round % 4 {
                0 => world.crash("capture").await,
                1 => world.crash("tail").await,
                // It may be gone from an earlier round.
                2 => drop(queue.purge(&stream).await),
                _ if round == 7 => queue.delete(&stream).await.unwrap(),
                _ => {}
            }
        }
    };
    tokio::join!(hammer(&world, 6, 80), trouble);
    let counts = world.run("drain").await.unwrap();
    assert_eq!(content(&world.blue).await, content(&world.green).await);
    assert_eq!(counts["waiting"], 0);
    assert_eq!(
        counts["captured"].as_i64().unwrap(),
        counts["applied"].as_i64().unwrap() + counts["already"].as_i64().unwrap(),
        "{counts}"
    );
    assert!(counts["captured"].as_i64().unwrap() > 500, "{counts}");
    let ended: Vec<String> = world.ledger.ended.lock().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(ended, ["tail", "capture"]);
    // What green holds the marks of was trimmed, or is about to be.
    assert_eq!(world.blue.value("select count(*) from handover.outbox").await.unwrap(), "0");

    // A write after the end is noticed.
    world.blue.execute("delete from account where id = (select min(id) from account)").await;
    let error = world.step("drain").kind.verify(&world.context("drain")).await.unwrap_err();
    assert!(error.message().contains("waiting 1"), "{error}");

    for step in ["drain", "tail", "capture"] {
        world.undo(step).await.unwrap();
    }
    let left = "select count(*) from handover.replay";
    assert_eq!(world.green.value(left).await.unwrap(), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_through_the_embedded_queue() {
    survives(&embedded_queue().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_through_rabbitmq() {
    survives(&servers::rabbit().await.url()).await;
}

fn strict(extra: Value) -> Vec<(&'static str, &'static str, Value)> {
    let mut replay = json!({ "to": "green", "caught_up": 0, "events": { "account": {
        "insert": { "apply": "insert into account (id, version) values ($key.id::int, $new.version::int)" },
        "update": { "apply": "update account set version = $new.version::int where id = $key.id::int",
                    "already": "select exists (select from account where id = $key.id::int and version = $new.version::int)" },
        "delete": { "ignore": true }
    } } });
    replay.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    vec![("capture", "capture", capture()), ("tail", "replay", replay)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_event_halts_and_nothing_behind_it_overtakes() {
    let world = Bench::new(SCHEMA, SCHEMA, &embedded_queue().await, &strict(json!({}))).await;
    world.blue.execute("insert into account (id, version) values (1, 0)").await;
    world.run("capture").await.unwrap();
    world.blue.execute("update account set version = 1").await;
    world.blue.execute("update account set version = 2").await;
    let error = world.run("tail").await.unwrap_err();
    assert!(
        error.message().contains("update of account") && error.message().contains("does not apply"),
        "{error}"
    );
    assert!(error.next_step().unwrap().contains("outbox_numbered"), "{error:?}");
    let error = world.step("tail").kind.verify(&world.context("tail")).await.unwrap_err();
    assert!(error.message().contains("does not apply"), "{error}");
    // Mended by hand, it goes on where it stood.
    world.green.execute("insert into account (id, version) values (1, 1)").await;
    let counts = world.run("tail").await.unwrap();
    assert_eq!(
        (&counts["already"], &counts["applied"], &counts["missing"]),
        (&json!(0), &json!(2), &json!(0)),
        "{counts}"
    );
    assert_eq!(world.green.value("select version from account").await.unwrap(), "2");
    world.undo("tail").await.unwrap();
    world.undo("capture").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quarantine_takes_all_later_events_of_the_key() {
    let steps = strict(json!({ "on_error": "quarantine", "on_missing": "quarantine" }));
    let world = Bench::new(SCHEMA, SCHEMA, &embedded_queue().await, &steps).await;
    world.green.execute("alter table account add check (version <> 13)").await;
    world.run("capture").await.unwrap();
    world.blue.execute("insert into account (id, version) select n, 0 from generate_series(1, 50) n").await;
    world.blue.execute("update account set version = 13 where id = 7").await;
    world.blue.execute("update account set version = 14 where id in (7, 8)").await;
    let counts = world.run("tail").await.unwrap();
    assert_eq!((&counts["quarantined"], &counts["applied"]), (&json!(2), &json!(51)), "{counts}");
    assert_eq!(world.green.value("select sum(version) from account").await.unwrap(), "14");
    let reasons = world
        .green
        .value("select string_agg(reason, ' / ' order by number) from handover.event_quarantine")
        .await
        .unwrap();
    assert!(
        reasons.contains("check constraint")
            && reasons.ends_with("an earlier event of its key is in quarantine"),
        "{reasons}"
    );
    world.undo("tail").await.unwrap();
    world.undo("capture").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_waits_for_the_row_it_refers_to_in_another_partition() {
    let schema = "create table parent (id int primary key);
                  create table child (id int primary key, parent int references parent);";
    let on = json!({ "on": ["insert"] });
    let insert = |sql: &str| json!({ "apply": sql });
    let steps = [
        ("capture", "capture", json!({ "from": "blue", "tables": { "parent": on, "child": on } })),
        (
            "drain",
            "replay",
            json!({ "to": "green", "mode": "drain", "events": {
            "parent": insert("insert into parent values ($key.id::int)"),
            "child": insert("insert into child values ($key.id::int, $new.parent::int)")
        } }),
        ),
    ];
    let world = Bench::new(schema, schema, &embedded_queue().await, &steps).await;
    world.run("capture").await.unwrap();
    for i in 0..200 {
        world
            .blue
            .execute(&format!("insert into parent values ({i}); insert into child values ({i}, {i})"))
            .await;
    }
    let counts = world.run("drain").await.unwrap();
    assert_eq!(counts["applied"], 400, "{counts}");
    world.undo("drain").await.unwrap();
    world.undo("capture").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_green_that_lost_its_marks_is_noticed() {
    let world = Bench::new(SCHEMA, SCHEMA, &embedded_queue().await, &plan()).await;
    world.run("capture").await.unwrap();
    world.blue.execute("insert into account (id, version) values (1, 0)").await;
    world.run("tail").await.unwrap();
    world.crash("tail").await;
    world.green.admin().await.batch_execute("delete from handover.replay").await.unwrap();
    world.crash("tail").await;
    let error = world.outcome("tail").await.unwrap_err();
    assert!(error.message().contains("marks are gone"), "{error}");
    world.undo("capture").await.unwrap();
}
