//! `cutover` against real schemas: many tables, tables of extensions, sequences of every sort, and servers whose
//! settings are too small for them.

use crate::support::servers::{self, Database};
use crate::support::world::World;

/// Copies and flips, with nothing else between the two.
const PLAN: &str = r#"
handover: 1
name: scale
databases: { blue: '${BLUE_URL}', green: '${GREEN_URL}' }
control: ${CONTROL_URL}
steps:
  - id: copy
    copy: { from: blue, to: green }
  - id: flip
    retry: { attempts: 1 }
    cutover:
      freeze: blue
      to: green
      attempts: 2
      backoff: 100ms
      patience: 2s
      participants:
        - name: config
          file: { path: switch.conf, content: "database = green\n" }
"#;

/// The flip alone, onto a new side that was filled by other means.
fn flip_only() -> String {
    let (head, rest) = PLAN.split_once("  - id: copy").unwrap();
    let (_, flip) = rest.split_once("  - id: flip").unwrap();
    format!("{head}  - id: flip{flip}")
}

const SWITCH: &[(&str, &str)] = &[("switch.conf", "database = blue\n")];

async fn world(plan: &str, blue: &str, green: &str) -> World {
    let blue = Database::with(servers::blue().await, blue).await;
    let green = Database::with(servers::green().await, green).await;
    World::new(Some(&blue.name), Some(&green.name), plan, SWITCH).await
}

/// A table that came with an extension (here one that every server has), as PostGIS's `spatial_ref_sys` does. It is
/// a superuser's, which we may not lock.
const OF_EXTENSION: &str = "
    create table spatial_ref_sys (srid int primary key, srtext text);
    insert into spatial_ref_sys values (4326, 'WGS 84');
    create sequence spatial_seq; select nextval('spatial_seq');
    alter extension plpgsql add table spatial_ref_sys;
    alter extension plpgsql add sequence spatial_seq;
    revoke all on spatial_ref_sys from public;";

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_extensions_are_nobodys_to_freeze() {
    for plan in [PLAN.to_owned(), flip_only()] {
        let world = world(&plan, "create table payment (id int primary key)", "").await;
        world.blue.admin().await.batch_execute(OF_EXTENSION).await.unwrap();
        if plan != PLAN {
            world.green.execute("create table payment (id int primary key)").await;
        }
        world.handover("run", &[]).await.success();
        let refused =
            world.blue.admin().await.batch_execute("insert into payment values (1)").await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "25006");
        // The extension's own goes on as before.
        world.blue.admin().await.batch_execute("insert into spatial_ref_sys values (1, '')").await.unwrap();
        let doctor = world.handover("doctor", &[]).await;
        assert!(!doctor.stdout.contains("membership in postgres"), "{doctor}");
    }
}
