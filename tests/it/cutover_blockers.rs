//! What becomes of sessions that are in the way of a cutover's freeze.

use crate::support::servers::{self, Database};
use crate::support::world::World;
use handover_lab::PostgresServer;
use std::time::Duration;
use tokio_postgres::Client;

/// Two databases and a file that is the switch: nothing has to be carried over.
pub const PLAN: &str = r#"
handover: 1
name: gates
databases: { blue: '${BLUE_URL}', green: '${GREEN_URL}' }
control: ${CONTROL_URL}
steps:
  - id: flip
    retry: { attempts: 1 }
    cutover:
      freeze: blue
      to: green
      write_pause: 3s
      attempts: 1
      backoff: 100ms
      patience: 30s
      max_transaction_age: 200ms
      blockers: { do: terminate, older_than: 300ms }
      participants:
        - name: config
          file: { path: switch.conf, content: "database = green\n" }
        - name: service
          prepare: { command: [sh, -c, "echo held > service.state; until test -f go; do sleep 0.02; done"] }
          commit: { command: [sh, -c, "echo green > service.state"] }
          abort: { command: [sh, -c, "echo blue > service.state"] }
          revert: { command: [sh, -c, "echo blue > service.state"] }
"#;

pub const TABLE: &str = "create table token (id int primary key, active bool not null);
    insert into token select n, true from generate_series(1, 100) n;";

pub const SWITCH: &[(&str, &str)] = &[("switch.conf", "database = blue\n"), ("go", "")];

pub async fn world(plan: &str) -> World {
    let blue = Database::with(servers::blue().await, TABLE).await;
    let green = Database::with(servers::green().await, TABLE).await;
    World::new(Some(&blue.name), Some(&green.name), plan, SWITCH).await
}

/// A client by that URL and name, which holds what a writer of `token` holds.
async fn holding(url: &str, name: &str) -> (Client, i32) {
    let url = format!("{url}?application_name={name}");
    let (client, wire) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(wire);
    let pid = client.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    client.batch_execute("begin; update token set active = false where id = 4711").await.unwrap();
    (client, pid)
}

pub async fn summary(world: &World, path: &str) -> String {
    let sql = format!(
        "select record #>> '{{summary,{path}}}' from handover.record where record ->> 'record' = 'step_done' and record ->> 'step' = 'flip'"
    );
    world.control.value(&sql).await.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_idle_in_a_transaction_is_ended_and_named() {
    let world = world(PLAN).await;
    let (client, pid) = holding(&world.blue.owner_url(), "report").await;
    let ended = world.handover("run", &[]).await.success();
    assert!(
        ended.stdout.contains(&format!("ended the session of pid {pid} (app, report, idle in transaction")),
        "{ended}"
    );
    assert!(ended.stdout.contains("where id = …") && !ended.stdout.contains("4711"), "{ended}");
    let gone = client.batch_execute("commit").await.unwrap_err();
    assert!(gone.is_closed() || gone.code().is_some_and(|code| code.code() == "57P01"), "{gone:?}");
    let named = summary(&world, "ended_sessions,0").await;
    assert!(named.starts_with(&format!("ended pid {pid} (app, report, idle in transaction")), "{named}");
    let report = world.handover("report", &[]).await.success();
    assert!(report.stdout.contains(&format!("ended sessions: ended pid {pid} (app, report")), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_and_who_is_young_are_waited_for() {
    let plan = PLAN.replace("patience: 30s", "patience: 2s");
    for (name, plan) in
        [("pg_dump", plan.clone()), ("batch", plan.replace("older_than: 300ms", "older_than: 10m"))]
    {
        let world = world(&plan).await;
        let (client, pid) = holding(&world.blue.owner_url(), name).await;
        let ended = world.handover("run", &[]).await.code(1);
        let text = format!("{ended}");
        assert!(text.contains("not ready for the cutover") && text.contains(&format!("pid {pid}")), "{text}");
        client.batch_execute("commit").await.unwrap();
        world.handover("resume", &[]).await.success();
        assert_eq!(summary(&world, "ended_sessions").await, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_a_lock_in_the_pause_is_ended_there() {
    let world = world(PLAN).await;
    std::fs::remove_file(world.path("go")).unwrap();
    let run = async { world.handover("run", &[]).await };
    let disturb = async {
        while std::fs::read_to_string(world.path("service.state")).unwrap_or_default() != "held\n" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let held = holding(&world.blue.owner_url(), "late").await;
        // Nothing looks for it any more before the pause.
        world.write("go", "");
        held
    };
    let (ended, (client, pid)) = tokio::join!(run, disturb);
    let ended = ended.success();
    assert!(ended.stdout.contains(&format!("ended the session of pid {pid} (app, late")), "{ended}");
    assert!(client.batch_execute("commit").await.is_err());
    assert_eq!(summary(&world, "attempts").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_cancelled_and_its_client_stays() {
    let world = world(&PLAN.replace("do: terminate", "do: cancel")).await;
    let (idle, idle_pid) = holding(&world.blue.owner_url(), "idle").await;
    let (busy, pid) = holding(&world.blue.owner_url(), "busy").await;
    let works = tokio::spawn(async move { (busy.batch_execute("select pg_sleep(120)").await, busy) });
    let run = async { world.handover("run", &[]).await };
    let leave = async {
        let (cancelled, busy) = works.await.unwrap();
        assert_eq!(cancelled.unwrap_err().code().unwrap().code(), "57014");
        busy.batch_execute("rollback; select 1").await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        idle.batch_execute("commit").await.unwrap();
    };
    let (ended, ()) = tokio::join!(run, leave);
    let ended = ended.success();
    assert!(
        ended.stdout.contains(&format!("cancelled the statement of pid {pid} (app, busy, active")),
        "{ended}"
    );
    assert!(
        ended
            .stdout
            .contains(&format!("pid {idle_pid} (app, idle) is idle in transaction: there is no statement")),
        "{ended}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_to_end_sessions_is_asked_for_before() {
    let mut world = world(PLAN).await;
    let server: &'static PostgresServer = Box::leak(Box::new(servers::own_blue().await));
    world.blue = Database::with(server, TABLE).await;
    let admin = world.blue.admin().await;
    admin
        .batch_execute("create role stranger login password 'st'; grant select, update on token to stranger")
        .await
        .unwrap();
    let mut url = url::Url::parse(&world.blue.owner_url()).unwrap();
    url.set_username("stranger").unwrap();
    url.set_password(Some("st")).unwrap();
    let (client, pid) = holding(url.as_str(), "other").await;
    for verb in ["dry-run", "run"] {
        let ended = format!("{}", world.handover(verb, &[]).await);
        let text = ended.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains("may not end those of stranger"), "{verb}: {ended}");
        assert!(
            text.contains("grant pg_signal_backend to \"handover\"")
                || text.contains("grant pg_signal_backend to handover"),
            "{verb}: {ended}"
        );
    }
    admin.batch_execute("grant pg_signal_backend to handover").await.unwrap();
    let ended = world.handover("resume", &[]).await.success();
    assert!(ended.stdout.contains(&format!("ended the session of pid {pid} (stranger, other")), "{ended}");
    assert!(client.batch_execute("commit").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_is_named_before_the_pause() {
    let world = world(&PLAN.replace("patience: 30s", "patience: 2s")).await;
    let (client, _) = holding(&world.blue.owner_url(), "two-phase").await;
    client.batch_execute("prepare transaction 'half'").await.unwrap();
    let ended = world.handover("run", &[]).await.code(1);
    assert!(
        ended.stdout.contains("waits for a transaction that app prepared: `rollback prepared 'half'`"),
        "{ended}"
    );
    assert!(!world.path("service.state").exists(), "a participant was asked to prepare");
    client.batch_execute("rollback prepared 'half'").await.unwrap();
    world.handover("resume", &[]).await.success();
}
