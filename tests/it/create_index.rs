//! `create_index` on a real server.

use crate::support::scenario::Scenario;
use crate::support::servers::{self, Database};
use crate::support::world::{BUILDING, World, until};

const PLAN: &str = "
handover: 1
name: indexes
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
  - id: index
    create_index:
      on: blue
      indexes:
        - { name: token_subject, table: token, columns: [subject, 'created_at desc'] }
        - { name: token_live, table: token, columns: [id], where: active, unique: true }
";

const TABLE: &str = "create table token (id int primary key, subject text, active bool, created_at timestamptz default now());
    insert into token select n, 's' || n % 10, n % 3 = 0 from generate_series(1, 1000) n;";

pub fn scenario() -> Scenario {
    Scenario {
        prefixes: &["create_index"],
        plan: PLAN,
        blue: TABLE,
        rollback_restores: true,
        ..Scenario::default()
    }
}

async fn world() -> World {
    let template = Database::with(servers::blue().await, TABLE).await;
    World::new(Some(&template.name), None, PLAN, &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_index_of_somebody_else_is_reported_and_kept() {
    let world = world().await;
    world.blue.execute("create index token_subject on token (subject)").await;
    world
        .blue
        .admin()
        .await
        .batch_execute("update pg_index set indisvalid = false where indexrelid = 'token_subject'::regclass")
        .await
        .unwrap();
    let ended = world.handover("run", &[]).await.code(1);
    assert!(ended.stderr.contains("INVALID index token_subject"), "{ended}");
    assert!(ended.stderr.contains("drop index concurrently"), "{ended}");
    world.blue.execute("drop index token_subject").await;
    world.handover("resume", &[]).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_was_there_before_survives_the_rollback() {
    let world = world().await;
    world.blue.execute("create index token_subject on token (subject, created_at desc)").await;
    let before = world.snapshot().await;
    world.handover("run", &[]).await.success();
    world.handover("rollback", &[]).await.success();
    assert_eq!(before, world.snapshot().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_are_not_blocked_while_an_old_transaction_holds_the_build_up() {
    let world = world().await;
    let mut admin = world.blue.admin().await;
    let old = admin.transaction().await.unwrap();
    old.query("select count(*) from token", &[]).await.unwrap();
    let mut run = world.command().arg("run").arg(world.plan()).spawn().unwrap();
    until(&world.blue.admin().await, BUILDING).await;
    world.blue.execute("set lock_timeout = '2s'; insert into token (id) values (5000)").await;
    old.commit().await.unwrap();
    assert!(run.wait().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_that_a_build_waits_for_is_named() {
    let world = world().await;
    let admin = world.blue.admin().await;
    let orphan = "begin; insert into token (id) values (5000); prepare transaction 'orphan of an index'";
    admin.batch_execute(orphan).await.unwrap();
    let dry = world.handover("dry-run", &[]).await;
    let run =
        world.command().arg("run").arg(world.plan()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    until(&world.blue.admin().await, BUILDING).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    admin.batch_execute("rollback prepared 'orphan of an index'").await.unwrap();
    let output = run.wait_with_output().await.unwrap();
    assert!(output.status.success());
    assert!(dry.stdout.contains("`rollback prepared 'orphan of an index'`"), "{dry}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("`rollback prepared 'orphan of an index'`"), "{stdout}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_interrupted_build_left_is_shown_to_be_dropped_and_built_anew() {
    let world = world().await;
    world.handover_failing("create_index.before-build", "run", &[]).await.killed();
    // As a build leaves it that was cut off.
    world.blue.execute("create index token_subject on token (id)").await;
    let invalid = "update pg_index set indisvalid = false where indexrelid = 'token_subject'::regclass";
    world.blue.admin().await.batch_execute(invalid).await.unwrap();
    let said = world.handover("dry-run", &["--format", "json"]).await.success();
    let said: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    let acts = [
        r#"drop index concurrently if exists "public"."token_subject""#,
        r#"create index concurrently "token_subject" on "public"."token" (subject, created_at desc)"#,
        r#"create unique index concurrently "token_live" on "public"."token" (id) where active"#,
    ];
    assert_eq!(said["steps"][0]["actions"], serde_json::json!(acts));
    world.handover("resume", &[]).await.success();
    let valid = "select string_agg(pg_get_indexdef(indexrelid), '; ' order by 1) from pg_index
                 where indisvalid and indexrelid in ('token_subject'::regclass, 'token_live'::regclass)";
    let there = world.blue.value(valid).await.unwrap();
    assert!(there.contains("(subject, created_at DESC)") && there.contains("WHERE active"), "{there}");
}
