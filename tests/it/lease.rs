//! Who may act: one runner at a time, and one that was superseded changes nothing.

use crate::support::servers::{self, Database};
use crate::support::tls::{Begin, TlsProxy};
use crate::support::world::{BUILDING, World, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

async fn world() -> World {
    let scenario = crate::create_index::scenario();
    let template = Database::with(servers::blue().await, scenario.blue).await;
    World::new(Some(&template.name), None, scenario.plan, &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_runner_is_told_who_holds_the_lease() {
    let world = world().await;
    let mut admin = world.blue.admin().await;
    let old = admin.transaction().await.unwrap();
    old.query("select count(*) from token", &[]).await.unwrap();
    let mut first = world.command().arg("run").arg(world.plan()).spawn().unwrap();
    until(&world.blue.admin().await, BUILDING).await;

    let second = world.handover("run", &[]).await.code(3);
    let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
    for part in [host.as_str(), &format!("pid {}", first.id().unwrap()), "since", "next:"] {
        assert!(second.stderr.contains(part), "no `{part}` in {second}");
    }
    old.commit().await.unwrap();
    assert!(first.wait().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_runner_that_was_superseded_changes_nothing() {
    let world = world().await;
    let mut command = world.command();
    command.env("HANDOVER_FAILPOINT", "create_index.built:1:stop").arg("run").arg(world.plan());
    let mut stopped = command.args(["--lease-ttl", "2s"]).spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(stopped.id().unwrap()).unwrap());
    until(&world.blue.admin().await, "select 1 where to_regclass('token_subject') is not null").await;
    let stat = format!("/proc/{pid}/stat");
    while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let second = world.handover("resume", &["--wait", "20s"]).await.success();
    assert!(second.stdout.contains("token 2"), "{second}");
    let after = world.snapshot().await;
    let count = "select count(*)::text from handover.record";
    let records = world.control.value(count).await;

    kill(pid, Signal::SIGCONT).unwrap();
    assert_eq!(stopped.wait().await.unwrap().code(), Some(4), "the code for a lost lease");
    assert_eq!(after, world.snapshot().await);
    assert_eq!(records, world.control.value(count).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_releases_the_lease_and_resume_goes_on() {
    let world = world().await;
    let mut admin = world.blue.admin().await;
    let old = admin.transaction().await.unwrap();
    old.query("select count(*) from token", &[]).await.unwrap();
    let mut first = world.command().arg("run").arg(world.plan()).spawn().unwrap();
    let probe = world.blue.admin().await;
    until(&probe, BUILDING).await;
    kill(Pid::from_raw(i32::try_from(first.id().unwrap()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(first.wait().await.unwrap().code(), Some(130));
    // A backend takes a moment to see that its client is gone; a build that goes on would wait for `old`.
    until(&probe, "select 1 where not exists (select from pg_stat_activity where application_name like 'handover/%' and datname = current_database())").await;
    old.commit().await.unwrap();
    world.handover("resume", &[]).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_plan_is_not_resumed_unless_accepted() {
    let world = world().await;
    world.handover_failing("create_index.built", "run", &[]).await.killed();
    let text = std::fs::read_to_string(world.plan()).unwrap();
    std::fs::write(world.plan(), text.replace("unique: true", "unique: false")).unwrap();
    let refused = world.handover("resume", &[]).await.code(6);
    assert!(refused.stderr.contains("--accept-changes"), "{refused}");
    world.handover("resume", &["--accept-changes"]).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_through_tls_and_refuses_a_certificate_it_cannot_trust() {
    let world = world().await;
    let proxy = TlsProxy::start(world.blue.server.port(), Begin::AfterRequest).await;
    let through = |parameters: &str| proxy.through(&world.blue.handover_url(), parameters);
    let mut command = world.command();
    let output =
        command.env("BLUE_URL", through("sslmode=verify-full")).arg("run").arg(world.plan()).output().await;
    let output = output.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("certificate") && stderr.contains("sslrootcert"), "{stderr}");
    let trusted = through(&format!("sslmode=verify-full&sslrootcert={}", proxy.ca().display()));
    let status =
        world.command().env("BLUE_URL", trusted).arg("run").arg(world.plan()).status().await.unwrap();
    assert!(status.success());
}
