//! Names of a plan are the application's, whatever schemas of ours or of others are called.

use crate::sessions::{ACCOUNTS, BACKFILL};
use crate::support::servers::{self, Database};
use crate::support::world::World;

const NAMES: &str = "
handover: 1
name: names
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
  - id: paid
    cleanup: { on: blue, table: payment, action: quarantine, where: order_id in (select order_id from archive) }
  - id: migrate
    migrate: { on: blue, dir: migrations, undo: none }
";

const PAYMENTS: &str = "
    create table payment (id int primary key, order_id bigint not null);
    insert into payment select n, n from generate_series(1, 4000) n;
    create table archive (order_id bigint);
    insert into archive select generate_series(1, 500);";

#[tokio::test(flavor = "multi_thread")]
async fn a_plans_names_are_the_applications_and_not_ours() {
    let blue = Database::with(servers::blue().await, PAYMENTS).await;
    let files = [("migrations/V1__loyalty.sql", "create table loyalty (id int);")];
    let world = World::new(Some(&blue.name), None, NAMES, &files).await;
    let dry = world.handover("dry-run", &[]).await.success();
    assert!(dry.stdout.contains("500 rows"), "{dry}");
    world.handover("run", &[]).await.success();
    assert_eq!(world.blue.value("select count(*)::text from public.payment").await.as_deref(), Some("3500"));
    let made =
        "select string_agg(relnamespace::regnamespace::text, ',') from pg_class where relname = 'loyalty'";
    assert_eq!(world.blue.value(made).await.as_deref(), Some("public"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_of_our_name_that_is_somebody_elses_is_refused() {
    for (sql, words) in [
        ("create schema handover; create table handover.shift (id int)", "and Handover did not make it"),
        (
            "create schema handover_queue; create table handover_queue.shift (id int)",
            "and Handover did not make it",
        ),
    ] {
        let blue = Database::with(servers::blue().await, &format!("{ACCOUNTS} {sql}")).await;
        let world = World::new(Some(&blue.name), None, BACKFILL, &[]).await;
        for verb in ["dry-run", "run"] {
            let ended = world.handover(verb, &[]).await;
            let text = format!("{ended}");
            assert!(
                ended.code != Some(0) && text.contains("belongs to the role app") && text.contains(words),
                "{text}"
            );
        }
        let ours = world.blue.value("select to_regclass('handover.fence')::text").await;
        assert_eq!(ours, None);
    }
    // One that a stranger made looks like ours, with triggers that would fire as our role.
    let blue = Database::with(servers::blue().await, ACCOUNTS).await;
    let world = World::new(Some(&blue.name), None, BACKFILL, &[]).await;
    let admin = world.blue.admin().await;
    admin
        .batch_execute(
            "do $$ begin
               if not exists (select from pg_roles where rolname = 'stranger') then create role stranger; end if;
             end $$;
             create schema handover authorization stranger; create table handover.database_history (version int);
             alter table handover.database_history owner to stranger",
        )
        .await
        .unwrap();
    let ended = world.handover("run", &[]).await;
    let text = format!("{ended}");
    assert!(ended.code != Some(0) && text.contains("belongs to the role stranger"), "{text}");
}
