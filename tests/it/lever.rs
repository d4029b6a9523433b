//! `lever` with real commands, files, HTTP and Postgres.

use crate::support::scenario::Scenario;
use crate::support::servers::{self, Database};
use crate::support::world::World;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

const SETTINGS: &str = "create table setting (name text primary key, value int);
    insert into setting values ('lifetime', 1), ('quota', 5);
    create table change (at timestamptz, name text);";

/// A statement that must not be executed twice, an external job, a file, and two levers released in the plan.
const PLAN: &str = r#"
handover: 1
name: levers
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
  - id: lifetime
    lever:
      sql:
        on: blue
        read: select value from setting where name = 'lifetime'
        apply: update setting set value = value + 29 where name = 'lifetime'
        revert: update setting set value = $previous where name = 'lifetime'
        check: select value = 30 from setting where name = 'lifetime'
  - id: purge
    lever: { command: { apply: [sh, job.sh, hold], revert: [sh, job.sh, free], check: [sh, job.sh, check] } }
  - id: config
    lever: { file: { path: app.conf, content: "lifetime = 30\n", reload: [sh, job.sh, reload] } }
  - id: quota
    lever:
      sql:
        on: blue
        read: select value from setting where name = 'quota'
        apply: update setting set value = value * 10 where name = 'quota'
        revert: update setting set value = $previous where name = 'quota'
  - id: usual-lifetime
    lever: { revert: lifetime }
  - id: free-purge
    lever: { revert: purge }
"#;

const JOB: &str = "case $1 in
hold) echo begin >> log; sleep 0.3; touch held; echo end >> log;;
free) echo begin >> log; sleep 0.1; rm -f held; echo end >> log;;
check) test -e held;;
reload) cp app.conf live.conf;;
esac
";

pub fn scenario() -> Scenario {
    Scenario {
        prefixes: &["lever"],
        plan: PLAN,
        files: &[("job.sh", JOB), ("app.conf", "lifetime = 1\n")],
        blue: SETTINGS,
        rollback_restores: true,
        ..Scenario::default()
    }
}

async fn world(plan: &str) -> World {
    let template = Database::with(servers::blue().await, SETTINGS).await;
    World::new(Some(&template.name), None, plan, &[("job.sh", JOB), ("app.conf", "lifetime = 1\n")]).await
}

/// A plan of one step.
async fn one(lever: &str) -> World {
    world(&format!(
        "handover: 1\nname: lever\ndatabases: {{ blue: '${{BLUE_URL}}' }}\ncontrol: ${{CONTROL_URL}}\nsteps:\n  - id: it\n    retry: {{ attempts: 1 }}\n    lever: {lever}\n"
    ))
    .await
}

fn names(world: &World) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(world.folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

async fn setting(world: &World, name: &str) -> String {
    world.blue.value(&format!("select value from setting where name = '{name}'")).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn levers_are_held_released_and_restored() {
    let world = world(PLAN).await;
    fs::set_permissions(world.path("app.conf"), fs::Permissions::from_mode(0o640)).unwrap();
    world.handover("run", &[]).await.success();
    assert_eq!(
        (setting(&world, "lifetime").await.as_str(), setting(&world, "quota").await.as_str()),
        ("1", "50")
    );
    assert!(!world.path("held").exists(), "released by a later step");
    assert_eq!(fs::read_to_string(world.path("live.conf")).unwrap(), "lifetime = 30\n");
    let kept = names(&world).into_iter().find(|name| name.contains(".handover-")).unwrap();
    for file in ["app.conf", &kept] {
        assert_eq!(fs::metadata(world.path(file)).unwrap().permissions().mode() & 0o777, 0o640, "{file}");
    }

    world.handover("rollback", &[]).await.success();
    assert_eq!(
        (setting(&world, "lifetime").await.as_str(), setting(&world, "quota").await.as_str()),
        ("1", "5")
    );
    assert!(!world.path("held").exists());
    for file in ["app.conf", "live.conf"] {
        assert_eq!(fs::read_to_string(world.path(file)).unwrap(), "lifetime = 1\n", "{file}");
    }
    assert!(names(&world).iter().all(|name| !name.contains("handover")), "{:?}", names(&world));

    world.handover("run", &[]).await.success();
    let ended = world.handover("finish", &[]).await.success();
    assert!(names(&world).iter().all(|name| !name.contains("handover")), "{:?}", names(&world));
    assert!(ended.stdout.contains("the lever stays up"), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_outlives_its_runner_is_waited_for() {
    let world = world(PLAN).await;
    world.handover_failing("lever.command-started", "run", &[]).await.killed();
    world.handover("resume", &[]).await.success();
    let log = fs::read_to_string(world.path("log")).unwrap();
    for pair in log.lines().collect::<Vec<_>>().chunks(2) {
        assert_eq!(pair, ["begin", "end"], "commands overlapped: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_up_already_stays_up() {
    let lever =
        "{ command: { apply: [sh, job.sh, hold], revert: [sh, job.sh, free], check: [sh, job.sh, check] } }";
    let world = one(lever).await;
    world.write("held", "by somebody else");
    world.handover("run", &[]).await.success();
    world.handover("rollback", &[]).await.success();
    assert_eq!(fs::read_to_string(world.path("held")).unwrap(), "by somebody else");
    assert!(!world.path("log").exists(), "nothing was run but the check");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lever_that_does_not_take_effect_fails_its_step() {
    let world =
        one("{ within: 300ms, command: { apply: ['true'], revert: [echo], check: [sh, job.sh, check] } }")
            .await;
    let ended = world.handover("run", &[]).await;
    assert_ne!(ended.code, Some(0));
    assert!(ended.stderr.contains("still reads as down"), "{ended}");
    let world = one("{ command: { apply: ['true'], revert: [echo], check: [sh, -c, exit 3] } }").await;
    let ended = world.handover("run", &[]).await;
    assert!(ended.stderr.contains("cannot tell: exit code 3"), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_command_is_quoted_without_secrets() {
    let world = one("{ command: { apply: [sh, -c, 'echo \"no $TOKEN, $BLUE_URL\" >&2; exit 4'], revert: ['true'], env: { TOKEN: 'x-${LEVER_SECRET}', BLUE_URL: '${BLUE_URL}' } } }").await;
    let mut command = world.command();
    command.env("LEVER_SECRET", "hunter2hunter2").arg("run").arg(world.plan());
    let output = command.output().await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("exit code 4") && stderr.contains("no [secret], [secret]"), "{stderr}");
    let journal =
        world.control.value("select string_agg(record::text, ' ') from handover.record").await.unwrap();
    assert!(journal.contains("exit code 4"), "{journal}");
    for secret in ["hunter2", world.blue.handover_url().as_str()] {
        assert!(!stderr.contains(secret) && !journal.contains(secret), "{stderr} {journal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_past_its_time_is_ended_with_its_children() {
    let world = one("{ command: { apply: [sh, -c, 'sleep 77 & echo $! > child; wait'], revert: ['true'], timeout: 300ms } }").await;
    let ended = world.handover("run", &[]).await;
    assert!(ended.stderr.contains("took longer than 300ms"), "{ended}");
    let child = fs::read_to_string(world.path("child")).unwrap();
    let cmdline = fs::read_to_string(format!("/proc/{}/cmdline", child.trim())).unwrap_or_default();
    assert!(!cmdline.contains("sleep"), "{cmdline}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_behind_a_link_is_replaced_and_strange_changes_are_kept() {
    let world = one("{ file: { path: link.conf, content: 'mine ${BLUE_URL}' } }").await;
    std::os::unix::fs::symlink("app.conf", world.path("link.conf")).unwrap();
    world.handover("run", &[]).await.success();
    assert!(fs::symlink_metadata(world.path("link.conf")).unwrap().is_symlink());
    assert!(fs::read_to_string(world.path("app.conf")).unwrap().contains("mine postgres"));
    world.write("app.conf", "somebody else's\n");
    let ended = world.handover("rollback", &[]).await.success();
    assert!(ended.stdout.contains("changed by somebody else"), "{ended}");
    assert_eq!(fs::read_to_string(world.path("app.conf")).unwrap(), "lifetime = 1\n");
    let aside = names(&world).into_iter().find(|name| name.contains("handover-changed")).unwrap();
    assert_eq!(fs::read_to_string(world.path(&aside)).unwrap(), "somebody else's\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_not_there_goes_again() {
    let world = one("{ file: { path: new.conf, content: x, mode: '0604' } }").await;
    world.handover("run", &[]).await.success();
    assert_eq!(fs::metadata(world.path("new.conf")).unwrap().permissions().mode() & 0o777, 0o604);
    world.handover("rollback", &[]).await.success();
    assert!(!world.path("new.conf").exists());
}

#[derive(Clone, Default)]
struct Api(Arc<Mutex<(bool, Vec<String>)>>);

async fn api() -> (Api, String) {
    async fn set(State(api): State<Api>, headers: HeaderMap, body: String) -> (StatusCode, String) {
        let key = headers.get("x-api-key").and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        if key != "hunter2hunter2" {
            return (StatusCode::FORBIDDEN, format!("bad key {key}"));
        }
        let mut state = api.0.lock().unwrap();
        state.0 = body.contains("true");
        state.1.push(body);
        (StatusCode::OK, "{}".into())
    }
    let api = Api::default();
    let look = async |State(api): State<Api>| format!("{{\"held\": {}}}", api.0.lock().unwrap().0);
    let away = async || axum::response::Redirect::temporary("http://192.0.2.1/");
    let app = axum::Router::new()
        .route("/job", post(set).get(look))
        .route("/away", get(away))
        .with_state(api.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (api, url)
}

const HTTP: &str = "{ http: {
      apply: { method: POST, url: '${API}/job', headers: { x-api-key: '${KEY}' }, json: { held: true, by: '${KEY}' } },
      revert: { method: POST, url: '${API}/job', headers: { x-api-key: '${KEY}' }, json: { held: false } },
      check: { url: '${API}/job', expect: { /held: true } } } }";

async fn with_api(world: &World, url: &str, key: &str, verb: &str) -> (Option<i32>, String) {
    let mut command = world.command();
    command.env("API", url).env("KEY", key).arg(verb).arg(world.plan());
    let output = command.output().await.unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_told_asked_and_told_back() {
    let (api, url) = api().await;
    let world = one(HTTP).await;
    let (code, stderr) = with_api(&world, &url, "hunter2hunter2", "run").await;
    assert_eq!(code, Some(0), "{stderr}");
    assert!(api.0.lock().unwrap().0);
    assert_eq!(api.0.lock().unwrap().1, ["{\"held\":true,\"by\":\"hunter2hunter2\"}"]);
    let (code, stderr) = with_api(&world, &url, "hunter2hunter2", "rollback").await;
    assert_eq!(code, Some(0), "{stderr}");
    assert!(!api.0.lock().unwrap().0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_endpoint_says_is_quoted_without_secrets() {
    let (_, url) = api().await;
    let world = one(HTTP).await;
    let (_, stderr) = with_api(&world, &url, "wrong-key-55", "run").await;
    assert!(stderr.contains("POST ${API}/job answered 403 Forbidden, saying: bad key [secret]"), "{stderr}");
    let (_, stderr) = with_api(&world, "http://user:secret55@127.0.0.1:1", "k", "resume").await;
    assert!(stderr.contains("refused") && !stderr.contains("secret55"), "{stderr}");

    let world = one("{ http: { apply: { url: '${API}/away' }, revert: { url: '${API}/job' } } }").await;
    let (_, stderr) = with_api(&world, &url, "k", "run").await;
    assert!(stderr.contains("answered 307"), "redirects are not followed: {stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_levers_are_refused_with_a_way_out() {
    for (lever, message) in [
        ("{ within: 1s }", "one of `command`, `http`, `sql`, `file`, `revert` is missing"),
        ("{ revert: nothing }", "there is no step `nothing`"),
        ("{ revert: it, file: { path: a, content: b } }", "only one of"),
        ("{ command: { apply: [], revert: [x] } }", "empty"),
        ("{ command: { apply: [x], revert: [x] } }", "`revert` does the same as `apply`"),
        ("{ sql: { on: blue, apply: select 1; select 2, revert: select 1 } }", "there are 2 statements here"),
        ("{ sql: { on: blue, apply: select 1, revert: select $previous } }", "has no value without `read`"),
        ("{ sql: { on: bleu, apply: select 1, revert: select 2 } }", "no database `bleu`"),
    ] {
        let world = one(lever).await;
        let ended = world.handover("check", &[]).await.code(2);
        assert!(format!("{}{}", ended.stdout, ended.stderr).contains(message), "{lever}: {ended}");
        world.drop_now().await;
    }
    let world = one("{ command: { apply: [x], revert: [y] } }").await;
    let ended = world.handover("check", &[]).await.success();
    assert!(format!("{}{}", ended.stdout, ended.stderr).contains("nothing proves"), "{ended}");
}
