//! A copy with a replication behind it that is interrupted while its rows travel: it keeps its slot as long as it
//! keeps its snapshot, and never longer.

use crate::replicate::{BLUE, Background, NOTHING, PLAN, Traffic, assert_equal, left};
use crate::support::servers::{self, Database};
use crate::support::world::World;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::Stdio;
use std::time::Duration;

/// More pieces than the first few.
const MORE: &str = "create table ballast (id int primary key, t text);
    insert into ballast select i, repeat(md5(i::text), 10) from generate_series(1, 20000) i;";

const SLOT: &str =
    "select slot_name || ' ' || restart_lsn || ' ' || confirmed_flush_lsn from pg_replication_slots
                    where database = current_database()";

/// Pieces that are there, and the transactions that brought them.
const LOADED: &str = "select string_agg(unit || ' ' || xmin || ' ' || at, e'\\n' order by at)
                      from (select unit, xmin::text, at from handover.checkpoint where unit like 'rows:%' order by at limit 3) c";

async fn world() -> World {
    let blue = Database::with(servers::blue().await, &format!("{BLUE}{MORE}")).await;
    World::new(Some(&blue.name), None, PLAN, &[("switch.conf", "database = blue\n")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_killed_goes_on_with_its_slot_and_snapshot() {
    let world = world().await;
    let traffic = Traffic::start(&world.blue, 2);
    world.handover_failing("copy.chunk-committed:3", "run", &[]).await.killed();
    let (slot, loaded) = (world.blue.value(SLOT).await.unwrap(), world.green.value(LOADED).await.unwrap());
    assert_eq!(loaded.lines().count(), 3, "{loaded}");
    let before = traffic.count();
    let ended = world.handover_failing("copy.chunk-committed:2", "resume", &[]).await.killed();
    assert!(ended.stdout.contains("goes on from the snapshot of"), "{ended}");
    let ended = world.handover_failing("copy.data-complete", "resume", &[]).await.killed();
    assert!(!ended.stdout.contains("replication begins at log position"), "{ended}");
    assert_eq!(world.blue.value(SLOT).await.unwrap(), slot, "the slot is the same one");
    assert_eq!(world.green.value(LOADED).await.unwrap(), loaded, "nothing was loaded twice");
    assert!(traffic.count() > before, "the application goes on");
    world.handover("resume", &[]).await.success();
    traffic.stop().await;
    assert_equal(&world).await;
    assert_eq!(left(&world).await, NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_source_while_rows_travel_begins_again_with_a_fresh_slot() {
    let mut world = World::new(None, None, PLAN, &[("switch.conf", "database = blue\n")]).await;
    world.blue =
        Database::with(Box::leak(Box::new(servers::own_blue().await)), &format!("{BLUE}{MORE}")).await;
    let traffic = Traffic::start(&world.blue, 1);
    let mut command = world.command();
    command.env("HANDOVER_FAILPOINT", "copy.chunk-committed:3:stop").arg("run").arg(world.plan());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id().unwrap();
    let stopped = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ");
    for _ in 0..1200 {
        if stopped() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(stopped(), "the failpoint was never reached");
    let slot = world.blue.value(SLOT).await.unwrap();
    world.blue.server.kill().await.unwrap();
    world.blue.server.start_again().await.unwrap();
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGCONT).unwrap();
    let ended = child.wait_with_output().await.unwrap();
    let mut said = String::from_utf8_lossy(&ended.stdout).into_owned();
    if !ended.status.success() {
        // Whoever is told that a connection broke resumes.
        said.push_str(&world.handover("resume", &[]).await.success().stdout);
    }
    traffic.stop().await;
    let begun: Vec<&str> =
        said.lines().filter_map(|l| Some(l.split_once("replication begins at log position ")?.1)).collect();
    assert_eq!(begun.len(), 2, "{said}");
    assert_ne!(begun[0], begun[1], "{slot}");
    assert!(said.contains("and the copy begins again"), "{said}");
    assert_equal(&world).await;
    assert_eq!(left(&world).await, NOTHING);
    world.blue.server.stop().await.unwrap();
}

/// The most memory that a process has had, in kB.
fn peak(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_very_large_object_is_gone_on_from_between_its_stretches() {
    let megabytes: u64 = std::env::var("LARGE_OBJECT_MB").ok().and_then(|mb| mb.parse().ok()).unwrap_or(140);
    let size = megabytes << 20;
    let sql = format!(
        "create table t (id int primary key); select lo_create(7000);
         select lo_put(7000, 70000000, 'within'), lo_put(7000, {size} - 3, 'end')"
    );
    let blue = Database::with(servers::blue().await, &sql).await;
    let plan = PLAN.split("  - id: follow").next().unwrap();
    let world = World::new(Some(&blue.name), None, plan, &[]).await;
    let there = "select state->>'bytes' from handover.checkpoint where unit = 'object:7000'";
    world.handover_failing("copy.large-object-stretch-committed:1", "run", &[]).await.killed();
    assert_eq!(world.green.value(there).await.unwrap(), (64 << 20).to_string());
    world.handover_failing("copy.large-object-stretch-committed:1", "resume", &[]).await.killed();
    assert_eq!(world.green.value(there).await.unwrap(), (128 << 20).to_string(), "only what was left");
    let mut run = Background::start(&world, "resume").await;
    let pid = run.child.id().unwrap();
    let mut most = 0;
    while let Some(peak) = peak(pid) {
        most = most.max(peak);
        tokio::time::sleep(Duration::from_millis(10)).await;
        if run.child.try_wait().unwrap().is_some() {
            break;
        }
    }
    let (code, said) = run.ended().await;
    assert_eq!(code, Some(0), "{said}");
    let sum = "select sum(hashtext(lo_get(7000, i * 1000000, 1000000)::text)) || ' ' || count(*) from generate_series(0, 2000) i
               where length(lo_get(7000, i * 1000000, 1)) > 0";
    assert_eq!(world.blue.value(sum).await, world.green.value(sum).await);
    assert!(most < 100 << 10, "the engine took {most} kB for an object of {megabytes} MB");
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_by_a_hash_of_an_enum_are_followed_as_one_table() {
    // Its values hash by their oids, which differ on the two servers.
    let sql = "create type kind as enum ('a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l', 'm', 'n', 'o', 'p');
         create table thing (id int, kind kind, note text, primary key (id, kind)) partition by hash (kind);
         create table thing_0 partition of thing for values with (modulus 3, remainder 0);
         create table thing_1 partition of thing for values with (modulus 3, remainder 1);
         create table thing_2 partition of thing for values with (modulus 3, remainder 2);
         create function fill(f int, t int) returns void language sql as
             $$insert into thing select i, (enum_range(null::kind))[1 + i % 16], 'x' from generate_series(f, t) i$$;
         select fill(1, 1000);";
    let blue = Database::with(servers::blue().await, &format!("{BLUE}{sql}")).await;
    let plan = crate::replicate::watched("max_lag: 5s");
    let world = World::new(Some(&blue.name), None, &plan, &[("switch.conf", "database = blue\n")]).await;
    // Oids of this side's own.
    world.green.execute("create type other as enum ('x', 'y', 'z'); drop type other").await;
    let mut run = Background::start(&world, "run").await;
    run.until("hold: started").await;
    world.blue.execute("select fill(1001, 2000); update thing set note = 'y' where id % 3 = 0; delete from thing where id % 7 = 0").await;
    world.handover("approve", &["hold", "--by", "alice"]).await.success();
    let (code, said) = run.ended().await;
    assert_eq!(code, Some(0), "{said}");
    let sum = "select count(*) || ' ' || md5(string_agg(thing::text, ',' order by id)) from thing";
    assert_eq!(world.blue.value(sum).await, world.green.value(sum).await);
    assert_eq!(left(&world).await, NOTHING);
}
