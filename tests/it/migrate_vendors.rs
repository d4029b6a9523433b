//! Folders as vendors ship them, and the tables in which their tools keep what was applied.

use crate::migrate::{says, world_of};
use crate::support::world::World;

/// A world whose database holds what `sql` makes, as the application's role.
async fn world_with(step: &str, sql: &str, files: &[(&str, &str)]) -> World {
    let world = world_of(step, files).await;
    world.blue.execute(&format!("set role app; {sql}")).await;
    world
}

async fn there(world: &World, table: &str) -> bool {
    world.blue.value(&format!("select to_regclass('{table}') is not null")).await.as_deref() == Some("t")
}

/// Files by their names.
type Files = &'static [(&'static str, &'static str)];

/// The rows of a query, one a line.
async fn rows(world: &World, sql: &str) -> String {
    world.blue.value(&format!("select string_agg(r::text, ' ') from ({sql}) r")).await.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn flyways_undo_files_take_back_and_never_go_forward() {
    let files = [
        ("m/V1__first table.sql", "create table a (x int);"),
        ("m/V1.1__more-of-it.sql", "insert into a values (1);"),
        ("m/V1.10__last.sql", "create table c (x int);"),
        ("m/V1.9__before.sql", "create table b (x int);\ncreate table order_of (n int);"),
        ("m/R__views.sql", "create view v as select x from a join c using (x);"),
        ("m/R__views.down.sql", ""),
        ("m/U1__first table.sql", "drop table a;"),
        ("m/U1.1__more-of-it.sql", "delete from a;"),
        ("m/U1.9__before.sql", "drop table b, order_of;"),
        ("m/U1.10__last.sql", "drop view v; drop table c;"),
    ];
    let files: Vec<_> = files.into_iter().filter(|(name, _)| !name.ends_with("views.down.sql")).collect();
    let mut with_down = files.clone();
    with_down.push(("o/R__views.down.sql", "-- the view goes with its tables\n"));
    let world = world_of("dir: m, override: o", &with_down).await;
    let before = world.snapshot().await;
    world.handover("run", &[]).await.success();
    assert_eq!(world.blue.value("select count(*) from a").await.as_deref(), Some("1"));
    assert!(there(&world, "v").await && there(&world, "c").await);
    world.handover("rollback", &[]).await.success();
    assert_eq!(before, world.snapshot().await);

    // Whole numbers only: refinery would run U3 forward, and nothing says that it is refinery's.
    let files = [("m/V1__a.sql", "create table a ();"), ("m/U3__b.sql", "drop table token;")];
    let world = world_of("dir: m, undo: none", &files).await;
    let ended = world.handover("run", &[]).await;
    assert_ne!(ended.code, Some(0), "{ended}");
    says(&ended, &["U3__b.sql", "names: flyway", "names: refinery"]);
    assert!(there(&world, "token").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeatable_file_runs_again_when_it_changed_and_a_baseline_file_on_a_new_database_only() {
    let files = [
        ("m/V1__a.sql", "would fail;"),
        ("m/V2__b.sql", "would fail;"),
        ("m/B2__all.sql", "create table a (x int, y int);"),
        ("m/V3__c.sql", "create table c (x int);"),
        ("m/R__v.sql", "create or replace view v as select x from a;"),
    ];
    let world = world_of("dir: m, undo: none", &files).await;
    world.handover("run", &[]).await.success();
    world.handover("finish", &[]).await.success();
    assert!(there(&world, "a").await && there(&world, "c").await);
    world.write("m/R__v.sql", "create or replace view v as select x, y from a;");
    world.write("m/V4__d.sql", "create table d ();");
    let ended = world.handover("dry-run", &[]).await;
    assert!(format!("{}{}", ended.stdout, ended.stderr).contains("again, because it changed"), "{ended}");
    world.handover("run", &[]).await.success();
    assert_eq!(
        world
            .blue
            .value("select count(*) from information_schema.columns where table_name = 'v'")
            .await
            .as_deref(),
        Some("2")
    );
    world.handover("finish", &[]).await.success();
    world.handover("run", &[]).await.success();
    let applied = "select count(*) from pg_views where viewname = 'v'";
    assert_eq!(world.blue.value(applied).await.as_deref(), Some("1"));
}

/// Each makes tables `a` and `b`, in this order, and takes them back.
const LAYOUTS: &[(&str, Files)] = &[
    (
        "Diesel",
        &[
            ("m/2018-01-01-000000_a/up.sql", "create table a (x int primary key);"),
            ("m/2018-01-01-000000_a/down.sql", "drop table a;"),
            (
                "m/2018-01-02-000000_b/up.sql",
                "create table b (x int references a);\ncreate index concurrently i on b (x);",
            ),
            ("m/2018-01-02-000000_b/down.sql", "drop table b;"),
            ("m/2018-01-02-000000_b/metadata.toml", "run_in_transaction = false\n"),
        ],
    ),
    (
        "Prisma",
        &[
            ("m/20200101000000_a/migration.sql", "create table a (x int primary key);"),
            ("m/20200101000000_a/down.sql", "drop table a;"),
            ("m/20200102000000_b/migration.sql", "create table b (x int references a);"),
            ("m/migration_lock.toml", "provider = \"postgresql\""),
            ("o/20200102000000_b/down.sql", "drop table b;"),
        ],
    ),
    (
        "numbers and dashes",
        &[
            ("m/0001-a.sql", "create table a (x int primary key);"),
            ("m/0002-b.sql", "create table b (x int references a);"),
            ("o/0001-a.down.sql", "drop table a;"),
            ("o/0002-b.down.sql", "drop table b;"),
        ],
    ),
    (
        "V0001.Name.up.sql",
        &[
            ("m/V0001.A.up.sql", "create table a (x int primary key);"),
            ("m/V0001.A.down.sql", "drop table a;"),
            ("m/V0010.B.up.sql", "create table b (x int references a);"),
            ("m/V0010.B.down.sql", "drop table b;"),
        ],
    ),
    (
        "goose",
        &[
            (
                "m/00001_a.sql",
                "-- +goose Up\ncreate table a (x int primary key);\n-- +goose Down\ndrop table a;\n",
            ),
            (
                "m/00002_b.sql",
                "-- +goose NO TRANSACTION\n-- +goose Up\n-- +goose StatementBegin\ncreate table b (x int references a);\n-- +goose StatementEnd\ncreate index concurrently i on b (x);\n-- +goose Down\ndrop table b;\n",
            ),
        ],
    ),
    (
        "dbmate",
        &[
            (
                "m/20200101000000_a.sql",
                "-- migrate:up\ncreate table a (x int primary key);\n\n-- migrate:down\ndrop table a;\n",
            ),
            (
                "m/20200102000000_b.sql",
                "-- migrate:up transaction:false\ncreate table b (x int references a);\ncreate index concurrently i on b (x);\n-- migrate:down\ndrop table b;\n",
            ),
        ],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_layouts_of_many_tools_run_as_they_are() {
    futures_util::future::join_all(LAYOUTS.iter().map(|(layout, files)| runs_as_it_is(layout, files))).await;
}

async fn runs_as_it_is(layout: &str, files: &[(&str, &str)]) {
    let overrides = files.iter().any(|(name, _)| name.starts_with("o/"));
    let step = if overrides { "dir: m, override: o" } else { "dir: m" };
    let world = world_of(step, files).await;
    let before = world.snapshot().await;
    let ended = world.handover("run", &[]).await;
    assert_eq!(ended.code, Some(0), "{layout}: {ended}");
    assert!(there(&world, "a").await && there(&world, "b").await, "{layout}");
    world.handover("rollback", &[]).await.success();
    assert_eq!(before, world.snapshot().await, "{layout}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_tool_or_another_tool_would_run_is_refused_by_name() {
    let table: &[(Files, &[&str])] = &[
        (
            &[("m/schema.sql", "select 1")],
            &["known are refinery", "flyway", "diesel", "prisma", "goose", "numbered"],
        ),
        (
            &[("m/1_a.sql", "select 1"), ("m/20200101_b/migration.sql", "select 1")],
            &["1_a.sql", "20200101_b", "Prisma"],
        ),
        (&[("m/20200101_create.rb", "class A; end")], &["20200101_create.rb", "Rails"]),
        (
            &[
                ("m/00001_a.sql", "-- +goose Up\nselect 1"),
                ("m/00002_b.go", "package m"),
                ("m/embed.go", "package m"),
            ],
            &["00002_b.go", "goose"],
        ),
        (
            &[("m/00001_a.sql", "-- +goose Up\nselect 1"), ("m/00002_b.sql", "select 1")],
            &["00001_a.sql", "written for goose", "00002_b.sql", "no marks"],
        ),
        (
            &[("m/V1.1__a.sql", "select 1"), ("m/afterMigrate.sql", "select 1")],
            &["afterMigrate.sql", "callback"],
        ),
        (&[("m/V1.1__a.sql", "create table ${schema}.a ()")], &["${schema}", "Flyway fills in"]),
        (
            &[("m/1_a.sql", "select 1"), ("m/2_b.rollback.sql", "drop table token")],
            &["2_b.rollback.sql", "which way"],
        ),
        (
            &[("m/001.do.a.sql", "select 1"), ("m/002.undo.b.sql", "drop table token")],
            &["a down file without"],
        ),
    ];
    for (files, parts) in table {
        let world = world_of("dir: m, undo: none", files).await;
        let ended = world.handover("check", &[]).await;
        assert_ne!(ended.code, Some(0), "{files:?}: {ended}");
        let told = format!("{}{}", ended.stdout, ended.stderr);
        for part in *parts {
            assert!(told.contains(part), "`{part}` is missing: {told}");
        }
    }
}

const A: &str = "create table a ();\n";
const B: &str = "create table b ();\n";

/// A tool: its files, its table with the first of them applied, and the table's rows before and after the second.
struct Case {
    tool: &'static str,
    names: [&'static str; 2],
    table: &'static str,
    rows: &'static str,
    before: &'static str,
    after: &'static str,
}

const CASES: &[Case] = &[
    Case {
        tool: "sqlx",
        names: ["1_make_a.sql", "2_make_b.sql"],
        table: "create table _sqlx_migrations (version bigint primary key, description text not null, installed_on timestamptz not null default now(), success boolean not null, checksum bytea not null, execution_time bigint not null);
            insert into _sqlx_migrations (version, description, success, checksum, execution_time) values (1, 'make a', true, sha384(E'create table a ();\\n'), 1)",
        rows: "select version, description, success, checksum = sha384(format(E'create table %s ();\\n', chr(96 + version::int))::bytea), execution_time > 0 from _sqlx_migrations order by 1",
        before: "(1,\"make a\",t,t,t)",
        after: "(1,\"make a\",t,t,t) (2,\"make b\",t,t,t)",
    },
    Case {
        tool: "Prisma",
        names: ["20200101_a/migration.sql", "20200102_b/migration.sql"],
        table: "create table _prisma_migrations (id varchar(36) primary key not null, checksum varchar(64) not null, finished_at timestamptz, migration_name varchar(255) not null, logs text, rolled_back_at timestamptz, started_at timestamptz not null default now(), applied_steps_count integer not null default 0);
            insert into _prisma_migrations (id, checksum, finished_at, migration_name, applied_steps_count) values ('x', encode(sha256(E'create table a ();\\n'), 'hex'), now(), '20200101_a', 1)",
        rows: "select migration_name, checksum = encode(sha256(format(E'create table %s ();\\n', right(migration_name, 1))::bytea), 'hex'), finished_at is not null, applied_steps_count from _prisma_migrations order by 1",
        before: "(20200101_a,t,t,1)",
        after: "(20200101_a,t,t,1) (20200102_b,t,t,1)",
    },
    Case {
        tool: "golang-migrate",
        names: ["0001_a.up.sql", "0002_b.up.sql"],
        table: "create table schema_migrations (version bigint not null primary key, dirty boolean not null); insert into schema_migrations values (1, false)",
        rows: "select * from schema_migrations",
        before: "(1,f)",
        after: "(2,f)",
    },
    Case {
        tool: "popx",
        names: ["20200101000001000000_a.up.sql", "20200101000002000000_b.postgres.up.sql"],
        table: "create table schema_migration (version varchar(48) not null, version_self int not null default 0); create unique index on schema_migration (version); insert into schema_migration values ('20200101000001')",
        rows: "select * from schema_migration order by 1",
        before: "(20200101000001,0)",
        after: "(20200101000001,0) (20200101000002000000,0)",
    },
    Case {
        tool: "Flyway",
        names: ["V1__make_a.sql", "V1.2__make_b.sql"],
        table: "create table flyway_schema_history (installed_rank int primary key, version varchar(50), description varchar(200) not null, type varchar(20) not null, script varchar(1000) not null, checksum int, installed_by varchar(100) not null, installed_on timestamp not null default now(), execution_time int not null, success boolean not null);
            insert into flyway_schema_history values (1, '1', 'make a', 'SQL', 'V1__make_a.sql', CRC_A, 'app', now(), 1, true)",
        rows: "select installed_rank, version, description, type, script, checksum, installed_by, success from flyway_schema_history order by 1",
        before: "(1,1,\"make a\",SQL,V1__make_a.sql,CRC_A,app,t)",
        after: "(1,1,\"make a\",SQL,V1__make_a.sql,CRC_A,app,t) (2,1.2,\"make b\",SQL,V1.2__make_b.sql,CRC_B,app,t)",
    },
    Case {
        tool: "Diesel",
        names: ["2020-01-01-000000_a/up.sql", "2020-01-02-000000_b/up.sql"],
        table: "create table __diesel_schema_migrations (version varchar(50) primary key not null, run_on timestamp not null default current_timestamp); insert into __diesel_schema_migrations values ('20200101000000')",
        rows: "select version from __diesel_schema_migrations order by 1",
        before: "(20200101000000)",
        after: "(20200101000000) (20200102000000)",
    },
    Case {
        tool: "goose",
        names: ["00001_a.sql", "00002_b.sql"],
        table: "create table goose_db_version (id serial primary key, version_id bigint not null, is_applied boolean not null, tstamp timestamp default now()); insert into goose_db_version (version_id, is_applied) values (0, true), (1, true), (2, true), (2, false)",
        rows: "select version_id, is_applied from goose_db_version order by id",
        before: "(0,t) (1,t) (2,t) (2,f)",
        after: "(0,t) (1,t) (2,t) (2,f) (2,t)",
    },
    Case {
        tool: "dbmate",
        names: ["20200101_a.sql", "20200102_b.sql"],
        table: "create table schema_migrations (version varchar(128) primary key); insert into schema_migrations values ('20200101')",
        rows: "select * from schema_migrations order by 1",
        before: "(20200101)",
        after: "(20200101) (20200102)",
    },
];

fn text(tool: &str, sql: &str) -> String {
    match tool {
        "goose" => format!("-- +goose Up\n{sql}-- +goose Down\ndrop table b;\n"),
        "dbmate" => format!("-- migrate:up\n{sql}-- migrate:down\ndrop table b;\n"),
        _ => sql.to_owned(),
    }
}

/// CRC-32 of the two files' lines, as another program computes it.
fn crc(text: &str) -> String {
    text.replace("CRC_A", "108224627").replace("CRC_B", "1104353955")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vendors_table_is_believed_and_written_in_the_same_transaction() {
    futures_util::future::join_all(CASES.iter().map(believed_and_written)).await;
}

async fn believed_and_written(case: &Case) {
    let paths = case.names.map(|name| format!("m/{name}"));
    // What the vendor's table says was applied is not run: it would fail.
    let (a, b) = (text(case.tool, A), text(case.tool, B));
    let down = match case.names[1].rsplit_once('/') {
        Some((folder, _)) => format!("o/{folder}/down.sql"),
        None => {
            let stem = case.names[1].trim_end_matches(".sql").trim_end_matches(".up");
            format!("o/{stem}.down.sql")
        }
    };
    let sections = matches!(case.tool, "goose" | "dbmate");
    let mut files = vec![(paths[0].as_str(), a.as_str()), (paths[1].as_str(), b.as_str())];
    files.extend((!sections).then_some((down.as_str(), "drop table b;")));
    let overrides = if sections { "" } else { "override: o, " };
    let step = format!("dir: m, {overrides}history: vendor, search_path: [public]");
    let world = world_with(&step, &crc(case.table), &files).await;
    world.blue.execute("set role app; create table a ()").await;
    let before = crc(case.before);
    assert_eq!(rows(&world, case.rows).await, before, "{}", case.tool);
    world.handover_failing("migrate.before-commit", "run", &[]).await.killed();
    assert_eq!(rows(&world, case.rows).await, before, "{}", case.tool);
    assert!(!there(&world, "b").await, "{}", case.tool);
    let ended = world.handover("resume", &[]).await;
    assert_eq!(ended.code, Some(0), "{}: {ended}", case.tool);
    assert!(there(&world, "b").await, "{}", case.tool);
    assert_eq!(rows(&world, case.rows).await, crc(case.after), "{}", case.tool);
    world.handover("rollback", &[]).await.success();
    assert_eq!(rows(&world, case.rows).await, before, "{}", case.tool);
    assert!(there(&world, "a").await && !there(&world, "b").await, "{}", case.tool);
}

/// The tool itself is asked, where it is at hand.
#[tokio::test(flavor = "multi_thread")]
async fn refinery_finds_nothing_left_to_do() {
    let files = [("m/V1__make_a.sql", A), ("m/V2__make_b.sql", B)];
    let theirs: Vec<refinery::Migration> = files
        .iter()
        .map(|(name, sql)| {
            refinery::Migration::unapplied(name.trim_start_matches("m/").trim_end_matches(".sql"), sql)
                .unwrap()
        })
        .collect();
    let world = world_of("dir: m, undo: none, search_path: [public]", &files).await;
    let mut service = world.blue.admin().await;
    let report = refinery::Runner::new(&theirs[..1]).run_async(&mut service).await.unwrap();
    assert_eq!(report.applied_migrations().len(), 1);
    service.batch_execute("alter table refinery_schema_history owner to app").await.unwrap();
    world.handover("run", &[]).await.success();
    let report = refinery::Runner::new(&theirs).run_async(&mut service).await.unwrap();
    assert_eq!(report.applied_migrations().len(), 0, "the service would migrate again");
}

#[tokio::test(flavor = "multi_thread")]
async fn history_vendor_makes_the_table_and_history_own_leaves_it_alone() {
    let files = [("m/1_make_a.sql", A), ("m/2_make_b.sql", B)];
    let world =
        world_of("dir: m, undo: none, history: vendor, search_path: [public], baseline: ['1']", &files).await;
    world.handover("run", &[]).await.success();
    let listed = "select version, success from _sqlx_migrations order by 1";
    assert_eq!(rows(&world, listed).await, "(1,t) (2,t)");
    assert!(!there(&world, "a").await, "a baseline is only recorded");
    assert_eq!(
        world
            .blue
            .value("select tableowner from pg_tables where tablename = '_sqlx_migrations'")
            .await
            .as_deref(),
        Some("app")
    );

    let case = &CASES[0];
    let world = world_with("dir: m, undo: none, history: own, baseline: ['1']", case.table, &files).await;
    world.handover("run", &[]).await.success();
    assert_eq!(rows(&world, case.rows).await, case.before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_vendors_tool_would_refuse_is_refused_before_anything_runs() {
    let dirty = "create table schema_migrations (version bigint not null primary key, dirty boolean not null); insert into schema_migrations values (1, true)";
    let files = [("m/1_a.up.sql", A), ("m/2_b.up.sql", B)];
    let world = world_with("dir: m, undo: none", dirty, &files).await;
    let ended = world.handover("run", &[]).await;
    assert_ne!(ended.code, Some(0), "{ended}");
    says(&ended, &["golang-migrate left 1 half done", "history: own"]);
    assert!(!there(&world, "b").await);

    let changed = [("m/1_make_a.sql", "create table a (other int);\n"), ("m/2_make_b.sql", B)];
    let world = world_with("dir: m, undo: none", CASES[0].table, &changed).await;
    let ended = world.handover("run", &[]).await;
    assert_ne!(ended.code, Some(0), "{ended}");
    says(&ended, &["1_make_a.sql", "another checksum", "sqlx would refuse it"]);
    assert!(!there(&world, "b").await);
}

/// As Ory ships them: the next release brings files with lower numbers than this one's last.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_as_baseline_does_not_hide_what_never_ran() {
    let files = [
        ("m/20200101000001000000_a.up.sql", "would fail;"),
        ("m/20200101000002000000_late.up.sql", "create table late ();"),
        ("m/20200101000003000000_c.up.sql", "would fail;"),
        ("m/20200101000004000000_d.up.sql", "create table d ();"),
    ];
    let table = "create table schema_migration (version varchar(48) not null, version_self int not null default 0); insert into schema_migration values ('20200101000001000000'), ('20200101000003000000')";
    let world = world_with("dir: m, undo: none, baseline: '20200101000003000000'", table, &files).await;
    let ended = world.handover("check", &[]).await;
    let told = format!("{}{}", ended.stdout, ended.stderr);
    assert!(told.contains("3 files up to `20200101000003000000`") && told.contains("_late.up.sql"), "{told}");
    let dry = world.handover("dry-run", &[]).await;
    assert_ne!(dry.code, Some(0), "{dry}");
    let ended = world.handover("run", &[]).await;
    assert_ne!(ended.code, Some(0), "{ended}");
    says(&ended, &["1 file were applied of which", "schema_migration", "20200101000002000000_late.up.sql"]);
    world.handover("abort", &[]).await.success();

    let world = world_with("dir: m, undo: none", table, &files).await;
    world.handover("run", &[]).await.success();
    assert!(there(&world, "late").await && there(&world, "d").await);
    assert_eq!(world.blue.value("select count(*) from schema_migration").await.as_deref(), Some("4"));

    // The set may stand in a file too.
    let mut files = files.to_vec();
    files.push(("applied.txt", "# release 1\n20200101000001000000\n20200101000003000000_c.up.sql\n"));
    let world = world_of("dir: m, undo: none, baseline: { file: applied.txt }", &files).await;
    world.handover("run", &[]).await.success();
    assert!(there(&world, "late").await && there(&world, "d").await);
}
