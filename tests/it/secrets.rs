//! What must not be seen: other people's values, and passwords in whatever form.

use crate::support::servers::{self, Database};
use crate::support::world::World;

fn plan(step: &str) -> String {
    format!(
        "
handover: 1
name: discreet
databases: {{ blue: '${{BLUE_URL}}' }}
control: ${{CONTROL_URL}}
steps:
  - id: only
    retry: {{ attempts: 1 }}
    {step}
"
    )
}

const TABLE: &str = "create table token (id int primary key, subject text);";

async fn world(step: &str) -> World {
    let template = Database::with(servers::blue().await, TABLE).await;
    World::new(
        Some(&template.name),
        None,
        &plan(step),
        &[("sql/1.sql", "alter table token add column x int;")],
    )
    .await
}

/// A URL as libpq's other form.
fn keywords(url: &str) -> String {
    let url = url::Url::parse(url).unwrap();
    format!(
        "host={} port={} user={} password={} dbname={}",
        url.host_str().unwrap(),
        url.port().unwrap(),
        url.username(),
        url.password().unwrap(),
        url.path().trim_start_matches('/')
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_gets_what_the_plan_gives_it() {
    let world = world(
        "lever: { command: { apply: [sh, -c, 'env > seen'], revert: ['true'], env: { GIVEN: 'x ${OWN}' } } }",
    )
    .await;
    let mut command = world.command();
    command.env("OWN", "mine").env("TZ", "Europe/Paris").arg("run").arg(world.plan());
    assert!(command.status().await.unwrap().success());
    let seen = std::fs::read_to_string(world.path("seen")).unwrap();
    assert!(seen.contains("GIVEN=x mine") && seen.contains("TZ=Europe/Paris"), "{seen}");
    // The last three are the shell's own.
    let known = [
        "PATH",
        "HOME",
        "LANG",
        "TZ",
        "GIVEN",
        "HANDOVER_ACT",
        "HANDOVER_SEQUENCE",
        "PWD",
        "OLDPWD",
        "SHLVL",
        "_",
    ];
    for line in seen.lines() {
        let name = line.split('=').next().unwrap();
        assert!(known.contains(&name), "{line}");
    }
}

/// pg_dump and psql, each with a program before it that notes its environment.
#[tokio::test(flavor = "multi_thread")]
async fn the_servers_programs_get_what_they_need_and_nothing_else() {
    use std::os::unix::fs::PermissionsExt;
    let blue = Database::with(servers::blue().await, "create table token (id int primary key)").await;
    let plan = "
handover: 1
name: programs
databases: { blue: '${BLUE_URL}', green: '${GREEN_URL}' }
control: ${CONTROL_URL}
steps:
  - id: copy
    copy: { from: blue, to: green, programs: FOLDER }
  - id: follow
    replicate: { from: blue, to: green, programs: FOLDER }
";
    let world = World::new(Some(&blue.name), None, plan, &[]).await;
    let folder = world.path("programs");
    world.write("plan.yaml", &plan.replace("FOLDER", &folder.display().to_string()));
    for name in ["pg_dump", "psql"] {
        let real = world.green.server.programs().program(name);
        let script =
            format!("#!/bin/sh\nenv >> {}/{name}.env\nexec {} \"$@\"\n", folder.display(), real.display());
        let file = world.write(&format!("programs/{name}"), &script);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = world.command();
    for (name, value) in [
        ("PGOPTIONS", "-c search_path=hostile"),
        ("PGSSLMODE", "verify-full"),
        ("PGSERVICE", "nobody"),
        ("PGHOST", "db.invalid"),
        ("API_TOKEN", "hunter2hunter2"),
    ] {
        command.env(name, value);
    }
    let output = command.arg("run").arg(world.plan()).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for name in ["pg_dump", "psql"] {
        let seen = std::fs::read_to_string(folder.join(format!("{name}.env"))).unwrap();
        assert!(seen.contains("PGPASSWORD=") && seen.contains("PATH="), "{name}: {seen}");
        for word in ["hostile", "verify-full", "nobody", "db.invalid", "hunter2", "CONTROL_URL", "WORLD="] {
            assert!(!seen.contains(word), "{name} was given {word}: {seen}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_known_in_every_form() {
    let world = world("lever: { command: { apply: [sh, -c, 'echo \"it was ${PASSED##*password=}\" >&2; exit 4'], revert: ['true'], env: { PASSED: '${PASSED}' } } }").await;
    let url = keywords(&world.blue.handover_url());
    let password = url.split("password=").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let mut command = world.command();
    command.env("BLUE_URL", &url).env("PASSED", &url).arg("run").arg(world.plan());
    let output = command.output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let journal =
        world.control.value("select string_agg(record::text, ' ') from handover.record").await.unwrap();
    assert!(text.contains("it was ") && journal.contains("it was "), "{text}");
    assert!(!text.contains(&password) && !journal.contains(&password), "{text} {journal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_of_others_are_shown_without_their_values() {
    let world = world("migrate: { on: blue, dir: sql, lock_timeout: 900ms, undo: none }").await;
    let mut admin = world.blue.admin().await;
    let other = admin.transaction().await.unwrap();
    other
        .batch_execute(
            "lock table token in access share mode; select 4711471147, 'hunter2hunter2' from token",
        )
        .await
        .unwrap();
    // It waits for the lock, says for whom, and goes on when it is free.
    let (ended, ()) = tokio::join!(world.handover("run", &[]), async {
        tokio::time::sleep(std::time::Duration::from_secs(4)).await;
        other.rollback().await.unwrap();
    });
    let events = world.handover("events", &["--format", "json"]).await;
    let all = format!("{ended}{events}");
    assert!(all.contains("lock table token"), "{all}");
    assert!(!all.contains("hunter2") && !all.contains("4711471147"), "{all}");
}
