//! What may be set aside, that it comes back in order, and that no cutover passes over it.

use crate::capture::embedded_queue;
use crate::support::bench::Bench;
use crate::support::scenario::Scenario;
use crate::support::servers::{self, Database};
use crate::support::world::World;
use serde_json::{Value, json};
use std::time::Duration;

const PLAN: &str = "
handover: 1
name: aside
databases: { blue: '${BLUE_URL}', green: '${GREEN_URL}' }
control: ${CONTROL_URL}
queue: ${QUEUE_URL}
steps:
  - id: capture
    capture: { from: blue, tables: { account: { on: [insert, update, delete] } } }
  - id: spoil
    cleanup: { on: blue, table: account, action: update, set: { version: '13' }, where: id = 7, pause: 0ms }
  - id: later
    cleanup: { on: blue, table: account, action: update, set: { version: '2' }, where: 'id in (7, 8)', pause: 0ms }
  - id: tail
    replay:
      to: green
      caught_up: 0
      on_error: quarantine
      events:
        account:
          insert: { apply: 'insert into account values ($key.id::int, $new.version::int)' }
          update: { apply: 'update account set version = $new.version::int where id = $key.id::int' }
          delete: { apply: 'delete from account where id = $key.id::int' }
  - id: mend
    lever: { sql: { on: green, apply: 'insert into known values (13)', revert: delete from known where version = 13, check: select exists (select from known where version = 13) } }
  - id: again
    lever: { sql: { on: green, apply: update handover.event_quarantine set retry = true, revert: select 1 } }
  - id: flip
    retry: { attempts: 1 }
    cutover:
      freeze: blue
      to: green
      patience: 20s
      allow_served: true
      participants: [ { name: config, file: { path: switch.conf, content: green } } ]
";

const ROWS: &str = "
    create table known (version int primary key);
    insert into known values (0), (1), (2);
    create table account (id int primary key, version int not null, trail text not null default '');
    insert into account select n, 0 from generate_series(1, 20) n;";

/// The same, where only known versions are let in.
fn strict() -> String {
    format!("{ROWS} alter table account add foreign key (version) references known;")
}

pub fn scenario() -> Scenario {
    Scenario {
        prefixes: &["quarantine"],
        plan: PLAN,
        files: &[("switch.conf", "blue")],
        blue: ROWS,
        green: Box::leak(strict().into_boxed_str()),
        lossy: true,
        rollback_restores: false,
        ..Scenario::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cutover_refuses_what_was_set_aside_until_it_is_settled_or_allowed() {
    let blue = Database::with(servers::blue().await, ROWS).await;
    let green = Database::with(servers::green().await, &strict()).await;
    // Each value is kept, so that their order shows.
    let plan =
        PLAN.replace("$new.version::int where", "$new.version::int, trail = trail || $new.version where");
    let (head, tail) = plan.split_at(plan.find("  - id: mend").unwrap());
    let flip = &tail[tail.find("  - id: flip").unwrap()..];
    let world =
        World::new(Some(&blue.name), Some(&green.name), &format!("{head}{flip}"), &[("switch.conf", "blue")])
            .await;
    let refused = world.handover("run", &[]).await.code(8);
    for text in [
        "2 captured events are set aside",
        "account {\"id\":7} (2 events)",
        "from handover.event_quarantine",
        "set retry = true",
        "allow_quarantined",
    ] {
        assert!(refused.stderr.contains(text), "{text}: {refused}");
    }
    world.blue.execute("update account set version = 1 where id = 1").await;
    assert_eq!(std::fs::read_to_string(world.path("switch.conf")).unwrap(), "blue");
    // Asked for too early, it is refused again, and the wish is spent.
    let ask = "update handover.event_quarantine set retry = true";
    let admin = world.green.admin().await;
    admin.batch_execute(ask).await.unwrap();
    let refused = world.handover("resume", &[]).await.code(8);
    assert!(refused.stderr.contains("2 captured events are set aside"), "{refused}");
    let asked = "select count(*) from handover.event_quarantine where retry";
    assert_eq!(world.green.value(asked).await.unwrap(), "0");
    // One too many is one too many.
    for (allowed, passes) in [("1", false), ("2", true)] {
        world.write(
            "plan.yaml",
            &format!(
                "{head}{}",
                flip.replace("patience: 20s", &format!("patience: 20s\n      allow_quarantined: {allowed}"))
            ),
        );
        if passes {
            break;
        }
        world.handover("resume", &["--accept-changes"]).await.code(8);
    }
    // The cause mended, both are tried again in their order, and counted as applied.
    admin.batch_execute("insert into known values (13)").await.unwrap();
    admin.batch_execute(ask).await.unwrap();
    world.write("plan.yaml", &format!("{head}{flip}"));
    world.handover("resume", &["--accept-changes"]).await.success();
    assert_eq!(world.green.value("select trail from account where id = 7").await.unwrap(), "132");
    assert_eq!(world.green.value("select count(*) from handover.event_quarantine").await.unwrap(), "0");
    let counts = "select sum(applied) || '/' || sum(quarantined) from handover.replay";
    assert_eq!(world.green.value(counts).await.unwrap(), "4/0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cutover_passes_over_as_many_as_the_plan_allows() {
    let blue = Database::with(servers::blue().await, ROWS).await;
    let green = Database::with(servers::green().await, &strict()).await;
    let (head, tail) = PLAN.split_at(PLAN.find("  - id: mend").unwrap());
    let flip = tail[tail.find("  - id: flip").unwrap()..].replace("patience: 20s", "allow_quarantined: 2");
    let world =
        World::new(Some(&blue.name), Some(&green.name), &format!("{head}{flip}"), &[("switch.conf", "blue")])
            .await;
    world.handover("run", &[]).await.success();
    assert_eq!(world.green.value("select count(*) from handover.event_quarantine").await.unwrap(), "2");
}

fn steps() -> Vec<(&'static str, &'static str, Value)> {
    let capture =
        json!({ "from": "blue", "tables": { "account": { "on": ["insert", "update", "delete"] } } });
    let replay = json!({ "to": "green", "caught_up": 0, "on_error": "quarantine", "on_missing": "quarantine", "events": { "account": {
        "insert": { "apply": "insert into account (id, version) values ($key.id::int, $new.version::int)" },
        "update": { "apply": "update account set version = $new.version::int where id = $key.id::int" },
        "delete": { "apply": "delete from account where id = $key.id::int" }
    } } });
    vec![("capture", "capture", capture), ("tail", "replay", replay)]
}

const SET_ASIDE: &str = "select count(*) from handover.event_quarantine";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_and_a_timeout_are_not_about_data() {
    let world = Bench::new(ROWS, ROWS, &embedded_queue().await, &steps()).await;
    world
        .green
        .execute(
            "create function slow() returns trigger language plpgsql as
               $$ begin if new.version = 13 then perform pg_sleep(0.6); end if; return new; end $$;
             create trigger slow before update on account for each row execute function slow()",
        )
        .await;
    world.run("capture").await.unwrap();
    world
        .blue
        .execute(
            "update account set version = 13 where id = 7; update account set version = 2 where id in (7, 8)",
        )
        .await;
    let admin = world.green.admin().await;
    let cancel = async {
        let mut cancelled = 0;
        while cancelled < 3 {
            let rows = admin
                .query(
                    "select pg_cancel_backend(pid) from pg_stat_activity
                     where datname = current_database() and state = 'active' and query like 'update account%'",
                    &[],
                )
                .await
                .unwrap();
            cancelled += rows.len();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let (counts, ()) = tokio::join!(world.run("tail"), cancel);
    let counts = counts.unwrap();
    assert_eq!((&counts["quarantined"], &counts["applied"]), (&json!(0), &json!(3)), "{counts}");
    assert_eq!(world.green.value("select sum(version) from account").await.unwrap(), "4");
    world.undo("tail").await.unwrap();
    world.undo("capture").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_privilege_or_table_halts_and_an_exception_is_set_aside() {
    for (break_it, mend, sqlstate) in [
        ("create function broken() returns trigger language plpgsql as $$ begin perform pg_ls_dir('.'); return new; end $$;
          create trigger broken before update on account for each row execute function broken()", "drop trigger broken on account", "42501"),
        ("create function broken() returns trigger language plpgsql as $$ begin insert into gone values (1); return new; end $$;
          create trigger broken before update on account for each row execute function broken()", "drop trigger broken on account", "42P01"),
    ] {
        let world = Bench::new(ROWS, ROWS, &embedded_queue().await, &steps()).await;
        world.green.execute(break_it).await;
        world.run("capture").await.unwrap();
        world.blue.execute("update account set version = 1 where id = 7").await;
        let error = world.run("tail").await.unwrap_err();
        assert!(error.message().contains(sqlstate) && error.message().contains("update of account"), "{error}");
        assert_eq!(world.green.value(SET_ASIDE).await.unwrap(), "0");
        world.green.execute(mend).await;
        let counts = world.run("tail").await.unwrap();
        assert_eq!((&counts["quarantined"], &counts["applied"]), (&json!(0), &json!(1)), "{counts}");
        world.undo("tail").await.unwrap();
        world.undo("capture").await.unwrap();
    }
    let world = Bench::new(ROWS, ROWS, &embedded_queue().await, &steps()).await;
    world
        .green
        .execute(
            "create function refuse() returns trigger language plpgsql as
               $$ begin if new.version = 13 then raise exception 'no thirteen: %', new.id; end if; return new; end $$;
             create trigger refuse before update on account for each row execute function refuse()",
        )
        .await;
    world.run("capture").await.unwrap();
    world
        .blue
        .execute("update account set version = 13 where id = 7; update account set version = 2 where id = 8")
        .await;
    let counts = world.run("tail").await.unwrap();
    assert_eq!((&counts["quarantined"], &counts["applied"]), (&json!(1), &json!(1)), "{counts}");
    // What it raised may hold what is in the row.
    let reason = world.green.value("select reason from handover.event_quarantine").await.unwrap();
    assert!(reason.contains("function refuse raised an error") && !reason.contains("thirteen"), "{reason}");
    world.undo("tail").await.unwrap();
    world.undo("capture").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_the_plan_says_nothing_of_halts() {
    // A changed key is a delete and an insert, whatever `on` says.
    let capture = json!({ "from": "blue", "tables": { "account": { "on": ["update"] } } });
    let mut steps = steps();
    steps[0].2 = capture;
    steps[1].2["events"]["account"].as_object_mut().unwrap().remove("delete");
    let world = Bench::new(ROWS, ROWS, &embedded_queue().await, &steps).await;
    world.run("capture").await.unwrap();
    world.blue.execute("update account set id = 70 where id = 7").await;
    let error = world.run("tail").await.unwrap_err();
    assert!(error.message().contains("the plan does not say what it means"), "{error}");
    assert_eq!(world.green.value(SET_ASIDE).await.unwrap(), "0");
    world.undo("capture").await.unwrap();
}
