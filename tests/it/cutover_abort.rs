//! `handover abort` while a cutover goes on: before its decision it calls the attempt off, after it nothing is aborted.

use crate::cutover_blockers::{PLAN, world};
use crate::support::world::{Ended, World};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};
use tokio::process::Child;

fn start(world: &World, failpoint: Option<&str>) -> Child {
    let mut command = world.command();
    if let Some(failpoint) = failpoint {
        command.env("HANDOVER_FAILPOINT", failpoint).env("HANDOVER_FAILPOINT_MARK", world.path("mark"));
    }
    command.arg("run").arg(world.plan()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

async fn until(mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(60), "never");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn state(world: &World) -> String {
    std::fs::read_to_string(world.path("service.state")).unwrap_or_default()
}

async fn last(world: &World) -> String {
    world
        .control
        .value("select record ->> 'record' from handover.record order by seq desc limit 1")
        .await
        .unwrap()
}

/// Asks, and waits for the runner's end.
async fn abort(world: &World, run: Child) -> (Ended, Output, Duration) {
    let begun = Instant::now();
    let asked = world.handover("abort", &[]).await;
    let output = run.wait_with_output().await.unwrap();
    (asked, output, begun.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_waits_is_heard_within_a_moment() {
    // For a session that is let be, for as long as half an hour; with the usual lease.
    let world =
        world(&PLAN.replace("patience: 30s", "patience: 30m").replace("older_than: 300ms", "older_than: 1h"))
            .await;
    let client = world.blue.admin().await;
    client.batch_execute("begin; update token set active = false where id = 1").await.unwrap();
    let run = start(&world, None);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let (asked, output, took) = abort(&world, run).await;
    let asked = asked.success();
    assert!(asked.stdout.contains("has aborted run"), "{asked}");
    assert!(output.status.success() && took < Duration::from_secs(6), "{took:?}: {output:?}");
    assert_eq!(last(&world).await, "run_aborted");
    assert!(state(&world).is_empty(), "a participant was asked to prepare");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_whose_participants_prepare_releases_them() {
    let world = world(PLAN).await;
    std::fs::remove_file(world.path("go")).unwrap();
    let run = start(&world, None);
    until(|| state(&world) == "held\n").await;
    let asking = abort(&world, run);
    let free = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        world.write("go", "");
    };
    let ((asked, output, _), ()) = tokio::join!(asking, free);
    asked.success();
    assert!(output.status.success(), "{output:?}");
    assert_eq!((state(&world).as_str(), last(&world).await.as_str()), ("blue\n", "run_aborted"));
    world.blue.execute("insert into token values (4711, true)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_within_the_pause_is_called_off_before_its_budget_is_used_up() {
    // What is asked within the pause takes most of a long budget.
    let slow = "invariants: [{ name: slow, before: \"select 1 from pg_sleep(case when exists (select from pg_locks where mode = 'ShareRowExclusiveLock' and relation = 'token'::regclass) then 25 else 0 end)\", quick: true }]";
    let plan = PLAN
        .replace("write_pause: 3s", "write_pause: 40s")
        .replace("blockers: { do: terminate, older_than: 300ms }", slow);
    let world = world(&plan).await;
    let run = start(&world, None);
    let held = "select 1 from pg_stat_activity where query like '%pg_sleep%' and wait_event = 'PgSleep' and datname = current_database()";
    crate::support::world::until(&world.blue.admin().await, held).await;
    let (asked, output, took) = abort(&world, run).await;
    asked.success();
    assert!(output.status.success() && took < Duration::from_secs(15), "{took:?}: {output:?}");
    assert_eq!((state(&world).as_str(), last(&world).await.as_str()), ("blue\n", "run_aborted"));
    world.blue.execute("insert into token values (4711, true)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_decided_is_not_aborted() {
    let world =
        world(&PLAN.replace("echo green > service.state", "test -f mended && echo green > service.state"))
            .await;
    let run = start(&world, None);
    let decided = "select 1 from handover.record where record ->> 'record' = 'point_of_no_return'";
    until(|| state(&world) == "held\n").await;
    crate::support::world::until(&world.control.admin().await, decided).await;
    let refused = world.handover("abort", &[]).await.code(2);
    assert!(
        refused
            .stderr
            .contains("the decision of step `flip` has fallen, and only forward or rollback is left"),
        "{refused}"
    );
    world.write("mended", "");
    let output = run.wait_with_output().await.unwrap();
    assert!(output.status.success() && state(&world) == "green\n", "{output:?}");
    assert_eq!(last(&world).await, "run_done");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_whose_runner_died_behind_the_decision_is_not_aborted() {
    let world = world(PLAN).await;
    world.handover_failing("cutover.committed", "run", &[]).await.killed();
    let refused = world.handover("abort", &[]).await.code(2);
    assert!(refused.stderr.contains("only forward or rollback is left"), "{refused}");
    world.handover("resume", &[]).await.success();
    assert_eq!(state(&world), "green\n");
}

/// A decision that a way back can take back without loss is a decision all the same.
#[tokio::test(flavor = "multi_thread")]
async fn one_with_a_way_back_is_not_aborted_behind_the_decision_either() {
    let world = crate::reverse::world(crate::reverse::PLAN).await;
    world.handover_failing("cutover.committed", "run", &[]).await.killed();
    let refused = world.handover("abort", &[]).await.code(2);
    assert!(refused.stderr.contains("the decision of step `flip` has fallen"), "{refused}");
    world.handover("resume", &[]).await.success();
    assert!(std::fs::read_to_string(world.path("switch.conf")).unwrap().contains("green"));
    world.handover("rollback", &[]).await.success();
}

/// Nothing is frozen: the decision is the journal's.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_freezes_nothing_is_not_aborted_behind_the_decision_either() {
    let plan = PLAN
        .replace("freeze: blue\n      to: green", "")
        .replace("write_pause: 3s", "")
        .replace("blockers: { do: terminate, older_than: 300ms }", "")
        .replace("echo green > service.state", "echo deciding > service.state; until test -f mended; do sleep 0.02; done; echo green > service.state");
    let world = world(&plan).await;
    let run = start(&world, None);
    until(|| state(&world) == "deciding\n").await;
    let refused = world.handover("abort", &[]).await.code(2);
    assert!(refused.stderr.contains("the decision of step `flip` has fallen"), "{refused}");
    world.write("mended", "");
    let output = run.wait_with_output().await.unwrap();
    assert!(output.status.success() && state(&world) == "green\n", "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_the_decision_overtook_halts_the_run_with_its_answer() {
    // Stopped with everything drained, the runner hears the request only when it has decided.
    let world = world(&PLAN.replace("echo green > service.state", "echo deciding > service.state; until test -f mended; do sleep 0.02; done; echo green > service.state")).await;
    let run = start(&world, None);
    until(|| state(&world) == "deciding\n").await;
    // As one that was left in the moment before.
    let request =
        "insert into handover.request (run, kind, by) select id, 'abort', 'alice' from handover.run";
    world.control.admin().await.batch_execute(request).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.write("mended", "");
    let output = run.wait_with_output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success()
            && text.contains("nothing was aborted: the decision of step `flip` has fallen"),
        "{text}"
    );
    assert_eq!((state(&world).as_str(), last(&world).await.as_str()), ("green\n", "halted"));
    world.handover("resume", &[]).await.success();
}
