//! What goes wrong around a run: each a clear error with a next step, blue serving throughout, and a way on.

use crate::support::servers::{self, Database};
use crate::support::world::World;
use handover_lab::{PostgresOptions, PostgresServer};
use std::time::Duration;

const PLAN: &str = "
handover: 1
name: bad
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
  - id: subject
    retry: { attempts: 1 }
    create_index: { on: blue, indexes: [{ name: token_subject, table: token, columns: [subject] }, { name: token_live, table: token, columns: [id], where: active }] }
";

const TABLE: &str = "create table token (id int primary key, subject text, active bool);
    insert into token select n, 's' || n % 10, n % 3 = 0 from generate_series(1, 1000) n;";

async fn world() -> World {
    let template = Database::with(servers::blue().await, TABLE).await;
    World::new(Some(&template.name), None, PLAN, &[]).await
}

/// Runs with one variable changed and expects a code and some words; blue serves afterwards.
async fn fails(world: &World, variable: &str, value: &str, code: i32, words: &[&str]) {
    let mut command = world.command();
    command.env(variable, value).arg("run").arg(world.plan());
    let output = tokio::time::timeout(Duration::from_secs(60), command.output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    for word in words.iter().chain(&["next: "]) {
        assert!(text.contains(word), "{word}: {text}");
    }
    serves(&world.blue).await;
}

/// The application writes.
async fn serves(blue: &Database) {
    blue.execute("set statement_timeout = '5s'; insert into token (id) select max(id) + 1 from token").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password() {
    let world = world().await;
    let url = world.blue.handover_url().replacen("handover:", "handover:wrong", 1);
    fails(
        &world,
        "BLUE_URL",
        &url,
        1,
        &["database blue", "password authentication failed", "check user and password"],
    )
    .await;
    let url = world.control.handover_url().replacen("handover:", "handover:wrong", 1);
    fails(&world, "CONTROL_URL", &url, 1, &["database control", "password authentication failed"]).await;
    world.handover("run", &[]).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there() {
    let world = world().await;
    // Nobody listens on the discard port.
    let nobody = "postgres://handover:secret@127.0.0.1:9/nobody";
    fails(&world, "BLUE_URL", nobody, 1, &["database blue", "no connection", "see that the server is up"])
        .await;
    fails(&world, "CONTROL_URL", nobody, 1, &["database control", "no connection"]).await;
    let name = "postgres://handover:secret@no-such-host.invalid/nobody";
    fails(&world, "BLUE_URL", name, 1, &["database blue", "no connection"]).await;
    let absent = world.blue.handover_url().replace(&world.blue.name, "no_such_database");
    fails(&world, "BLUE_URL", &absent, 1, &["no_such_database", "create the database"]).await;
    world.handover("run", &[]).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_privilege() {
    let world = world().await;
    let admin = world.blue.admin().await;
    admin
        .batch_execute("create role keeper; alter table token owner to keeper; grant all on token to app")
        .await
        .unwrap();
    let ended = world.handover("run", &[]).await.code(1);
    assert!(ended.stderr.contains("must be owner of table token"), "{ended}");
    assert!(ended.stderr.contains("next: run scripts/grants.sql"), "{ended}");
    let doctor = world.handover("doctor", &[]).await.code(8);
    assert!(doctor.stdout.contains("lacks membership in keeper"), "{doctor}");
    serves(&world.blue).await;
    admin.batch_execute("grant keeper to handover").await.unwrap();
    world.handover("resume", &[]).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_is_lost_when_a_step_ends() {
    lose_the_journal(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_is_lost_inside_a_long_step() {
    lose_the_journal(true).await;
}

/// Kills the control server during a run. With `inside`, the step is still at work when the lease runs out.
async fn lose_the_journal(inside: bool) {
    let world = world().await;
    let server: &'static PostgresServer = Box::leak(Box::new(servers::own_green().await));
    let control = Database::create(server, None).await;
    let command = |verb: &str| {
        let mut command = world.command();
        command.env("CONTROL_URL", control.handover_url()).arg(verb).arg(world.plan());
        if verb != "status" {
            command.args(["--lease-ttl", "4s"]);
        }
        command
    };
    // An old transaction holds the index build up, so that the server dies inside the step.
    let mut admin = world.blue.admin().await;
    let old = admin.transaction().await.unwrap();
    old.query("select count(*) from token", &[]).await.unwrap();
    let run = tokio::spawn(command("run").output());
    let probe = world.blue.admin().await;
    let waiting = "select 1 from pg_stat_progress_create_index
        where phase like 'waiting%' and datname = current_database()";
    while probe.query_opt(waiting, &[]).await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.kill().await.unwrap();
    serves(&world.blue).await;
    let mut old = Some(old);
    if !inside {
        old.take().unwrap().commit().await.unwrap();
    }
    let output = tokio::time::timeout(Duration::from_secs(60), run).await.unwrap().unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{text}");
    for words in ["the journal cannot be written or read", "next: ", "bring the control database back"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    serves(&world.blue).await;
    drop(old);
    let lost = command("status").output().await.unwrap();
    let text = String::from_utf8_lossy(&lost.stderr).into_owned();
    assert!(text.contains("database control") && text.contains("next: "), "{text}");
    server.start_again().await.unwrap();
    let output = command("resume").args(["--wait", "20s"]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let indexes = "select count(*) from pg_index where indrelid = 'token'::regclass and indisvalid";
    assert_eq!(world.blue.value(indexes).await.as_deref(), Some("3"));
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk() {
    let options = PostgresOptions::new(servers::programs().await.green.clone()).limited_space(48 << 20);
    let server: &'static PostgresServer = Box::leak(Box::new(PostgresServer::start(options).await.unwrap()));
    let full = Database::with(server, TABLE).await;
    full.execute(
        "insert into token select n, repeat(md5(n::text), 4), true from generate_series(1001, 120000) n",
    )
    .await;
    let world = world().await;
    let mut command = world.command();
    command.env("BLUE_URL", full.handover_url()).arg("run").arg(world.plan());
    let output = command.output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("No space left on device"), "{text}");
    assert!(text.contains("next: the server's disk is full: free space or enlarge it"), "{text}");
    serves(&world.blue).await;
    // Somebody makes room.
    full.execute("truncate token").await;
    let mut command = world.command();
    command.env("BLUE_URL", full.handover_url()).arg("resume").arg(world.plan());
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_plan_on_resume() {
    let world = world().await;
    world.handover_failing("create_index.built", "run", &[]).await.killed();
    world.write("plan.yaml", &PLAN.replace("where: active", "where: not active"));
    let ended = world.handover("resume", &["--format", "json"]).await.code(6);
    let error: serde_json::Value = serde_json::from_str(ended.stderr.trim()).unwrap();
    assert_eq!(error["error"]["class"], "changed");
    assert!(error["error"]["next"].as_str().unwrap().contains("--accept-changes"), "{error}");
    world.write("plan.yaml", PLAN);
    world.handover("resume", &[]).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_migration() {
    let world = world().await;
    world.write(
        "plan.yaml",
        "
handover: 1
name: bad
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
  - id: migrate
    retry: { attempts: 1 }
    migrate: { on: blue, role: app, dir: steps, undo: none }
",
    );
    world.write("steps/V1__note.sql", "alter table token add column note text;");
    world.write(
        "steps/V2__broken.sql",
        "alter table token add column kind text;\nupdate tokn set kind = 'x';",
    );
    let ended = world.handover("run", &[]).await.code(1);
    for words in ["step `migrate` on blue", "V2__broken.sql", "tokn", "next: "] {
        assert!(ended.stderr.contains(words), "{words}: {ended}");
    }
    serves(&world.blue).await;
    // The first stays, of the second nothing does.
    let columns = "select string_agg(attname, ' ' order by attnum) from pg_attribute
        where attrelid = 'token'::regclass and attnum > 3";
    assert_eq!(world.blue.value(columns).await.as_deref(), Some("note"));
    world.write(
        "steps/V2__broken.sql",
        "alter table token add column kind text;\nupdate token set kind = 'x';",
    );
    world.handover("resume", &[]).await.code(6);
    world.handover("resume", &["--accept-changes"]).await.success();
    assert_eq!(world.blue.value(columns).await.as_deref(), Some("note kind"));
}
