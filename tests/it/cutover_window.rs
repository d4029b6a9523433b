//! When a cutover's pause may begin.

use crate::cutover_blockers::{PLAN, world};
use crate::support::world::{Ended, World};
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::Stdio;
use std::time::{Duration, Instant};

fn with(window: &str) -> String {
    PLAN.replace(
        "      blockers: { do: terminate, older_than: 300ms }\n",
        &format!("      window: {{ {window} }}\n"),
    )
}

/// The time of day in so many seconds.
fn clock(seconds: i64) -> String {
    let at = Timestamp::now() + SignedDuration::from_secs(seconds);
    at.to_zoned(TimeZone::get("Asia/Tokyo").unwrap()).strftime("%H:%M:%S").to_string()
}

fn began(world: &World) -> bool {
    world.path("service.state").exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pause_waits_for_its_window_and_says_when_it_opens() {
    let world = world("").await;
    // Before the run has come so far it would be open.
    world.write(
        "plan.yaml",
        &with(&format!("from: '{}', to: '{}', zone: Asia/Tokyo", clock(40), clock(3600))),
    );
    let opens = Instant::now() + Duration::from_secs(39);
    let said = world.handover("dry-run", &["--verbose"]).await.success();
    assert!(
        said.stdout.contains("begin only within its window") && said.stdout.contains("which opens"),
        "{said}"
    );
    let run = async { world.handover("run", &[]).await };
    let look = async {
        while Instant::now() < opens {
            assert!(!began(&world), "a participant was asked to prepare outside of the window");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let (ended, ()) = tokio::join!(run, look);
    let ended: Ended = ended.success();
    let at = ended.stdout.matches("waits for its window: it opens").count();
    assert!(at == 1 && ended.stdout.contains("Asia/Tokyo"), "{ended}");
    assert!(began(&world));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_closes_while_participants_prepare_calls_the_attempt_off() {
    let world = world("").await;
    std::fs::remove_file(world.path("go")).unwrap();
    // The step may be slow to come so far.
    world.write(
        "plan.yaml",
        &with(&format!("from: '{}', to: '{}', zone: Asia/Tokyo", clock(-60), clock(25)))
            .replace("attempts: 1\n", "attempts: 1\n      prepare_timeout: 2m\n"),
    );
    let closes = Instant::now() + Duration::from_secs(26);
    let mut command = world.command();
    command.arg("run").arg(world.plan()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let run = command.spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(run.id().unwrap()).unwrap());
    while !began(&world) {
        assert!(Instant::now() < closes, "the machine is too slow for this");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(closes.saturating_duration_since(Instant::now())).await;
    world.write("go", "");
    let state = || std::fs::read_to_string(world.path("service.state")).unwrap();
    while state() != "blue\n" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // It waits for tomorrow, and hears a stop meanwhile.
    tokio::time::sleep(Duration::from_secs(2)).await;
    kill(pid, Signal::SIGINT).unwrap();
    let stopped = Instant::now();
    let output = run.wait_with_output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(stopped.elapsed() < Duration::from_secs(10), "{text}");
    assert!(text.contains("the window closed while participants prepared: it opens"), "{text}");
    assert!(!output.status.success() && state() == "blue\n", "{text}");
    world.blue.execute("insert into token values (4711, true)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_old_side_is_waited_for() {
    let world = world(&with("max_transactions_per_second: 10")).await;
    let work = async |client: tokio_postgres::Client| {
        let (begun, mut count) = (Instant::now(), 0_u32);
        while begun.elapsed() < Duration::from_secs(15) {
            // The server's count leaves out what touches no table.
            client.batch_execute("select from token limit 1").await.unwrap();
            count += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        count
    };
    let mut clients = Vec::new();
    // More than a machine that does much else can starve.
    for _ in 0..10 {
        clients.push(world.blue.admin().await);
    }
    let busy = futures_util::future::join_all(clients.into_iter().map(work));
    let run = async { world.handover("run", &[]).await };
    let look = async {
        // As long as it lasts, and the five seconds over which it is counted.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(14) {
            assert!(!began(&world), "a participant was asked to prepare while the old side was busy");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let (ended, (), counts) = tokio::join!(run, look, busy);
    let ended: Ended = ended.success();
    let count: u32 = counts.iter().sum();
    assert!(count > 60 * 15, "only {count} transactions: the machine is too slow for this");
    assert!(
        ended.stdout.contains("waits for its window: blue must have at most 10 transactions per second"),
        "{ended}"
    );
}
