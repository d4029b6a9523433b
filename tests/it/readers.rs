//! Where the URLs lead: readers are for looking and decide nothing, and what was reviewed is what is touched.

use crate::support::servers::{self, Database};
use crate::support::standby::Standby;
use crate::support::world::World;
use handover::postgres::{Lease, connect};
use handover::value::Secret;

const PLAN: &str = "
handover: 1
name: readers
databases:
  blue: { url: '${BLUE_URL}', reader: '${BLUE_READER_URL}' }
control: ${CONTROL_URL}
steps:
  - id: index
    create_index: { on: blue, indexes: [{ name: token_subject, table: token, columns: [subject] }] }
  - id: clean
    cleanup: { on: blue, table: token, where: not active, action: quarantine }
  - id: clean-again
    cleanup: { on: blue, table: token, where: id > 20, action: quarantine }
  - id: back
    restore: { from: { quarantine: clean-again }, to: blue, table: token, where: id <= 30 }
";

const TABLE: &str = "create table token (id int primary key, subject text, active bool);
    insert into token select n, 's' || n % 10, n % 3 <> 0 from generate_series(1, 60) n;";

#[tokio::test(flavor = "multi_thread")]
async fn a_lagging_standby_decides_nothing_and_works_for_looking() {
    let server = Box::leak(Box::new(servers::own_blue().await));
    let blue = Database::with(server, TABLE).await;
    let standby = Standby::start(server, "1h").await;
    let world = World { blue, ..World::new(None, None, PLAN, &[]).await };
    let reader = standby.instead(&world.blue.reader_url());
    let handover = async |verb: &str, writer: &str| {
        let mut command = world.command();
        command.env("BLUE_READER_URL", &reader).env("BLUE_URL", writer).arg(verb).arg(world.plan());
        let output = command.output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let (own, lead_away) = (world.blue.handover_url(), standby.instead(&world.blue.handover_url()));

    let (code, text) = handover("doctor", &own).await;
    assert!(code == Some(0) && text.contains("the reader of blue looks at a standby"), "{text}");
    let (code, text) = handover("dry-run", &own).await;
    assert!(code == Some(0) && text.contains("the reader of blue looks at a standby"), "{text}");

    // What works must not lead to a standby, and nothing is left by an attempt.
    let (code, text) = handover("run", &lead_away).await;
    assert!(code == Some(2) && text.contains("`databases.blue` leads to a standby"), "{text}");
    let (code, text) = handover("doctor", &lead_away).await;
    assert!(code == Some(8) && text.contains("standby"), "{text}");

    // Each step looks at what it did; a standby shows none of it for an hour.
    let (code, text) = handover("run", &own).await;
    assert!(code == Some(0), "{text}");
    assert!(text.contains("looks at a standby"), "{text}");
    let left = "select count(*) from token where active and id <= 30";
    assert_eq!(world.blue.value(left).await.as_deref(), Some("20"));
    assert_eq!(world.blue.value("select count(*) from token").await.as_deref(), Some("20"));
    let (code, text) = handover("status", &own).await;
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = handover("rollback", &own).await;
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(world.blue.value("select count(*) from token").await.as_deref(), Some("60"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_another_database_is_refused() {
    let template = Database::with(servers::blue().await, TABLE).await;
    let world = World::new(Some(&template.name), None, PLAN, &[]).await;
    for elsewhere in [world.green.reader_url(), template.reader_url()] {
        for (verb, code) in [("run", 2), ("dry-run", 8)] {
            let mut command = world.command();
            command.env("BLUE_READER_URL", &elsewhere).arg(verb).arg(world.plan());
            let output = command.output().await.unwrap();
            let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{verb}: {text}");
            assert!(text.contains("`databases.blue.reader` leads to another database"), "{verb}: {text}");
        }
    }
    // A dry run needs the reader only; without the other it says that it could not compare them.
    for (works, said) in [(Some("postgres://x:y@127.0.0.1:9/z"), true), (None, false)] {
        let mut command = world.command();
        match works {
            Some(url) => command.env("BLUE_URL", url),
            None => command.env_remove("BLUE_URL"),
        };
        let output = command.arg("dry-run").arg(world.plan()).output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert_eq!(text.contains("whether blue is what its reader looks at is not known"), said, "{text}");
    }
    let ours = "select count(*) from pg_namespace where nspname = 'handover'";
    assert_eq!(world.blue.value(ours).await.as_deref(), Some("0"), "a refused run left something");
    // Nothing that acts needs it.
    let mut command = world.command();
    command.env("BLUE_READER_URL", "postgres://x:y@127.0.0.1:9/z").arg("run").arg(world.plan());
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_resume_touches_no_database() {
    let template = Database::with(servers::blue().await, TABLE).await;
    let world = World::new(Some(&template.name), None, PLAN, &[]).await;
    world.handover_failing("create_index.built", "run", &[]).await.killed();
    let text = std::fs::read_to_string(world.plan()).unwrap();
    std::fs::write(world.plan(), text.replace("[subject]", "[subject, id]")).unwrap();
    let token = "select token from handover.fence";
    let before = world.blue.value(token).await;
    // A control schema that an older version made is not upgraded either, and the lease not taken.
    let control = world.control.admin().await;
    control
        .batch_execute(
            "create table newest as select * from handover.control_history order by version desc limit 1;
             delete from handover.control_history where version = (select version from newest)",
        )
        .await
        .unwrap();
    let taken =
        "select (select token from handover.lease) || ' ' || (select count(*) from handover.control_history)";
    let of_control = world.control.value(taken).await;
    // What an earlier runner left: it is to be ended by who goes on, and by nobody else.
    let name = format!("{}1/index", Lease::application_prefix("readers"));
    let left = connect::open(&Secret::new(world.blue.handover_url()), "blue", &name).await.unwrap();
    world.handover("resume", &[]).await.code(6);
    assert_eq!(of_control, world.control.value(taken).await, "the lease was taken, or the schema upgraded");
    control.batch_execute("insert into handover.control_history select * from newest").await.unwrap();
    assert_eq!(before, world.blue.value(token).await, "the fence was moved");
    assert!(!left.is_closed() && left.query("select 1", &[]).await.is_ok(), "a connection was ended");
    // Accepted, it acts, whatever the step then makes of an index of another definition.
    world.handover("resume", &["--accept-changes"]).await;
    assert_ne!(before, world.blue.value(token).await);
    assert!(left.query("select 1", &[]).await.is_err(), "what an earlier runner left is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_looks_is_not_taken_for_who_works() {
    let template = Database::with(servers::blue().await, TABLE).await;
    let world = World::new(Some(&template.name), None, PLAN, &[]).await;
    let looks = async |verb: &str| {
        let mut command = world.command();
        let output = command.env_remove("BLUE_URL").arg(verb).arg(world.plan()).output().await.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    // On a new database, and where Handover's schema exists.
    for again in [false, true] {
        let (code, text) = looks("dry-run").await;
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("0 blockers, 0 warnings"), "{text}");
        assert!(
            text.contains("looked at as handover_reader; what the role that works may do there"),
            "{text}"
        );
        if again {
            let (code, text) = looks("status").await;
            assert!(code == Some(0) && !text.contains("belongs to the role"), "{text}");
            let (code, text) = looks("report").await;
            assert!(code == Some(0) && !text.contains("belongs to the role"), "{text}");
        } else {
            world.handover("run", &[]).await.success();
            world.handover("rollback", &[]).await.success();
        }
    }
    // What is open to everybody is so whoever works.
    let admin = world.blue.admin().await;
    admin.batch_execute("grant create on schema public to public").await.unwrap();
    let (code, text) = looks("dry-run").await;
    assert!(code == Some(0) && text.contains("everybody may create functions in schema public"), "{text}");
    // A schema that Handover did not make is somebody else's for all.
    admin
        .batch_execute("drop schema handover cascade; create schema handover create table theirs (id int)")
        .await
        .unwrap();
    let (code, text) = looks("dry-run").await;
    assert!(code == Some(8) && text.contains("Handover did not make it"), "{text}");
}

/// A plan of kinds that need rights, each looked at by readers.
const RIGHTS: &str = "
handover: 1
name: rights
databases:
  blue: { url: '${BLUE_URL}', reader: '${BLUE_READER_URL}' }
  green: { url: '${GREEN_URL}', reader: '${GREEN_READER_URL}' }
control: ${CONTROL_URL}
queue: ${QUEUE_URL}
steps:
  - id: capture
    capture: { from: blue, tables: { token: { on: [insert, update, delete], key: [id] } } }
  - id: flip
    cutover: { freeze: blue, to: green, participants: [{ name: a, file: { path: a.conf, content: b } }] }
";

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_of_who_looks_are_not_those_of_who_works() {
    let with = format!("{TABLE} create sequence ticket; select nextval('ticket');");
    for plan in [RIGHTS.to_owned(), crate::replicate::PLAN.replace(
        "{ blue: '${BLUE_URL}', green: '${GREEN_URL}' }",
        "{ blue: { url: '${BLUE_URL}', reader: '${BLUE_READER_URL}' }, green: { url: '${GREEN_URL}', reader: '${GREEN_READER_URL}' } }",
    )] {
        let world = World::new(None, None, &plan, &[("switch.conf", ""), ("a.conf", "")]).await;
        for side in [&world.blue, &world.green] {
            side.execute(&with).await;
        }
        let blockers = async |known: bool| {
            let mut command = world.command();
            if !known {
                command.env_remove("BLUE_URL").env_remove("GREEN_URL");
            }
            let output = command.arg("dry-run").arg(world.plan()).args(["--format", "json"]).output().await.unwrap();
            let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
            let of = |of: &serde_json::Value| serde_json::from_value::<Vec<String>>(of["blockers"].clone()).unwrap();
            let mut all = of(&json);
            all.extend(json["steps"].as_array().unwrap().iter().flat_map(of));
            all
        };
        let known = blockers(true).await;
        for blocker in blockers(false).await {
            assert!(known.contains(&blocker), "{blocker}; with the working role's URLs: {known:?}");
        }
    }
}
