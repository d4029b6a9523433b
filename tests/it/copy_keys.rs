//! `copy` that cuts tables by ranges of a key: as it must on Postgres 13, and as a plan may ask for on any.

use crate::support::context::{context, kind};
use crate::support::servers::{self, Database};
use crate::support::snapshot::{assert_same, snapshot};
use crate::support::world::World;
use handover_lab::PostgresServer;
use serde_json::json;
use std::collections::BTreeMap;

/// Tables with keys of every kind, each several megabytes.
const KEYS: &str = r#"
create extension citext; create extension ltree;
create schema "Odd ""s";
create type "Odd ""s"."Mood's" as enum ('sad', 'it''s \fine', 'happy');
create domain code as text collate "C" check (value <> '');
create type pair as (a int, m text);
create table filler as select i, repeat('x', 700) as f from generate_series(1, 3000) i;

create table k_int (id int primary key, f text);
insert into k_int select i, f from filler;
create table k_smallest as select -32000 + i * 20 as id, f from filler; alter table k_smallest alter id type smallint, add primary key (id);
create table k_uuid (id uuid primary key, f text);
insert into k_uuid select md5(i::text)::uuid, f from filler;
create table k_text (id text primary key, f text);
insert into k_text select (array['', 'Ä', 'a', 'A', 'é', '日本', '''', '\', '"', E'\n', E'\t', '%s', '-', ' '])[1 + i % 14] || i, f from filler;
create table k_collated (id text collate "C" not null, f text);
insert into k_collated select * from k_text; create unique index on k_collated (id collate "POSIX");
create table k_pattern (id varchar(20) not null, f text);
insert into k_pattern select * from k_text; create unique index on k_pattern (id varchar_pattern_ops);
create table k_char (id char(12) primary key, f text);
insert into k_char select i || '  ', f from filler;
create table k_numeric (id numeric primary key, f text);
insert into k_numeric select i / 7.0, f from filler; insert into k_numeric values ('NaN', ''), (-1e30, ''), (1e-30, ''), (0.00, '');
create table k_float (id float8 primary key, f text);
insert into k_float select i / 7.0, f from filler; insert into k_float values ('NaN', ''), ('-infinity', ''), ('infinity', ''), (-0.0, '');
create table k_at (at timestamptz primary key, f text);
insert into k_at select timestamptz '2020-01-01 00:00:00.123456+02' + i * interval '1 hour 1 us', f from filler;
insert into k_at values ('infinity', ''), ('-infinity', ''), ('4713-01-01 BC', '');
create table k_span (id interval primary key, f text);
insert into k_span select i * interval '1 month 3 days', f from filler;
create table k_day (id date, n int, f text, primary key (id, n));
insert into k_day select date '2020-01-01' + i % 5, i, f from filler; insert into k_day values ('infinity', 1, ''), ('-infinity', 1, '');
create table k_mood (m "Odd ""s"."Mood's", n bigint, f text, primary key (m, n));
insert into k_mood select (enum_range(null::"Odd ""s"."Mood's"))[1 + i % 3], i, f from filler;
create table k_citext (id citext primary key, f text);
insert into k_citext select chr(97 + i % 13) || chr(65 + i % 26) || i, f from filler;
create table k_mixed (tenant int, id citext, f text, primary key (tenant, id));
insert into k_mixed select i / 10, 'aB' || i, f from filler;
create table k_ltree (id ltree primary key, f text);
insert into k_ltree select ('a.b' || i % 10 || '.c' || i)::ltree, f from filler;
create table k_domain (id code primary key, f text);
insert into k_domain select 'c' || i, f from filler;
create table k_bytes (id bytea primary key, f text);
insert into k_bytes select decode(md5(i::text), 'hex'), f from filler;
create table k_array (id text[] primary key, f text);
insert into k_array select array['a"', null, i::text, '{'], f from filler;
create table k_pair (id pair primary key, f text);
insert into k_pair select row (i % 10, '(' || i || ',"')::pair, f from filler;
create table k_range (id int4range primary key, f text);
insert into k_range select int4range(i, case when i % 3 = 0 then null else i + 5 end), f from filler;
create table k_json (id jsonb primary key, f text);
insert into k_json select jsonb_build_object('n', i, 'ü', E'tab\there'), f from filler;
create table k_net (id inet primary key, f text);
insert into k_net select inet '10.0.0.0' + i * 7, f from filler;
create table k_bits (id varbit primary key, f text);
insert into k_bits select i::bit(16)::varbit, f from filler;
create table k_lsn (id pg_lsn primary key, f text);
insert into k_lsn select ('0/' || to_hex(i * 4096))::pg_lsn, f from filler;
create table k_flag (b bool, n int, f text, primary key (b, n));
insert into k_flag select i % 2 = 0, i, f from filler;
create table k_down (id int not null, n int not null, f text);
insert into k_down select i / 4, i, f from filler; create unique index on k_down (id desc nulls last, n desc);
create table k_updown (id int not null, n int not null, f text);
insert into k_updown select i / 4, i, f from filler; create unique index on k_updown (id desc, n);
create table "Odd ""s"."k ""from' \" ("order; ""by" int, "%s' \ ö" text, f text, primary key ("order; ""by", "%s' \ ö"));
insert into "Odd ""s"."k ""from' \" select i / 3, E'\\' || i, f from filler;
create table k_plain_index (id uuid, at timestamp not null, f text); create index on k_plain_index (at); create index on k_plain_index (id);
insert into k_plain_index select md5(i::text)::uuid, timestamp '2020-01-01' + i * interval '1 s', f from filler;
create table k_generated (a int not null, twice int generated always as (a * 2) stored, f text, primary key (twice));
insert into k_generated (a, f) select i, f from filler;
create table k_part (id int primary key, f text) partition by range (id);
create table k_part_1 partition of k_part for values from (0) to (2500); create table k_part_2 partition of k_part default;
insert into k_part select i, f from filler;
create table k_hash (m "Odd ""s"."Mood's", n int, f text, primary key (m, n)) partition by hash (m);
create table k_hash_1 partition of k_hash for values with (modulus 2, remainder 0);
create table k_hash_2 partition of k_hash for values with (modulus 2, remainder 1);
insert into k_hash select m, n, f from k_mood;
create table k_parent (id int primary key, f text); create table u_child () inherits (k_parent);
insert into k_parent select i, f from filler; insert into u_child select i, f from filler;

create table u_nothing (id int, f text); insert into u_nothing select i, f from filler;
create table u_null (id int unique, f text); insert into u_null select nullif(i % 2, 0) * i, f from filler;
create table u_some (id int not null, f text); insert into u_some select i, f from filler;
create unique index on u_some (id) where id > 1; create unique index on u_some ((id + 1)); create index on u_some using hash (id);
create table u_constant (id int not null, f text); insert into u_constant select 7, f from filler; create index on u_constant (id);
create table u_small (id int primary key); insert into u_small select i from filler;
drop table filler;
"#;

/// Pieces that were copied, by table.
async fn pieces(green: &Database) -> BTreeMap<String, i64> {
    let sql = "select state->>'table', count(*) from handover.checkpoint where unit like 'rows:%' group by 1";
    let rows = green.admin().await.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn content(database: &Database) -> String {
    let all = snapshot(database).await;
    all.lines()
        .filter(|l| l.starts_with("content ") && !l.contains("k_hash_"))
        .map(|l| format!("{l}\n"))
        .collect()
}

/// Copies tables with keys of every kind, and looks at how they were cut.
async fn keys_of_every_kind(blue: &'static PostgresServer, split: &str) {
    let (blue, green) =
        tokio::join!(Database::with(blue, KEYS), Database::create(servers::green().await, None));
    let urls = [("blue", blue.handover_url()), ("green", green.handover_url())];
    let (cx, _events) = context("copy", &urls, &["green"]).await;
    let step =
        kind("copy", json!({ "from": "blue", "to": "green", "jobs": 2, "chunk_mb": 1, "split_by": split }));
    let described = step.describe(&cx).await.unwrap();
    assert_eq!(described.blockers, Vec::<String>::new());
    assert!(described.actions.iter().any(|a| a.contains(" ranges of ")), "{:#?}", described.actions);
    step.run(&cx).await.unwrap();
    step.verify(&cx).await.unwrap();
    assert_same("copied", &content(&blue).await, &content(&green).await);
    let cut = pieces(&green).await;
    let wrong: Vec<_> = cut
        .iter()
        .filter(|(name, n)| {
            let name = name.trim_start_matches("\"Odd \"\"s\".").trim_start_matches('"');
            // A third of the rows of an enum are in one partition or the other.
            (name.starts_with('k') && !name.starts_with("k_part_2") && !name.starts_with("k_hash"))
                != (**n > 1)
                && !name.starts_with("k_part_2")
                && !name.starts_with("k_hash")
        })
        .collect();
    assert!(wrong.is_empty() && cut.len() > 40, "{wrong:?} of {cut:#?}");
    assert!(
        cut["k_day"] >= 3 && cut["k_mood"] >= 3,
        "more pieces than the first column has values: {cut:#?}"
    );
    step.undo(&cx).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_every_kind_cut_tables() {
    keys_of_every_kind(servers::blue().await, "key").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_every_kind_cut_tables_of_postgres_13() {
    keys_of_every_kind(servers::oldest().await, "auto").await;
}

/// A key that rows do not lie in the order of, written to before and after.
const RANDOM: &str = "create table a (id uuid primary key, t text);
     insert into a select md5(i::text)::uuid, repeat('x', 300) from generate_series(1, 20000) i;
     create table z as select i as id from generate_series(1, 10) i";

async fn killed_in_the_middle(blue_server: &'static PostgresServer, options: &str) {
    let plan = "
handover: 1
name: keys
databases: { blue: '${BLUE_URL}', green: '${GREEN_URL}' }
control: ${CONTROL_URL}
steps:
  - id: copy
    copy: { from: blue, to: green, jobs: 2, chunk_mb: 1OPTIONS }
";
    let green_server = servers::green().await;
    let control = Database::create(green_server, None).await;
    let blue = Database::with(blue_server, RANDOM).await;
    let world = World::of(blue, Database::create(green_server, None).await, control);
    world.write("plan.yaml", &plan.replace("OPTIONS", options));
    let as_it_was = content(&world.blue).await;
    world.handover_failing("copy.chunk-committed:3", "run", &[]).await.killed();
    let there = pieces(&world.green).await;
    assert!((1..7).contains(&there["a"]), "{there:?}");
    let kept = "select string_agg(unit || xmin::text, ' ' order by unit) from handover.checkpoint where unit like 'rows:%' and at <= ";
    let at = world.green.value("select max(at) from handover.checkpoint").await.unwrap();
    let kept = format!("{kept}'{at}'");
    let first = world.green.value(&kept).await;
    // Rows move between ranges, go, and come; what is copied must not show it.
    world.blue.execute("delete from a where id < '50000000-0000-0000-0000-000000000000'; update a set id = md5(id::text)::uuid, t = 'y'; insert into a values (gen_random_uuid(), '')").await;
    world.handover("resume", &[]).await.success();
    assert_eq!(first, world.green.value(&kept).await, "what was there was not loaded again");
    assert_same("resumed", &as_it_was, &content(&world.green).await);
    assert!(pieces(&world.green).await["a"] >= 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_by_key_goes_on_after_a_kill() {
    killed_in_the_middle(servers::blue().await, ", split_by: key").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_postgres_13_goes_on_after_a_kill() {
    killed_in_the_middle(servers::oldest().await, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_are_no_ranges_on_postgres_13() {
    let blue = Database::with(servers::oldest().await, "create table a (id int)").await;
    let green = Database::create(servers::green().await, None).await;
    let urls = [("blue", blue.handover_url()), ("green", green.handover_url())];
    let (cx, _events) = context("copy", &urls, &["green"]).await;
    let step = kind("copy", json!({ "from": "blue", "to": "green", "split_by": "tid" }));
    let described = step.describe(&cx).await.unwrap();
    assert!(described.blockers.iter().any(|b| b.contains("leave out `split_by`")), "{described:?}");
    assert!(step.run(&cx).await.is_err());
}
