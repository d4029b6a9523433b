//! `copy` between real servers of different major versions.

use crate::support::context::{context, kind};
use crate::support::scenario::Scenario;
use crate::support::servers::{self, Database};
use crate::support::snapshot::{assert_same, snapshot};
use crate::support::world::World;
use handover::event::Event;
use handover_lab::PostgresServer;
use serde_json::json;

pub const PLAN: &str = "
handover: 1
name: copying
databases: { blue: '${BLUE_URL}', green: '${GREEN_URL}' }
control: ${CONTROL_URL}
steps:
  - id: copy
    copy: { from: blue, to: green, jobs: 2, chunk_mb: 1 }
";

pub fn scenario() -> Scenario {
    // With rows that do not fit, so that a kill finds them half set aside.
    let plan = PLAN.replace("chunk_mb: 1", "chunk_mb: 1, on_violation: quarantine").leak();
    let blue = format!("{ZOO}{ORPHANS}").leak();
    Scenario { prefixes: &["copy"], plan, blue, rollback_restores: true, ..Scenario::default() }
}

/// A trigger keeps children from going with their parents: nobody needs to be a superuser for that.
pub const ORPHANS: &str = "
create table nest (id int primary key); insert into nest select generate_series(1, 100);
create table bird (id int primary key, nest int references nest on delete cascade); insert into bird select i, i from generate_series(1, 100) i;
create table feather (id int primary key, bird int references bird, next int references feather); insert into feather select i, i, null from generate_series(1, 100) i;
update feather set next = 8 where id between 1 and 4;
create function stays() returns trigger language plpgsql as 'begin return null; end';
create trigger stays before delete on bird for each row execute function stays();
delete from nest where id between 6 and 8;
";

/// Something of every kind that can go wrong in a copy.
const ZOO: &str = r#"
create schema "Odd; Type: ""Schema";
create type mood as enum ('sad', 'it''s fine', 'happy');
create domain positive as int check (value > 0);
create type pair as (a int, m mood);
create table customer (
    id bigint generated always as identity primary key,
    email text not null unique,
    mood mood not null default 'sad',
    moods mood[] not null default '{}',
    pair pair,
    score positive,
    dropped int,
    upper_email text generated always as (upper(email)) stored,
    data jsonb, raw bytea, amount numeric(20, 5), seen timestamptz, span interval, kin regclass, r int4range
);
alter table customer drop column dropped;
insert into customer (email, mood, moods, pair, score, data, raw, amount, seen, span, kin, r)
    select 'user' || i || '@example.org', (array['sad', 'it''s fine', 'happy'])[1 + i % 3]::mood,
           array['happy', 'sad']::mood[], row (i, 'happy')::pair, i, jsonb_build_object('n', i, 'ü', E'tab\there'),
           decode(md5(i::text), 'hex'), i / 7.0, timestamptz '2020-01-01 00:00:00.123456+02' + i * interval '1 min',
           i * interval '1 month 3 days', 'customer'::regclass, int4range(i, i + 5)
    from generate_series(1, 1000) i;
create table orders (id serial primary key, customer bigint not null references customer, note text);
insert into orders (customer, note) select 1 + i % 1000, repeat('x', i % 1500) from generate_series(1, 4000) i;
create index orders_customer on orders (customer) where note <> '';
create index "odd "" index" on orders ((length(note)));
comment on index orders_customer is 'open orders';
create table "Odd; Type: ""Schema"."select
from" ("order" int primary key, "ä ""ö" text);
insert into "Odd; Type: ""Schema"."select
from" values (1, E'a\\b\nc'), (2, null);
create table nothing ();
insert into nothing default values; insert into nothing default values;
create table computed (x int generated always as (1) stored);
insert into computed default values;
create unlogged table scratch (id int);
insert into scratch values (1);
create table part (id int, at date not null, primary key (id, at)) partition by range (at);
create table part_1 partition of part for values from ('2020-01-01') to ('2021-01-01');
create table part_2 partition of part for values from ('2021-01-01') to ('2022-01-01');
insert into part select i, date '2020-01-01' + i from generate_series(1, 700) i;
create index on part (at);
create table about_part (id int, at date, foreign key (id, at) references part);
insert into about_part values (5, '2020-01-06');
create table parent (id int); create table child (extra text) inherits (parent);
insert into parent values (1); insert into child values (2, 'x');
create view happy as select * from customer where mood = 'happy';
create view grouped as select c.id, c.email, count(*) from customer c join orders o on o.customer = c.id group by c.id;
create materialized view counts as select mood, count(*) from customer group by mood;
create unique index on counts (mood);
create function touch() returns trigger language plpgsql as $$begin raise exception 'no trigger may fire'; end$$;
create trigger touch before insert or update on orders for each row execute function touch();
comment on trigger touch on orders is 'never during a copy';
create table tenant (id int, owner text); insert into tenant values (1, 'a'), (2, 'b');
alter table tenant enable row level security;
create policy mine on tenant using (owner = current_user);
create sequence loose start 100 increment by 7; select nextval('loose'); select nextval('loose');
create sequence untouched;
create statistics together (dependencies) on id, customer from orders;
create rule quiet as on delete to scratch do instead nothing;
create function add(a int, b int) returns int language sql as 'select a + b';
grant select on customer to public;
select lo_from_bytea(5000, 'small'), lo_from_bytea(0, ''), lo_from_bytea(5001, decode(repeat('00ff10', 100000), 'hex'));
comment on large object 5000 is 'it''s small'; grant select on large object 5000 to public;
"#;

pub struct Pair {
    pub blue: Database,
    pub green: Database,
}

impl Pair {
    pub async fn new(sql: &str) -> Self {
        Self::on(servers::blue().await, sql).await
    }

    pub async fn on(blue: &'static PostgresServer, sql: &str) -> Self {
        let (blue, green) =
            tokio::join!(Database::with(blue, sql), Database::create(servers::green().await, None));
        Pair { blue, green }
    }

    pub fn urls(&self) -> [(&'static str, String); 2] {
        [("blue", self.blue.handover_url()), ("green", self.green.handover_url())]
    }

    pub async fn assert_equal(&self) {
        let (blue, green) = (content(&self.blue).await, content(&self.green).await);
        assert!(!blue.is_empty());
        assert_same("copied", &blue, &green);
    }
}

/// Rows of tables and materialized views, and positions of sequences; the catalogs' words differ by version.
pub async fn content(database: &Database) -> String {
    let all = snapshot(database).await;
    all.lines().filter(|l| l.starts_with("content ")).map(|l| format!("{l}\n")).collect()
}

pub async fn relations(database: &Database) -> String {
    database
        .value("select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace where nspname not like 'pg\\_%' and nspname not in ('information_schema', 'handover')")
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_arrives_and_goes_again() {
    everything(servers::blue().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_arrives_from_postgres_13() {
    everything(servers::oldest().await).await;
}

async fn everything(blue: &'static PostgresServer) {
    let pair = Pair::on(blue, ZOO).await;
    let (cx, _events) = context("copy", &pair.urls(), &["green"]).await;
    // A trigger of capture's must not follow.
    pair.blue
        .admin()
        .await
        .batch_execute(
            "create schema handover; create function handover.c() returns trigger language plpgsql as 'begin return null; end';
             create trigger capture after update on customer for each row execute function handover.c()",
        )
        .await
        .unwrap();
    let step = kind("copy", json!({ "from": "blue", "to": "green", "jobs": 3, "chunk_mb": 1 }));
    let described = step.describe(&cx).await.unwrap();
    assert_eq!(described.blockers, Vec::<String>::new());
    for _ in 0..2 {
        let summary = step.run(&cx).await.unwrap();
        step.verify(&cx).await.unwrap();
        assert!(summary["rows"].as_u64().unwrap() > 5_000, "{summary}");
        assert!(summary["snapshot"]["xids"].as_str().unwrap().contains(':'));
        pair.assert_equal().await;
        let green = &pair.green;
        assert_eq!(green.value("select last_value from loose").await.as_deref(), Some("107"));
        assert_eq!(green.value("select is_called from untouched").await.as_deref(), Some("f"));
        assert_eq!(green.value("select nextval('orders_id_seq')").await.as_deref(), Some("4001"));
        assert_eq!(green.value("select count(*) from counts").await.as_deref(), Some("3"));
        assert_eq!(green.value("select count(*) from nothing").await.as_deref(), Some("2"));
        assert_eq!(green.value("select kin::text from customer limit 1").await.as_deref(), Some("customer"));
        assert_eq!(
            green.value("select tableowner from pg_tables where tablename = 'customer'").await.as_deref(),
            Some("app")
        );
        assert_eq!(
            green.value("select obj_description('orders_customer'::regclass)").await.as_deref(),
            Some("open orders")
        );
        assert_eq!(
            green.value("select count(*) from pg_stats where tablename = 'orders'").await.as_deref(),
            Some("3"),
            "analyzed"
        );
        assert_eq!(
            green.value("select count(*) from pg_trigger where tgname = 'capture'").await.as_deref(),
            Some("0")
        );
        // Running it again does nothing.
        step.run(&cx).await.unwrap();
        step.undo(&cx).await.unwrap();
        assert_eq!(relations(green).await, "0");
        let leftovers = "select count(*) from pg_type t join pg_namespace n on n.oid = t.typnamespace where nspname = 'public'";
        assert_eq!(green.value(leftovers).await.as_deref(), Some("0"));
        assert_eq!(
            green.value("select count(*) from pg_namespace where nspname like 'Odd%'").await.as_deref(),
            Some("0")
        );
    }
}

/// Many pieces of one table, and a small one that comes last.
pub const PIECES: &str =
    "create table a as select i as id, repeat('x', 200) as t from generate_series(1, 30000) i;
     create table z as select i as id from generate_series(1, 10) i; create index on a (id)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_moment_is_copied_while_others_write_and_alter() {
    let pair = Pair::new(
        "create table a as select i as id, 100 as amount, repeat('x', 300) as filler from generate_series(1, 8000) i;
         create table b as table a; create table altered (id int); insert into altered values (1)",
    )
    .await;
    let (cx, _events) = context("copy", &pair.urls(), &["green"]).await;
    // A schema change is under way when the copy begins.
    let mut alters = pair.blue.admin().await;
    let change = tokio::spawn(async move {
        let tx = alters.transaction().await.unwrap();
        tx.batch_execute("alter table altered add column late int default 7").await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
        tx.commit().await.unwrap();
    });
    // Amounts move from one table to the other, each time in one transaction.
    let writer = pair.blue.admin().await;
    let moves = tokio::spawn(async move {
        for i in 1.. {
            let sql = format!(
                "begin; update a set amount = amount - 1 where id = {0}; update b set amount = amount + 1 where id = {0}; commit",
                1 + i * 37 % 8000
            );
            writer.batch_execute(&sql).await.unwrap();
        }
    });
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    let step = kind("copy", json!({ "from": "blue", "to": "green", "jobs": 2, "chunk_mb": 1 }));
    step.run(&cx).await.unwrap();
    step.verify(&cx).await.unwrap();
    change.await.unwrap();
    moves.abort();
    let sum = "select (select sum(amount) from a) + (select sum(amount) from b), (select sum(amount) from a)";
    assert_eq!(pair.green.value(sum).await.as_deref(), Some("1600000"));
    let moved = pair.green.value("select 800000 - sum(amount) from a").await.unwrap();
    assert_ne!(moved, "0", "the writer was busy before the snapshot");
    assert_eq!(pair.green.value("select late from altered").await.as_deref(), Some("7"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_in_all_and_index_builds_are_seen_on_their_way() {
    let pair = Pair::new(
        "create table a as select i as id, repeat(md5(i::text), 20) as t from generate_series(1, 60000) i;
         create function slow(i int) returns int immutable language plpgsql as 'begin perform pg_sleep(0.001); return i; end';
         create table b as select i as id, repeat('x', 500) as t from generate_series(1, 2500) i;
         create index seen on b (slow(id))",
    )
    .await;
    let (cx, mut events) = context("copy", &pair.urls(), &["green"]).await;
    let step = kind("copy", json!({ "from": "blue", "to": "green", "jobs": 1, "chunk_mb": 8 }));
    step.run(&cx).await.unwrap();
    let mut seen = std::collections::BTreeMap::new();
    while let Ok(event) = events.try_recv() {
        if let Event::Progress { unit, done, total: Some(total), .. } = event {
            assert!(done <= total, "{unit}: {done} of {total}");
            *seen.entry(unit).or_insert(0) += 1;
        }
    }
    assert!(seen["all rows"] >= 1 && seen["a"] >= 2 && seen["seen"] >= 1, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_tuned_for_the_load_is_put_back_whatever_happens() {
    let blue =
        Database::with(servers::blue().await, "create table a as select i from generate_series(1, 10) i")
            .await;
    // A server's settings are everybody's: this test has its own.
    let server: &'static PostgresServer = Box::leak(Box::new(servers::own_green().await));
    let green = Database::create(server, None).await;
    let control = Database::create(server, None).await;
    let admin = green.admin().await;
    admin
        .batch_execute(
            "grant alter system on parameter max_wal_size, checkpoint_timeout to handover;
             grant execute on function pg_reload_conf() to handover; grant pg_read_all_settings to handover",
        )
        .await
        .unwrap();
    admin.batch_execute("alter system set checkpoint_timeout = '7min'").await.unwrap();
    admin.batch_execute("select pg_reload_conf()").await.unwrap();
    let world = World::of(blue, green, control);
    let plan = |tune: &str| PLAN.replace("chunk_mb: 1", &format!("tune: {{ {tune} }}"));
    world.write("plan.yaml", &plan("max_wal_size: 3GB, checkpoint_timeout: 20min"));
    let settings = async |expected: &str| {
        let sql = "select current_setting('max_wal_size') || ' ' || current_setting('checkpoint_timeout') || ' '
                   || (select count(*) from pg_settings where name = 'max_wal_size' and sourcefile like '%auto.conf')";
        for _ in 0..100 {
            if world.green.value(sql).await.as_deref() == Some(expected) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("{:?} is not {expected}", world.green.value(sql).await);
    };
    let original = world.green.value("select current_setting('max_wal_size')").await.unwrap();
    let original = format!("{original} 7min 0");
    settings(&original).await;
    world.handover_failing("copy.schema-created", "run", &[]).await.killed();
    settings("3GB 20min 1").await;
    world.handover("resume", &[]).await.success();
    settings(&original).await;
    world.handover("rollback", &[]).await.success();
    world.handover_failing("copy.schema-created", "run", &[]).await.killed();
    settings("3GB 20min 1").await;
    world.handover("rollback", &[]).await.success();
    settings(&original).await;
    // What needs a restart is not touched, and what is dangerous not even tried.
    world.write("plan.yaml", &plan("shared_buffers: 1GB"));
    let refused = world.handover("run", &[]).await.code(1);
    assert!(refused.stderr.contains("can only be set when the server starts"), "{refused}");
    world.write("plan.yaml", &plan("fsync: off"));
    let refused = world.handover("check", &[]).await.to_string();
    assert!(refused.contains("could then damage every database"), "{refused}");
}
