//! A kind in one file and one line: every command knows it, and it stands the crash proof.

use crate::support::scenario::Scenario;
use crate::support::servers::{self, Database};
use crate::support::world::{World, example_program};

const PLAN: &str = "
handover: 1
name: toy
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
  - id: hello
    greet: { on: blue, table: greeting, names: [Ada, Grace, Barbara] }
";

const BLUE: &str = "create table greeting (name text primary key); insert into greeting values ('Emmy')";

#[tokio::test(flavor = "multi_thread")]
async fn it_survives_what_every_kind_survives() {
    Scenario {
        own: &["greet.greeted", "greet.undo-taken-back"],
        example: Some("toy_kind"),
        plan: PLAN,
        blue: BLUE,
        rollback_restores: true,
        ..Scenario::default()
    }
    .prove()
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_knows_it() {
    let blue = Database::with(servers::blue().await, BLUE).await;
    let mut world = World::new(Some(&blue.name), None, PLAN, &[]).await;
    // The program as it is knows nothing of it.
    let refused = world.handover("check", &[]).await.code(2);
    assert!(refused.stderr.contains("`greet` is neither a step kind nor"), "{refused}");
    world.program = example_program("toy_kind");
    world.handover("check", &[]).await.success();
    let said = world.handover("dry-run", &[]).await.success();
    assert!(
        said.stdout.contains(r#"insert into "public"."greeting" (name) values ($1), with Ada"#),
        "{said}"
    );
    let said = world.handover("doctor", &[]).await;
    assert!(said.stdout.contains("step `hello`: no program is needed for greetings"), "{said}");
    let said = world.handover("run", &[]).await.success();
    let table = ["name     letters", "Ada            3", "Grace          5", "Barbara        7"];
    assert!(said.stdout.contains(&table.map(|line| format!("           {line}\n")).concat()), "{said}");
    for (format, row) in [
        ("text", "\n      Grace          5\n"),
        ("md", "\n| Grace | 5 |\n"),
        ("html", "<tr><td>Grace</td><td class=\"number\">5</td></tr>"),
        ("json", "[\"Grace\",5]"),
    ] {
        let said = world.handover("report", &["--format", format]).await.success();
        assert!(said.stdout.contains(row), "{said}");
    }
    let said = world.handover("status", &[]).await.success();
    assert!(said.stdout.contains("hello") && said.stdout.contains("greet"), "{said}");
    let schema = world.command().arg("schema").output().await.unwrap();
    assert!(String::from_utf8_lossy(&schema.stdout).contains("Inserts names into a table."));
    world.write("plan.yaml", &PLAN.replace("[Ada, Grace, Barbara]", "[]"));
    let refused = world.handover("check", &[]).await.code(2);
    assert!(refused.stderr.contains("there is nobody to greet"), "{refused}");
}
