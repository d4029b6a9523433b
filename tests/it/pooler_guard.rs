//! The guard beside a PgBouncer: it ends a pause whose maker is gone, and no other.

use crate::pooler::{PLAN, Shop, until_there, world};
use crate::support::proxy::Proxy;
use crate::support::world::World;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::process::Child;

const AFTER: Duration = Duration::from_secs(3);

/// A participant that prepares slowly, longer than a guard would wait for a dead cutover.
const SLOW: &str = "      participants:
        - name: slow
          prepare: { command: [sleep, '6'] }
          commit: { command: ['true'] }
          abort: { command: ['true'] }
          revert: { command: ['true'] }
";

/// A guard of the world's first pooler, with what it says in a file.
struct Guard {
    _process: Child,
    said: std::path::PathBuf,
}

impl Guard {
    async fn start(world: &World) -> Self {
        let said = world.path("guard.log");
        let file = std::fs::File::create(&said).unwrap();
        let mut command = world.command();
        command
            .args(["guard", "--admin", "${POOLER_1}", "--database", "shop", "--after", "3s"])
            .stdout(Stdio::from(file.try_clone().unwrap()))
            .stderr(Stdio::from(file));
        let guard = Guard { _process: command.spawn().unwrap(), said };
        guard.says("watching shop of PgBouncer at 127.0.0.1").await;
        guard
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap()
    }

    async fn says(&self, text: &str) {
        let begun = Instant::now();
        while !self.log().contains(text) {
            assert!(begun.elapsed() < Duration::from_secs(60), "never said {text}: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A run that stops itself at a failpoint; returns when it has.
async fn stopped_at(world: &World, failpoint: &str) -> Child {
    let mut command = world.command();
    command
        .env("HANDOVER_FAILPOINT", format!("{failpoint}:1:stop"))
        .env("HANDOVER_FAILPOINT_MARK", world.path("mark"));
    let child =
        command.arg("run").arg(world.plan()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until_there(world, "mark").await;
    child
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().unwrap().try_into().unwrap())
}

/// Waits until clients go on; for how long they did not.
async fn until_open(world: &World) -> Duration {
    let begun = Instant::now();
    while world.poolers[0].is_paused().await {
        assert!(begun.elapsed() < Duration::from_secs(30), "still paused");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_go_on_when_the_engine_is_killed() {
    let world = world(PLAN, "transaction", 1).await;
    let guard = Guard::start(&world).await;
    let shop = Shop::open(&world.poolers[0], 2).await;
    let ended = world.handover_failing("pooler.paused", "run", &[]).await.killed();
    assert!(!ended.stderr.contains("nobody guards"), "{ended}");
    assert!(world.poolers[0].is_paused().await);
    let held = until_open(&world).await;
    assert!(held < AFTER + Duration::from_secs(3), "{held:?}");
    guard.says("RESUME shop: the cutover that paused it has been silent").await;
    shop.sell(10).await;
    assert!(world.poolers[0].leads_to(&world.blue).await);
    world.handover("resume", &[]).await.success();
    shop.sell(10).await;
    shop.close().await;
    assert!(world.poolers[0].leads_to(&world.green).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_was_stopped_notices_that_clients_went_on() {
    let world = world(PLAN, "transaction", 1).await;
    let guard = Guard::start(&world).await;
    let shop = Shop::open(&world.poolers[0], 2).await;
    let child = stopped_at(&world, "cutover.prepared").await;
    assert!(world.poolers[0].is_paused().await);
    // Its connections are all there, and say nothing.
    let held = until_open(&world).await;
    assert!(held > Duration::from_secs(1) && held < AFTER + Duration::from_secs(3), "{held:?}");
    shop.sell(10).await;
    kill(pid(&child), Signal::SIGCONT).unwrap();
    let output =
        tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(text.contains("no longer holds clients of `shop`"), "{text}");
    // It was called off, and the next attempt came through.
    assert!(output.status.success(), "{text}");
    assert!(world.poolers[0].leads_to(&world.green).await && !world.poolers[0].is_paused().await);
    guard.says("RESUME shop").await;
    shop.sell(10).await;
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_living_cutover_and_an_operator_are_left_alone() {
    let world = world(PLAN, "transaction", 1).await;
    let guard = Guard::start(&world).await;
    let console = world.poolers[0].console().await;
    console.simple_query("PAUSE shop").await.unwrap();
    guard.says("paused by somebody else").await;
    tokio::time::sleep(AFTER + Duration::from_secs(2)).await;
    assert!(world.poolers[0].is_paused().await, "{}", guard.log());
    console.simple_query("RESUME shop").await.unwrap();
    world.write("plan.yaml", &PLAN.replace("      participants:\n", SLOW));
    world.handover("run", &[]).await.success();
    guard.says("paused by a cutover, which is alive").await;
    assert!(!guard.log().contains("RESUME"), "{}", guard.log());
}

/// The network between the engine and the pooler goes silent, and no connection breaks.
#[tokio::test(flavor = "multi_thread")]
async fn clients_go_on_when_the_network_is_cut() {
    let world = world(PLAN, "transaction", 1).await;
    let guard = Guard::start(&world).await;
    let shop = Shop::open(&world.poolers[0], 2).await;
    let proxy = Proxy::start(world.poolers[0].process.port()).await;
    world.write("plan.yaml", &PLAN.replace("      participants:\n", SLOW));
    let mut command = world.command();
    command
        .env("POOLER_1", proxy.through(&world.poolers[0].process.admin_url()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.arg("run").arg(world.plan()).spawn().unwrap();
    guard.says("paused by a cutover, which is alive").await;
    proxy.switches.hang.store(true, Ordering::SeqCst);
    guard.says("RESUME shop").await;
    shop.sell(10).await;
    proxy.switches.hang.store(false, Ordering::SeqCst);
    let output =
        tokio::time::timeout(Duration::from_secs(90), child.wait_with_output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(text.contains("attempt 1 was called off"), "{text}");
    assert!(output.status.success(), "{text}");
    assert!(world.poolers[0].leads_to(&world.green).await && !world.poolers[0].is_paused().await);
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_on_its_command_line_is_refused() {
    let world = world(PLAN, "transaction", 1).await;
    let mut command = world.command();
    command.args(["guard", "--admin", "postgres://a:hunter2hunter2@h/pgbouncer", "--database", "shop"]);
    let output = command.output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("a password stands on the command line") && !text.contains("hunter2"), "{text}");
}
