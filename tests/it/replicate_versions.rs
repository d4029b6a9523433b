//! Replication from every version that is supported, and under pgbench.

use crate::replicate::{BLUE, Background, NOTHING, PLAN, Traffic, assert_equal, left, watched, world};
use crate::support::context::context;
use crate::support::servers::{self, Database};
use crate::support::world::{World, until};
use handover::postgres::TableName;
use handover::steps::Description;
use handover_replication::{Link, Replicate, identity};
use serde_json::json;
use std::process::Stdio;
use std::time::Duration;

/// The oldest version that is copied from.
#[tokio::test(flavor = "multi_thread")]
async fn postgres_13_is_followed_while_it_is_written_to() {
    let checks = "  - id: agree
    verify: { before: blue, after: green, checksums: {} }
  - id: flip";
    let mut world = world(&PLAN.replace("  - id: flip", checks)).await;
    world.blue = Database::with(servers::oldest().await, BLUE).await;
    let dry = world.handover("dry-run", &[]).await.success();
    assert!(!dry.stdout.contains("only a superuser"), "{dry}");
    // Everybody may create in `public` there, which is told.
    world.handover("doctor", &[]).await.code(8);
    let revoke = "revoke create on schema public from public";
    world.blue.admin().await.batch_execute(revoke).await.unwrap();
    world.handover("doctor", &[]).await.success();
    let traffic = Traffic::start(&world.blue, 1);
    world.handover("run", &[]).await.success();
    traffic.stop().await;
    assert_equal(&world).await;
    assert_eq!(left(&world).await, NOTHING);
}

/// Before Postgres 16 only a superuser can subscribe.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_version_is_followed_by_the_same_with_a_superuser() {
    let mut world = world(PLAN).await;
    world.green = Database::create(servers::blue().await, None).await;
    let dry = world.handover("dry-run", &[]).await;
    assert!(dry.stdout.contains("only a superuser can subscribe"), "{dry}");
    let traffic = Traffic::start(&world.blue, 1);
    let mut command = world.command();
    command.env("GREEN_URL", world.green.server.admin_url(&world.green.name)).arg("run").arg(world.plan());
    let output = command.output().await.unwrap();
    traffic.stop().await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_equal(&world).await;
    assert_eq!(left(&world).await, NOTHING);
}

/// Postgres's own writer at a steady rate, throughout.
#[tokio::test(flavor = "multi_thread")]
async fn pgbench_writes_throughout() {
    let mut world =
        World::new(None, None, &watched("max_lag: 2s"), &[("switch.conf", "database = blue\n")]).await;
    world.blue = Database::create(servers::blue().await, None).await;
    let pgbench = |arguments: &[&str]| {
        let url = url::Url::parse(&world.blue.owner_url()).unwrap();
        let mut command = tokio::process::Command::new(world.blue.server.programs().program("pgbench"));
        command
            .args(arguments)
            .env("PGHOST", url.host_str().unwrap())
            .env("PGPORT", url.port().unwrap().to_string())
            .env("PGUSER", url.username())
            .env("PGPASSWORD", url.password().unwrap())
            .env("PGDATABASE", url.path().trim_start_matches('/'))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        command
    };
    assert!(pgbench(&["-i", "-q", "-s", "3"]).status().await.unwrap().success());
    world
        .blue
        .execute("alter table pgbench_history replica identity full; create publication theirs for table pgbench_tellers")
        .await;
    // Ours is not among the publications that are copied.
    let plan = watched("max_lag: 2s").replace("chunk_mb: 1", "chunk_mb: 1, publications: true");
    world.write("plan.yaml", &plan);
    let mut writing = pgbench(&["-n", "-c", "4", "-R", "150", "-T", "300"]).spawn().unwrap();
    let admin = world.blue.admin().await;
    until(&admin, "select from pgbench_history having count(*) > 100").await;
    let mut run = Background::start(&world, "run").await;
    run.until("hold: started").await;
    let then: i64 = admin.query_one("select count(*) from pgbench_history", &[]).await.unwrap().get(0);
    until(&admin, &format!("select from pgbench_history having count(*) > {}", then + 300)).await;
    world.handover("approve", &["hold", "--by", "alice"]).await.success();
    let (code, said) = run.ended().await;
    assert_eq!(code, Some(0), "{said}");
    // It wrote until it was refused.
    tokio::time::timeout(Duration::from_secs(10), writing.wait()).await.unwrap().unwrap();
    assert_equal(&world).await;
    assert_eq!(left(&world).await, NOTHING);
    let publications = "select string_agg(pubname, ',') from pg_publication";
    assert_eq!(world.green.value(publications).await.unwrap(), "theirs");
    let sums =
        "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)";
    assert_eq!(world.green.value(sums).await.unwrap(), "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_is_asked_whether_it_lets_published_tables_be_changed() {
    let newer = servers::green().await;
    let sql = "create table fine (a int primary key, g int generated always as (a) stored); create table keyless (a int);
         create table part_key (g int generated always as (1) stored primary key, a int); create table whole (a int, g int generated always as (a) stored);
         alter table whole replica identity full; create table dropped (a int not null, constraint dropped_a unique (a));
         alter table dropped replica identity using index dropped_a; alter table dropped drop constraint dropped_a;
         create function never() returns trigger language plpgsql as $$begin raise exception 'fired'; end$$;
         create trigger never before delete on fine for each statement execute function never();
         create rule instead as on delete to keyless where old.a = 5 do instead nothing";
    let blue = Database::with(newer, sql).await;
    let (cx, _events) = context("copy", &[("blue", blue.handover_url())], &["blue"]).await;
    let replicate: Replicate = serde_json::from_value(json!({ "from": "blue", "to": "green" })).unwrap();
    let link = Link { name: "handover_trial".into(), ..Link::new(cx.run, &"follow".into(), &replicate) };
    let tables = ["fine", "keyless", "part_key", "whole", "dropped"].map(|t| TableName::new("public", t));
    let mut said = Description::default();
    identity::rehearse(&cx, &link, &tables, &mut said).await.unwrap();
    assert_eq!(said.blockers.len(), 1, "{said:?}");
    for table in ["keyless (", "part_key (", "whole (", "dropped ("] {
        assert!(said.blockers[0].contains(table), "{table} {said:?}");
    }
    assert!(!said.blockers[0].contains("fine ("), "{said:?}");
    assert_eq!(blue.value("select count(*) from pg_publication").await.as_deref(), Some("0"));
    // The advice holds for what it is given for.
    let replicate: Replicate = serde_json::from_value(json!({ "from": "blue", "to": "green" })).unwrap();
    let mut said = Description::default();
    let session = cx.reader("blue").await.unwrap();
    identity::look(&replicate, Some("handover"), &session, &tables, &mut said).await.unwrap();
    let text = said.blockers.join("; ");
    assert!(
        text.contains("give whole a unique index") && text.contains("give part_key a unique index"),
        "{text}"
    );
    assert!(text.contains("alter table \"public\".\"keyless\" replica identity full;"), "{text}");
    blue.execute("alter table keyless replica identity full").await;
    let mut said = Description::default();
    identity::rehearse(&cx, &link, &tables[..2], &mut said).await.unwrap();
    assert_eq!(said.blockers, Vec::<String>::new());
}
