//! `cutover` where it must hold: a server that loses what it did not flush, stops and time limits in the middle of the
//! flip, participants that cannot commit, and answers that are lost.

use crate::cutover::{BLUE, GREEN, PLAN};
use crate::support::servers::{self, Database};
use crate::support::world::World;
use handover_lab::{PostgresOptions, PostgresServer};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

/// A flip without an old side; `%` stands for the participants.
const UPGRADE: &str = "
handover: 1
name: upgrade
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
  - id: flip
    timeout: 1h
    cutover:
      attempts: 2
      backoff: 100ms
      commit_timeout: 3s
      participants:
";

async fn upgrade(participants: &str) -> World {
    World::new(None, None, &format!("{UPGRADE}{participants}"), &[("state", "old\n")]).await
}

async fn flip() -> World {
    let blue = Database::with(servers::blue().await, BLUE).await;
    let green = Database::with(servers::green().await, GREEN).await;
    World::new(Some(&blue.name), Some(&green.name), PLAN, &[("switch.conf", "database = blue\n")]).await
}

fn read(world: &World, name: &str) -> String {
    std::fs::read_to_string(world.path(name)).unwrap_or_default()
}

async fn until_there(world: &World, name: &str) {
    for _ in 0..600 {
        if world.path(name).exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{name} was never made");
}

async fn records(world: &World, which: &str) -> String {
    let query = format!("select count(*) from handover.record where {which}");
    world.control.value(&query).await.unwrap()
}

fn signal(child: &tokio::process::Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()), signal).unwrap();
}

async fn asynchronous(programs: &handover_lab::Programs) -> Database {
    let options = PostgresOptions::new(programs.clone())
        .setting("synchronous_commit", "off")
        .setting("wal_writer_delay", "10s");
    let server = Box::leak(Box::new(PostgresServer::start(options).await.unwrap()));
    let database = Database::create(server, None).await;
    let admin = database.admin().await;
    admin
        .batch_execute("set synchronous_commit = on; alter role handover set synchronous_commit = off")
        .await
        .unwrap();
    database
}

/// Its server loses what it did not flush.
async fn crash(database: &Database) {
    database.server.kill().await.unwrap();
    database.server.start_again().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_survives_a_server_that_commits_asynchronously() {
    let mut world = World::new(None, None, PLAN, &[("switch.conf", "database = blue\n")]).await;
    world.blue = asynchronous(&servers::programs().await.blue).await;
    world.blue.execute(BLUE).await;
    world.green.execute(GREEN).await;
    world.handover_failing("cutover.decided", "run", &[]).await.killed();
    crash(&world.blue).await;
    assert_eq!(world.blue.value("select count(*) from handover.decision").await.unwrap(), "1");
    let write = world.blue.admin().await.batch_execute("insert into token (active) values (true)").await;
    assert!(write.is_err(), "blue takes writes again");
    world.handover("resume", &[]).await.success();
    assert_eq!(read(&world, "service.state"), "green\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn sequences_survive_a_new_side_that_commits_asynchronously() {
    let mut world = World::new(None, None, PLAN, &[("switch.conf", "database = blue\n")]).await;
    world.green = asynchronous(&servers::programs().await.green).await;
    world.blue.execute(BLUE).await;
    world.green.execute(GREEN).await;
    world.handover_failing("cutover.decided", "run", &[]).await.killed();
    crash(&world.green).await;
    let positions = "select (select last_value from ticket) || ' ' || (select last_value from token_id_seq)";
    assert_eq!(world.green.value(positions).await.unwrap(), "500 100");
    world.handover("resume", &[]).await.success();
    assert_eq!(read(&world, "service.state"), "green\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_survives_a_control_database_that_commits_asynchronously() {
    let participant = r#"
        - name: service
          commit: { command: [sh, -c, "echo new > state"] }
"#;
    let mut world = upgrade(participant).await;
    world.control = asynchronous(&servers::programs().await.green).await;
    // Killed at once when the record is in: nothing that comes after it can have flushed it.
    world.handover_failing("journal.appended:5", "run", &[]).await.killed();
    let written = records(&world, "true").await;
    crash(&world.control).await;
    assert_eq!((written.as_str(), records(&world, "true").await.as_str()), ("5", "5"));
    world.handover("resume", &[]).await.success();
    assert_eq!(read(&world, "state"), "new\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_change_nothing() {
    for failpoint in [
        "cutover.decided:1:cut",
        "cutover.participant-answered:1:cut",
        "cutover.participant-answered:3:error:40001",
        "journal.appended:1+:cut",
    ] {
        let world = flip().await;
        let mut command = world.command();
        command.env("HANDOVER_FAILPOINT", failpoint).env("HANDOVER_FAILPOINT_MARK", world.path("mark"));
        let output = command.arg("run").arg(world.plan()).output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{failpoint}: {text}");
        assert!(world.path("mark").exists(), "{failpoint} was not reached");
        assert_eq!(read(&world, "switch.conf"), "database = green\n", "{failpoint}");
        assert_eq!(read(&world, "service.state"), "green\n", "{failpoint}");
        assert_eq!(world.green.value("select side from registry").await.unwrap(), "green", "{failpoint}");
        assert_eq!(records(&world, "record ->> 'record' = 'point_of_no_return'").await, "1", "{failpoint}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_cuts_neither_a_commit_nor_its_undo_short() {
    let participant = r#"
        - name: slow
          commit: { command: [sh, -c, "touch committing; sleep 12; echo new > state"] }
          revert: { command: [sh, -c, "touch reverting; sleep 12; echo old > state"] }
"#;
    let world = upgrade(participant).await;
    for (verb, begun, state, doing) in [
        ("run", "committing", "new\n", "participant slow is being committed"),
        ("rollback", "reverting", "old\n", "participant slow is being turned back"),
    ] {
        let mut command = world.command();
        command.arg(verb).arg(world.plan()).stdout(std::process::Stdio::piped());
        let child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
        until_there(&world, begun).await;
        signal(&child, Signal::SIGINT);
        tokio::time::sleep(Duration::from_millis(500)).await;
        signal(&child, Signal::SIGINT);
        let output = child.wait_with_output().await.unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(read(&world, "state"), state, "{verb}: {said}");
        assert!(said.contains("not stopped yet") && said.contains(doing), "{verb}: {said}");
        world.handover("resume", &[]).await.success();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_limit_waits_for_the_commits() {
    let participant = r#"
        - name: slow
          commit: { command: [sh, -c, "echo x >> times; sleep 12; echo new > state"] }
"#;
    let world = upgrade(participant).await;
    let plan = read(&world, "plan.yaml").replace("timeout: 1h", "timeout: 1s");
    world.write("plan.yaml", &plan);
    world.handover("run", &[]).await.success();
    assert_eq!((read(&world, "state"), read(&world, "times")), ("new\n".to_owned(), "x\n".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_commit_does_not_overtake_what_turns_it_back() {
    let participant = r#"
        - name: slow
          commit: { command: [sh, -c, "touch committing; sleep 4; echo new > state"] }
          revert: { command: [sh, -c, "echo old > state"] }
"#;
    let world = upgrade(participant).await;
    let mut run = world.command().arg("run").arg(world.plan()).spawn().unwrap();
    until_there(&world, "committing").await;
    run.kill().await.unwrap();
    world.handover("rollback", &[]).await.success();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(read(&world, "state"), "old\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_are_not_multiplied() {
    let participant = r#"
        - name: never
          prepare: { command: [sh, -c, "echo x >> tries; exit 3"] }
          abort: { command: ["true"] }
          commit: { command: ["true"] }
"#;
    let world = upgrade(participant).await;
    world.handover("run", &[]).await.code(1);
    assert_eq!(read(&world, "tries"), "x\nx\n", "two attempts in all");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_participant_that_cannot_commit_is_told_of_once_and_where_it_counts() {
    let world = flip().await;
    let plan = PLAN.replace("write_pause: 3s", "write_pause: 3s\n      commit_timeout: 4s").replace(
        "commit: { command: [sh, -c, \"echo green",
        "commit: { command: [sh, -c, \"test -e mended && echo green",
    );
    world.write("plan.yaml", &plan);
    let ended = world.handover("run", &[]).await.code(1);
    assert!(ended.stderr.contains("only forward is safe: mend participant service"), "{ended}");
    assert!(!ended.stderr.contains("mend what the command complains about"), "{ended}");
    let note = "record ->> 'record' = 'note' and record ->> 'text' like '%service cannot commit%'
        and record ->> 'level' = 'warning'";
    assert_eq!(records(&world, note).await, "1", "{ended}");
    assert_eq!(ended.stdout.matches("tried again until it commits").count(), 1, "{ended}");
    // Known from the decision on, and not only when all have committed.
    let early = "record ->> 'record' = 'point_of_no_return' and seq <
        (select seq from handover.record where record ->> 'text' like '%cannot commit%' order by seq limit 1)";
    assert_eq!(records(&world, early).await, "1", "{ended}");
    let events = world.handover("events", &[]).await.success();
    assert!(events.stdout.contains("only forward from here; not committed yet:"), "{events}");
    assert!(!events.stdout.contains("{\"record\""), "raw facts: {events}");
    assert!(events.stdout.contains("command `service commit` runs (pid "), "{events}");
    // How often it came up is told once, at the end.
    assert_eq!(events.stdout.matches("times: participant service cannot commit").count(), 1, "{events}");
    assert_eq!(ended.stdout.matches("times: participant service cannot commit").count(), 1, "{ended}");
    // The outage is said by whoever speaks, with what is in the way.
    assert!(ended.stderr.contains("WRITES ARE REFUSED ON BLUE until step `flip`"), "{ended}");
    let status = world.handover("status", &[]).await.success();
    let first: Vec<&str> = status.stdout.lines().take(2).collect();
    assert!(first[0].starts_with("WRITES ARE REFUSED ON BLUE since"), "{status}");
    assert!(first[1].contains("in the way:") && first[1].contains("service cannot commit"), "{status}");
    world.write("mended", "");
    world.handover("resume", &[]).await.success();
    let report = world.handover("report", &[]).await.success();
    assert!(report.stdout.contains("write pause ") && !report.stdout.contains(" ms\npoint"), "{report}");
    // In the order in which it happened, with how long it took.
    let (_, timeline) = report.stdout.split_once("\nWhat happened\n").unwrap();
    let at = |text: &str| timeline.find(text).unwrap_or_else(|| panic!("{text}: {report}"));
    let order = [
        "flip: failed: ",
        "flip: writers wait",
        "flip: point of no",
        "nobody acts",
        "flip: done",
        "run done",
    ];
    assert!(order.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{report}");
    for format in ["md", "html"] {
        let other = world.handover("report", &["--format", format]).await.success();
        assert!(
            other.stdout.contains("writers wait or are refused") && other.stdout.contains("nobody acts"),
            "{other}"
        );
    }
    let report = world.handover("report", &["--format", "json"]).await.success();
    let report: serde_json::Value = serde_json::from_str(&report.stdout).unwrap();
    assert!(report["write_pause_ms"].as_f64().unwrap() >= 4000.0, "until writers could write: {report}");
    assert_eq!(read(&world, "service.state"), "green\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_a_participant_commits_leaves_the_old_side_open_to_nobody() {
    let world = flip().await;
    let plan = PLAN.replace(
        "commit: { command: [sh, -c, \"echo green",
        "commit: { command: [sh, -c, \"touch tried; sleep 2; echo green",
    );
    world.write("plan.yaml", &plan);
    let mut command = world.command();
    command.arg("run").arg(world.plan()).stdout(std::process::Stdio::piped());
    let child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    until_there(&world, "tried").await;
    signal(&child, Signal::SIGINT);
    let output = child.wait_with_output().await.unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(said.contains("all participants have committed"), "{said}");
    // Subscriptions' workers fire triggers of rows only.
    assert!(!said.contains("may write there"), "{said}");
    let rows = "select count(*) from pg_trigger where tgname like '00_handover_refuse_%' and tgtype & 1 = 1";
    assert_ne!(world.blue.value(rows).await.as_deref(), Some("0"), "{said}");
    world.handover("resume", &[]).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_side_that_forgot_the_decision_is_neither_called_off_nor_skipped() {
    let world = flip().await;
    world.handover_failing("cutover.committed", "run", &[]).await.killed();
    // As after a restore, or a failover to a server that had not received it.
    world.blue.admin().await.batch_execute("delete from handover.decision").await.unwrap();
    let ended = world.handover("resume", &[]).await;
    assert!(ended.code != Some(0) && ended.stderr.contains("no longer knows of the decision"), "{ended}");
    let back = format!("`handover rollback {} --accept-loss` turns", world.plan().display());
    assert!(ended.stderr.contains(&back), "{ended}");
    assert!(!ended.stderr.contains("WRITES ARE REFUSED"), "it may take writes: {ended}");
    world.handover("rollback", &["--accept-loss"]).await.success();
    assert_eq!(read(&world, "switch.conf"), "database = blue\n");
    assert_eq!(world.green.value("select side from registry").await.unwrap(), "blue");
    world.blue.execute("insert into token (active) values (false)").await;
}
