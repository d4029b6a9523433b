//! The commands that look, from the outside: what they print, in both formats, and that they leave no trace.

use crate::support::servers::{self, Database};
use crate::support::world::{Ended, World};
use serde_json::Value;

const PLAN: &str = "
handover: 1
name: looks
databases:
  blue: { url: '${BLUE_URL}', reader: '${BLUE_READER_URL}' }
control: ${CONTROL_URL}
steps:
  - id: subject
    title: An index that logins need
    create_index: { on: blue, indexes: [{ name: token_subject, table: token, columns: [subject] }] }
  - id: live
    create_index: { on: blue, indexes: [{ name: token_live, table: token, columns: [id], where: active }] }
";

const TABLE: &str = "create table token (id int primary key, subject text, active bool);
    insert into token select n, 's' || n % 10, n % 3 = 0 from generate_series(1, 1000) n;";

async fn world() -> World {
    let template = Database::with(servers::blue().await, TABLE).await;
    World::new(Some(&template.name), None, PLAN, &[]).await
}

/// What differs from call to call, made the same.
fn settings() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    for (pattern, to) in [
        (r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "[run]"),
        (r"\b[0-9a-f]{64}\b", "[digest]"),
        (r"digest [0-9a-f]{12}", "digest [digest]"),
        (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "[time]"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "[time]"),
        (r"(?m)^\d\d:\d\d:\d\d ", "[time] "),
        (r"\d\d:\d\d:\d\d UTC", "[time]"),
        (r" *\b\d+(\.\d+)? (ms|s)\b", " [took]"),
        (r#""seconds":[\d.e-]+"#, r#""seconds":"[took]""#),
        (r#""holder":\{[^}]*\}"#, r#""holder":"[holder]""#),
        (r"\S+@\S+ \(pid \d+\)", "[holder]"),
        (r#"style="margin-left:[^"]*""#, r#"style="[bar]""#),
        (r"Postgres \d+(\.\d+)?", "Postgres [version]"),
        (r#""version":"\d+(\.\d+)?""#, r#""version":"[version]""#),
        (r"database test_\d+", "database [name]"),
        (r"\d+ connections are free", "[n] connections are free"),
        (r"/\S+/plan.yaml", "plan.yaml"),
        (r"of the server \d+", "of the server [server]"),
    ] {
        settings.add_filter(pattern, to);
    }
    settings
}

macro_rules! shows {
    ($name:literal, $ended:expr) => {
        let ended = $ended;
        settings().bind(|| {
            insta::assert_snapshot!($name, format!("{}{}", ended.stdout, ended.stderr));
        });
    };
}

fn object(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {ended}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_commands_say_of_a_run() {
    let world = world().await;
    shows!("status_never_run", world.handover("status", &[]).await.success());
    shows!("runs_never_run", world.handover("runs", &[]).await.success());
    shows!("report_never_run", world.handover("report", &[]).await.code(2));
    shows!("dry_run", world.handover("dry-run", &[]).await.success());
    shows!("dry_run_json", world.handover("dry-run", &["--format", "json"]).await.success());
    shows!("doctor", world.handover("doctor", &[]).await.success());
    shows!("doctor_json", world.handover("doctor", &["--format", "json"]).await.success());

    // Killed between the two steps, as after a power cut.
    world.handover_failing("create_index.before-build:2", "run", &[]).await.killed();
    let left = "select count(*) from pg_stat_activity
        where starts_with(application_name, 'handover/') and datname = current_database()";
    while world.blue.value(left).await.as_deref() != Some("0") {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    shows!("status_killed", world.handover("status", &[]).await.success());
    shows!("status_killed_json", world.handover("status", &["--format", "json"]).await.success());
    shows!("dry_run_unfinished", world.handover("dry-run", &[]).await.success());
    shows!("events_killed", world.handover("events", &[]).await.success());

    shows!("resume", world.handover("resume", &[]).await.success());
    shows!("status_done", world.handover("status", &[]).await.success());
    shows!("runs", world.handover("runs", &[]).await.success());
    shows!("runs_json", world.handover("runs", &["--format", "json"]).await.success());
    shows!("events_json", world.handover("events", &["--format", "json", "--follow"]).await.success());
    shows!("report", world.handover("report", &[]).await.success());
    shows!("report_md", world.handover("report", &["--format", "md"]).await.success());
    shows!("report_json", world.handover("report", &["--format", "json"]).await.success());
    shows!("report_html", world.handover("report", &["--format", "html"]).await.success());

    world.handover("rollback", &[]).await.success();
    shows!("status_rolled_back", world.handover("status", &[]).await.success());

    // An older run by the beginning of its id.
    world.handover("run", &[]).await.success();
    let runs = object(&world.handover("runs", &["--format", "json"]).await);
    let older = runs["runs"][1]["run"].as_str().unwrap().to_owned();
    let status = object(&world.handover("status", &["--format", "json", "--run", &older]).await.success());
    assert_eq!(status["phase"], "rolled_back");
    let many = world.handover("events", &["--run", "0"]).await.code(2);
    assert!(many.stderr.contains("several runs") && many.stderr.contains("handover runs"), "{many}");
    let none = world.handover("status", &["--run", "ffff"]).await.code(2);
    assert!(none.stderr.contains("no run of plan `looks` begins with `ffff`"), "{none}");

    // A report into a file, and into none.
    let file = world.path("report.html");
    world.handover("report", &["--format", "html", "--output", file.to_str().unwrap()]).await.success();
    assert!(std::fs::read_to_string(file).unwrap().starts_with("<!doctype html>"));
    let nowhere = world.handover("report", &["--output", "/nowhere/report.txt"]).await.code(1);
    assert!(nowhere.stderr.contains("next: name a file in a folder that exists"), "{nowhere}");
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_leaves_no_trace() {
    let world = world().await;
    let before = world.snapshot().await;
    for verb in ["check", "dry-run", "doctor", "status", "runs"] {
        world.handover(verb, &[]).await.success();
        for database in [&world.blue, &world.control] {
            let schemas =
                database.value("select count(*) from pg_namespace where nspname like 'handover%'").await;
            assert_eq!(schemas.as_deref(), Some("0"), "after {verb}");
        }
    }
    assert_eq!(before, world.snapshot().await);
    // Nor does it take more than the locks that reading takes: a writer's lock does not hold it up.
    let mut admin = world.blue.admin().await;
    let tx = admin.transaction().await.unwrap();
    tx.batch_execute("lock table token in share row exclusive mode").await.unwrap();
    world.handover("dry-run", &[]).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_output_has_a_password() {
    let world = world().await;
    let passwords: Vec<String> =
        [world.blue.handover_url(), world.blue.reader_url(), world.control.handover_url()]
            .iter()
            .map(|url| url::Url::parse(url).unwrap().password().unwrap().to_owned())
            .collect();
    let mut calls: Vec<(&str, Vec<&str>)> = Vec::new();
    for format in ["text", "json"] {
        for verb in ["check", "dry-run", "doctor", "run", "status", "runs", "events", "report", "rollback"] {
            calls.push((verb, vec!["--format", format]));
        }
        calls.push(("run", vec!["--format", format]));
        calls.push(("rollback", vec!["--format", format]));
    }
    for (verb, args) in calls {
        let ended = world.handover(verb, &args).await;
        for password in &passwords {
            let all = format!("{}{}", ended.stdout, ended.stderr);
            assert!(!all.contains(password), "{verb} {args:?} shows a password");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_stands_in_the_way() {
    let world = world().await;
    // Somebody else's table has the name, and the reader's password is wrong.
    world.blue.execute("create table token_subject (x int)").await;
    let ended = world.handover("dry-run", &["--format", "json"]).await.code(8);
    let answer = object(&ended);
    assert_eq!(answer["ok"], false);
    assert_eq!(answer["steps"][0]["outlook"], "blocked", "{ended}");
    assert_eq!(answer["steps"][1]["outlook"], "described", "{ended}");
    let mut command = world.command();
    command
        .env("BLUE_READER_URL", world.blue.reader_url().replacen("handover_reader:", "handover_reader:x", 1));
    let output = command.arg("dry-run").arg(world.plan()).output().await.unwrap();
    assert_eq!(output.status.code(), Some(8));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("blocker: database blue: the URL of `databases.blue.reader`: cannot connect to"),
        "{text}"
    );
    assert!(text.contains("password authentication failed for user"), "{text}");
    assert!(text.contains("check user and password"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_names_missing_grants_and_what_dead_runs_left() {
    let world = world().await;
    world
        .blue
        .admin()
        .await
        .batch_execute(
            "create role stranger; create table foreign_table (x int); alter table foreign_table owner to stranger;
             create schema handover; create table handover.outbox (id int); insert into handover.outbox values (1);
             create function handover.f() returns trigger language plpgsql as 'begin return new; end';
             create trigger handover_t before insert on token for each row execute function handover.f();
             revoke all on schema handover from public",
        )
        .await
        .unwrap();
    let ended = world.handover("doctor", &[]).await.code(8);
    for text in [
        "error    lacks membership in stranger",
        "next: run scripts/grants.sql",
        "warning  of an earlier run: trigger handover_t (on public.token)",
        "table handover.outbox (1 row,",
    ] {
        assert!(ended.stdout.contains(text), "{text}\n{ended}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_went_away_does_no_harm() {
    let world = world().await;
    for verb in ["check", "dry-run", "run", "events", "report", "schema", "man"] {
        let mut command = world.command();
        command.arg(verb).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        if !matches!(verb, "schema" | "man") {
            command.arg(world.plan());
        }
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().await.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{verb}: {stderr}");
        assert!(!stderr.contains("panic"), "{verb}: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_wrong_ways_into_each_command() {
    let world = world().await;
    let folder = world.folder.path().to_str().unwrap().to_owned();
    let latin = world.path("latin.yaml");
    std::fs::write(&latin, b"handover: 1\nname: caf\xe9\n").unwrap();
    let latin = latin.to_str().unwrap().to_owned();
    let missing = world.path("missing.yaml").to_str().unwrap().to_owned();
    let verbs = [
        "check", "dry-run", "run", "resume", "rollback", "abort", "finish", "status", "runs", "events",
        "report", "doctor",
    ];
    for verb in verbs {
        for (path, says) in
            [(&folder, "name a file in it"), (&latin, "not UTF-8"), (&missing, "name the plan's file")]
        {
            let output = world.command().args([verb, path]).output().await.unwrap();
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert_eq!(output.status.code(), Some(2), "{verb} {path}: {text}");
            assert!(text.contains(says), "{verb} {path}: {text}");
        }
        let output = world.command().args([verb, "--no-such-flag", "--format=json"]).output().await.unwrap();
        assert_eq!(output.status.code(), Some(2));
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(error["error"]["class"], "usage");
        assert!(error["error"]["next"].as_str().unwrap().contains("handover help"), "{error}");
    }
    // A variable that is not set, and a control database without a journal.
    for verb in ["run", "dry-run", "status", "doctor", "events"] {
        let output =
            world.command().env_remove("CONTROL_URL").arg(verb).arg(world.plan()).output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{verb}: {text}");
        assert!(text.contains("CONTROL_URL is not set") && text.contains("next: set it"), "{verb}: {text}");
    }
    for verb in ["resume", "rollback", "finish", "events", "report"] {
        let ended = world.handover(verb, &[]).await.code(2);
        assert!(ended.stderr.contains("never run") && ended.stderr.contains("next:"), "{ended}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_plans_are_checked_at_once() {
    let world = world().await;
    let broken = world.write("broken.yaml", "handover: 1\nname: broken\nsteps: []\n");
    let output = world
        .command()
        .args(["check", "--format", "json"])
        .args([world.plan(), broken])
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let lines: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[0]["ok"], &lines[1]["ok"]), (&Value::Bool(true), &Value::Bool(false)));
}

#[tokio::test(flavor = "multi_thread")]
async fn schema_completions_and_manual_are_there() {
    let world = world().await;
    let call = async |args: &[&str]| {
        let output = world.command().args(args).output().await.unwrap();
        assert!(output.status.success(), "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let schema: Value = serde_json::from_str(&call(&["schema"]).await).unwrap();
    assert!(schema["$schema"].is_string(), "{schema}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(call(&["completions", shell]).await.contains("dry-run"), "{shell}");
    }
    assert!(call(&["man"]).await.contains(".TH handover 1"));
    let into = world.path("man");
    call(&["man", "--into", into.to_str().unwrap()]).await;
    assert!(into.join("handover-dry-run.1").exists());
    assert!(call(&["--help"]).await.contains("Exit codes:"));
    assert!(call(&["--version"]).await.starts_with("handover 0."));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_follow_a_run_to_its_end() {
    let world = world().await;
    let mut run = world.command();
    // Stopped inside, so that the follower is there before the end.
    run.env("HANDOVER_FAILPOINT", "create_index.built:1:stop").arg("run").arg(world.plan());
    let mut run = run.spawn().unwrap();
    let control = world.control.admin().await;
    let built = "select 1 from handover.record where record->>'record' = 'step_fact'";
    while control.query_opt(built, &[]).await.ok().flatten().is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let follower = world.command().arg("events").arg(world.plan()).args(["--follow"]).output();
    let follower = tokio::spawn(follower);
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert!(!follower.is_finished(), "the run has not ended");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(run.id().unwrap()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    assert!(run.wait().await.unwrap().success());
    let output = follower.await.unwrap().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.trim_end().ends_with("run done"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readme_tells_the_truth() {
    let world = world().await;
    let readme = include_str!("../../README.md");
    let mut plans = 0;
    for block in readme.split("```yaml plan\n").skip(1) {
        let (plan, _) = block.split_once("```").unwrap();
        world.write("plan.yaml", plan);
        world.handover("check", &[]).await.success();
        plans += 1;
    }
    assert!(plans > 0);
    let help = world.command().arg("--help").output().await.unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for line in readme.lines().filter(|line| line.starts_with("handover ")) {
        let verb = line.split_whitespace().nth(1).unwrap();
        assert!(help.contains(&format!("  {verb} ")), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_knows_what_is_yet_to_be_made_and_where_the_way_back_ends() {
    let template = Database::with(servers::blue().await, TABLE).await;
    let plan = "
handover: 1
name: later
databases: { blue: '${BLUE_URL}', green: '${GREEN_URL}' }
control: ${CONTROL_URL}
steps:
  - id: copy
    copy: { from: blue, to: green }
  - id: orphans
    cleanup: { on: green, table: token, where: not active, action: quarantine }
  - id: migrate
    migrate: { on: blue, role: app, dir: steps, undo: none }
  - id: go
    approve: { message: go on }
";
    let files = [("steps/V1__note.sql", "alter table token add column note text;")];
    let world = World::new(Some(&template.name), None, plan, &files).await;
    let ended = world.handover("dry-run", &["--format", "json"]).await.success();
    let answer = object(&ended);
    // What the copy is yet to bring is asked of the side it copies.
    assert_eq!(answer["steps"][1]["outlook"], "described", "{ended}");
    assert_eq!(
        answer["steps"][1]["depends"],
        serde_json::json!({ "step": "copy", "asked_of": "blue", "unseen": [] })
    );
    assert!(answer["steps"][1]["actions"][0].as_str().unwrap().contains("667 rows"), "{ended}");
    assert_eq!(answer["point_of_no_return"]["step"], "migrate");
    assert_eq!(answer["steps"][1]["rollback_loses"], serde_json::json!([]));
    assert_eq!(answer["steps"][3]["rollback_loses"][0]["step"], "migrate");
    assert!(answer["warnings"][0].as_str().unwrap().contains("names no `reader:`"), "{ended}");
    let text = world.handover("dry-run", &[]).await.success().stdout;
    assert!(text.contains("free up to and with `orphans`"), "{text}");
    assert!(text.contains("from `migrate` on (the point of no return)"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_names_what_is_held_and_approve_refuses_what_would_not_count() {
    let plan = "
handover: 1
name: held
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
  - id: lifetime
    lever: { file: { path: app.conf, content: \"lifetime = 30\\n\" } }
  - id: index
    create_index: { on: blue, indexes: [{ name: token_subject, table: token, columns: [subject] }] }
  - id: go
    approve: { message: go on }
";
    let template = Database::with(servers::blue().await, TABLE).await;
    let world = World::new(Some(&template.name), None, plan, &[("app.conf", "lifetime = 1\n")]).await;
    world.handover_failing("engine.step-started:2", "run", &[]).await.killed();
    let status = world.handover("status", &[]).await.success();
    assert!(status.stdout.contains("outside: the lever of step `lifetime` is up"), "{status}");
    let early = world.handover("approve", &["go"]).await.code(2);
    assert!(
        early.stderr.contains("does not wait for an approval yet") && early.stderr.contains("next:"),
        "{early}"
    );
    world.handover("resume", &["--no-wait"]).await.code(7);
    let waiting = object(&world.handover("status", &["--format", "json"]).await.success());
    assert_eq!(waiting["halted"]["class"], "waiting");
    let approved =
        world.handover("approve", &["go", "--by", "<b>alice</b>", "--format", "json"]).await.success();
    assert_eq!(object(&approved)["by"], "<b>alice</b>");
    world.handover("resume", &["--no-wait"]).await.success();
    let late = world.handover("approve", &["go"]).await.code(2);
    assert!(late.stderr.contains("approved already"), "{late}");
    let page = world.handover("report", &["--format", "html"]).await.success().stdout;
    assert!(page.contains("&lt;b&gt;alice&lt;/b&gt;") && !page.contains("<b>alice"), "{page}");
    let report = object(&world.handover("report", &["--format", "json"]).await.success());
    assert_eq!(report["steps"][2]["attempts"].as_array().unwrap().len(), 2);
    world.handover("rollback", &[]).await.success();
    let status = object(&world.handover("status", &["--format", "json"]).await.success());
    assert_eq!(status["held"], serde_json::json!([]), "{status}");
}
