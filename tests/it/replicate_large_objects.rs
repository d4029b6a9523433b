//! Large objects behind a copy: what is made, changed, cut off and removed afterwards arrives at the cutover.

use crate::replicate::{BLUE, Background, NOTHING, PLAN, assert_equal, left, watched};
use crate::support::servers::{self, Database};
use crate::support::snapshot::assert_same;
use crate::support::world::World;
use rand::RngExt;
use std::time::Duration;

/// Objects of one piece, of several, and many.
const OBJECTS: &str = "
    create function noise(bytes int) returns bytea language sql volatile as
        $$select decode(string_agg(md5(random()::text), ''), 'hex') from generate_series(1, bytes / 16)$$;
    select lo_from_bytea(5000 + i, noise(700000)) from generate_series(0, 12) i;
    select lo_from_bytea(6000 + i, noise(64)) from generate_series(0, 1299) i;
    comment on large object 5000 is 'said'; comment on large object 5001 is 'to be taken back';
    grant select on large object 5002 to public;
    revoke update on large object 5003 from app;";

/// All there is to know about large objects, one a line.
async fn objects(database: &Database) -> String {
    let sql = "select string_agg(format('%s %s bytes %s, %s, %s, %s', m.oid, length(lo_get(m.oid)), md5(lo_get(m.oid)), m.lomowner::regrole,
                   (select array_agg(format('%s %s %s %s', x.grantor::regrole, x.grantee::regrole, x.privilege_type, x.is_grantable) order by x::text)
                    from (select grantor::regrole, grantee::regrole, privilege_type, is_grantable
                          from aclexplode(coalesce(m.lomacl, acldefault('L', m.lomowner)))) x),
                   obj_description(m.oid, 'pg_largeobject')), e'\\n' order by m.oid)
               from pg_largeobject_metadata m";
    database.value(sql).await.unwrap_or_default()
}

async fn assert_same_objects(world: &World) {
    assert_same("large objects", &objects(&world.blue).await, &objects(&world.green).await);
}

async fn world(plan: &str) -> World {
    let blue = Database::with(servers::blue().await, &format!("{BLUE}{OBJECTS}")).await;
    World::new(Some(&blue.name), None, plan, &[("switch.conf", "database = blue\n")]).await
}

/// Up to the approval, and killed there.
async fn copied(world: &World) {
    let mut run = Background::start(world, "run").await;
    run.until("hold: started").await;
    run.child.kill().await.unwrap();
    world.handover("approve", &["hold", "--by", "alice"]).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_happens_to_large_objects_after_the_copy_arrives() {
    let world = world(&watched("max_lag: 5s")).await;
    copied(&world).await;
    assert_same_objects(&world).await;
    world
        .blue
        .execute(
            "select lo_from_bytea(4000, noise(900000)), lo_create(4001), lo_from_bytea(4002, 'new');
             comment on large object 4002 is 'it''s new'; grant all on large object 4002 to public;
             -- One byte, in the middle of a page in the middle.
             select lo_put(5004, 300001, '\\x00');
             -- Cut off within a page, at a page's end, to nothing, and made longer by it.
             select lo_truncate64(lo_open(5005, 131072), 12345), lo_truncate64(lo_open(5006, 131072), 2048 * 3),
                    lo_truncate64(lo_open(5007, 131072), 0), lo_truncate64(lo_open(5008, 131072), 2048 * 500);
             -- Cut off and written far behind: what was between reads as zeros, over several pieces.
             select lo_truncate64(lo_open(5009, 131072), 100);
             select lo_put(5009, 690000, 'far');
             select lo_unlink(5010); select lo_unlink(oid) from pg_largeobject_metadata where oid between 6100 and 6199;
             -- Another under the same number, that begins with a hole.
             select lo_unlink(5011); select lo_create(5011); select lo_put(5011, 600000, 'again');
             comment on large object 5000 is 'said otherwise'; comment on large object 5001 is null;
             revoke all on large object 5002 from public; grant select on large object 5012 to public;
             select lo_put(oid, 3, '!') from pg_largeobject_metadata where oid between 6500 and 6999;",
        )
        .await;
    let admin = world.blue.admin().await;
    admin
        .batch_execute(
            "select lo_put(5003, 5, 'although its owner may not'); alter large object 6000 owner to handover",
        )
        .await
        .unwrap();
    // Killed between two batches, while nobody is held off.
    let failpoint = "replicate.large-objects-carried:2";
    world.handover_failing(failpoint, "resume", &[]).await.killed();
    world.blue.execute("select lo_put(4000, 0, 'more'), lo_unlink(4002), lo_from_bytea(4003, 'late')").await;
    // Killed within the pause.
    world.handover_failing("cutover.drained", "resume", &[]).await.killed();
    assert_same_objects(&world).await;
    // The old side serves on.
    world
        .blue
        .execute(
            "select lo_put(4000, 1, 'still more'), lo_create(4002), lo_put(4003, 4, 'r'), lo_unlink(6001);
             select lo_truncate64(lo_open(5004, 131072), 1); insert into history (account, delta) values (1, 1)",
        )
        .await;
    let ended = world.handover("resume", &[]).await.success();
    assert!(ended.stdout.contains("large objects: "), "{ended}");
    assert_same_objects(&world).await;
    assert_equal(&world).await;
    assert_eq!(left(&world).await, NOTHING);
    let report = world.handover("report", &["--format", "json"]).await.success();
    assert!(report.stdout.contains("\"large_objects_in_the_pause\""), "{report}");
    // What was carried goes with the copy.
    world.handover("rollback", &["--accept-loss"]).await.success();
    assert_eq!(objects(&world.green).await, "");
}

/// Writes to large objects as the application does, with a row of a table in each transaction, until it is refused.
async fn write(blue: Database, writer: u32) -> u64 {
    let (client, connection) =
        tokio_postgres::connect(&blue.owner_url(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let mut written = 0;
    let (mut made, mut next) = (Vec::<u32>::new(), 100_000 * (writer + 1));
    loop {
        let (dice, at, length, which) = {
            let mut rng = rand::rng();
            (
                rng.random_range(0..10),
                rng.random_range(0..800_000),
                rng.random_range(16..5_000),
                rng.random_range(0..4_u32),
            )
        };
        let own = 5004 + writer * 4 + which;
        let (sql, oid) = match dice {
            0..4 => (format!("select lo_put({own}, {at}, noise({length}))"), None),
            4..6 => (format!("select lo_truncate64(lo_open({own}, 131072), {at})"), None),
            6 => (
                format!(
                    "select lo_unlink({own}); select lo_create({own}); select lo_put({own}, {at}, noise({length}))"
                ),
                None,
            ),
            7..9 => {
                next += 1;
                (format!("savepoint s; select lo_from_bytea({next}, noise({length})); release s"), Some(next))
            }
            _ => match made.pop() {
                Some(oid) => (format!("select lo_unlink({oid})"), None),
                None => continue,
            },
        };
        let sql = format!("begin; {sql}; insert into history (account, delta) values (1, {length}); commit");
        match client.batch_execute(&sql).await {
            Ok(()) => {
                written += 1;
                made.extend(oid);
            }
            Err(e) => {
                let code = e.code().expect("refused by the server").code();
                assert_eq!(code, "25006", "{e:?}");
                return written;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_large_objects_are_written_throughout() {
    let world = world(PLAN).await;
    let writers: Vec<_> = (0..2).map(|n| tokio::spawn(write(world.blue.clone(), n))).collect();
    let ended = world.handover("run", &[]).await.success();
    let mut written = 0;
    for writer in writers {
        written += writer.await.unwrap();
    }
    assert!(written > 50, "only {written}: {ended}");
    assert_same_objects(&world).await;
    assert_equal(&world).await;
    assert_eq!(left(&world).await, NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_way_of_carrying_is_said_before_any_pause() {
    let world = world(&watched("max_lag: 5s")).await;
    copied(&world).await;
    // Somebody else's object on green under a number that blue gives out.
    world.green.execute("select lo_from_bytea(424242, 'theirs'), lo_from_bytea(424243, 'theirs too')").await;
    world.blue.execute("select lo_from_bytea(424242, 'ours')").await;
    let ended = world.handover("resume", &[]).await.code(8);
    assert!(ended.stderr.contains("large object 424242 was made on blue since the copy"), "{ended}");
    assert!(ended.stderr.contains("lo_unlink(424242)"), "{ended}");
    world.green.execute("select lo_unlink(424242)").await;
    // A transaction that wrote to large objects and no table is waited for, and called off if it takes long.
    let mut client = world.blue.admin().await;
    let tx = client.transaction().await.unwrap();
    tx.batch_execute("select lo_put(5000, 0, 'soon')").await.unwrap();
    let plan = watched("max_lag: 5s").replace("patience: 60s", "patience: 2s");
    world.write("plan.yaml", &plan);
    let ended = world.handover("resume", &["--accept-changes"]).await.code(1);
    assert!(ended.stderr.contains("has held locks that writers take"), "{ended}");
    tx.commit().await.unwrap();
    world.handover("resume", &[]).await.success();
    let green = objects(&world.green).await;
    let theirs: Vec<&str> = green.lines().filter(|l| !l.starts_with("424243 ")).collect();
    assert_same("large objects", &objects(&world.blue).await, &theirs.join("\n"));
}
