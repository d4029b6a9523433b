//! Autovacuum at work on a table that is frozen, again and again: the launcher begins another one as soon as one was cancelled.
//! There and back take one attempt each.

use crate::support::servers::{self, Database};
use crate::support::world::{World, until};
use handover_lab::{PostgresOptions, PostgresServer};

/// The plan of the way back, with one attempt of each.
fn plan() -> String {
    crate::reverse::PLAN
        .replace("attempts: 3", "attempts: 1")
        .replace("    cutover:", "    retry: { attempts: 1 }\n    cutover:")
}

/// One page in a tenth of a second: a vacuum of it takes a minute.
const BLUE: &str = r#"
create table ballast (id int primary key, pad text not null)
    with (fillfactor = 40, autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 20,
          autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
insert into ballast select n, repeat(md5(n::text), 6) from generate_series(1, 20000) n;
"#;

async fn sweep(side: &Database) {
    side.execute("update ballast set pad = pad where id % 2 = 0").await;
    until(
        &side.admin().await,
        "select 1 from pg_stat_progress_vacuum where datname = current_database() and relid = 'ballast'::regclass",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn autovacuum_at_work_calls_nothing_off_there_or_back() {
    // From Postgres 18 on Handover's role may cancel it.
    let options = PostgresOptions::new(servers::programs().await.green.clone());
    let server = PostgresServer::start(options.setting("autovacuum_naptime", "1s")).await.unwrap();
    let server: &'static PostgresServer = Box::leak(Box::new(server));
    let blue = Database::with(server, BLUE).await;
    let green = Database::create(server, None).await;
    let control = Database::create(servers::green().await, None).await;
    let mut world = World::of(blue, green, control);
    world.clients = Some(servers::programs().await.green.folder().to_owned());
    world.write("plan.yaml", &plan());
    world.write("switch.conf", "database = blue\n");
    sweep(&world.blue).await;
    world.handover("run", &[]).await.success();
    sweep(&world.green).await;
    world.handover("rollback", &["--to", "follow"]).await.success();
    sweep(&world.blue).await;
    world.handover("resume", &[]).await.success();
    world.green.execute("update ballast set pad = '' where id = 1").await;
}
