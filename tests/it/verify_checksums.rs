//! Checksums of every kind of table between two real servers: equal copies are equal, and nothing else is.

use crate::support::context::{context, kind};
use crate::support::servers::{self, Database};
use handover::postgres::{Session, TableName};
use handover::steps::{Context, Port};
use handover_compare::hash::{self, Hasher};
use handover_compare::shape;
use serde_json::{Value, json};

/// Tables of every kind; `COLLATION` and `COLUMNS` differ between the sides.
const TABLES: &str = "
    create table blob (id int primary key, body bytea not null);
    insert into blob select n, decode(repeat(md5(n::text), 20), 'hex') from generate_series(1, 1000) n;
    create table pair (id bigint primary key, a text, b text);
    insert into pair select n, 'a' || n, 'b' || n from generate_series(1, 1000) n;
    create table label (name text collate COLLATION primary key, note text);
    insert into label select chr(65 + n % 58) || case n % 3 when 0 then 'ä' when 1 then '-' else 'Z' end || n, 'n' || n
        from generate_series(1, 1000) n;
    create table tenancy (tenant int, name text, at timestamptz not null, primary key (tenant, name));
    insert into tenancy select n % 7, 'N' || n, '2026-01-01Z'::timestamptz + n * interval '1 h' from generate_series(1, 1000) n;
    create table keyless (v text, n int);
    insert into keyless select case when n % 5 > 0 then 'v' || n % 7 end, n % 3 from generate_series(1, 700) n;
    create table unique_only (ref uuid not null unique, gone int, f float8, j jsonb, t text[]);
    insert into unique_only select md5(n::text)::uuid, n, n / 3.0, jsonb_build_object('k', n, 'q', 'a\"b'), array['x', null, '']
        from generate_series(1, 1000) n;
    alter table unique_only drop column gone;
    create type mood as enum ('sad', 'glad');
    create domain cents as numeric(12, 2) check (value >= 0);
    create table mixed COLUMNS;
    insert into mixed (id, mood, price, cost) select n, case n % 2 when 0 then 'sad' else 'glad' end::mood, n * 1.5, n::text::money
        from generate_series(1, 300) n;
    create table logs (id bigint, at date not null, what text, primary key (id, at)) partition by range (at);
    create table logs_1 partition of logs for values from ('2026-01-01') to ('2026-02-01');
    create table logs_2 partition of logs default;
    insert into logs select n, '2026-01-01'::date + n % 60, 'w' || n from generate_series(1, 1000) n;
    create table parent (id int primary key, v text); create table child () inherits (parent);
    insert into parent select n, 'p' || n from generate_series(1, 10) n; insert into child select n, 'c' || n from generate_series(1, 20) n;
    create table nothing (id int primary key); create table columnless ();
    insert into columnless default values; insert into columnless default values;
    create table \"Odd \"\"Näme\" (\"Key\" int primary key, \"select\" text);
    insert into \"Odd \"\"Näme\" select n, 's' from generate_series(1, 300) n;
    do $$ begin execute 'create table wide (id int primary key, ' || (select string_agg('c' || n || ' text', ', ') from generate_series(1, 240) n) || ')'; end $$;
    insert into wide (id, c1, c60, c240) select n, 'one', null, repeat('long', 3000) from generate_series(1, 50) n;
    analyze;";

async fn sides() -> (Database, Database, Context) {
    let one = TABLES.replace("COLLATION", "\"C\"").replace(
        "COLUMNS",
        "(id int primary key, mood mood, price cents, cost money, twice numeric generated always as (price * 2) stored)",
    );
    let two = TABLES.replace("COLLATION", "\"default\"").replace(
        "COLUMNS",
        "(cost money, twice numeric generated always as (price * 2) stored, more int, price cents, mood mood, id int primary key)",
    );
    let (blue, green) = tokio::join!(
        Database::with(servers::blue().await, &one),
        Database::with(servers::green().await, &two)
    );
    let urls = [("blue", blue.handover_url()), ("green", green.handover_url())];
    let (cx, _events) = context("verify", &urls, &[]).await;
    (blue, green, cx)
}

fn step(rows: u32) -> Value {
    json!({ "before": "blue", "after": "green", "checksums": { "chunk_rows": rows }, "jobs": 3 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_are_equal_however_they_are_cut() {
    let (blue, green, cx) = sides().await;
    // Other blocks, dead rows, another order of rows: still the same content.
    green.execute("update pair set a = a where id % 3 = 0; create table copy as select * from keyless order by v desc, n; truncate keyless; insert into keyless select * from copy; drop table copy").await;
    for rows in [1, 7, 100, 50_000] {
        let summary = kind("verify", step(rows)).run(&cx).await.unwrap();
        let sums = &summary["checksums"];
        assert_eq!((sums["tables"].as_u64(), sums["differing"].as_u64()), (Some(14), Some(0)), "{summary}");
        let total = blue.value("select (select count(*) from only parent) + (select count(*) from child) + (select count(*) from wide)").await;
        assert_eq!(total.as_deref(), Some("80"));
        assert_eq!(sums["rows"], 8 * 1000 - 2000 + 700 + 300 + 10 + 20 + 2 + 300 + 50, "{summary}");
        assert!(rows > 100 || sums["pieces"].as_u64() > Some(50), "{summary}");
        assert!(summary["at"][1].as_str().unwrap().starts_with("green at 2"), "{summary}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_single_difference_is_found_and_named() {
    let (_blue, green, cx) = sides().await;
    let cases: [Case; 27] = [
        (
            "blob",
            "update blob set body = set_bit(body, 77, 1 - get_bit(body, 77)) where id = 500",
            "table blob: 1 rows differ (1 changed), changed: (500) in body",
        ),
        (
            "blob",
            "delete from blob where id = 1000",
            "table blob: 1 rows differ (1 only before), only before: (1000)",
        ),
        ("blob", "insert into blob values (1001, '')", "1 only after), only after: (1001)"),
        (
            "nothing",
            "insert into nothing values (1)",
            "table nothing: 1 rows differ (1 only after), only after: (1)",
        ),
        (
            "columnless",
            "insert into columnless default values",
            "table columnless: 1 rows differ (1 only after)",
        ),
        // The sum of columns, and of hashes of columns, stays the same.
        (
            "pair",
            "update pair p set a = q.a from pair q where (p.id, q.id) in ((3, 900), (900, 3))",
            "table pair: 2 rows differ (2 changed), changed: (3) in a, changed: (900) in a",
        ),
        ("pair", "update pair set a = b, b = a where id = 5", "changed: (5) in a, b"),
        ("pair", "update pair set a = null where id = 6", "changed: (6) in a"),
        ("label", "update label set note = '' where name = 'BZ999' or name like '_Z2'", "in note"),
        ("label", "update label set name = name || ' ' where name like '_Z2'", "1 only before, 1 only after"),
        (
            "tenancy",
            "update tenancy set at = at + interval '1 us' where name = 'N8'",
            "changed: (1, N8) in at",
        ),
        (
            "keyless",
            "update keyless set v = '' where ctid = (select min(ctid) from keyless where v is null)",
            "table keyless: 2 rows differ (1 only before, 1 only after)",
        ),
        (
            "keyless",
            "insert into keyless select * from keyless where n = 1 limit 1",
            "table keyless: 1 rows differ (1 only after), only after: (a row without a key) such as at public.keyless (0,",
        ),
        (
            "keyless",
            "delete from keyless where ctid = (select min(ctid) from keyless)",
            "table keyless: 1 rows differ (1 only before)",
        ),
        (
            "unique_only",
            "update unique_only set j = jsonb_set(j, '{k}', '7.0') where ref = md5('7')::uuid",
            "in j",
        ),
        ("unique_only", "update unique_only set f = f + 1e-13 where ref = md5('7')::uuid", "in f"),
        ("unique_only", "update unique_only set t = array['x', '', ''] where ref = md5('7')::uuid", "in t"),
        ("mixed", "update mixed set price = 1 where id = 300", "changed: (300) in price, twice"),
        ("mixed", "update mixed set mood = null where id = 300", "changed: (300) in mood"),
        (
            "logs",
            "update logs set what = 'x' where id = 59",
            "table logs: 1 rows differ (1 changed), changed: (59, 2026-03-01) in what",
        ),
        (
            "parent",
            "update only parent set v = 'x' where id = 3",
            "table parent: 1 rows differ (1 changed), changed: (3) in v",
        ),
        ("child", "update child set v = 'x' where id = 3", "table child: 2 rows differ"),
        (
            "\"Odd \"\"Näme\"",
            "update \"Odd \"\"Näme\" set \"select\" = null where \"Key\" = 2",
            "changed: (2) in select",
        ),
        ("wide", "update wide set c60 = '' where id = 3", "changed: (3) in c60"),
        ("wide", "update wide set c1 = null, c2 = 'one' where id = 3", "changed: (3) in c1, c2"),
        ("wide", "alter table wide rename to wider", "table wide is gone"),
        ("wide", "alter table wide rename c9 to c9x", "table wide: columns c9 are gone"),
    ];
    let green = &green;
    let blue = cx.databases.url("blue").unwrap().expose().to_owned();
    let rounds = rounds(&cases).into_iter().map(async |cases| {
        let database = Database::create(servers::green().await, Some(&green.name)).await;
        let changes: Vec<&str> = cases.iter().map(|(_, change, _)| *change).collect();
        database.execute(&changes.join(";\n")).await;
        let urls = [("blue", blue.clone()), ("green", database.handover_url())];
        for rows in [10, 50_000] {
            let (cx, _events) = context("verify", &urls, &[]).await;
            let error = kind("verify", step(rows)).run(&cx).await.unwrap_err();
            let lines: Vec<&str> = error.message().split_once(": ").unwrap().1.split("; ").collect();
            for (table, change, expected) in &cases {
                let line = lines.iter().find(|line| {
                    line.strip_prefix("table ")
                        .and_then(|line| line.strip_prefix(table))
                        .is_some_and(|rest| rest.starts_with([':', ' ']))
                });
                assert!(line.is_some_and(|line| line.contains(expected)), "{change}: {expected}\n{error}");
            }
            assert_eq!(lines.len(), cases.len(), "nothing else differs: {error}");
            let kept: Value = cx.recall("differences").unwrap().unwrap();
            assert_eq!(kept["tables"].as_array().unwrap().len(), cases.len(), "{kept}");
        }
        database.drop_now().await;
    });
    futures_util::future::join_all(rounds).await;
}

/// A table, a change to it, and what must be said of it.
type Case = (&'static str, &'static str, &'static str);

/// Changes that can be made to one database: at most one to each table, and no more than a message shows.
fn rounds(cases: &[Case]) -> Vec<Vec<Case>> {
    let mut out: Vec<Vec<Case>> = Vec::new();
    for case in cases {
        let free =
            |round: &&mut Vec<Case>| round.len() < 12 && round.iter().all(|(table, ..)| *table != case.0);
        match out.iter_mut().find(free) {
            Some(round) => round.push(*case),
            None => out.push(vec![*case]),
        }
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encodings_and_collations_of_databases_may_differ() {
    let (blue, green) = tokio::join!(servers::blue(), servers::green());
    let name = servers::unique("latin");
    for (server, how) in [(blue, "encoding 'LATIN1' locale 'C'"), (green, "encoding 'UTF8' locale 'C.UTF-8'")]
    {
        let sql = format!("create database {name} template template0 {how}");
        server.admin("postgres").await.unwrap().batch_execute(&sql).await.unwrap();
        // Sorted by bytes, the two encodings' letters interleave with others in another order.
        let sql = "create table word (w text primary key, note text);
            insert into word select chr(65 + n % 26) || chr(192 + n % 60) || n, 'ÿ' || n from generate_series(1, 2000) n; analyze";
        server.admin(&name).await.unwrap().batch_execute(sql).await.unwrap();
    }
    let urls = [("blue", blue.admin_url(&name)), ("green", green.admin_url(&name))];
    let (cx, _events) = context("verify", &urls, &[]).await;
    let summary = kind("verify", step(100)).run(&cx).await.unwrap();
    assert_eq!(summary["checksums"]["rows"], 2000, "{summary}");
    let change = "update word set note = 'y' where w like '%1999'; delete from word where w like '%1500'; insert into word values ('Zÿ', '')";
    green.admin(&name).await.unwrap().batch_execute(change).await.unwrap();
    let error = kind("verify", step(100)).run(&cx).await.unwrap_err();
    assert!(error.message().contains("3 rows differ (1 only before, 1 only after, 1 changed)"), "{error}");
    assert!(error.message().contains("only after: (Zÿ)"), "{error}");
    for server in [blue, green] {
        server
            .admin("postgres")
            .await
            .unwrap()
            .batch_execute(&format!("drop database {name}"))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_table_is_read_by_block_and_md5_would_do_as_well() {
    // More than 1024 blocks, so that there are several pieces; ids in no order.
    let sql = "create table blob (id uuid not null, body text); alter table blob alter body set storage external;
        insert into blob select md5(n::text)::uuid, repeat(n::text, 300) from generate_series(1, 9000) n; analyze";
    let (blue, green) =
        tokio::join!(Database::with(servers::blue().await, sql), Database::with(servers::green().await, sql));
    let urls = [("blue", blue.handover_url()), ("green", green.handover_url())];
    let (cx, _events) = context("verify", &urls, &[]).await;
    let summary = kind("verify", step(100)).run(&cx).await.unwrap();
    assert!(summary["checksums"]["pieces"].as_u64() > Some(1), "{summary}");
    assert_eq!(summary["checksums"]["rows"], 9000);

    let (one, two) = (cx.reader("blue").await.unwrap(), cx.reader("green").await.unwrap());
    let hasher = Hasher::agree(&one, &two).await.unwrap();
    let (there, now) = (shape::shapes(&one).await.unwrap(), shape::shapes(&two).await.unwrap());
    let name = TableName::new("public", "blob");
    let columns = hash::columns(&there[&name], &now[&name]);
    assert_ne!(hasher.row(&columns), hasher.by_md5().row(&columns));
    for hasher in [hasher, hasher.by_md5()] {
        let sums = |session| {
            let sql = format!(
                "select sum({})::text from public.blob t where id < 'f0000000-0000-0000-0000-000000000000'",
                hasher.row(&columns)
            );
            async move { Session::query_one(session, &sql, &[]).await.unwrap().get::<_, String>(0) }
        };
        let (left, right) = (sums(&one).await, sums(&two).await);
        assert_eq!(left, right);
        // A swap is seen by either.
        green.execute("update blob a set body = b.body from blob b where (a.id, b.id) in ((md5('1')::uuid, md5('2')::uuid), (md5('2')::uuid, md5('1')::uuid))").await;
        assert_ne!(left, sums(&two).await);
        green.execute("update blob a set body = b.body from blob b where (a.id, b.id) in ((md5('1')::uuid, md5('2')::uuid), (md5('2')::uuid, md5('1')::uuid))").await;
    }
    green.execute("update blob set body = body || 'x' where id = md5('8999')::uuid").await;
    let error = kind("verify", step(100)).run(&cx).await.unwrap_err();
    assert!(error.message().contains("table blob: 2 rows differ (1 only before, 1 only after)"), "{error}");
}

/// Types whose cast to text is somebody's function, or drops something.
const ODD: &str = "
    create type pair as (a int, b int);
    create function half(pair) returns text language sql immutable as 'select ($1).a::text'; create cast (pair as text) with function half(pair);
    create type mood as enum ('sad', 'glad');
    create function shout(mood) returns text language sql immutable as $$select 'MOOD'$$; create cast (mood as text) with function shout(mood);
    create domain good_pair as pair; create domain better_pair as good_pair;
    create table odd (id int primary key, p pair, g better_pair, m mood not null, c bpchar, x xml, l char(5), ps pair[]);
    create table by_pair (p pair primary key, v text); insert into by_pair values ((1, 2), 'a'), ((1, 3), 'b'), ((2, 1), 'c');";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cast_to_text_hides_nothing() {
    let server = servers::blue().await;
    let (blue, green) = tokio::join!(Database::with(server, ODD), Database::with(server, ODD));
    let row = "values (1, (1, 2), (1, 2), 'sad', 'a ', XML, 'ab', array[(1, 2)::pair]), (2, null, null, 'glad', '', null, '', null)";
    let insert = |xml: &str| format!("insert into odd {}", row.replace("XML", xml));
    blue.execute(&insert("'<?xml version=\"1.0\" encoding=\"UTF-8\"?><a/>'")).await;
    green.execute(&insert("'<a/>'")).await;
    let urls = [("blue", blue.handover_url()), ("green", green.handover_url())];
    let verify = async || {
        // One that knows of no earlier attempt: what had agreed then would be waited for.
        let (cx, _events) = context("compare", &urls, &[]).await;
        kind("verify", json!({ "before": "blue", "after": "green", "checksums": {} })).run(&cx).await
    };
    // A declaration is not part of the value that the type writes, and a copy carries that.
    verify().await.unwrap();
    for (change, back, expected) in [
        ("update odd set p.b = 3 where id = 1", "update odd set p.b = 2 where id = 1", "changed: (1) in p"),
        ("update odd set g.b = 3 where id = 1", "update odd set g.b = 2 where id = 1", "changed: (1) in g"),
        (
            "update odd set m = 'glad' where id = 1",
            "update odd set m = 'sad' where id = 1",
            "changed: (1) in m",
        ),
        ("update odd set c = 'a' where id = 1", "update odd set c = 'a ' where id = 1", "changed: (1) in c"),
        (
            "update odd set p = (null, null) where id = 2",
            "update odd set p = null where id = 2",
            "changed: (2) in p",
        ),
        ("update odd set c = null where id = 2", "update odd set c = '' where id = 2", "changed: (2) in c"),
        (
            "update odd set x = '<b/>' where id = 1",
            "update odd set x = '<a/>' where id = 1",
            "changed: (1) in x",
        ),
        (
            "update by_pair set v = 'x' where p = (1, 3)::pair",
            "update by_pair set v = 'b' where p = (1, 3)::pair",
            "table by_pair: 2 rows differ (1 only before, 1 only after)",
        ),
    ] {
        green.execute(change).await;
        let error = verify().await.expect_err(change);
        assert!(error.message().contains(expected), "{change}: {error}");
        green.execute(back).await;
    }
    verify().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_copy_leaves_out_is_not_compared() {
    let sql = "create table a (id int primary key); insert into a values (1); create table log (id int primary key); insert into log values (1);
         create schema side; create table side.t (id int); create table bare (id int primary key); insert into bare values (1);
         create table p (id int primary key) partition by range (id); create table p1 partition of p for values from (0) to (10);
         create table p2 partition of p for values from (10) to (20); insert into p values (1), (11)";
    let (blue, green) = tokio::join!(
        Database::with(servers::blue().await, sql),
        Database::create(servers::green().await, None)
    );
    let urls = [("blue", blue.handover_url()), ("green", green.handover_url())];
    let (cx, mut events) = context("copy", &urls, &["green"]).await;
    let copy = kind(
        "copy",
        json!({ "from": "blue", "to": "green", "exclude": { "tables": ["log", "p2"], "schemas": ["side"] }, "without_data": ["bare"] }),
    );
    let step = |id: &str, kind| handover::steps::Step {
        id: id.into(),
        title: None,
        timeout: None,
        retry: handover::steps::Retry::default(),
        on_failure: handover::steps::OnFailure::Halt,
        kind_name: "",
        kind,
    };
    let verify = |more: Value| {
        let mut options = json!({ "before": "blue", "after": "green" });
        options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        kind("verify", options)
    };
    let both = verify(json!({ "checksums": {}, "row_counts": true }));
    let steps = [step("copy", copy.clone()), step("compare", both.clone())];
    let cx = Context { links: handover::steps::kind::links(&steps).into(), ..cx };
    copy.run(&cx).await.unwrap();
    let cx = Context { port: Port { step: "compare".into(), ..cx.port }, ..cx };
    both.run(&cx).await.unwrap();
    let mut said = String::new();
    while let Ok(event) = events.try_recv() {
        said.push_str(&format!("{event:?}\n"));
    }
    assert!(said.contains("not compared unless named") && said.contains("bare, log, p, side.t"), "{said}");
    // By name it is.
    for more in
        [json!({ "row_counts": { "tables": ["log"] } }), json!({ "checksums": { "tables": ["bare"] } })]
    {
        verify(more).run(&cx).await.unwrap_err();
    }
    green.execute("insert into a values (2)").await;
    both.run(&cx).await.unwrap_err();
}
