//! What is found before a run: by the URLs and roles that it will use, said once, and as a comment on a pull request.

use crate::support::servers::{self, Database};
use crate::support::world::World;
use crate::terminal::{PLAN, TABLE, one};

/// A URL without its password.
fn without_password(url: &str) -> String {
    let mut url = url::Url::parse(url).unwrap();
    url.set_password(None).unwrap();
    url.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_asks_by_the_urls_and_as_the_roles_of_a_run() {
    let role = servers::unique("stranger");
    let plan = PLAN
        .replace("control: ${CONTROL_URL}", "control: ${CONTROL_URL}\nqueue: ${QUEUE_URL}")
        .replace("    approve: { message: go on, by: [alice] }\n", &format!(
            "    approve: {{ message: go on, by: [alice] }}\n  - id: more\n    migrate: {{ on: blue, role: {role}, dir: steps, undo: none }}\n"
        ));
    let template = Database::with(servers::blue().await, TABLE).await;
    let world = World::new(Some(&template.name), None, &plan, &[("steps/V1__one.sql", "select 1;")]).await;
    let call = async |verb: &str, variable: &str, value: &str| {
        let mut command = world.command();
        let output = command.env(variable, value).arg(verb).arg(world.plan()).output().await.unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    // What the run would meet: each URL without the password that its server asks for.
    for (variable, url) in [
        ("BLUE_URL", world.blue.handover_url()),
        ("BLUE_READER_URL", world.blue.reader_url()),
        ("CONTROL_URL", world.control.handover_url()),
        ("QUEUE_URL", world.queue.clone()),
    ] {
        let (code, text) = call("doctor", variable, &without_password(&url)).await;
        assert!(code == Some(8) && text.contains("password"), "{variable}: {text}");
    }
    // A role that the step's files run as, and that the plan's role may not become.
    let (code, text) = call("doctor", "WORLD", "").await;
    assert!(code == Some(8) && text.contains(&format!("step `more`: there is no role {role}")), "{text}");
    let admin = world.blue.admin().await;
    admin.batch_execute(&format!("create role {role}")).await.unwrap();
    for verb in ["doctor", "dry-run"] {
        let (code, text) = call(verb, "WORLD", "").await;
        assert!(code == Some(8) && text.contains(&format!("may not become {role}")), "{verb}: {text}");
        assert!(text.contains(&format!("`grant {role} to handover`")), "{verb}: {text}");
    }
    admin.batch_execute(&format!("grant {role} to handover")).await.unwrap();
    let (code, text) = call("doctor", "WORLD", "").await;
    assert_eq!(code, Some(0), "{text}");
    // Sessions that a run refuses: before 15 the role cannot take its default back by itself.
    let old = Database::with(servers::oldest().await, TABLE).await;
    let default = format!("alter role handover in database {}", old.name);
    let old_admin = old.admin().await;
    old_admin.batch_execute(&format!("{default} set session_replication_role = replica")).await.unwrap();
    for verb in ["doctor", "run"] {
        let mut command = world.command();
        command.env("BLUE_URL", old.handover_url()).env("BLUE_READER_URL", old.reader_url());
        let output = command.arg(verb).arg(world.plan()).output().await.unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(text.contains("session_replication_role = replica"), "{verb}: {text}");
    }
    // A schema that a run takes for somebody else's.
    admin.batch_execute("create schema handover create table theirs (id int)").await.unwrap();
    let (code, text) = call("doctor", "WORLD", "").await;
    assert!(code == Some(8) && text.contains("Handover did not make it"), "{text}");
    admin.batch_execute(&format!("drop role {role}")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_an_earlier_step_is_said_once() {
    let mut plan =
        one("migrate: { on: blue, role: app, dir: steps, undo: none }").replace("id: step", "id: tables");
    for n in 1..=12 {
        plan.push_str(&format!(
            "  - id: index-{n}\n    create_index: {{ on: blue, indexes: [{{ name: i{n}, table: t{n}, columns: [id] }}] }}\n"
        ));
    }
    let template = Database::with(servers::blue().await, TABLE).await;
    let tables: Vec<String> = (1..=12).map(|n| format!("create table t{n} (id int);")).collect();
    let world =
        World::new(Some(&template.name), None, &plan, &[("steps/V1__t.sql", &tables.join("\n"))]).await;
    let look = world.handover("dry-run", &[]).await.success();
    let said = "12 things of 12 later steps can be looked at only once step `tables` has run";
    assert_eq!(look.stdout.matches(said).count(), 1, "{look}");
    assert!(!look.stdout.contains("there is no table t7"), "{look}");
    assert!(look.stdout.contains("0 blockers, 1 warning"), "{look}");
    let whole = world.handover("dry-run", &["--verbose"]).await.success();
    assert!(whole.stdout.contains("t7") && !whole.stdout.contains(said), "{whole}");
    // As a comment on a pull request.
    let comment = world.handover("dry-run", &["--format", "md"]).await.success();
    assert!(comment.stdout.starts_with("### Handover: `one` ✅ can run"), "{comment}");
    assert!(comment.stdout.contains(&format!("> ℹ️ {said}")), "{comment}");
    assert!(
        comment
            .stdout
            .contains("| 1 | tables ⚠️ **point of no return** | `migrate`: 1: steps/V1\\_\\_t.sql: in one"),
        "{comment}"
    );
    assert!(
        comment.stdout.contains("| 13 | index-12 | `create_index`: looked at after `tables` |"),
        "{comment}"
    );
    let (_, folded) = comment.stdout.split_once("<details>").unwrap();
    assert!(
        folded.contains("```text\nDry run of plan") && folded.trim_end().ends_with("</details>"),
        "{comment}"
    );
    // Where it cannot run, the comment says so first, and why.
    world.write(
        "plan.yaml",
        &one("create_index: { on: blue, indexes: [{ name: i, table: token, columns: [sbject] }] }"),
    );
    let comment = world.handover("dry-run", &["--format", "md"]).await.code(8);
    assert!(comment.stdout.starts_with("### Handover: `one` ❌ cannot run"), "{comment}");
    assert!(comment.stdout.contains("> ❌ step `step`: "), "{comment}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_copy_leaves_out_and_the_freeze_does_not_is_named() {
    let plan = "
handover: 1
name: left
databases: { blue: '${BLUE_URL}', green: '${GREEN_URL}' }
control: ${CONTROL_URL}
steps:
  - id: copy
    copy: { from: blue, to: green, include: { tables: [token] } }
  - id: flip
    cutover: { freeze: blue, to: green, participants: [{ name: a, file: { path: a.conf, content: b } }] }
";
    let template = Database::with(servers::blue().await, TABLE).await;
    let world = World::new(Some(&template.name), None, plan, &[("a.conf", "")]).await;
    for n in 1..=9 {
        world.blue.execute(&format!("create table other_{n} (id int primary key)")).await;
    }
    let look = world.handover("dry-run", &[]).await;
    let line = look.stdout.lines().find(|line| line.contains("left out of the copy")).unwrap_or_default();
    assert!(line.contains("other_1, ") && line.contains("and 4 more") && !line.contains("token"), "{look}");
    world
        .blue
        .execute("drop table other_2, other_3, other_4, other_5, other_6, other_7, other_8, other_9")
        .await;
    world.write("plan.yaml", &plan.replace("participants", "except: [other_1], participants"));
    let look = world.handover("dry-run", &[]).await;
    assert!(!look.stdout.contains("left out of the copy"), "{look}");
}
