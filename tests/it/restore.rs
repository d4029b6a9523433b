//! `restore` between real servers, and out of the quarantine.

use crate::support::scenario::Scenario;
use crate::support::servers::{self, Database};
use crate::support::snapshot::assert_same;
use crate::support::world::World;

const PLAN: &str = "
handover: 1
name: bring-back
databases: { blue: '${BLUE_URL}', green: '${GREEN_URL}' }
control: ${CONTROL_URL}
steps:
  - id: sessions
    restore: { from: blue, to: green, table: session, where: not expired, on_conflict: overwrite, batch: 70, pause: 0ms }
  - id: renamed
    restore: { from: blue, to: green, table: account, from_table: client, columns: { ref: id, label: upper(name) }, batch: 20 }
  - id: orphans
    cleanup: { on: green, table: consent, where: client not in (select ref from account), action: quarantine }
  - id: back
    restore: { from: { quarantine: orphans }, to: green, table: consent, where: id % 2 = 0, batch: 10 }
";

const BLUE: &str = r#"
    create table session (id text collate "C", part int, expired bool, data json, seen timestamptz, old_only int, primary key (part, id));
    insert into session select 's' || n, n % 3, n % 4 = 0, '{"a": 1,  "a":2}', timestamptz '2024-01-01' + n * interval '1 us', n from generate_series(1, 400) n;
    create table client (id int primary key, name text);
    insert into client select n, 'client ' || n from generate_series(1, 50) n;
"#;

const GREEN: &str = r#"
    create table session (part int, id text collate "C", data json, expired bool, seen timestamptz, twice int generated always as (part * 2) stored,
        extra text default 'new', primary key (part, id));
    insert into session (id, part, expired, data, extra) select 's' || n, n % 3, false, '{}', 'mine' from generate_series(1, 400, 5) n;
    create table account (ref int primary key, label text not null);
    insert into account values (7, 'kept');
    create table consent (id int primary key, client int);
    insert into consent select n, n from generate_series(1, 100) n;
"#;

pub fn scenario() -> Scenario {
    Scenario {
        prefixes: &["restore"],
        plan: PLAN,
        blue: BLUE,
        green: GREEN,
        rollback_restores: true,
        ..Scenario::default()
    }
}

async fn world(plan: &str) -> World {
    let blue = Database::with(servers::blue().await, BLUE).await;
    let green = Database::with(servers::green().await, GREEN).await;
    World::new(Some(&blue.name), Some(&green.name), plan, &[]).await
}

async fn number(database: &Database, query: &str) -> i64 {
    database.value(query).await.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_back_and_go_again() {
    let world = world(PLAN).await;
    let before = world.snapshot().await;
    world.handover("run", &[]).await.success();
    assert_eq!(
        number(&world.green, "select count(*) from session where data::text = '{\"a\": 1,  \"a\":2}'").await,
        300
    );
    assert_eq!(
        number(&world.green, "select count(*) from session").await,
        300 + 20,
        "20 were expired on blue"
    );
    assert_eq!(number(&world.green, "select count(*) from session where extra = 'mine'").await, 80);
    assert_eq!(number(&world.green, "select count(*) from account").await, 50);
    assert_eq!(world.green.value("select label from account where ref = 7").await.unwrap(), "kept");
    assert_eq!(number(&world.green, "select count(*) from consent where client > 50").await, 25);
    world.handover("rollback", &[]).await.success();
    assert_same("after rollback", &before, &world.snapshot().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_written_since_are_not_taken_away() {
    let world = world(PLAN).await;
    world.handover("run", &[]).await.success();
    world
        .green
        .execute("update account set label = 'newer' where ref = 9; update session set expired = true where id = 's6'; create table child (ref int references account on delete cascade); insert into child values (10)")
        .await;
    let ended = world.handover("rollback", &[]).await.success();
    assert!(format!("{ended}").contains("conflict is not null"), "{ended}");
    assert_eq!(number(&world.green, "select count(*) from account").await, 3);
    assert_eq!(number(&world.green, "select count(*) from child").await, 1);
    assert_eq!(number(&world.green, "select count(*) from session where id = 's6' and expired").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_before_any_change() {
    let head = PLAN.split("  - id").next().unwrap();
    let cases = [
        ("table: account, from_table: client", "the key column `ref`"),
        ("table: account, from_table: client, columns: { ref: id }", "must not be null"),
        (
            "table: account, from_table: client, columns: { ref: id, label: nmae }",
            "`columns.label` is not accepted",
        ),
        ("table: session, where: 'true) or (true'", "`where` is not accepted"),
        ("table: nothing", "there is no table nothing"),
    ];
    for (step, message) in cases {
        let plan = format!("{head}  - id: x\n    restore: {{ from: blue, to: green, {step} }}\n");
        let world = world(&plan).await;
        let before = world.snapshot().await;
        let ended = world.handover("run", &[]).await;
        assert_ne!(ended.code, Some(0), "{step}: {ended}");
        assert!(ended.stderr.contains(message), "{step}: {ended}");
        assert_same(step, &before, &world.snapshot().await);
        world.drop_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_unique_constraint_stops_it_with_a_word() {
    let world = world(PLAN).await;
    world
        .green
        .execute("create unique index on account (label); insert into account values (1000, 'CLIENT 30')")
        .await;
    let ended = world.handover("run", &[]).await;
    assert_ne!(ended.code, Some(0), "{ended}");
    assert!(ended.stderr.contains("collide with other rows"), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writers_of_the_same_rows_do_not_break_it() {
    let world = world(PLAN).await;
    let client = world.green.admin().await;
    let writer = tokio::spawn(async move {
        for n in 1..400_i32 {
            let id = format!("s{n}");
            client
                .execute("insert into session (part, id, expired) values ($1 % 3, $2, false) on conflict do nothing", &[&n, &id])
                .await
                .unwrap();
        }
    });
    world.handover("run", &[]).await.success();
    writer.await.unwrap();
    let missing = "select count(*) from generate_series(1, 400) n where n % 4 <> 0
        and not exists (select 1 from session where id = 's' || n)";
    assert_eq!(number(&world.green, missing).await, 0);
}

/// Row security of the source: whoever may not see every row must not take what is seen for all there is.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_policy_hides_are_never_missing_without_a_word() {
    let plan =
        PLAN.replace("blue: '${BLUE_URL}'", "blue: { url: '${BLUE_URL}', reader: '${BLUE_READER_URL}' }");
    let plan = &plan[..plan.find("  - id: orphans").unwrap()];
    let hidden =
        "alter table client enable row level security; create policy none on client using (id > 45);";
    // The reader is subject to the policy, the role that works has the owner's rights.
    let world = world(plan).await;
    world.blue.execute(hidden).await;
    world.handover("run", &[]).await.success();
    assert_eq!(number(&world.green, "select count(*) from account").await, 50);
    world.drop_now().await;

    // Even the owner is subject to it: nobody of ours can see all, and that is said.
    let world = self::world(plan).await;
    world.blue.execute(&format!("{hidden} alter table client force row level security")).await;
    let ended = world.handover("run", &[]).await.code(1);
    assert!(ended.stderr.contains("row-level security"), "{ended}");
    assert_eq!(number(&world.green, "select count(*) from account").await, 1, "some rows came, and not all");
}
