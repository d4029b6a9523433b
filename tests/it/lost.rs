//! A rollback past a cutover without a stream back: what it loses is counted and told first, and written to files on
//! request; and it does not need the side that is gone.

use crate::cutover::{BLUE, GREEN, PLAN};
use crate::support::proxy::Proxy;
use crate::support::scenario::Scenario;
use crate::support::servers::{self, Database};
use crate::support::world::{Ended, World};
use futures_util::SinkExt;
use serde_json::Value;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const FILES: &[(&str, &str)] = &[("switch.conf", "database = blue\n")];

pub fn scenario() -> Scenario {
    Scenario { prefixes: &["lost"], exports: true, ..crate::cutover::scenario() }
}

/// The plan with nobody but the application that writes to green.
fn plan() -> String {
    let (before, participants) = PLAN.split_once("        - name: registry").unwrap();
    let (_, service) = participants.split_once("        - name: service").unwrap();
    format!("{before}        - name: service{service}")
}

async fn world(plan: &str) -> World {
    let blue = Database::with(servers::blue().await, BLUE).await;
    let green = Database::with(servers::green().await, GREEN).await;
    World::new(Some(&blue.name), Some(&green.name), plan, FILES).await
}

/// The application on green: five inserts, three updates, two deletes, and a transaction that comes to nothing.
async fn write(world: &World) {
    world
        .green
        .execute(
            "insert into token (id, active) select n, true from generate_series(9001, 9005) n;
             update token set active = false where id between 10 and 12;
             delete from token where id in (20, 21)",
        )
        .await;
    let client = world.green.admin().await;
    client
        .batch_execute("begin; delete from token where id > 50; insert into registry values ('x'); rollback")
        .await
        .unwrap();
    drop(client);
    // A server counts what a session wrote when it ends at the latest.
    tokio::time::sleep(Duration::from_secs(1)).await;
}

fn read(world: &World, name: &str) -> String {
    std::fs::read_to_string(world.path(name)).unwrap()
}

/// What the undo of the cutover said in the journal.
async fn undone(world: &World) -> Value {
    let text = world
        .control
        .value(
            "select record -> 'summary' from handover.record
             where record ->> 'record' = 'undo_done' and record ->> 'step' = 'flip' order by seq desc limit 1",
        )
        .await
        .unwrap();
    serde_json::from_str(&text).unwrap()
}

fn said(ended: &Ended) -> String {
    ended.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_lost_is_told_by_table_before_anything_is_done() {
    let world = world(&plan()).await;
    world.handover("run", &[]).await.success();
    let refused = said(&world.handover("rollback", &[]).await.code(2));
    assert!(refused.contains("no row there shows that it was inserted or updated since"), "{refused}");
    write(&world).await;
    let refused = said(&world.handover("rollback", &[]).await.code(2));
    assert!(refused.contains("at least 8 rows inserted or updated in token (8)"), "{refused}");
    assert!(refused.contains("deletes as its server counts them"), "{refused}");
    assert!(refused.contains("table rows written inserted updated deleted known by"), "{refused}");
    assert_eq!(read(&world, "switch.conf"), "database = green\n");
    let json = world.handover("rollback", &["--format", "json"]).await.code(2);
    let loss = json.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let loss = loss.into_iter().find(|event| event["event"] == "loss").unwrap_or_else(|| panic!("{json}"));
    let token = &loss["detail"]["tables"][0];
    assert_eq!(
        (&token["table"], &token["rows"], &token["how"]),
        (&"token".into(), &8.into(), &"rows".into())
    );
    // The server also counts what was rolled back.
    assert_eq!(token["operations"][1], 3, "{token}");
    assert!(token["operations"][2].as_i64() >= Some(2), "{token}");
    assert_eq!(loss["detail"]["exact"], false);

    let ended = said(&world.handover("rollback", &["--accept-loss"]).await.success());
    assert!(ended.contains("lost: at least 8 rows inserted or updated in token (8)"), "{ended}");
    let summary = undone(&world).await;
    assert_eq!(summary["lost"]["tables"][0]["rows"], 8, "{summary}");
    assert_eq!(summary["table"]["rows"][0][0], "token", "{summary}");
    world.blue.execute("insert into token (active) values (false)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_table_is_searched_stretch_by_stretch() {
    let world = world(&plan()).await;
    // 80 MB: more than two stretches.
    world
        .green
        .execute("create table large (id int, text text); insert into large select n, repeat('x', 1000) from generate_series(1, 70000) n")
        .await;
    world.handover("run", &[]).await.success();
    world
        .green
        .execute("insert into large values (0, ''); update large set text = 'y' where id in (1, 35000, 70000); delete from large where id = 2")
        .await;
    let refused = said(&world.handover("rollback", &[]).await.code(2));
    assert!(refused.contains("at least 4 rows inserted or updated in large (4)"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_that_were_reset_are_said_to_know_nothing() {
    let world = world(&plan()).await;
    world.handover("run", &[]).await.success();
    write(&world).await;
    world.green.admin().await.batch_execute("select pg_stat_reset()").await.unwrap();
    let refused = said(&world.handover("rollback", &[]).await.code(2));
    assert!(refused.contains("at least 8 rows inserted or updated in token (8)"), "{refused}");
    assert!(refused.contains("deletes that nothing counted"), "{refused}");
    assert!(refused.contains("the statistics of green were reset since the cutover"), "{refused}");
    world.green.execute("truncate token; select lo_from_bytea(0, 'x')").await;
    let refused = said(&world.handover("rollback", &[]).await.code(2));
    assert!(refused.contains("it was emptied or rewritten since"), "{refused}");
    assert!(refused.contains("at least 1 large object made or given away there since"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_captured_on_the_new_side_is_counted_exactly() {
    let watch = "  - id: watch
    capture: { from: green, tables: { token: { on: [insert, update, delete], key: [id] } } }
  - id: flip\n";
    let world = world(&plan().replace("  - id: flip\n", watch)).await;
    world.handover("run", &[]).await.success();
    write(&world).await;
    world.green.admin().await.batch_execute("select pg_stat_reset()").await.unwrap();
    world.green.execute("update token set id = 9100 where id = 9001").await;
    let refused = said(&world.handover("rollback", &[]).await.code(2));
    assert!(refused.contains("exactly 5 inserts, 4 updates and 2 deletes of token"), "{refused}");
    assert!(refused.contains("what was captured: exact"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_plan_itself_wrote_there_is_not_called_the_application_s() {
    let world = world(PLAN).await;
    world.handover("run", &[]).await.success();
    let refused = said(&world.handover("rollback", &[]).await.code(2));
    assert!(
        refused.contains("on green since the cutover: 1 row inserted or updated in registry (1)"),
        "{refused}"
    );
    assert!(
        refused.contains("what this plan itself wrote there since is among it (participant registry)"),
        "{refused}"
    );
}

const ODD: &str = r#"create table "odd ""Näme""" (id int primary key, "a b" text, flags bool[], raw bytea, at timestamptz,
    amount numeric, doubled numeric generated always as (amount * 2) stored)"#;
const ODD_ROWS: &str = r#"insert into "odd ""Näme""" values
    (1, null, null, null, null, null), (2, '', '{}', '', 'infinity', 'NaN'),
    (3, E'two\nlines, "quoted" and \\. a', '{t,null,f}', '\x00ff0a', '2026-02-03 04:05:06.789+02', 12345678901234567890.123),
    (4, '\.', '{f}', '\x5c2e', '0044-03-15 12:00:00+00 BC', -0.0)"#;

/// Reads an exported file into an empty table like the one that it is of.
async fn read_back(world: &World, file: &Path, table: &str, columns: &str) {
    let client = world.green.admin().await;
    client.batch_execute(&format!("create table back (like {table} including all)")).await.unwrap();
    let copy = format!("copy back ({columns}) from stdin (format csv, header, encoding 'UTF8')");
    let sink = client.copy_in::<_, bytes::Bytes>(&copy).await.unwrap();
    futures_util::pin_mut!(sink);
    sink.send(std::fs::read(file).unwrap().into()).await.unwrap();
    sink.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn exported_rows_are_read_back_as_they_were() {
    let world = world(&plan()).await;
    world
        .green
        .execute(&format!(
            "{ODD}; {ODD_ROWS}; update \"odd \"\"Näme\"\"\" set \"a b\" = 'before' where id = 1"
        ))
        .await;
    world.handover("run", &[]).await.success();
    write(&world).await;
    world.green.execute("delete from \"odd \"\"Näme\"\"\" where id > 1").await;
    world.green.execute(&ODD_ROWS.replace("(1, null, null, null, null, null),", "")).await;
    let ended = world.handover("rollback", &["--accept-loss", "--export", "$WORLD/lost"]).await.success();
    assert!(said(&ended).contains("11 rows of 2 tables are in"), "{ended}");
    let manifest: Value = serde_json::from_str(&read(&world, "lost/manifest.json")).unwrap();
    assert_eq!((&manifest["complete"], &manifest["database"]), (&true.into(), &"green".into()), "{manifest}");
    let file = |table: &str| {
        let files = manifest["files"].as_array().unwrap();
        let entry =
            files.iter().find(|entry| entry["table"] == table).unwrap_or_else(|| panic!("{manifest}"));
        world.path("lost").join(entry["file"].as_str().unwrap())
    };
    let readme = read(&world, "lost/README.md");
    assert!(readme.contains("\\copy \"public\".\"token\" (\"id\", \"active\") from"), "{readme}");
    assert!(readme.contains("Not in here: rows that were deleted"), "{readme}");
    let odd = "\"odd \"\"Näme\"\"\"";
    read_back(&world, &file(odd), odd, "id, \"a b\", flags, raw, at, amount").await;
    let same = format!("select count(*) from (table back intersect select * from {odd} where id > 1) r");
    assert_eq!(world.green.value(&same).await.unwrap(), "3");
    assert_eq!(world.green.value("select count(*) from back").await.unwrap(), "3");
    world.green.execute("drop table back").await;
    read_back(&world, &file("token"), "token", "id, active").await;
    let wanted = "select string_agg(id || ' ' || active, ', ' order by id) from back";
    assert_eq!(
        world.green.value(wanted).await.unwrap(),
        "10 false, 11 false, 12 false, 9001 true, 9002 true, 9003 true, 9004 true, 9005 true"
    );
    assert_eq!(undone(&world).await["exported"], world.path("lost").to_string_lossy().as_ref());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_will_not_do_is_refused_before_anything_is_done() {
    let world = world(&plan()).await;
    world.handover_failing("cutover.frozen", "run", &[]).await.killed();
    let export = ["--accept-loss", "--export", "$WORLD/lost"];
    // Where the decision has not fallen nothing is lost. It may have, as far as the journal knows.
    world.handover("resume", &[]).await.success();
    world.write("lost/theirs.txt", "x");
    let refused = said(&world.handover("rollback", &export).await.code(2));
    assert!(refused.contains("it is not empty") && refused.contains("nothing was undone"), "{refused}");
    for (folder, why) in [("$WORLD/plan.yaml", "cannot export"), ("$WORLD/no/such", "there is no folder")] {
        let refused = said(&world.handover("rollback", &["--accept-loss", "--export", folder]).await.code(2));
        assert!(refused.contains(why), "{refused}");
    }
    let refused = world.handover("rollback", &["--export", "$WORLD/other"]).await.code(2);
    assert!(refused.stderr.contains("this rollback is not free"), "{refused}");
    assert!(!world.path("other").exists());
    assert_eq!(read(&world, "switch.conf"), "database = green\n");
    let refused = world.handover("rollback", &["--to", "flip", "--export", "$WORLD/other"]).await.code(2);
    assert!(refused.stderr.contains("there is nothing to export"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_export_leaves_what_is_complete_and_adds_what_came_later() {
    let world = world(&plan()).await;
    world.handover("run", &[]).await.success();
    write(&world).await;
    world.green.execute("update registry set side = 'written'").await;
    let args = ["--accept-loss", "--export", "$WORLD/lost"];
    world.handover_failing("lost.undo-written:2", "rollback", &args).await.killed();
    let (first, half) = ("lost/registry.csv", "lost/token.csv");
    let content = read(&world, first);
    assert!(!world.path(half).exists());
    world
        .green
        .execute("insert into registry values ('late'); insert into token (id, active) values (9500, true)")
        .await;
    world.handover("resume", &[]).await.success();
    assert_eq!(read(&world, first), content);
    assert!(read(&world, half).contains("9500"), "{}", read(&world, half));
    assert_eq!(read(&world, "lost/registry.late.csv"), "side\nlate\n");
    let left: Vec<_> =
        std::fs::read_dir(world.path("lost")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".part")), "{left:?}");
    assert_eq!(left.len(), 5, "{left:?}");
}

/// `handover VERB PLAN ARGS…` with green's URL elsewhere.
async fn with_green_at(world: &World, url: &str, verb: &str, args: &[&str]) -> Ended {
    let mut command = world.command();
    command.env("GREEN_URL", url).arg(verb).arg(world.plan()).args(world.args(args));
    let output = crate::support::world::bounded(&mut command).await;
    Ended {
        code: output.status.code(),
        signal: None,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn nowhere(world: &World) -> String {
    world.green.handover_url().replace(&format!(":{}/", world.green.server.port()), ":1/")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_side_that_is_gone_does_not_keep_the_old_one_closed() {
    let world = world(&format!(
        "{}  - id: later\n    create_index: {{ on: green, indexes: [{{ name: token_active, table: token, columns: [active] }}] }}\n",
        plan()
    ))
    .await;
    world.handover("run", &[]).await.success();
    let gone = nowhere(&world);
    let refused = said(&with_green_at(&world, &gone, "rollback", &[]).await.code(2));
    assert!(refused.contains("how much that is cannot be counted"), "{refused}");
    let args = ["--to", "tail", "--accept-loss"];
    let exporting = ["--to", "tail", "--accept-loss", "--export", "$WORLD/lost"];
    let refused = with_green_at(&world, &gone, "rollback", &exporting).await;
    assert_ne!(refused.code, Some(0), "{refused}");
    assert_eq!(read(&world, "switch.conf"), "database = green\n");
    let begun = Instant::now();
    let ended = with_green_at(&world, &gone, "rollback", &args).await.success();
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    let words = said(&ended);
    assert!(words.contains("green cannot be reached: the way back does without it"), "{words}");
    assert!(words.contains("step `later`: what it did stays on green, which cannot be reached"), "{words}");
    assert!(words.contains("how much that is cannot be counted"), "{words}");
    assert_eq!(read(&world, "switch.conf"), "database = blue\n");
    assert_eq!(read(&world, "service.state"), "blue\n");
    world.blue.execute("insert into token (active) values (false)").await;
    // With it there again, the rest is taken back as ever.
    world.handover("rollback", &[]).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_side_that_answers_nothing_is_waited_for_no_longer_than_a_bound() {
    let world = world(&plan()).await;
    world.handover("run", &[]).await.success();
    let proxy = Proxy::start(world.green.server.port()).await;
    proxy.switches.hang.store(true, Ordering::SeqCst);
    let url = proxy.through(&world.green.handover_url());
    let begun = Instant::now();
    with_green_at(&world, &url, "rollback", &["--to", "tail", "--accept-loss"]).await.success();
    assert!(begun.elapsed() < Duration::from_secs(180), "{:?}", begun.elapsed());
    assert_eq!(read(&world, "switch.conf"), "database = blue\n");
    world.blue.execute("insert into token (active) values (false)").await;
}
