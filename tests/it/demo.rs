//! The demo and its example plans: promises kept, also when the engine is killed; and promises that can be broken.

use crate::support::servers::{self, Database};
use crate::support::world::World;
use handover::demo::Verdict;
use handover_lab::oauth::audit;
use handover_lab::oauth::dataset::{Dataset, signature};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A small demo whose temporary files go to a folder of its own, away from the repository.
fn demo(folder: &Path, args: &[&str]) -> Command {
    // Servers may run as another account, which must be able to write there.
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o1777)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_handover"));
    command
        .args(["demo", "--format", "json", "--rows", "2000", "--rate", "50", "--queue", "embedded"])
        .args(args)
        .current_dir(folder)
        .env("TMPDIR", folder)
        .env_remove("HANDOVER_FAILPOINT")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// A temporary folder directly in /tmp, which servers of another account can reach.
fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("handover-test-").tempdir_in("/tmp").unwrap()
}

fn left_in(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

fn kept(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{stdout}\n{stderr}");
    assert_eq!(stdout.trim_end().lines().count(), 1, "only the verdict: {stdout}");
    let verdict: Value = serde_json::from_str(&stdout).unwrap();
    for zero in ["failed_requests", "revocations_lost", "revoked_honoured", "tokens_unknown_on_green"] {
        assert_eq!(verdict[zero], 0, "{zero}: {verdict}");
    }
    for some in ["requests", "revocations_issued", "rows_updated", "rows_inserted", "commits", "wal_bytes"] {
        assert!(verdict[some].as_i64().unwrap() > 0, "{some}: {verdict}");
    }
    // At so low a rate there may be no write within a short hold.
    assert!(
        verdict["write_hold_ms"].as_f64().unwrap() > 0.0 && verdict["write_pause_ms"].is_f64(),
        "{verdict}"
    );
    assert!(verdict["temp_bytes"].is_i64());
    verdict
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_keeps_its_promises_and_leaves_nothing() {
    let folder = folder();
    let verdict = kept(&demo(folder.path(), &[]).output().await.unwrap());
    let steps = verdict["steps"].as_array().unwrap();
    for kind in [
        "create_index",
        "migrate",
        "cleanup",
        "verify",
        "lever",
        "capture",
        "copy",
        "replay",
        "cutover",
        "monitor",
    ] {
        let step = steps.iter().find(|s| s["kind"] == kind).unwrap_or_else(|| panic!("no {kind}: {verdict}"));
        assert!(step["id"].is_string() && step["seconds"].as_f64().unwrap() > 0.0, "{step}");
    }
    assert_eq!(left_in(folder.path()), [] as [String; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_killed_inside_a_migration_keeps_them_too() {
    let folder = folder();
    let verdict = kept(&demo(folder.path(), &["--kill-at", "migrate"]).output().await.unwrap());
    assert!(verdict["killed"].as_str().unwrap().contains("`migrate`"), "{verdict}");
}

#[tokio::test(flavor = "multi_thread")]
async fn there_and_back_and_there_again_it_keeps_them_too() {
    let folder = folder();
    let verdict = kept(&demo(folder.path(), &["--and-back", "--writes", "300"]).output().await.unwrap());
    let way = &verdict["way_back"];
    assert!(way["writes_on_green"].as_u64().unwrap() >= 300, "{verdict}");
    // A write of the service is one event or more.
    assert!(way["events_carried_back"].as_u64() >= way["writes_on_green"].as_u64(), "{verdict}");
    for zero in ["revocations_lost", "tokens_unknown_on_blue"] {
        assert_eq!(way[zero], 0, "{zero}: {verdict}");
    }
    for measured in ["write_hold_ms", "write_pause_measured_ms"] {
        assert!(way[measured].as_f64().unwrap() > 0.0, "{measured}: {verdict}");
    }
    let flips = verdict["steps"].as_array().unwrap().iter().filter(|step| step["id"] == "flip").count();
    assert_eq!(flips, 2, "{verdict}");
    assert_eq!(left_in(folder.path()), [] as [String; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_step_is_refused_at_once() {
    let folder = folder();
    let output = demo(folder.path(), &["--kill-at", "nowhere"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("nowhere") && stderr.contains("sessions-survive"), "{stderr}");
    assert_eq!(left_in(folder.path()), [] as [String; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_demo_leaves_nothing() {
    let folder = folder();
    let mut child = demo(folder.path(), &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    // In the middle of the first plan.
    while let Some(line) = lines.next_line().await.unwrap() {
        if line.contains("indexes: done") {
            break;
        }
    }
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    while lines.next_line().await.unwrap().is_some() {}
    assert_eq!(child.wait().await.unwrap().code(), Some(130));
    assert_eq!(left_in(folder.path()), [] as [String; 0]);
}

/// Corrupts a green by hand, in both ways that matter, and sees the verdict break.
#[tokio::test(flavor = "multi_thread")]
async fn lost_tokens_and_lost_revocations_are_found() {
    let green = Database::with(
        servers::green().await,
        "create table oauth_token (signature text primary key, active boolean not null)",
    )
    .await;
    let admin = green.admin().await;
    for (token, active) in [("good", true), ("revoked", false), ("forgotten", true)] {
        let insert = "insert into oauth_token values ($1, $2)";
        admin.execute(insert, &[&signature(token), &active]).await.unwrap();
    }
    let revoked = ["revoked", "forgotten"].map(signature);
    let issued = ["good", "revoked", "lost"].map(signature);
    let active = audit::active_on_green(&admin, &revoked).await.unwrap();
    assert!(active.iter().eq([&signature("forgotten")]), "{active:?}");
    let unknown = audit::unknown_on_green(&admin, &issued).await.unwrap();
    assert!(unknown.iter().eq([&signature("lost")]), "{unknown:?}");

    let verdict = Verdict {
        requests: 1,
        revocations_issued: 2,
        plans_done: true,
        revocations_lost: active.len() as u64,
        tokens_unknown_on_green: unknown.len() as u64,
        ..Verdict::default()
    };
    assert_eq!(verdict.judged().broken, ["1 lost revocations", "1 tokens unknown on green"]);
}

fn example(path: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(path)).unwrap()
}

/// The example plan with only some of its steps.
fn only(plan: &str, ids: &[&str]) -> String {
    let (head, steps) = plan.split_once("\nsteps:\n").unwrap();
    let mut out = format!("{head}\nsteps:\n");
    for step in format!("\n{steps}").split("\n  - id: ").skip(1) {
        if ids.contains(&step.lines().next().unwrap()) {
            out.push_str(&format!("  - id: {step}\n"));
        }
    }
    out
}

/// Blue as the first plan leaves it, and the second plan's way from the copy to the sessions' check.
async fn upgraded(replace: bool) -> (World, crate::support::world::Ended) {
    let ids = [
        "copy",
        "orphan-access-tokens",
        "orphan-refresh-tokens",
        "orphan-claims",
        "orphan-consents",
        "migrate",
        "sessions-survive",
    ];
    let mut plan = only(&example("plans/oauth-2x.yaml"), &ids)
        .replace("../migrations", "migrations")
        .replace("\n  registry: ${REGISTRY_URL}", "");
    if !replace {
        plan = plan.replace("      override: migrations/oauth-2x-override\n", "");
        assert!(!plan.contains("override: "));
    }
    let world = World::new(None, None, &plan, &[]).await;
    for folder in ["migrations/oauth-2x", "migrations/oauth-2x-override"] {
        for file in std::fs::read_dir(Path::new(ROOT).join(folder)).unwrap() {
            let name = format!("{folder}/{}", file.unwrap().file_name().to_str().unwrap());
            world.write(&name, &example(&name));
        }
    }
    Dataset::new(2000).load(world.blue.server, &world.blue.name).await.unwrap();
    for file in ["0001_audience.up.sql", "0002_consent_claims.up.sql"] {
        world.blue.execute(&example(&format!("migrations/oauth-1x/{file}"))).await;
    }
    let claims = "insert into consent_claims select challenge, claims_access, claims_id from consent";
    world.blue.execute(claims).await;
    let ended = world.handover("run", &[]).await;
    (world, ended)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vendors_own_file_would_log_people_out_and_is_caught() {
    let (world, ended) = upgraded(false).await;
    let ended = ended.code(8);
    assert!(ended.stderr.contains("live sessions by client"), "{ended}");
    // No row is missing: a count would have been content.
    let (before, after) =
        ("select count(*) from consent where client_id like 'client-%'", "select count(*) from flow");
    assert_eq!(world.blue.value(before).await, world.green.value(after).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_override_sessions_survive() {
    upgraded(true).await.1.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_plans_are_sound() {
    for plan in ["plans/oauth-1x.yaml", "plans/oauth-2x.yaml"] {
        let text = example(plan);
        assert!(text.starts_with("# yaml-language-server: $schema=./handover.schema.json\n"), "{plan}");
        let output = Command::new(env!("CARGO_BIN_EXE_handover"))
            .args(["check", plan])
            .current_dir(ROOT)
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{plan}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // What the demo takes for the budget.
    assert!(example("plans/oauth-2x.yaml").contains("      write_pause: 2s\n"));
}

#[test]
fn the_schema_beside_the_plans_is_current() {
    let schema = serde_json::to_string_pretty(&handover::plan::schema()).unwrap() + "\n";
    let path = "plans/handover.schema.json";
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(Path::new(ROOT).join(path), &schema).unwrap();
    }
    assert!(example(path) == schema, "{path} is old: run this test with UPDATE_SCHEMA=1");
}
