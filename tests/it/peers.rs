//! Peers that die, fall silent or come back: connections notice, and the lease outlives an outage.

use crate::cutover;
use crate::support::proxy::Proxy;
use crate::support::servers::{self, Database};
use crate::support::world::World;
use handover::postgres::connect;
use handover::value::Secret;
use handover_lab::PostgresServer;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const PLAN: &str = "
handover: 1
name: outage
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
  - id: short
    lever: { command: { apply: [sh, -c, 'touch begun; sleep 0.5'], revert: ['true'] } }
  - id: long
    lever: { command: { apply: [sh, -c, 'sleep 2'], revert: ['true'] } }
";

/// Waits until the first step's command runs.
async fn begun(world: &World) {
    while !world.path("begun").exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_probes_every_silent_connection() {
    let database = Database::create(servers::green().await, None).await;
    let client =
        connect::open(&Secret::new(database.handover_url()), "green", "handover/test").await.unwrap();
    let port: i32 = client.query_one("select inet_client_port()", &[]).await.unwrap().get(0);
    // https://www.kernel.org/doc/Documentation/networking/proc_net_tcp.txt: number, both ends, state, queues, timer. Another
    // connection may have our port, too, as long as it leads elsewhere.
    let ends = [format!(":{port:04X}"), format!(":{:04X}", database.server.port())];
    let probing = |table: &str| {
        let line = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|fields| {
            fields.len() > 5 && fields[1].ends_with(&ends[0]) && fields[2].ends_with(&ends[1])
        });
        let timer = line.unwrap()[5].to_owned();
        let (kind, when) = timer.split_once(':').unwrap();
        let seconds = u64::from_str_radix(when, 16).unwrap() / 100;
        (kind == "02" && seconds <= 5).then_some(()).ok_or(timer)
    };
    // The answer is acknowledged with the next packet, so the timer is that of the probes in a moment.
    let mut timer = Ok(());
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        timer = probing(&std::fs::read_to_string("/proc/net/tcp").unwrap());
        if timer.is_ok() {
            return;
        }
    }
    panic!("no keepalive within five seconds: {timer:?}");
}

/// The run's connections to the control database go silent without being closed; new ones work.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_control_connection_is_replaced_before_the_lease_ends() {
    let world = World::new(None, None, PLAN, &[]).await;
    let proxy = Proxy::start(world.control.server.port()).await;
    let mut command = world.command();
    command.env("CONTROL_URL", proxy.through(&world.control.handover_url()));
    command.arg("run").arg(world.plan()).args(["--lease-ttl", "9s"]);
    let run = tokio::spawn(command.output());
    begun(&world).await;
    proxy.bury();
    let output = run.await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The control server is away for more than half of the lease, while a step ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_control_server_ends_no_run() {
    let server: &'static PostgresServer = Box::leak(Box::new(servers::own_green().await));
    let control = Database::create(server, None).await;
    let world = World::new(None, None, PLAN, &[]).await;
    let mut command = world.command();
    command.env("CONTROL_URL", control.handover_url());
    command.arg("run").arg(world.plan()).args(["--lease-ttl", "9s"]);
    let run = tokio::spawn(command.output());
    begun(&world).await;
    server.kill().await.unwrap();
    tokio::time::sleep(Duration::from_millis(5300)).await;
    server.start_again().await.unwrap();
    let output = run.await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_which_url_leads_where() {
    let world = World::new(None, None, PLAN, &[]).await;
    let nobody = "postgres://handover:hunter2hunter2@127.0.0.1:9/nobody";
    for (variable, url, key) in [
        ("BLUE_URL", nobody, "`databases.blue`"),
        ("CONTROL_URL", nobody, "`control`"),
        ("BLUE_URL", "", "database blue"),
    ] {
        let mut command = world.command();
        command.env(variable, url).arg("run").arg(world.plan());
        let output = command.output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(key) && !text.contains("hunter2"), "{text}");
        let said =
            if url.is_empty() { "environment variable BLUE_URL is empty" } else { "127.0.0.1:9/nobody" };
        assert!(text.contains(said), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_that_takes_writes_is_found() {
    let world = World::new(None, None, PLAN, &[]).await;
    let own = world.blue.handover_url();
    let port = format!(":{}/", world.blue.server.port());
    // The first host is not there; and sessions that only look are read-only wherever they are.
    for wanted in ["read-write", "primary", "prefer-standby"] {
        let several = own.replace(&format!("@127.0.0.1{port}"), &format!("@127.0.0.1:9,127.0.0.1{port}"));
        assert_ne!(several, own);
        let url = format!("{several}?target_session_attrs={wanted}");
        for verb in ["dry-run", "doctor", "run", "rollback"] {
            let mut command = world.command();
            let output = command.env("BLUE_URL", &url).arg(verb).arg(world.plan()).output().await.unwrap();
            assert!(
                output.status.success(),
                "{wanted} {verb}: {}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            if wanted != "read-write" {
                break;
            }
        }
    }
    let mut command = world.command();
    command.env("BLUE_URL", format!("{own}?target_session_attrs=standby")).arg("run").arg(world.plan());
    let output = command.output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("none of its hosts is a standby"), "{text}");
}

/// What the stopped process waits for.
async fn stopped(pid: u32) {
    for _ in 0..2000 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        if stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T')) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the failpoint was never reached");
}

/// A side of the cutover answers nothing any more, from the moment when writers are held off.
async fn silent_in_the_pause(side: &str) {
    let blue = Database::with(servers::blue().await, cutover::BLUE).await;
    let green = Database::with(servers::green().await, cutover::GREEN).await;
    let plan = cutover::PLAN.replace("write_pause: 3s", "write_pause: 2s");
    let files = [("switch.conf", "database = blue\n")];
    let world = World::new(Some(&blue.name), Some(&green.name), &plan, &files).await;
    let (database, variable) = match side {
        "blue" => (&world.blue, "BLUE_URL"),
        _ => (&world.green, "GREEN_URL"),
    };
    let proxy = Proxy::start(database.server.port()).await;
    let mut command = world.command();
    command.env(variable, proxy.through(&database.handover_url()));
    command.env("HANDOVER_FAILPOINT", "cutover.frozen:1:stop").arg("run").arg(world.plan());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let run = command.spawn().unwrap();
    let pid = run.id().unwrap();
    stopped(pid).await;
    proxy.switches.hang.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGCONT).unwrap();
    world.blue.execute("insert into token (active) values (false)").await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(3), "{side}: writers were held off for {took:?}");
    assert!(took > Duration::from_millis(200), "{side}: nobody was held off");
    proxy.switches.hang.store(false, Ordering::SeqCst);
    let output = run.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{side}: {said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("attempt 1 was called off, the old side serves on"), "{side}: {said}");
    let arrived = "select count(*) from token where not active";
    assert_eq!(
        world.green.value(arrived).await.as_deref(),
        Some("1"),
        "{side}: what was written then is lost"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_side_that_falls_silent_in_the_pause_frees_its_writers_within_the_budget() {
    silent_in_the_pause("blue").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_side_that_falls_silent_in_the_pause_frees_the_writers_within_the_budget() {
    silent_in_the_pause("green").await;
}
