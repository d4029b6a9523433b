//! What a cutover finds out about a PgBouncer before it pauses anything.

use crate::pooler::{PLAN, TABLE, world};
use crate::support::pooler::place;
use crate::support::servers::{self, Database};
use crate::support::world::{Ended, World};

/// Runs into a refusal, with nothing paused and the file as it was; ready for the next one.
async fn refused(world: &World, variables: &[(&str, &str)]) -> Ended {
    let before = world.poolers[0].config();
    let call = async |verb: &str| {
        let mut command = world.command();
        command.envs(variables.iter().copied()).arg(verb).arg(world.plan());
        command.output().await.unwrap()
    };
    let output = call("run").await;
    let back = call("rollback").await;
    assert!(back.status.success(), "{}", String::from_utf8_lossy(&back.stderr));
    let ended = Ended {
        code: output.status.code(),
        signal: None,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    assert_ne!(ended.code, Some(0), "{ended}");
    assert!(!ended.stderr.contains("called off"), "nothing may have been asked to prepare: {ended}");
    assert!(!world.poolers[0].is_paused().await, "{ended}");
    assert_eq!(world.poolers[0].config(), before, "{ended}");
    assert!(!world.poolers[0].process.log().contains("PAUSE"), "{}", world.poolers[0].process.log());
    for url in [world.poolers[0].process.admin_url(), world.poolers[0].through_url()] {
        let password = url::Url::parse(&url).unwrap().password().unwrap().to_owned();
        assert!(!format!("{ended}").contains(&password), "{ended}");
    }
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_that_do_not_fit_are_named() {
    let world = world(PLAN, "transaction", 1).await;
    let pooler = &world.poolers[0];
    let wrong = format!("postgres://admin:wrongwrong@127.0.0.1:{}/pgbouncer", pooler.process.port());
    let ended = refused(&world, &[("POOLER_1", &wrong)]).await;
    assert!(ended.stderr.contains("cannot log in to PgBouncer at 127.0.0.1"), "{ended}");
    assert!(
        ended.stderr.contains("pgbouncer.instances[0].admin") && !ended.stderr.contains("wrongwrong"),
        "{ended}"
    );

    let none = pooler.through_url().replace("/shop", "/pgbouncer");
    let ended = refused(&world, &[("POOLER_1", &none)]).await;
    assert!(ended.stderr.contains("admin_users"), "{ended}");

    let ended = refused(&world, &[("POOLER_1", &pooler.through_url())]).await;
    assert!(ended.stderr.contains("leads to another database than `pgbouncer`"), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_the_poolers_is_found_out() {
    // Another file with the same entry: only the pooler itself can tell.
    let world = world(PLAN, "transaction", 1).await;
    std::fs::remove_file(world.path("pooler-1.ini")).unwrap();
    let text = world.poolers[0].config();
    world.write("pooler-1.ini", &text);
    let ended = refused(&world, &[]).await;
    assert!(ended.stderr.contains("does not take up what is written to"), "{ended}");
    assert_eq!(std::fs::read_to_string(world.path("pooler-1.ini")).unwrap(), text);
    // One without the entry, one that says something else, and none.
    world.write("pooler-1.ini", "[databases]\nother = host=a\n");
    let ended = refused(&world, &[]).await;
    assert!(ended.stderr.contains("there is no entry `shop` under [databases]"), "{ended}");
    world.write("pooler-1.ini", &format!("[databases]\nshop = {}\n", place(&world.green)));
    let ended = refused(&world, &[]).await;
    assert!(ended.stderr.contains("name the file that this instance reads"), "{ended}");
    std::fs::remove_file(world.path("pooler-1.ini")).unwrap();
    let ended = refused(&world, &[]).await;
    assert!(ended.stderr.contains("cannot read"), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_is_not_what_the_plan_thinks_is_found_out() {
    let world = world(PLAN, "transaction", 1).await;
    world.write("plan.yaml", &PLAN.replace("database: shop", "database: shops"));
    let ended = refused(&world, &[]).await;
    assert!(ended.stderr.contains("has no database `shops`"), "{ended}");

    // The pooler cannot log in over there: asked before anybody is paused.
    let elsewhere = format!("connect: host=127.0.0.1 port={} dbname=nosuch", world.green.server.port());
    world.write("plan.yaml", &PLAN.replace("to: green\n", &format!("to: green\n            {elsewhere}\n")));
    let ended = refused(&world, &[]).await;
    assert!(ended.stderr.contains("handover_probe") && ended.stderr.contains("nosuch"), "{ended}");

    // Another database than the one that is frozen, by its place and by what it says.
    let frozen =
        PLAN.replace("      attempts: 2\n", "      attempts: 2\n      freeze: blue\n      to: green\n");
    let other = Database::with(servers::blue().await, TABLE).await.handover_url();
    for plan in [frozen.replace("through: \"${THROUGH_1}\", ", ""), frozen.clone()] {
        world.write("plan.yaml", &plan.replace("{ before: blue,", "{ before: green,"));
        let ended = refused(&world, &[("BLUE_URL", &other)]).await;
        assert!(
            ended.stderr.contains("which is not where the plan's blue is")
                || ended.stderr.contains("another database than the plan's blue"),
            "{ended}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_pause_is_respected() {
    let world = world(PLAN, "transaction", 1).await;
    let console = world.poolers[0].console().await;
    console.simple_query("PAUSE shop").await.unwrap();
    let ended = world.handover("run", &[]).await.code(1);
    assert!(ended.stderr.contains("is paused already"), "{ended}");
    assert!(world.poolers[0].is_paused().await);
    world.handover("rollback", &[]).await.success();
    assert!(world.poolers[0].is_paused().await);
    console.simple_query("RESUME shop").await.unwrap();
}
