//! A copy whose connections, pg_dump's among them, go through TLS.

use crate::support::servers;
use crate::support::tls::{Begin, TlsProxy};
use crate::support::world::World;

const PLAN: &str = "
handover: 1
name: copying-over-tls
databases: { blue: '${BLUE_URL}', green: '${GREEN_URL}' }
control: ${CONTROL_URL}
steps:
  - id: copy
    copy: { from: blue, to: green, jobs: 2 }
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_and_schema_travel_over_verified_tls() {
    let world = World::new(None, None, PLAN, &[]).await;
    world.blue.execute("create table a (id int primary key, t text); insert into a select i, 'x' from generate_series(1, 1000) i; select lo_from_bytea(77, 'object')").await;
    let proxy = TlsProxy::start(world.blue.server.port(), Begin::AfterRequest).await;
    let through = |parameters: &str| proxy.through(&world.blue.handover_url(), parameters);
    let newer = servers::programs().await.green.folder().to_owned();
    let verified = format!("sslmode=verify-full&sslrootcert={}", proxy.ca().display());

    // Programs built without TLS are said to be so; those of green's package may be.
    world.write("plan.yaml", &PLAN.replace("jobs: 2", &format!("jobs: 2, programs: {}", newer.display())));
    let output = world
        .command()
        .env("BLUE_URL", through(&verified))
        .arg("run")
        .arg(world.plan())
        .output()
        .await
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        assert!(stderr.contains("built without TLS"), "{stderr}");
    }
    world.handover("rollback", &[]).await;

    for parameters in [verified.as_str(), "sslmode=require"] {
        world.write("plan.yaml", &PLAN.replace("copying", &format!("copying-{}", parameters.len())));
        // The newest program that fits may be one without TLS: another is taken then.
        let mut command = world.command();
        command.env("BLUE_URL", through(parameters)).env("HANDOVER_POSTGRES_BIN_NEW", &newer);
        let output = command.arg("run").arg(world.plan()).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(world.green.value("select count(*) from a").await.as_deref(), Some("1000"));
        assert_eq!(
            world.green.value("select convert_from(lo_get(77), 'UTF8')").await.as_deref(),
            Some("object")
        );
        let mut command = world.command();
        command.env("BLUE_URL", through(parameters)).arg("rollback").arg(world.plan());
        assert!(command.status().await.unwrap().success());
    }
}
