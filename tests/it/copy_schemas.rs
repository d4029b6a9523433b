//! `copy` of more than sixty schemas with odd objects (`zoo_schemas.sql`), between servers of one and of several versions.
//! The copy itself compares what every definition means on both sides; here pg_dump and the rows are compared too.

use crate::copy_zoo::{arrives, newer, proves, roles, zoo};
use crate::support::servers::{self, Database};
use handover_lab::PostgresServer;

async fn all_arrive(
    what: &str,
    from: &'static PostgresServer,
    to: &'static PostgresServer,
    files: &[&str],
    back: bool,
) {
    roles(from).await;
    roles(to).await;
    let (blue, green) = (zoo(from, files).await, Database::create(to, None).await);
    let programs = if to.port() == servers::green().await.port() { newer().await } else { None };
    let urls = [blue.handover_url(), green.handover_url()];
    // One of them is enough to see that all of it goes again.
    if back {
        proves(what, &blue, &green, urls, programs).await;
    } else {
        arrives(what, &blue, &green, urls, programs).await;
    }
    blue.drop_now().await;
    green.drop_now().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_schemas_of_13_arrive_on_18() {
    all_arrive("13 to 18", servers::oldest().await, servers::green().await, &["zoo_schemas.sql"], false)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_schemas_arrive_on_the_same_version() {
    all_arrive("15 to 15", servers::blue().await, servers::blue().await, &["zoo_schemas.sql"], true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_schemas_of_15_arrive_on_18() {
    all_arrive("15 to 18", servers::blue().await, servers::green().await, &["zoo_schemas.sql"], false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_schemas_of_16_arrive_on_18() {
    all_arrive(
        "16 to 18",
        servers::between().await,
        servers::green().await,
        &["zoo_schemas.sql", "zoo.sql"],
        false,
    )
    .await;
}
