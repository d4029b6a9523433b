//! What was copied means the same, is compared as what it is, and goes again as a whole.

use crate::support::context::{context, kind};
use crate::support::servers::{self, Database};
use handover::postgres::install::{Part, install};
use handover::steps::{Context, OnFailure, Port, Retry, Step, StepKind};
use handover_lab::PostgresServer;
use serde_json::{Value, json};
use std::sync::Arc;

struct Pair {
    blue: Database,
    green: Database,
}

impl Pair {
    async fn new(sql: &str) -> Self {
        Self::between(servers::blue().await, servers::green().await, sql).await
    }

    async fn between(blue: &'static PostgresServer, green: &'static PostgresServer, sql: &str) -> Self {
        let (blue, green) = tokio::join!(Database::with(blue, sql), Database::create(green, None));
        Pair { blue, green }
    }

    fn urls(&self) -> [(&'static str, String); 2] {
        [("blue", self.blue.handover_url()), ("green", self.green.handover_url())]
    }
}

fn options(more: Value) -> Value {
    let mut options = json!({ "from": "blue", "to": "green", "jobs": 2 });
    options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    options
}

fn with_steps(cx: &Context, steps: Vec<Step>) -> Context {
    Context { links: handover::steps::kind::links(&steps).into(), ..cx.clone() }
}

/// The newer programs, which are not where they would be looked for; only they can read the newer server.
async fn newer() -> &'static std::path::Path {
    servers::programs().await.green.folder()
}

const MEANING: &str = include_str!("zoo_meaning.sql");

/// Copied, everything means what it did, on any pair of versions and with any pg_dump; and it goes again.
async fn keeps_its_meaning(blue: &'static PostgresServer, green: &'static PostgresServer) {
    let pair = Pair::between(blue, green, MEANING).await;
    let programs = match green.port() == servers::green().await.port() {
        true => json!({ "programs": newer().await }),
        false => json!({}),
    };
    let step = kind("copy", options(programs));
    let (cx, _events) = context("copy", &pair.urls(), &["green"]).await;
    step.run(&cx).await.unwrap();
    step.verify(&cx).await.unwrap();
    assert_eq!(
        pair.green.value("select count(*) from kw where g = \"system_user\" || 'g' and \"system_user\" in ('alice', 'bob')").await.as_deref(),
        Some("2")
    );
    let columns = "select string_agg(a.attname, ',' order by a.attname) from pg_constraint k join pg_attribute a on a.attrelid = k.conrelid and a.attnum = any (k.conkey) where k.conname = 'kw_check'";
    assert_eq!(pair.green.value(columns).await.as_deref(), Some("system_user,user"));
    let undone = step.undo(&cx).await.unwrap();
    assert_eq!(undone.get("left_behind"), None, "{undone}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_became_keywords_stay_names() {
    keeps_its_meaning(servers::blue().await, servers::green().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_became_keywords_stay_names_from_postgres_13() {
    keeps_its_meaning(servers::oldest().await, servers::green().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_differs_between_servers_of_one_version() {
    keeps_its_meaning(servers::blue().await, servers::blue().await).await;
    keeps_its_meaning(servers::green().await, servers::green().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_means_something_else_is_found_after_the_copy() {
    let pair = Pair::new(MEANING).await;
    // Neither side's own ways of writing values matter.
    for (side, settings) in [
        (
            &pair.green,
            "set timezone = 'Asia/Tokyo'; set intervalstyle = 'sql_standard'; set datestyle = 'German'",
        ),
        (
            &pair.blue,
            "set quote_all_identifiers = on; set extra_float_digits = 0; set datestyle = 'SQL, DMY'",
        ),
    ] {
        for setting in settings.split("; ") {
            let sql = format!("alter database {} {setting}", side.name);
            side.admin().await.batch_execute(&sql).await.unwrap();
        }
    }
    let (cx, _events) = context("copy", &pair.urls(), &["green"]).await;
    let step = kind("copy", options(json!({})));
    step.run(&cx).await.unwrap();
    step.verify(&cx).await.unwrap();
    // As a dump without quotes would have made them.
    for (change, back, expected) in [
        (
            "alter table kw drop constraint kw_check; alter table kw add constraint kw_check check (system_user <> 'x' and \"user\" <> 'y') not valid; update pg_constraint set convalidated = true where conname = 'kw_check'",
            "alter table kw drop constraint kw_check; alter table kw add constraint kw_check check (\"system_user\" <> 'x' and \"user\" <> 'y')",
            "constraint kw_check of kw refers to public.kw.system_user on blue and not on green",
        ),
        (
            "drop policy kw_policy on kw; create policy kw_policy on kw using (system_user = 'a') with check (\"user\" = 'b' and \"current_user\" <> '')",
            "drop policy kw_policy on kw; create policy kw_policy on kw using (\"system_user\" = 'a') with check (\"user\" = 'b' and \"current_user\" <> '')",
            "policy kw_policy of kw refers to public.kw.system_user on blue",
        ),
        (
            "alter table odd alter p set default '2 days'",
            "alter table odd alter p set default '1 day'",
            "default of column p of odd («'1 day'::interval» and «'2 days'::interval»)",
        ),
        (
            "create or replace view same.kw_view as select id from public.kw",
            "create or replace view same.kw_view as select id from same.kw",
            "query of same.kw_view refers to same.kw.id on blue and not on green",
        ),
    ] {
        pair.green.admin().await.batch_execute(change).await.unwrap();
        let error = step.verify(&cx).await.unwrap_err();
        assert!(error.message().contains(expected), "{error}");
        pair.green.admin().await.batch_execute(back).await.unwrap();
        step.verify(&cx).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_in_the_body_of_a_routine_are_told() {
    let pair = Pair::new(
        "create table kw (id int, system_user text); create function f() returns bigint language sql as 'select count(*) from kw where system_user = ''a'''",
    )
    .await;
    let (cx, _events) = context("copy", &pair.urls(), &["green"]).await;
    let said = kind("copy", options(json!({}))).describe(&cx).await.unwrap();
    assert!(said.warnings.iter().any(|w| w.contains("f() (system_user)")), "{:?}", said.warnings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_handed_over_is_copied_again() {
    let pair = Pair::new(
        "create table a (id int primary key); insert into a values (1); create table left_out (id int); create view v as select * from a",
    )
    .await;
    let (blue, _events) = context("copy", &pair.urls(), &["blue", "green"]).await;
    install(&mut blue.databases.writer("blue").await.unwrap(), Part::Database).await.unwrap();
    pair.blue
        .admin()
        .await
        .batch_execute(
            "create trigger \"00_handover_refuse\" before insert on a for each statement execute function handover.refuse_write('p');
             alter table a enable always trigger \"00_handover_refuse\"",
        )
        .await
        .unwrap();
    for exclude in [json!({}), json!({ "tables": ["left_out"] })] {
        let (cx, _events) = context("copy", &pair.urls(), &["green"]).await;
        let step = kind("copy", options(json!({ "exclude": exclude })));
        assert_eq!(step.describe(&cx).await.unwrap().blockers, Vec::<String>::new());
        step.run(&cx).await.unwrap();
        step.verify(&cx).await.unwrap();
        assert_eq!(pair.green.value("select count(*) from pg_trigger").await.as_deref(), Some("0"));
        step.undo(&cx).await.unwrap();
    }
}

fn step(id: &str, kind: Arc<dyn StepKind>) -> Step {
    Step {
        id: id.into(),
        title: None,
        timeout: None,
        retry: Retry::default(),
        on_failure: OnFailure::default(),
        kind_name: "",
        kind,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_throwaway_migration_made_goes_with_the_copy() {
    let pair = Pair::new("create table a (id int primary key); insert into a values (1)").await;
    let (cx, _events) = context("copy", &pair.urls(), &["green"]).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("V1__more.sql"),
        "create table loyalty (id int references a, v text); insert into loyalty values (1, 'x'); create schema more; create table more.t (id int); create type mood as enum ('sad'); create function f() returns int language sql as 'select 1';",
    )
    .unwrap();
    let copy = kind("copy", options(json!({ "programs": newer().await })));
    let migrate = kind(
        "migrate",
        json!({ "on": "green", "dir": folder.path(), "undo": "throwaway", "search_path": ["public"] }),
    );
    let cx = with_steps(&cx, vec![step("copy", copy.clone()), step("migrate", migrate.clone())]);
    let then = Context { port: Port { step: "migrate".into(), ..cx.port.clone() }, ..cx.clone() };
    for _ in 0..2 {
        copy.run(&cx).await.unwrap();
        migrate.run(&then).await.unwrap();
        assert_eq!(pair.green.value("select count(*) from loyalty").await.as_deref(), Some("1"));
        migrate.undo(&then).await.unwrap();
        let undone = copy.undo(&cx).await.unwrap();
        assert_eq!(undone.get("left_behind"), None, "{undone}");
        let rest = "select string_agg(c.relname, ' ') from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname !~ '^pg_|^information_schema$|^handover'";
        assert_eq!(pair.green.value(rest).await, None);
        assert_eq!(
            pair.green
                .value("select concat_ws(' ', to_regnamespace('more'), to_regtype('mood'), to_regproc('f'))")
                .await
                .as_deref(),
            Some("")
        );
    }
    // Without a migration, what others made stays theirs.
    copy.run(&cx).await.unwrap();
    pair.green.execute("create table theirs (id int)").await;
    let undone = copy.undo(&cx).await.unwrap();
    assert_eq!(undone["left_behind"], json!(["TABLE theirs"]), "{undone}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_do_not_fit_are_named_or_set_aside() {
    let sql = format!(
        "{}create table twins (id int, v text, gone bool); insert into twins select i, 'v' || i, false from generate_series(1, 50) i;
         create unique index twins_once on twins (lower(v), id) where not gone; create unique index twins_id on twins (id);
         create table part (id int, at date, nest int references nest, primary key (id, at)) partition by range (at);
         create table part_1 partition of part for values from ('2020-01-01') to ('2021-01-01'); create table part_2 partition of part default;
         insert into part select i, date '2020-12-01' + i, i from generate_series(10, 60) i;",
        crate::copy::ORPHANS
    );
    let pair = Pair::new(&sql).await;
    // What a broken index leaves: twins that it does not know of. And orphans below a partitioned table.
    pair.blue
        .admin()
        .await
        .batch_execute(
            "set session_replication_role = replica; delete from nest where id in (20, 50); reset session_replication_role;
             update pg_index set indisready = false, indislive = false where indexrelid in ('twins_once'::regclass, 'twins_id'::regclass);
             insert into twins select id, v, gone from twins where id in (3, 4); insert into twins select id, upper(v), true from twins where id = 5;
             update pg_index set indisready = true, indislive = true where indexrelid in ('twins_once'::regclass, 'twins_id'::regclass);",
        )
        .await
        .unwrap();
    let (cx, _events) = context("copy", &pair.urls(), &["green"]).await;
    let halts = kind("copy", options(json!({})));
    let error = halts.run(&cx).await.unwrap_err();
    assert!(error.message().contains("do not fit") && error.message().contains(" = ("), "{error}");
    assert!(error.next_step().unwrap().contains("on_violation: quarantine"), "{error:?}");
    // The plan is changed, and the copy goes on.
    let copy = kind("copy", options(json!({ "on_violation": "quarantine" })));
    let verify = kind(
        "verify",
        json!({ "before": "blue", "after": "green", "row_counts": true, "checksums": { "exclude": ["twins"] } }),
    );
    let cx = with_steps(&cx, vec![step("copy", copy.clone()), step("verify", verify.clone())]);
    let summary = copy.run(&cx).await.unwrap();
    copy.verify(&cx).await.unwrap();
    // Three birds without a nest, and two more; their feathers, and those that were next to the last of them.
    assert_eq!(
        summary["set_aside"],
        json!({ "bird": 5, "feather": 9, "part_1": 1, "part_2": 1, "twins": 3 }),
        "{summary}"
    );
    let then = Context { port: Port { step: "verify".into(), ..cx.port.clone() }, ..cx.clone() };
    verify.run(&then).await.unwrap();
    pair.green.execute("delete from feather where id = 99").await;
    let error = verify.run(&then).await.unwrap_err();
    assert!(
        error.message().contains("table feather: 1 rows differ (1 only before), only before: (99)"),
        "{error}"
    );
    copy.undo(&cx).await.unwrap();
    assert_eq!(pair.green.value("select count(*) from handover.archive").await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_target_refuses_is_told_at_once_before_any_row() {
    let pair = Pair::new(
        "create table a (id int primary key, v text); insert into a select i, 'v' from generate_series(1, 100) i;
         create table b (v text); create function pathless(text) returns text language sql immutable as 'select v from b where v = $1 limit 1';
         create table g (v text, w text generated always as (pathless(v)) stored); create index on a (pathless(v));
         create view v1 as select id from a; create view v2 as select id from v1; create or replace view v1 as select id from v2;
         create schema side; create table side.fine (id int)",
    )
    .await;
    let (cx, _events) = context("copy", &pair.urls(), &["green"]).await;
    let error = kind("copy", options(json!({}))).run(&cx).await.unwrap_err();
    for text in ["index a_pathless_idx: ", "pathless", "green cannot have "] {
        assert!(error.message().contains(text), "{text}: {error}");
    }
    assert!(error.next_step().unwrap().contains("reads the schema again"), "{error:?}");
    let count = "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname !~ '^pg_|^information_schema$|^handover'";
    assert_eq!(pair.green.value(count).await.as_deref(), Some("0"));
    // Mended, the next attempt sees it.
    pair.blue
        .execute("create or replace view v1 as select id from a; create or replace function pathless(text) returns text language sql immutable as 'select $1'")
        .await;
    let step = kind("copy", options(json!({})));
    step.run(&cx).await.unwrap();
    step.verify(&cx).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_materialized_view_waits_for_another_that_it_reads_through_a_function() {
    let pair = Pair::new(
        "create table a (id int primary key); insert into a values (1), (2);
         create function second() returns bigint language plpgsql as 'begin return (select sum(n) from public.z_second); end';
         create materialized view z_second as select 1 as n; create materialized view a_first as select second() as n;
         drop materialized view z_second; create materialized view z_second as select count(*) as n from a; create unique index on a_first (n);",
    )
    .await;
    let (cx, _events) = context("copy", &pair.urls(), &["green"]).await;
    let step = kind("copy", options(json!({})));
    step.run(&cx).await.unwrap();
    step.verify(&cx).await.unwrap();
    assert_eq!(pair.green.value("select n from a_first").await.as_deref(), Some("2"));
}
