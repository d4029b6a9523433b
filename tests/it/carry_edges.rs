//! What would keep a way back by events from carrying everything is found before the flip, or before the way back is taken.

use crate::carry::{PLAN, content, world_of};
use crate::support::servers::Database;
use crate::support::world::World;
use nix::sys::signal::{Signal, kill};
use std::time::Duration;

/// Stops the engine when the way back is made, does something, lets it go on, and says how it ended.
async fn while_it_waits(world: &World, verb: &str, sql: &str) -> String {
    let mut command = world.command();
    command
        .env("HANDOVER_FAILPOINT", "reverse.ready:1:stop")
        .env("HANDOVER_FAILPOINT_MARK", world.path("mark"));
    command.stderr(std::process::Stdio::piped());
    let child = command.arg(verb).arg(world.plan()).spawn().unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id().unwrap().try_into().unwrap());
    crate::pooler::until_there(world, "mark").await;
    world.green.execute(sql).await;
    kill(pid, Signal::SIGCONT).unwrap();
    let output =
        tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await.unwrap().unwrap();
    assert!(!output.status.success());
    std::fs::remove_file(world.path("mark")).unwrap();
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_way_back_that_broke_while_the_cutover_waited_stops_it_before_the_pause() {
    let world = world_of(&PLAN.replace("patience: 60s", "patience: 1s")).await;
    let said = while_it_waits(&world, "run", "alter table human disable trigger user").await;
    assert!(said.contains("there would be no way back without loss"), "{said}");
    world.blue.execute("update gauge set value = 3 where writer = 1").await;
    // What an earlier attempt made is not taken for sound because it is there: it is made anew, with its triggers on.
    let said = while_it_waits(&world, "resume", "create table made_meanwhile (id int primary key)").await;
    assert!(said.contains("made_meanwhile"), "{said}");
    world.green.execute("drop table made_meanwhile").await;
    world.handover("resume", &[]).await.success();
    world.green.execute("delete from human where number = 7; update gauge set amount = 5").await;
    world.handover("rollback", &["--to", "tail"]).await.success();
    assert_eq!(content(&world, 0).await, content(&world, 1).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_plan_lets_go_is_told_as_lost() {
    let plan = PLAN.replace(
        "tables: { human: { on: [insert, update, delete] }",
        "tables: { human: { on: [insert, update], rest: ignore, truncate: ignore }",
    );
    let cut = plan.rfind("            delete: { apply: \"delete from person where").unwrap();
    let end = plan[cut..].find('\n').unwrap();
    let world = world_of(&format!("{}{}", &plan[..cut], &plan[cut + end + 1..])).await;
    let ended = world.handover("run", &[]).await.success();
    assert!(format!("{ended}").contains("but for writes to human (no delete, no truncate)"), "{ended}");
    let ended = world.handover("rollback", &["--to", "tail"]).await.success();
    assert!(
        format!("{ended}").contains("went back without writes to human (no delete, no truncate)"),
        "{ended}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_side_that_subscribes_to_somebody_is_found_before_the_flip_and_before_the_way_back() {
    let world = world_of(PLAN).await;
    let source =
        Database::with(world.green.server, "create table gauge (writer int primary key, amount int)").await;
    source.admin().await.batch_execute("create publication of_others for all tables").await.unwrap();
    world.handover("run", &[]).await.success();
    let subscribe = format!(
        "create subscription of_others connection '{}' publication of_others with (create_slot = false, slot_name = 'none_yet', enabled = true, copy_data = false)",
        source.handover_url()
    );
    world.green.admin().await.batch_execute(&subscribe).await.unwrap();
    let ended = world.handover("rollback", &["--to", "tail"]).await;
    assert_ne!(ended.code, Some(0), "{ended}");
    assert!(ended.stderr.contains("itself subscribes to another database (of_others)"), "{ended}");
    let admin = world.green.admin().await;
    admin.batch_execute("alter subscription of_others disable").await.unwrap();
    world.handover("resume", &[]).await.success();
    admin.batch_execute("alter subscription of_others enable").await.unwrap();
    let ended = world.handover("resume", &[]).await;
    assert!(ended.stderr.contains("itself subscribes to another database (of_others)"), "{ended}");
    admin.batch_execute("alter subscription of_others disable; alter subscription of_others set (slot_name = none); drop subscription of_others").await.unwrap();
}

/// As a standby does that took over and lacked the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_side_that_forgot_events_that_are_applied_stops_replay_before_their_numbers_are_given_again() {
    let world = world_of(&PLAN.replace("partitions: 2", "partitions: 1")).await;
    world.handover("run", &[]).await.success();
    world.green.execute("update gauge set amount = 5").await;
    let carried = async |value: &str| {
        for _ in 0..200 {
            if world.blue.value("select min(value) from gauge").await.as_deref() == Some(value) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("never carried");
    };
    let before = world.green.value("select last_number from handover.outbox_partition").await.unwrap();
    world.handover_failing("reverse.undo-prepared", "rollback", &["--to", "tail"]).await.killed();
    carried("5").await;
    let forget = format!("update handover.outbox_partition set last_number = {before}, published = {before}, trimmed = {before};
                          delete from handover.outbox_numbered");
    world.green.admin().await.batch_execute(&forget).await.unwrap();
    let ended = world.handover("resume", &[]).await;
    assert_ne!(ended.code, Some(0), "{ended}");
    assert!(ended.stderr.contains("it lost what was written at its end"), "{ended}");
    // Green serves on.
    world.green.execute("update gauge set amount = 6").await;
}
