//! `cleanup` on a real server: what it changes, what it brings back, and what happens while others write.

use crate::support::scenario::Scenario;
use crate::support::servers::{self, Database};
use crate::support::snapshot::assert_same;
use crate::support::world::World;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub const HEAD: &str = "
handover: 1
name: clean
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
";

pub const PLAN: &str = "
handover: 1
name: clean
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
  - id: lower
    cleanup: { on: blue, table: account, action: update, set: { email: lower(email) }, batch: 70, pause: 0ms }
  - id: orphans
    cleanup: { on: blue, table: consent, where: client_id not in (select id from client), action: quarantine,
               batch: 30, pause: 0ms, children: archive, expect: { at_most: 150 } }
  - id: odd
    cleanup: { on: blue, table: odd, where: gone, action: delete, batch: 2 }
  - id: names
    cleanup: { on: blue, table: account, action: backfill, set: { display_name: upper(name) }, back: { name: lower(display_name) }, batch: 70 }
  - id: profile
    cleanup: { on: blue, table: account, action: backfill, batch: 70, where: bio is not null,
               to: { table: profile, key: { account: id }, columns: { bio: bio, size: length(bio) } }, back: { bio: bio } }
";

pub const TABLES: &str = r#"
    create table client (id text primary key);
    insert into client select 'c' || n from generate_series(1, 5) n;
    create table consent (tenant int, id text collate "C", client_id text, data json, primary key (tenant, id));
    create table consent_event (id bigint generated always as identity, tenant int, consent text, what text,
        parent bigint, foreign key (tenant, consent) references consent on delete cascade);
    create table note (event bigint);
    insert into consent select n % 3, 'k' || n, 'c' || n % 7, '{"b":1,  "a":2, "b":3}' from generate_series(1, 400) n;
    insert into consent_event (tenant, consent, what) select tenant, id, 'e' from consent, generate_series(1, 2);
    create table account (id bigint primary key, email text, name text not null, bio text, display_name text);
    insert into account select n, 'User' || n || '@Example.org', 'name' || n, case when n % 2 = 0 then 'bio ' || n end
        from generate_series(1, 500) n;
    create table profile (account bigint primary key references account on delete cascade, bio text, size int);
    create type mood as enum ('sad', 'it''s ok');
    create type pair as (a int, b text);
    create domain short as text check (length(value) < 20);
    create table odd (
        id int generated always as identity primary key, gone bool, b bytea, n numeric, f8 float8, f4 float4,
        at timestamptz, d date, i interval, j json, jb jsonb, a int[], t2 text[][], c char(5), v varchar(9),
        p pair, pp pair[], m mood, s short, pt point, bt bit(3), vb bit varying, net inet, r int4range, mo money, "We""ird col" text,
        x xml, ts tsvector, u uuid, nm name, ch "char", twice numeric generated always as (n * 2) stored);
    insert into odd (gone, b, n, f8, f4, at, d, i, j, jb, a, t2, c, v, p, pp, m, s, pt, bt, vb, net, r, mo, "We""ird col", x, ts, u, nm, ch)
    values (true, '\x00ff5c', 'NaN', 0.1::float8 + 0.2, 'Infinity', 'infinity', '-infinity', '-1 mon +2 days -03:04:05.000006',
            '{"z": 1, "a":2.50,  "z":null}', '{"n": 1.10, "big": 12345678901234567890.123}', '{1,NULL,3}', '{{a,"b,\"c"},{NULL,"NULL"}}',
            'ab', '', (1, 'x,"y\'), array[row(null, '')::pair, row(2, null)::pair], 'it''s ok', 'short', '(1.1,2.2)', '101', '1', '10.0.0.1/8', '[1,5)', '12.34',
            E'tab\t\\ ünï \n', '<a>&amp;</a>', 'a:1 b:2', '00000000-0000-0000-0000-000000000001', 'nam', 'x'),
           (true, null, 'Infinity', 'NaN', '-0', '-infinity', null, null, 'null', 'null', '[0:1]={7,8}', null, null, null, null, null, null, null, null, null, null, null, 'empty', null, null, null, null, null, null, null),
           (false, '', 1, 1, 1, now(), '2024-02-29', '1 year', '[]', '[]', '{}', '{}', 'abcde', 'v', null, null, 'sad', '', null, null, null, null, null, null, '', null, null, null, null, null),
           (true, '', 1.1000000000, 1e308, 1e-38, '2024-02-29 23:59:59.999999+00', '0044-03-15 BC', '178000000 years', '"s"', '"s"', '{}', '{}', ' a', ' ', row(null,null), '{}', 'sad', '', '(NaN,Infinity)', '000', '', '::1', '(,)', '-1', '', '', '', null, '', '');
"#;

pub fn scenario() -> Scenario {
    Scenario {
        prefixes: &["cleanup", "checkpoint"],
        plan: PLAN,
        blue: TABLES,
        rollback_restores: true,
        ..Scenario::default()
    }
}

pub async fn world(plan: &str, sql: &str) -> World {
    let template = Database::with(servers::blue().await, sql).await;
    World::new(Some(&template.name), None, plan, &[]).await
}

pub async fn number(world: &World, query: &str) -> i64 {
    world.blue.value(query).await.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_every_type_come_back_exactly() {
    let world = world(PLAN, TABLES).await;
    let before = world.snapshot().await;
    let ended = world.handover("run", &[]).await.success();
    // With nobody else there one walk finds all rows, or the walk skips some.
    assert_eq!(ended.stdout.matches("walks: 1").count(), 5, "{ended}");
    assert_eq!(number(&world, "select count(*) from odd").await, 1);
    assert_eq!(number(&world, "select count(*) from consent where client_id in ('c0', 'c6')").await, 0);
    assert_eq!(number(&world, "select count(*) from account where email <> lower(email)").await, 0);
    assert_eq!(number(&world, "select count(*) from account where display_name = upper(name)").await, 500);
    assert_eq!(number(&world, "select count(*) from profile where size = length(bio)").await, 250);
    let kept =
        "select count(*) from handover.archive where action = 'quarantine' and table_name = 'consent_event'";
    assert_eq!(number(&world, kept).await, 2 * 114);
    world.handover("rollback", &[]).await.success();
    assert_same("after rollback", &before, &world.snapshot().await);
    assert_eq!(number(&world, "select count(*) from handover.archive").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_any_batch_it_goes_on_behind_the_last_commit() {
    let template = Database::with(servers::blue().await, TABLES).await;
    let whole = World::new(Some(&template.name), None, PLAN, &[]).await;
    whole.handover("run", &[]).await.success();
    let expected = whole.snapshot().await;
    for place in ["cleanup.batch:5", "cleanup.uncommitted:11", "cleanup.batch:17", "cleanup.uncommitted:26"] {
        let world = World::new(Some(&template.name), None, PLAN, &[]).await;
        world.handover_failing(place, "run", &[]).await.killed();
        world.handover("resume", &[]).await.success();
        assert_same(place, &expected, &world.snapshot().await);
        world.drop_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn finish_drops_the_archive_and_the_triggers_but_not_the_quarantine() {
    let world = world(PLAN, TABLES).await;
    world.handover("run", &[]).await.success();
    assert_eq!(number(&world, "select count(*) from pg_trigger where tgname like 'zz_handover%'").await, 3);
    world.handover("finish", &[]).await.success();
    assert_eq!(number(&world, "select count(*) from handover.archive where action <> 'quarantine'").await, 0);
    assert!(number(&world, "select count(*) from handover.archive").await > 0);
    assert_eq!(number(&world, "select count(*) from pg_trigger where tgname like 'zz_handover%'").await, 0);
    assert_eq!(number(&world, "select count(*) from pg_proc where proname like 'zz_handover%'").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_wrote_since_is_kept_and_reported() {
    let world = world(PLAN, TABLES).await;
    world.handover("run", &[]).await.success();
    world
        .blue
        .execute(
            "update account set email = 'mine' where id = 7; update account set bio = 'newer' where id = 9;
             insert into consent select tenant, id, 'c1' from (select 6 % 3 as tenant, 'k6' as id) x;",
        )
        .await;
    let ended = world.handover("rollback", &[]).await.success();
    assert!(format!("{ended}").contains("conflict is not null"), "{ended}");
    assert_eq!(world.blue.value("select email from account where id = 7").await.unwrap(), "mine");
    assert_eq!(
        world.blue.value("select email from account where id = 9").await.unwrap(),
        "User9@Example.org"
    );
    assert_eq!(world.blue.value("select bio from account where id = 9").await.unwrap(), "newer");
    assert_eq!(world.blue.value("select client_id from consent where id = 'k6'").await.unwrap(), "c1");
    assert_eq!(
        number(&world, "select count(*) from handover.archive where conflict is not null").await,
        2,
        "the update and the row with the same key"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_constraint_keeps_out_does_not_keep_the_others_out() {
    let plan = format!(
        "{HEAD}  - id: x\n    cleanup: {{ on: blue, table: odd, where: gone, action: delete, batch: 10 }}\n"
    );
    let world = world(&plan, TABLES).await;
    world.handover("run", &[]).await.success();
    world.blue.execute("alter table odd add check (d is distinct from '-infinity')").await;
    world.handover("rollback", &[]).await.success();
    assert_eq!(number(&world, "select count(*) from odd").await, 3);
    let reason = world.blue.value("select conflict from handover.archive").await.unwrap();
    assert!(reason.contains("check constraint"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_come_before_any_change() {
    let cases = [
        (
            "table: consent, where: client_id = 'c1', action: delete, expect: { at_most: 3 }",
            "more rows of consent",
        ),
        ("table: consent, where: client_id = 'c1', action: delete", "refer to rows that would be deleted"),
        ("table: account, action: update, set: { name: name || 'x' }", "would never end"),
        (
            "table: account, action: update, where: 'true) or (true', set: { name: \"''\" }",
            "`where` is not accepted",
        ),
        (
            "table: account, action: update, where: 'true; drop table note', set: { name: \"''\" }",
            "`where` is not accepted",
        ),
        ("table: account, action: update, set: { nmae: \"''\" }", "did you mean `name`"),
        ("table: account, action: update, set: { id: id + 1 }", "part of the key"),
        ("table: odd, action: update, set: { twice: '1' }", "computed by the server"),
        ("table: note, where: 'true', action: delete", "neither a primary key"),
        ("table: consent, key: [id], where: 'true', action: delete", "is not a key of table consent"),
        ("table: nothing, where: 'true', action: delete", "there is no table nothing"),
    ];
    let template = Database::with(servers::blue().await, TABLES).await;
    for (step, message) in cases {
        let plan = format!("{HEAD}  - id: x\n    cleanup: {{ on: blue, {step} }}\n");
        let world = World::new(Some(&template.name), None, &plan, &[]).await;
        let before = world.snapshot().await;
        let ended = world.handover("run", &[]).await;
        assert_ne!(ended.code, Some(0), "{step}: {ended}");
        assert!(ended.stderr.contains(message), "{step}: {ended}");
        assert_same(step, &before, &world.snapshot().await);
        world.drop_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_that_keep_the_rows_are_found_out() {
    let plan = format!(
        "{HEAD}  - id: x\n    cleanup: {{ on: blue, table: account, where: 'id < 5', action: delete }}\n"
    );
    let world = world(&plan, TABLES).await;
    world
        .blue
        .execute(
            "create function keep() returns trigger language plpgsql as 'begin return null; end';
             create trigger keep before delete on account for each row execute function keep();",
        )
        .await;
    let ended = world.handover("run", &[]).await;
    assert_ne!(ended.code, Some(0), "{ended}");
    assert!(ended.stderr.contains("a whole walk changed none of them"), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_written_behind_the_walk_are_cleaned_too() {
    let plan = format!(
        "{HEAD}  - id: x\n    cleanup: {{ on: blue, table: account, where: 'bio is not null', action: quarantine, batch: 20, pause: 20ms }}\n"
    );
    let world = world(&plan, TABLES).await;
    let client = world.blue.server.admin(&world.blue.name).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let stop = stop.clone();
        async move {
            let mut n = 0_i64;
            while !stop.load(Ordering::Relaxed) && n < 40 {
                n += 1;
                client
                    .execute("insert into account (id, name, bio) values ($1, 'n', 'late')", &[&-n])
                    .await
                    .unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            n
        }
    });
    let ended = world.handover("run", &[]).await;
    stop.store(true, Ordering::Relaxed);
    let written = writer.await.unwrap();
    if ended.code != Some(0) {
        world.handover("resume", &[]).await.success();
    }
    assert_eq!(number(&world, "select count(*) from account where bio is not null").await, 0);
    assert_eq!(number(&world, "select count(*) from handover.archive").await, 250 + written);
}

/// Old code writes the old columns and new code the new ones, as fast as they can, while the backfill runs.
async fn side_by_side(plan: String, new_code: &'static str, compare: &str) {
    let world = world(&plan, TABLES).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writes = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    for (seed, old) in [(3_i64, true), (5, true), (7, false)] {
        let client = world.blue.server.admin(&world.blue.name).await.unwrap();
        let (stop, writes) = (stop.clone(), writes.clone());
        writers.push(tokio::spawn(async move {
            let mut n = 1000 + seed;
            while !stop.load(Ordering::Relaxed) {
                n += 10;
                let id = (n * 7919) % 600;
                let value = format!("w{n}");
                let result = if old && n % 4 == 0 {
                    client.execute("delete from account where id = $1", &[&id]).await
                } else if old {
                    client
                        .execute(
                            "insert into account (id, name, bio) values ($1, $2, $2)
                             on conflict (id) do update set name = excluded.name, bio = excluded.bio",
                            &[&id, &value],
                        )
                        .await
                } else {
                    client.execute(new_code, &[&id, &value]).await
                };
                match result {
                    Ok(_) => writes.fetch_add(1, Ordering::Relaxed),
                    // Old and new code lock the two tables in opposite order; the application tries again.
                    Err(e) if e.code().is_some_and(|c| c.code() == "40P01") => 0,
                    Err(e) => panic!("{e:?}"),
                };
            }
        }));
    }
    // Only once everybody writes.
    while writes.load(Ordering::Relaxed) < 20 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let run = world.handover("run", &[]).await;
    let during = number(&world, compare).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    run.success();
    assert_eq!(during, 0, "rows that differ while everybody writes");
    assert_eq!(number(&world, compare).await, 0, "rows that differ after {writes:?} writes");
    let before = "select count(*) from account";
    let rows = number(&world, before).await;
    world.handover("rollback", &[]).await.success();
    assert_eq!(number(&world, before).await, rows, "an undo takes no row of the source");
    assert_eq!(number(&world, "select count(*) from pg_trigger where tgname like 'zz_handover%'").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_of_one_table_stay_in_step_under_writers() {
    let plan = format!(
        "{HEAD}  - id: x\n    cleanup: {{ on: blue, table: account, action: backfill, set: {{ display_name: upper(name) }}, back: {{ name: lower(display_name) }}, batch: 20 }}\n"
    );
    side_by_side(
        plan,
        "update account set display_name = upper($2) where id = $1",
        "select count(*) from account where display_name is distinct from upper(name)",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_table_stays_in_step_under_writers() {
    let plan = format!(
        "{HEAD}  - id: x\n    cleanup: {{ on: blue, table: account, action: backfill, where: bio is not null, batch: 20, to: {{ table: profile, key: {{ account: id }}, columns: {{ bio: bio }} }}, back: {{ bio: bio }} }}\n"
    );
    side_by_side(
        plan,
        "update profile set bio = $2 where account = $1",
        "select count(*) from (select id, bio from account where bio is not null) a
         full join profile p on p.account = a.id where a.bio is distinct from p.bio",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ways_follow_the_one_who_wrote() {
    let plan = format!(
        "{HEAD}  - id: names
    cleanup: {{ on: blue, table: account, action: backfill, set: {{ display_name: upper(name) }}, back: {{ name: lower(display_name) }} }}
  - id: cut
    cleanup: {{ on: blue, table: account, action: end_sync, of: names }}\n"
    );
    let world = world(&plan, TABLES).await;
    world.handover_failing("engine.step-unrecorded", "run", &[]).await.killed();
    world
        .blue
        .execute(
            "update account set name = 'old' where id = 1; update account set display_name = 'NEW' where id = 2;
             insert into account (id, name) values (901, 'ins'); insert into account (id, display_name) values (902, 'MINE');
             update account set email = 'other' where id = 3;",
        )
        .await;
    let row = async |id: i64| {
        let query = format!("select name || '/' || display_name from account where id = {id}");
        world.blue.value(&query).await.unwrap()
    };
    assert_eq!(row(1).await, "old/OLD");
    assert_eq!(row(2).await, "new/NEW");
    assert_eq!(row(901).await, "ins/INS");
    assert_eq!(row(902).await, "mine/MINE");
    assert_eq!(row(3).await, "name3/NAME3");
    world.handover("resume", &[]).await.success();
    world.blue.execute("update account set display_name = 'After' where id = 4").await;
    assert_eq!(row(4).await, "name4/After");
    world.handover("rollback", &["--accept-loss"]).await.success();
    assert_eq!(number(&world, "select count(*) from pg_trigger where tgname like 'zz_handover%'").await, 0);
    assert_eq!(
        number(&world, "select count(*) from account where id < 501 and display_name is null").await,
        500
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn it_waits_while_too_many_sessions_are_active() {
    let plan = format!(
        "{HEAD}  - id: x\n    cleanup: {{ on: blue, table: account, action: update, set: {{ email: lower(email) }}, throttle: {{ max_active_sessions: 0, max_replica_lag: 5s }} }}\n"
    );
    let world = world(&plan, TABLES).await;
    let busy = world.blue.server.admin(&world.blue.name).await.unwrap();
    let sleeping = tokio::spawn(async move { busy.execute("select pg_sleep(2)", &[]).await.unwrap() });
    let started = std::time::Instant::now();
    let ended = world.handover("run", &[]).await.success();
    assert!(started.elapsed() > Duration::from_millis(1200), "{ended}");
    assert!(format!("{ended}").contains("throttled: 1 sessions"), "{ended}");
    sleeping.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_row_is_waited_for_in_short_tries() {
    let plan = format!(
        "{HEAD}  - id: x\n    cleanup: {{ on: blue, table: account, action: update, set: {{ email: lower(email) }}, lock_timeout: 100ms }}\n"
    );
    let world = world(&plan, TABLES).await;
    let mut admin = world.blue.admin().await;
    let tx = admin.transaction().await.unwrap();
    tx.execute("update account set bio = 'mine' where id = 250", &[]).await.unwrap();
    let mut run = world.command().arg("run").arg(world.plan()).spawn().unwrap();
    tokio::time::sleep(Duration::from_millis(900)).await;
    tx.commit().await.unwrap();
    assert!(run.wait().await.unwrap().success());
    assert_eq!(
        world.blue.value("select bio || email from account where id = 250").await.unwrap(),
        "mineuser250@example.org"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_and_self_references_are_walked_and_brought_back() {
    let plan = format!(
        "{HEAD}  - id: parts\n    cleanup: {{ on: blue, table: event, where: 'id % 2 = 0', action: delete, batch: 7, children: archive }}\n  - id: tree\n    cleanup: {{ on: blue, table: node, where: id = 1, action: quarantine, children: archive }}\n"
    );
    let world = world(
        &plan,
        "create table event (id int, region text, primary key (region, id)) partition by list (region);
         create table event_eu partition of event for values in ('eu'); create table event_us partition of event for values in ('us');
         insert into event select n, case when n % 3 = 0 then 'eu' else 'us' end from generate_series(1, 60) n;
         create table mark (region text, event int, foreign key (region, event) references event);
         insert into mark select region, id from event where id < 20; insert into mark select region, id from event where id < 20;
         create table node (id int primary key, parent int references node);
         insert into node values (1, null); insert into node select n, n / 2 from generate_series(2, 40) n; insert into node values (100, null);",
    )
    .await;
    let before = world.snapshot().await;
    world.handover("run", &[]).await.success();
    assert_eq!(number(&world, "select count(*) from event").await, 30);
    assert_eq!(number(&world, "select count(*) from mark").await, 20);
    assert_eq!(number(&world, "select count(*) from node").await, 1);
    world.handover("rollback", &[]).await.success();
    assert_same("after rollback", &before, &world.snapshot().await);
}
