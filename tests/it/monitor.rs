//! `monitor` with real probes.

use crate::support::scenario::Scenario;
use crate::support::servers::{self, Database};
use crate::support::world::World;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const TABLE: &str = "create table session (id int primary key);
    insert into session select generate_series(1, 100);";

const HEAD: &str = "
handover: 1
name: watch
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
";

const SOAKS: &str = "
handover: 1
name: watch
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
  - id: usual
    monitor:
      for: 600ms
      every: 200ms
      record: true
      probes:
        - { name: sessions, sql: { on: blue, query: select count(*) from session }, min: 1 }
  - id: soak
    monitor:
      for: 1500ms
      every: 200ms
      baseline: usual
      breaches: 2
      probes:
        - { name: sessions, sql: { on: blue, query: select count(*) from session }, within: 20% }
        - { name: healthy, sql: { on: blue, query: 'select not pg_is_in_recovery()' } }
        - { name: load, command: [echo, '3.5'], max: 4 }
";

pub fn scenario() -> Scenario {
    Scenario {
        prefixes: &["monitor"],
        plan: SOAKS,
        blue: TABLE,
        rollback_restores: true,
        ..Scenario::default()
    }
}

async fn world(steps: &str) -> World {
    let template = Database::with(servers::blue().await, TABLE).await;
    World::new(Some(&template.name), None, &format!("{HEAD}{steps}"), &[]).await
}

async fn summary(world: &World, step: &str) -> serde_json::Value {
    let text = world
        .control
        .value(&format!(
            "select record->'summary' from handover.record where record->>'record' = 'step_done' and record->>'step' = '{step}' order by at desc limit 1"
        ))
        .await
        .unwrap();
    serde_json::from_str(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breach_stops_the_plan_and_a_mended_world_passes() {
    let world = world(SOAKS.strip_prefix(HEAD).unwrap()).await;
    world.blue.execute("create table gone as table session").await;
    let mut run = world.command();
    run.arg("run").arg(world.plan());
    let run = tokio::spawn(async move { run.output().await.unwrap() });
    let recorded = "select 1 from handover.record where record->>'record' = 'step_done'";
    for _ in 0..200 {
        let there = world.control.value("select to_regclass('handover.record')").await.is_some();
        if there && world.control.value(recorded).await.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.blue.execute("delete from session where id > 50").await;
    let output = run.await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_ne!(output.status.code(), Some(0));
    assert!(stderr.contains("breach of probe `sessions`: 50.000 is not within 20% of the baseline's 100.000 (2 times in a row)"), "{stderr}");
    world.blue.execute("truncate session; insert into session table gone").await;
    world.handover("resume", &[]).await.success();
    let soak = summary(&world, "soak").await;
    assert!(soak["seconds"].as_f64().unwrap() >= 1.5, "watched again from the start: {soak}");
    assert_eq!(soak["probes"]["load"]["value"]["median"], 3.5);
    assert_eq!(soak["probes"]["sessions"]["bad"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_watch_goes_on_where_it_was() {
    let world = world("  - { id: soak, monitor: { for: 8s, every: 200ms, probes: [ { name: up, sql: { on: blue, query: select true } } ] } }\n").await;
    // Kept twice a second: the tenth time is after about five seconds.
    world.handover_failing("monitor.kept:10", "run", &[]).await.killed();
    let begun = Instant::now();
    world.handover("resume", &[]).await.success();
    assert!(begun.elapsed() < Duration::from_millis(6500), "{:?}", begun.elapsed());
    let soak = summary(&world, "soak").await;
    assert!(soak["seconds"].as_f64().unwrap() >= 8.0, "{soak}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_asked_is_no_pass() {
    for (probe, message) in [
        ("{ name: x, http: { url: 'http://127.0.0.1:1/' } }", "refused"),
        ("{ name: x, command: [sh, -c, 'exit 3'] }", "exit code 3"),
        ("{ name: x, command: [echo, many], max: 3 }", "`many` is not a number"),
        ("{ name: x, sql: { on: blue, query: select * from nowhere } }", "nowhere"),
        ("{ name: x, sql: { on: blue, query: select 1 } }", "not true"),
    ] {
        // Even where breaches are only told: a watch that saw nothing good proves nothing.
        for on_breach in ["halt", "warn"] {
            let world = world(&format!("  - {{ id: soak, monitor: {{ for: 300ms, every: 100ms, breaches: 2, on_breach: {on_breach}, probes: [ {probe} ] }} }}\n")).await;
            let ended = world.handover("run", &[]).await;
            assert_ne!(ended.code, Some(0));
            assert!(ended.stderr.contains(message), "{ended}");
            world.drop_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_endpoint_rolls_the_plan_back() {
    let delay = Arc::new(AtomicU64::new(0));
    let mine = delay.clone();
    let answer = async move || {
        tokio::time::sleep(Duration::from_millis(mine.load(Ordering::SeqCst))).await;
        axum::Json(serde_json::json!({ "queue": { "depth": 7 } }))
    };
    let app = axum::Router::new().route("/health", axum::routing::get(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/health", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let world = world(
        "  - { id: raise, lever: { sql: { on: blue, apply: delete from session where id = 1, revert: insert into session values (1), check: 'select not exists (select from session where id = 1)' } } }
  - id: soak
    on_failure: rollback
    monitor:
      for: 600ms
      every: 100ms
      breaches: 2
      on_breach: rollback
      probes:
        - { name: time, http: { url: '${URL}' }, latency: { max: 150ms } }
        - { name: depth, http: { url: '${URL}' }, value: /queue/depth, equals: 7 }
",
    )
    .await;
    let handover = async |verb: &str| {
        let output = world.command().env("URL", &url).arg(verb).arg(world.plan()).output().await.unwrap();
        let all = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&all).into_owned())
    };
    delay.store(300, Ordering::SeqCst);
    let (code, stderr) = handover("run").await;
    assert_eq!(code, Some(8), "a run that was rolled back is not what was asked for: {stderr}");
    assert!(stderr.contains("breach of probe `time`") && stderr.contains("more than 150ms"), "{stderr}");
    assert_eq!(world.blue.value("select count(*) from session").await.as_deref(), Some("100"), "{stderr}");
    delay.store(0, Ordering::SeqCst);
    let (code, stderr) = handover("run").await;
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(summary(&world, "soak").await["probes"]["depth"]["last"], "7");
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_monitors_are_refused() {
    for (monitor, message) in [
        (
            "{ for: 1s, every: 1s, on_breach: rollback, probes: [ { name: a, command: [x] } ] }",
            "would not roll back",
        ),
        (
            "{ for: 1s, every: 1s, probes: [ { name: a, command: [x], within: 20% } ] }",
            "no baseline to compare with",
        ),
        (
            "{ for: 1s, every: 1s, baseline: usual, probes: [ { name: a, command: [x], within: 20% } ] }",
            "is not an earlier monitor that records",
        ),
        (
            "{ for: 1s, every: 1s, probes: [ { name: a, command: [x] }, { name: a, command: [y] } ] }",
            "named twice",
        ),
        ("{ for: 1s, every: 1s, probes: [ { name: a } ] }", "one of `sql`, `http`, `command` is missing"),
        (
            "{ for: 1s, every: 1s, probes: [ { name: a, http: { url: 'http://x' }, max: 3 } ] }",
            "there is no value to compare",
        ),
    ] {
        let world = world(&format!("  - {{ id: soak, monitor: {monitor} }}\n")).await;
        let ended = world.handover("check", &[]).await.code(2);
        assert!(format!("{}{}", ended.stdout, ended.stderr).contains(message), "{monitor}: {ended}");
        world.drop_now().await;
    }
}
