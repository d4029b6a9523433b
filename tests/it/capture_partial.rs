//! Tables that are captured in part: what is left out is named before, and noticed at the flip.

use crate::capture::embedded_queue;
use crate::support::bench::Bench;
use crate::support::servers::{self, Database};
use crate::support::world::World;
use serde_json::json;

const BLUE: &str = "
    create table token (id int primary key, active bool not null, used int not null default 0);
    insert into token select n, true from generate_series(1, 50) n;
    create table note (id int primary key, text text); insert into note values (1, 'a');";

const PLAN: &str = r#"
handover: 1
name: partial
databases: { blue: '${BLUE_URL}', green: '${GREEN_URL}' }
control: ${CONTROL_URL}
queue: ${QUEUE_URL}
steps:
  - id: capture
    capture: { from: blue, tables: { token: { CAPTURED } } }
  - id: copy
    copy: { from: blue, to: green, jobs: 1 }
  - id: tail
    replay:
      to: green
      events:
        token:
          insert: { apply: "insert into token select * from json_populate_record(null::token, $new) on conflict do nothing", already: "select true" }
          update: { apply: "update token set active = $new.active::bool where id = $key.id::int" }
          delete: { apply: "delete from token where id = $key.id::int", already: "select true" }
  - id: flip
    retry: { attempts: 1 }
    cutover:
      freeze: blue
      to: green
      patience: 10s
      attempts: 2
      backoff: 200ms
      participants: [ { name: config, file: { path: switch.conf, content: "green" } } ]
"#;

fn plan(captured: &str) -> String {
    PLAN.replace("CAPTURED", captured)
}

/// One whose copy and replay are done, and whose cutover has not begun.
async fn at_the_flip(captured: &str) -> World {
    let blue = Database::with(servers::blue().await, BLUE).await;
    let world = World::new(Some(&blue.name), None, &plan(captured), &[("switch.conf", "blue")]).await;
    world.handover_failing("engine.step-started:4", "run", &[]).await.killed();
    world
}

/// Makes what other sessions wrote show in the server's counters.
async fn settled() {
    tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_is_not_captured_stops_the_cutover() {
    let world = at_the_flip("on: [insert]").await;
    world.blue.execute("insert into token values (51, true)").await;
    settled().await;
    // A write of the captured kind alone is no obstacle: the attempt gets to its participants.
    world.handover_failing("cutover.prepared", "resume", &[]).await.killed();
    world.blue.execute("update token set active = false where id = 7").await;
    settled().await;
    let ended = world.handover("resume", &[]).await.code(8);
    assert!(ended.stderr.contains("not captured as a whole: 1 update of token"), "{ended}");
    assert!(ended.stderr.contains("rest: ignore"), "{ended}");
    world.blue.execute("update token set used = 1 where id = 8").await;
    world.write("plan.yaml", &plan("on: [insert], rest: ignore"));
    world.handover("resume", &["--accept-changes"]).await.success();
    assert_eq!(world.green.value("select count(*) from token").await.unwrap(), "51");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_for_which_a_condition_does_not_hold_stop_the_cutover() {
    let world =
        at_the_flip("on: [insert, update, delete], when: { update: old.active is distinct from new.active }")
            .await;
    // A changed key is one update, though it is two events.
    world
        .blue
        .execute(
            "update token set active = false where id = 7; update token set id = 70, active = false where id = 8;
             delete from token where id = 9; insert into token values (51, true)",
        )
        .await;
    settled().await;
    world.handover_failing("cutover.prepared", "resume", &[]).await.killed();
    world.blue.execute("update token set used = used + 1 where id < 3").await;
    settled().await;
    let ended = world.handover("resume", &[]).await.code(8);
    assert!(ended.stderr.contains("2 updates for which its `when` does not hold of token"), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_out_is_named_by_the_checker_and_the_dry_run() {
    for (captured, named) in [
        ("on: [insert]", Some("no update, no delete")),
        ("on: [insert, update, delete], when: old.active", None),
        (
            "on: [insert, update, delete], when: { update: old.active }",
            Some("an update only where its `when` holds"),
        ),
        ("on: [insert, update, delete], columns: [active]", Some("of an update only some columns")),
        ("on: [insert, update, delete]", None),
        ("on: [insert], rest: ignore", None),
    ] {
        let blue = Database::with(servers::blue().await, BLUE).await;
        let world = World::new(Some(&blue.name), None, &plan(captured), &[("switch.conf", "blue")]).await;
        let checked = world.handover("check", &[]).await;
        let text = format!("{}{}", checked.stdout, checked.stderr);
        assert_eq!(named.is_some_and(|named| text.contains(named)), named.is_some(), "{captured}: {checked}");
        if !captured.contains("when: old") {
            let dry = world.handover("dry-run", &[]).await.success();
            assert_eq!(
                named.is_some_and(|named| dry.stdout.contains(named)),
                named.is_some(),
                "{captured}: {dry}"
            );
            assert!(dry.stdout.contains("copied, but not captured: note"), "{dry}");
        }
        world.drop_now().await;
    }
    // Tables that are copied by name and then forgotten.
    let text = plan("on: [insert, update, delete]")
        .replace("to: green, jobs: 1", "to: green, jobs: 1, include: { tables: [token, note] }");
    let world = World::new(None, None, &text, &[("switch.conf", "blue")]).await;
    let checked = world.handover("check", &[]).await;
    let text = format!("{}{}", checked.stdout, checked.stderr);
    assert!(text.contains("neither captured nor replicated: note"), "{checked}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_into_which_foreign_keys_write_are_named() {
    let schema = "create table a (id int primary key);
        create table b (id int primary key, a int references a on delete cascade);
        create table c (id int primary key, b int references b on delete set null);
        create table d (id int primary key, a int references a on update cascade);
        create table e (id int primary key, a int references a);";
    let all = json!({ "on": ["insert", "update", "delete"] });
    let inserts = json!({ "on": ["insert"] });
    let steps = [("capture", "capture", json!({ "from": "blue", "tables": { "a": all, "d": inserts } }))];
    let world = Bench::new(schema, "", &embedded_queue().await, &steps).await;
    let described = world.step("capture").kind.describe(&world.context("capture")).await.unwrap();
    let named: Vec<&String> = described.warnings.iter().filter(|w| w.contains("foreign keys to")).collect();
    assert_eq!(named.len(), 3, "{named:?}");
    assert!(named[0].contains("foreign keys to a write to b (delete there)"), "{named:?}");
    assert!(named[1].contains("foreign keys to b write to c (update there)"), "{named:?}");
    assert!(named[2].contains("foreign keys to a write to d (update there)"), "{named:?}");
    world.run("capture").await.unwrap();
    assert!(world.said().iter().any(|text| text.contains("write to b")));
    world.undo("capture").await.unwrap();
}
