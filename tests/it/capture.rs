//! Capture: what triggers write, for whom, and that they go without a trace.

use crate::support::bench::Bench;
use crate::support::servers;
use serde_json::{Value, json};

const SCHEMA: &str = "
    create table token (
        id text primary key, subject text not null, secret text, active bool not null default true,
        amount numeric, weight float8, at timestamptz, blob bytea, doc json
    );
    create table loose (a int, b int);";

async fn world(capture: Value) -> Bench {
    let queue = embedded_queue().await;
    Bench::new(SCHEMA, SCHEMA, &queue, &[("capture", "capture", capture)]).await
}

/// The URL of an embedded queue of its own.
pub async fn embedded_queue() -> String {
    let server = servers::green().await;
    let name = servers::unique("queue");
    server.create_database(&name, None).await.unwrap();
    server.handover_url(&name)
}

async fn outbox(world: &Bench) -> Vec<Value> {
    let rows = world
        .blue
        .admin()
        .await
        .query(
            "select json_build_object('op', op, 'key', key, 'old', old, 'new', new)::text from (
                 select id, op, key, old, new from handover.outbox
                 union all select id, op, key, old, new from handover.outbox_numbered) e order by id",
            &[],
        )
        .await
        .unwrap();
    rows.iter().map(|row| serde_json::from_str(row.get(0)).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_write_that_counts_is_captured_once() {
    let world = world(json!({
        "from": "blue",
        "tables": { "token": {
            "on": ["insert", "update", "delete"],
            "when": { "update": "old.active or old.id <> new.id" },
            "columns": ["subject", "active"]
        } }
    }))
    .await;
    world.run("capture").await.unwrap();
    world.ledger.ended.lock().unwrap().clear();
    // The application's role has no grant on anything of ours.
    world.blue.execute("insert into token (id, subject, secret) values ('a', 's', 'hush')").await;
    world.blue.execute("begin; update token set active = false where id = 'a'; rollback").await;
    world
        .blue
        .execute(
            "update token set active = false where id = 'a';
             update token set subject = 'unseen' where id = 'a';
             update token set id = 'b' where id = 'a';
             delete from token",
        )
        .await;
    // Also what a replication worker or a restore would write.
    world
        .blue
        .admin()
        .await
        .batch_execute(
            "set session_replication_role = replica; insert into token (id, subject) values ('r', 's')",
        )
        .await
        .unwrap();
    let events = outbox(&world).await;
    let brief: Vec<String> =
        events.iter().map(|e| format!("{} {}", e["op"].as_str().unwrap(), e["key"]["id"])).collect();
    assert_eq!(
        brief,
        ["insert \"a\"", "update \"a\"", "delete \"a\"", "insert \"b\"", "delete \"b\"", "insert \"r\""]
    );
    assert_eq!(events[1]["old"], json!({"subject": "s", "active": true}));
    assert_eq!(events[1]["new"], json!({"subject": "s", "active": false}));
    assert!(!format!("{events:?}").contains("hush"));

    // No value that a column can hold fails the application's write.
    world
        .blue
        .execute("insert into token (id, subject, doc, amount) values ('odd', '\\', '{\"a\": \"\\u0000\"}', 'NaN')")
        .await;

    let error = world.blue.admin().await.batch_execute("truncate token").await.unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("TRUNCATE of token is refused"), "{error}");

    world.undo("capture").await.unwrap();
    assert_eq!(
        world.blue.value("select count(*) from pg_trigger where tgname like '00_handover%'").await.unwrap(),
        "0"
    );
    assert_eq!(world.blue.value("select count(*) from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = 'handover' and p.proname like 'capture%'").await.unwrap(), "0");
    assert_eq!(world.blue.value("select count(*) from handover.outbox").await.unwrap(), "0");
    world.blue.execute("truncate token; insert into token (id, subject) values ('c', 's')").await;
    // And again, from the start.
    world.run("capture").await.unwrap();
    world.blue.execute("delete from token").await;
    assert_eq!(outbox(&world).await.len(), 1);
    world.undo("capture").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_misses_a_trigger_that_was_disabled() {
    let world = world(json!({ "from": "blue", "tables": { "token": { "on": ["insert"] } } })).await;
    world.run("capture").await.unwrap();
    world.blue.admin().await.batch_execute("alter table token disable trigger all").await.unwrap();
    let error = world.step("capture").kind.verify(&world.context("capture")).await.unwrap_err();
    assert!(error.message().contains("not there or not enabled"), "{error}");
    world.undo("capture").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_in_the_way_is_waited_for_without_blocking_others() {
    let world = world(
        json!({ "from": "blue", "tables": { "token": { "on": ["insert"] } }, "lock_timeout": "100ms" }),
    )
    .await;
    let mut holder = world.blue.admin().await;
    let tx = holder.transaction().await.unwrap();
    tx.batch_execute("insert into token (id, subject) values ('held', 's')").await.unwrap();
    let other = world.blue.admin().await;
    let run = world.run("capture");
    let traffic = async {
        for i in 0..20 {
            let begun = std::time::Instant::now();
            other
                .batch_execute(&format!("insert into token (id, subject) values ('t{i}', 's')"))
                .await
                .unwrap();
            assert!(begun.elapsed() < std::time::Duration::from_millis(400), "{:?}", begun.elapsed());
            tokio::time::sleep(std::time::Duration::from_millis(40)).await;
        }
        tx.commit().await.unwrap();
    };
    let (result, ()) = tokio::join!(run, traffic);
    result.unwrap();
    assert!(world.said().iter().any(|text| text.contains("wait for pid")));
    world.undo("capture").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_captured_in_order_is_refused() {
    for (table, value, message) in [
        ("loose", json!({ "on": ["insert"] }), "has no primary key"),
        ("loose", json!({ "on": ["insert"], "key": ["a"] }), "does not identify a row"),
        ("token", json!({ "on": ["insert"], "key": ["subject"] }), "does not identify a row"),
        ("token", json!({ "on": ["insert"], "columns": ["subjekt"] }), "no column subjekt"),
        ("nothing", json!({ "on": ["insert"] }), "there is no table nothing"),
    ] {
        let world = world(json!({ "from": "blue", "tables": { table: value } })).await;
        let described = world.step("capture").kind.describe(&world.context("capture")).await.unwrap();
        assert!(described.blockers.iter().any(|b| b.contains(message)), "{:?}", described.blockers);
        let error = world.run("capture").await.unwrap_err();
        assert!(error.message().contains(message), "{error}");
        assert!(error.next_step().is_some());
        world.undo("capture").await.unwrap();
    }
    let world =
        world(json!({ "from": "blue", "tables": { "token": { "on": ["update"], "when": "old.aktive" } } }))
            .await;
    let described = world.step("capture").kind.describe(&world.context("capture")).await.unwrap();
    assert!(described.blockers.iter().any(|b| b.contains("aktive")), "{:?}", described.blockers);
}
