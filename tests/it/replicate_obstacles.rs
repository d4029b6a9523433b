//! What is in the way of a replication is found before the copy.

use crate::replicate::{NOTHING, PLAN, assert_equal, keep, left, world};
use crate::support::servers::{self, Database};
use crate::support::snapshot::assert_same;
use crate::support::world::{World, until};
use handover_lab::{PostgresOptions, PostgresServer};

#[tokio::test(flavor = "multi_thread")]
async fn obstacles_are_found_before_the_copy_all_at_once() {
    let options = PostgresOptions::new(servers::programs().await.blue.clone())
        .setting("wal_level", "replica")
        .setting("max_slot_wal_keep_size", "-1");
    let server = keep(PostgresServer::start(options).await.unwrap());
    let mut world = World::new(None, None, PLAN, &[("switch.conf", "database = blue\n")]).await;
    world.blue = Database::with(
        server,
        "create table keyless (a int); create table almost (a int not null unique, b int);
         create unlogged table scratch (a int primary key); create materialized view seen as select 1 as x;
         create table late (a int, primary key (a) deferrable); create table opaque (a int, j json);
         create domain json_domain as json; create type json_row as (a int, j json);
         create table in_domain (d json_domain); alter table in_domain replica identity full;
         create table in_array (d json[]); alter table in_array replica identity full;
         create table in_row (d json_row); alter table in_row replica identity full;
         create table as_path (d jsonpath); alter table as_path replica identity full;
         create table in_key (a int, g int generated always as (a) stored primary key)",
    )
    .await;
    let dry = world.handover("dry-run", &[]).await;
    for ended in [dry, world.handover("run", &[]).await.code(1)] {
        let text = format!("{}{}", ended.stdout, ended.stderr);
        for part in [
            "wal_level on blue is replica",
            "max_slot_wal_keep_size on blue is without limit",
            "keyless (it has no replica identity)",
            "give opaque a unique index of columns that are not null and not generated",
            "in_domain (the type of its column d knows no equality)",
            "in_array (the type of its column d knows no equality)",
            "in_row (the type of its column d knows no equality)",
            "as_path (the type of its column d knows no equality)",
            "in_key (its key holds a generated column, which is not published)",
            "alter table \"public\".\"keyless\" replica identity full;",
            "alter table \"public\".\"almost\" replica identity using index \"almost_a_key\";",
            "alter table \"public\".\"late\" replica identity full;",
        ] {
            assert!(text.contains(part), "{part}: {ended}");
        }
    }
    let described = world.handover("dry-run", &[]).await;
    assert!(
        described.stdout.contains("unlogged tables are copied and not replicated: scratch"),
        "{described}"
    );
    assert!(described.stdout.contains("refresh seen on green"), "{described}");
    assert_eq!(
        world.green.value("select count(*) from pg_tables where schemaname = 'public'").await.unwrap(),
        "0"
    );
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_way_to_blue_that_does_not_work_is_found_before_the_copy() {
    let world = world(PLAN).await;
    let with = |connection: &str| {
        let connection = format!("replicate: {{ from: blue, to: green, connection: '{connection}' }}");
        world.write("plan.yaml", &PLAN.replace("replicate: { from: blue, to: green }", &connection));
    };
    with("host=127.0.0.1 port=1 user=handover dbname=x password=${WORLD}");
    let ended = world.handover("run", &[]).await.code(1);
    assert!(ended.stderr.contains("could not connect to the publisher"), "{ended}");
    assert!(ended.stderr.contains("the server of green connects to blue by itself"), "{ended}");
    let secret = world.folder.path().display().to_string();
    assert!(!format!("{ended}").contains(&format!("password={secret}")), "{ended}");
    assert_eq!(left(&world).await, NOTHING);
    world.handover("rollback", &[]).await.success();
    with("${CONTROL_URL}");
    let ended = world.handover("run", &[]).await.code(1);
    assert!(ended.stderr.contains("leads to another database than blue"), "{ended}");
    world.handover("rollback", &[]).await.success();
    with("${BLUE_URL}");
    world.handover("run", &[]).await.success();
    // The servers' logs never held the password.
    let password = url::Url::parse(&world.blue.handover_url()).unwrap().password().unwrap().to_owned();
    let log = world.green.server.log();
    let shown: Vec<&str> = log.lines().filter(|line| line.contains(&password)).collect();
    assert!(shown.is_empty(), "{shown:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cutover_finish_and_rollback_take_everything_away() {
    let plan = PLAN.split("  - id: flip").next().unwrap();
    let world = world(plan).await;
    let before = world.snapshot().await;
    world.handover("run", &[]).await.success();
    // Nobody runs, and the servers go on.
    world.blue.execute("insert into account (id, balance) values (800000, 3)").await;
    until(&world.green.admin().await, "select from account where id = 800000").await;
    let doctor = world.handover("doctor", &[]).await;
    for part in ["of an earlier run: replication slot", "publication", "subscription"] {
        assert!(doctor.stdout.contains(part), "{part}: {doctor}");
    }
    for failpoint in ["replicate.undo-unsubscribed", "replicate.undo-slot-dropped"] {
        world.handover_failing(failpoint, "rollback", &[]).await.killed();
        world.handover("resume", &[]).await.success();
        assert_eq!(left(&world).await, NOTHING);
        world.blue.execute("delete from account where id = 800000").await;
        assert_same("rolled back", &before, &world.snapshot().await);
        world.handover("run", &[]).await.success();
    }
    world.handover_failing("replicate.undo-unsubscribed", "finish", &[]).await.killed();
    world.handover("finish", &[]).await.success();
    assert_eq!(left(&world).await, NOTHING);
    assert_equal(&world).await;
}
