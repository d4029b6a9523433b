//! What a cutover says beforehand of its pause, and what that is measured by.

use crate::cutover_blockers::{self, TABLE, summary};
use crate::support::servers::{self, Database};
use crate::support::world::World;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Sequences of which a value was drawn.
const SEQUENCES: &str = "do $$ begin for i in 1..400 loop
    execute format('create sequence s%s', i); perform nextval(format('s%s', i)); end loop; end $$";

#[tokio::test(flavor = "multi_thread")]
async fn it_is_kept_beside_what_the_pause_was() {
    let world = cutover_blockers::world(cutover_blockers::PLAN).await;
    for side in [&world.blue, &world.green] {
        side.execute(SEQUENCES).await;
    }
    let said = world.handover("dry-run", &["--verbose"]).await.success();
    let words = said.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("pause about ") && words.contains(" ms; largest: "), "{said}");
    let ended = world.handover("run", &[]).await.success();
    assert!(ended.stdout.contains("flip: pause about "), "{ended}");
    let number = async |path: &str| summary(&world, path).await.parse::<f64>().unwrap();
    let (forecast, decided) = (number("write_pause_forecast_ms").await, number("decided_after_ms").await);
    // A busy machine may do either late; that both were measured is what counts.
    assert!((20.0..3000.0).contains(&forecast) && decided < 3000.0, "{forecast} ms, and {decided} ms");
    let fact = "select f ->> 'count' from handover.record, jsonb_array_elements(record -> 'value' -> 'terms') f
                where record ->> 'key' = 'forecast' and f ->> 'what' = 'sequences' and (f ->> 'ms')::float > 0";
    assert_eq!(world.control.value(fact).await.unwrap(), "400");
    // What was set to measure it is gone, and nothing of the application's was.
    let left = "select count(*) from pg_class where relname like 'rehearsed%'";
    assert_eq!(world.green.value(left).await.unwrap(), "0");
    let report = world.handover("report", &[]).await.success();
    assert!(
        report.stdout.contains("write pause forecast: ") && report.stdout.contains("forecast largest: "),
        "{report}"
    );
}

const FOLLOW: &str = r#"
handover: 1
name: slow
databases: { blue: '${BLUE_URL}', green: '${GREEN_URL}' }
control: ${CONTROL_URL}
steps:
  - id: copy
    copy: { from: blue, to: green }
  - id: follow
    replicate: { from: blue, to: green, max_lag: 20s }
  - id: slowly
    lever: { command: { apply: [sh, -c, "until test -f slow; do sleep 0.05; done"], revert: ["true"], check: [test, -f, slow] } }
  - id: flip
    retry: { attempts: 1 }
    cutover:
      freeze: blue
      to: green
      write_pause: 900ms
      attempts: 1
      patience: 4s
      participants:
        - name: config
          file: { path: switch.conf, content: "database = green\n" }
        - name: service
          prepare: { command: [sh, -c, "echo held > service.state"] }
          commit: { command: ["true"] }
          abort: { command: ["true"] }
          revert: { command: ["true"] }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_would_be_too_long_now_does_not_begin() {
    let blue = Database::with(servers::blue().await, TABLE).await;
    let world = World::new(Some(&blue.name), None, FOLLOW, cutover_blockers::SWITCH).await;
    // Changes take longer than the budget to arrive, and less than `max_lag`.
    let (slow, green, source) = (Arc::new(AtomicBool::new(true)), world.green.clone(), world.blue.clone());
    let (goes_on, begun) = (slow.clone(), world.path("slow"));
    let disturb = tokio::spawn(async move {
        let following = "select 1 from pg_subscription s join pg_database d on d.oid = s.subdbid
                         where d.datname = current_database() and subenabled";
        crate::support::world::until(&green.admin().await, following).await;
        let (holder, writer) = (green.admin().await, source.admin().await);
        while goes_on.load(Ordering::SeqCst) {
            holder.batch_execute("begin; lock table token in share row exclusive mode").await.unwrap();
            if writer.batch_execute("update token set active = not active where id = 1").await.is_err() {
                return;
            }
            std::fs::write(&begun, "").unwrap();
            tokio::time::sleep(Duration::from_millis(2500)).await;
            holder.batch_execute("commit").await.unwrap();
        }
    });
    let ended = world.handover("run", &[]).await.code(1);
    let words = format!("{ended}").split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("not ready for the cutover within 4s: pause about"), "{ended}");
    assert!(
        words.contains("largest: replication") && words.contains("more than its budget of 900ms"),
        "{ended}"
    );
    assert!(!world.path("service.state").exists(), "a participant was asked to prepare");
    slow.store(false, Ordering::SeqCst);
    disturb.await.unwrap();
    world.handover("resume", &[]).await.success();
}
