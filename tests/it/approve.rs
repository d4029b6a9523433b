//! `approve`, through the program itself.

use crate::support::scenario::Scenario;
use crate::support::world::World;
use std::time::Duration;

const PLAN: &str = "
handover: 1
name: approval
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
  - id: go
    approve: { message: cut over now, by: [alice, bob] }
  - id: mark
    lever: { sql: { on: blue, apply: create table approved (), revert: drop table approved, check: \"select to_regclass('approved') is not null\" } }
";

/// The first step starts somebody who approves again and again, until the folder goes with the test.
const SCENARIO: &str = "
handover: 1
name: approval
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
  - id: alice
    lever: { command: { apply: [sh, alice.sh], revert: [rm, -f, hired], check: [test, -e, hired], env: { BLUE_URL: '${BLUE_URL}', CONTROL_URL: '${CONTROL_URL}' } } }
  - id: go
    approve: { message: cut over now, by: [alice, bob] }
  - id: mark
    lever: { sql: { on: blue, apply: create table approved (), revert: drop table approved, check: \"select to_regclass('approved') is not null\" } }
";

const ALICE: &str = "exe=$(readlink /proc/$PPID/exe)
touch hired
(i=0; while [ -e hired ] && [ $i -lt 5000 ]; do \"$exe\" approve plan.yaml go --by alice; i=$((i+1)); sleep 0.2; done) >/dev/null 2>&1 &
";

pub fn scenario() -> Scenario {
    Scenario {
        prefixes: &["approve"],
        plan: SCENARIO,
        files: &[("alice.sh", ALICE)],
        rollback_restores: true,
        ..Scenario::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_named_person_and_only_a_new_word_counts() {
    let world = World::new(None, None, PLAN, &[]).await;
    let ended = world.handover("run", &["--no-wait"]).await.code(7);
    assert!(ended.stderr.contains("waiting for the approval of alice or bob: cut over now"), "{ended}");
    assert!(ended.stderr.contains("handover approve"), "{ended}");
    let refused = world.handover("approve", &["go", "--by", "mallory"]).await.code(2);
    assert!(refused.stderr.contains("the word of mallory does not count"), "{refused}");
    // One that another program left is not taken for a word that counts.
    world
        .control
        .admin()
        .await
        .batch_execute("insert into handover.request (run, kind, step, by) select id, 'approve', 'go', 'mallory' from handover.run")
        .await
        .unwrap();
    let ended = world.handover("resume", &["--no-wait"]).await.code(7);
    assert!(ended.stdout.contains("mallory"), "{ended}");

    world.handover("approve", &["go", "--by", "bob", "--note", "looks good"]).await.success();
    world.handover("resume", &["--no-wait"]).await.success();
    let summary = world
        .control
        .value("select record->'summary' from handover.record where record->>'record' = 'step_done' and record->>'step' = 'go'")
        .await
        .unwrap();
    assert!(summary.contains("bob") && summary.contains("looks good"), "{summary}");

    // Undone and run again, the earlier word no longer counts.
    world.handover("rollback", &[]).await.success();
    world.handover("run", &["--no-wait"]).await.code(7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_run_goes_on_once_it_is_approved() {
    let world = World::new(None, None, PLAN, &[]).await;
    let mut command = world.command();
    command.arg("run").arg(world.plan());
    let run = tokio::spawn(async move { command.output().await.unwrap() });
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The run may need a moment to begin.
    for _ in 0..50 {
        if run.is_finished() {
            break;
        }
        world.handover("approve", &["go", "--by", "alice"]).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let output = run.await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let asked = format!("handover approve {} go", world.plan().display());
    assert!(stdout.contains(&asked) && stdout.contains("approved by alice"), "{stdout}");
}
