//! A person's word just before a cutover's freeze.

use crate::cutover_blockers::{PLAN, summary, world};
use crate::support::world::World;
use std::process::Stdio;
use std::time::Duration;
use tokio_postgres::Client;

fn plan() -> String {
    PLAN.replace(
        "      blockers: { do: terminate, older_than: 300ms }\n",
        "      approve: { when: before_freeze, message: flip now, by: [alice] }\n",
    )
    .replace("patience: 30s", "patience: 3s")
}

async fn in_the_way(world: &World) -> Client {
    let client = world.blue.admin().await;
    client.batch_execute("begin; update token set active = false where id = 1").await.unwrap();
    client
}

async fn asked(world: &World) {
    let fact = "select 1 from handover.record where record ->> 'key' = 'approval_asked'";
    for _ in 0..600 {
        if world.control.value("select to_regclass('handover.record')::text").await.is_some()
            && world.control.value(fact).await.is_some()
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("nobody is asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_from_before_it_was_asked_for_does_not_count() {
    let world = world(&plan()).await;
    let early = world.handover("approve", &["flip", "--by", "alice"]).await;
    assert_ne!(early.code, Some(0), "{early}");
    // The preflight is not through: the step runs, and nobody is asked yet.
    let client = in_the_way(&world).await;
    let ended = world.handover("run", &["--no-wait"]).await.code(1);
    assert!(ended.stderr.contains("not ready for the cutover"), "{ended}");
    let early = world.handover("approve", &["flip", "--by", "alice"]).await.code(2);
    assert!(early.stderr.contains("does not wait for an approval yet"), "{early}");
    let forged = "insert into handover.request (run, kind, step, by) select id, 'approve', 'flip', 'alice' from handover.run";
    world.control.admin().await.batch_execute(forged).await.unwrap();
    client.batch_execute("rollback").await.unwrap();
    let ended = world.handover("resume", &["--no-wait"]).await.code(7);
    assert!(ended.stderr.contains("waiting for the approval of alice: flip now"), "{ended}");
    assert!(!world.path("service.state").exists(), "a participant was asked to prepare");
    let status = world.handover("status", &[]).await.success();
    assert!(
        status.stdout.contains("handover approve") && status.stdout.contains("plan.yaml flip"),
        "{status}"
    );
    let refused = world.handover("approve", &["flip", "--by", "mallory"]).await.code(2);
    assert!(refused.stderr.contains("the word of mallory does not count"), "{refused}");
    world.handover("approve", &["flip", "--by", "alice", "--note", "all quiet"]).await.success();
    let ended = world.handover("resume", &["--no-wait"]).await.success();
    assert!(ended.stdout.contains("approved by alice; what was proven is proven again"), "{ended}");
    assert_eq!(summary(&world, "approved_by").await, "alice");
    assert_eq!(summary(&world, "approval_note").await, "all quiet");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_proven_is_proven_again_after_the_word() {
    let world = world(&plan()).await;
    let mut command = world.command();
    command.arg("run").arg(world.plan()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let run = command.spawn().unwrap();
    asked(&world).await;
    let status = world.handover("status", &[]).await.success();
    assert!(status.stdout.contains("it waits for an approval"), "{status}");
    // What the preflight would not have let through.
    let client = in_the_way(&world).await;
    world.handover("approve", &["flip", "--by", "alice"]).await.success();
    let output = run.wait_with_output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1) && text.contains("not ready for the cutover within 3s"),
        "{text}"
    );
    assert!(!world.path("service.state").exists(), "a participant was asked to prepare");
    client.batch_execute("rollback").await.unwrap();
    // No attempt was made: the word still holds.
    world.handover("resume", &["--no-wait"]).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_is_for_the_attempts_that_follow_it() {
    let world = world(&plan()).await;
    world.write(
        "plan.yaml",
        &plan().replace("echo held > service.state; until test -f go; do sleep 0.02; done", "test -f works"),
    );
    world.handover("run", &["--no-wait"]).await.code(7);
    world.handover("approve", &["flip", "--by", "alice"]).await.success();
    let ended = world.handover("resume", &["--no-wait"]).await.code(1);
    assert!(ended.stderr.contains("attempt 1 of 1 was called off"), "{ended}");
    world.write("works", "");
    world.handover("resume", &["--no-wait"]).await.code(7);
    world.handover("approve", &["flip", "--by", "alice"]).await.success();
    world.handover("resume", &["--no-wait"]).await.success();
}
