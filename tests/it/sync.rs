//! The triggers of a backfill see every writer, and do not end while a row is stale.

use crate::support::servers::{self, Database};
use crate::support::world::World;

const HEAD: &str = "
handover: 1
name: sync
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
";

const TABLES: &str = "
    create table account (id int primary key, name text not null, shown text, bio text);
    create table profile (account int primary key, bio text);
    insert into account select n, 'name' || n, null, 'bio' || n from generate_series(1, 50) n;";

/// A backfill that is done, with its `end_sync` still to come.
async fn filled(backfill: &str) -> World {
    let plan = format!(
        "{HEAD}  - id: fill\n    cleanup: {{ on: blue, table: account, action: backfill, {backfill} }}
  - id: cut\n    cleanup: {{ on: blue, table: account, action: end_sync, of: fill }}\n"
    );
    let blue = Database::with(servers::blue().await, TABLES).await;
    let world = World::new(Some(&blue.name), None, &plan, &[]).await;
    world.handover_failing("engine.step-started:2", "run", &[]).await.killed();
    world
}

/// What a replication worker writes, and what a session does whose triggers are switched off.
async fn as_replica(world: &World, sql: &str) {
    let admin = world.blue.admin().await;
    admin.batch_execute(&format!("set session_replication_role = replica; {sql}")).await.unwrap();
}

async fn proven(backfill: &str, write: &str, follows: &str, table: &str, mend: &str) {
    let world = filled(backfill).await;
    as_replica(&world, write).await;
    assert_eq!(world.blue.value(follows).await.unwrap(), "t", "a replica's write is followed");
    // Somebody switches triggers off and on again: they are not what they were.
    let switch = |how: &str| format!("alter table {table} {how} trigger user");
    let admin = world.blue.admin().await;
    admin.batch_execute(&switch("disable")).await.unwrap();
    admin.batch_execute("update account set name = 'stale', bio = 'stale' where id in (3, 4)").await.unwrap();
    admin.batch_execute(&switch("enable")).await.unwrap();
    let refused = world.handover("resume", &[]).await.code(8);
    assert!(refused.stderr.contains("not enabled for every writer"), "{refused}");
    let hint = refused.stderr.split('`').find(|part| part.starts_with("alter table")).unwrap();
    admin.batch_execute(hint).await.unwrap();
    let refused = world.handover("resume", &[]).await.code(8);
    assert!(refused.stderr.contains("2 rows of account are not in step"), "{refused}");
    // The query that it offers shows them, and the triggers still follow.
    let query = refused.stderr.split('`').find(|part| part.starts_with("select")).unwrap();
    assert_eq!(admin.query(query.trim_end_matches(';'), &[]).await.unwrap().len(), 2, "{query}");
    admin.batch_execute(mend).await.unwrap();
    world.handover("resume", &[]).await.success();
    assert_eq!(
        world.blue.value("select count(*) from pg_trigger where tgname like 'zz_handover%'").await.unwrap(),
        "0"
    );
    world.drop_now().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_of_the_same_table() {
    proven(
        "set: { shown: upper(name) }",
        "update account set name = 'replica' where id = 1; insert into account (id, name) values (99, 'new')",
        "select bool_and(shown = upper(name)) from account",
        "account",
        "update account set id = id where id in (3, 4)",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_both_sides_write() {
    proven(
        "set: { shown: upper(name) }, back: { name: lower(shown) }",
        "update account set shown = 'REPLICA' where id = 1; update account set name = 'other' where id = 2;
         update account set shown = 'MiXed' where id = 5",
        "select bool_and(name = lower(shown)) from account",
        "account",
        "update account set name = 'stale ' where id in (3, 4)",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_its_own() {
    proven(
        "to: { table: profile, key: { account: id }, columns: { bio: bio } }",
        "update account set bio = 'replica' where id = 1; delete from account where id = 2",
        "select count(*) = 49 and bool_and(a.bio is not distinct from p.bio) from account a full join profile p on p.account = a.id",
        "account",
        "update account set id = id where id in (3, 4)",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_the_new_table_that_nothing_derives_are_found() {
    let world = filled("to: { table: profile, key: { account: id }, columns: { bio: bio } }").await;
    world.blue.execute("insert into profile values (777, 'whose?')").await;
    let refused = world.handover("resume", &[]).await.code(8);
    assert!(refused.stderr.contains("1 rows of profile have nothing that they are filled from"), "{refused}");
    world.blue.execute("delete from profile where account = 777").await;
    world.handover("resume", &[]).await.success();
}
