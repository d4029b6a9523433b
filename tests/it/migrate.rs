//! `migrate` on a real server.

use crate::support::scenario::Scenario;
use crate::support::servers::{self, Database};
use crate::support::world::World;
use handover::event::{Emitter, RunId, StepId};
use handover::postgres::profile::SearchPath;
use handover::postgres::{Databases, connect::Target};
use handover::steps::{Context, Ledger, Memory, Port, StepKind};
use handover::value::Secret;
use handover::{Result, steps};
use handover_migrations::Migrate;
use std::sync::Arc;

const PLAN: &str = "
handover: 1
name: oauth
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
  - id: migrate
    migrate:
      on: blue
      dirs: [vendor, own]
      override: overrides
      role: app
      search_path: [public]
";

const TABLE: &str = "create table token (id int primary key, subject text, active bool);
    insert into token select n, 's' || n % 10, n % 3 = 0 from generate_series(1, 1000) n;";

/// A popx folder with dialects, long numbers and blank files, an override, and a folder of our own in which
/// one file runs step by step in both directions.
const FILES: &[(&str, &str)] = &[
    (
        "vendor/20150101000001000000_networks.postgres.up.sql",
        "create table network (id int primary key);\ninsert into network values (1);",
    ),
    ("vendor/20150101000001000000_networks.mysql.up.sql", "create table `network` (id int) engine=innodb;"),
    ("vendor/20150101000001000000_networks.down.sql", "drop table network;"),
    (
        "vendor/20190100000002000000_token_nid.up.sql",
        "alter table token add column nid int not null default 1;\nbroken;",
    ),
    ("vendor/20190100000002000000_token_nid.down.sql", "alter table token drop column nid;"),
    ("vendor/20190100000003000000_nothing.up.sql", "-- this version only concerns MySQL\n"),
    ("vendor/20190100000003000000_nothing.down.sql", ""),
    (
        "overrides/20190100000002000000_token_nid.up.sql",
        "begin;\nalter table token add column nid int default 1;\ncommit;",
    ),
    (
        "overrides/V2__nid_index.down.sql",
        "drop index concurrently if exists token_nid;\nalter table token drop constraint nid_known;\ndrop index concurrently token_live;",
    ),
    (
        "own/V1__sessions.sql",
        "create table session (id int primary key, token int references token (id));\ninsert into session select id, id from token where active;",
    ),
    ("own/V1__sessions.down.sql", "drop table session;"),
    (
        "own/V2__nid_index.sql",
        "create unique index concurrently token_live on token (id) where active;\nalter table token add constraint nid_known check (nid > 0) not valid;\ncreate index concurrently token_nid on token (nid);",
    ),
    ("own/V10__comment.sql", "comment on table session is 'who is here';"),
    ("own/V10__comment.down.sql", ""),
];

pub fn scenario() -> Scenario {
    Scenario {
        prefixes: &["migrate"],
        plan: PLAN,
        files: FILES,
        blue: TABLE,
        rollback_restores: true,
        ..Scenario::default()
    }
}

pub async fn world_of(step: &str, files: &[(&str, &str)]) -> World {
    let template = Database::with(servers::blue().await, TABLE).await;
    let plan = format!(
        "handover: 1\nname: m\ndatabases: {{ blue: '${{BLUE_URL}}' }}\ncontrol: ${{CONTROL_URL}}\nsteps:\n  - id: migrate\n    retry: {{ attempts: 1 }}\n    migrate: {{ on: blue, role: app, {step} }}\n"
    );
    World::new(Some(&template.name), None, &plan, files).await
}

pub fn says(ended: &crate::support::world::Ended, parts: &[&str]) {
    for part in parts {
        assert!(ended.stderr.contains(part), "`{part}` is missing: {ended}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendors_folder_runs_as_it_is() {
    let template = Database::with(servers::blue().await, TABLE).await;
    let world = World::new(Some(&template.name), None, PLAN, FILES).await;
    world.handover("run", &[]).await.success();
    let client = world.blue.admin().await;
    let table: String = client
        .query_one("select tablename::text from pg_tables where schemaname = 'handover' and tablename like 'migrate%'", &[])
        .await
        .unwrap()
        .get(0);
    let rows = client
        .query(&format!("select version, number, folder from handover.{table} order by version"), &[])
        .await
        .unwrap();
    let rows: Vec<(i64, String, String)> = rows.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect();
    let expected = [
        (1, "20150101000001000000", "vendor"),
        (2, "20190100000002000000", "vendor"),
        (3, "20190100000003000000", "vendor"),
        (4, "1", "own"),
        (5, "2", "own"),
        (6, "10", "own"),
    ];
    assert_eq!(rows, expected.map(|(v, n, f)| (v, n.to_owned(), f.to_owned())));
    assert_eq!(
        world.blue.value("select tableowner from pg_tables where tablename = 'network'").await.as_deref(),
        Some("app")
    );
    assert_eq!(
        world.blue.value("select count(*) from handover.checkpoint where step = 'migrate'").await.as_deref(),
        Some("0")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_names_file_line_and_next_step_and_resume_goes_on() {
    let files = [
        ("m/V1__a.sql", "create table a (x int);"),
        ("m/V2__b.sql", "create table b (x int);\n\ninsert into b\n  select nonsense from a;"),
        ("m/V3__c.sql", "create table c (x int);"),
    ];
    let world = world_of("dir: m, undo: none", &files).await;
    let ended = world.handover("run", &[]).await.code(1);
    says(
        &ended,
        &["V2__b.sql:4:", "nonsense", "SQLSTATE 42703", "nothing of it was kept", "handover resume"],
    );
    assert_eq!(
        world.blue.value("select to_regclass('a') is not null and to_regclass('b') is null").await.as_deref(),
        Some("t")
    );
    world.write("m/V2__b.sql", "create table b (x int);");
    let refused = world.handover("resume", &[]).await;
    assert_ne!(refused.code, Some(0), "a changed file needs the operator's word: {refused}");
    world.handover("resume", &["--accept-changes"]).await.success();
    assert_eq!(world.blue.value("select to_regclass('c') is not null").await.as_deref(), Some("t"));
}

/// The same plan run again later: its history goes on where it was.
async fn applied(files: &[(&str, &str)]) -> World {
    let world = world_of("dirs: [m], undo: none", files).await;
    world.handover("run", &[]).await.success();
    world.handover("finish", &[]).await.success();
    world
}

const TWO: &[(&str, &str)] =
    &[("m/2_a.up.sql", "create table a ();"), ("m/4_b.up.sql", "create table b ();")];

#[tokio::test(flavor = "multi_thread")]
async fn only_new_migrations_run_and_late_changed_or_lost_ones_are_errors() {
    let world = applied(TWO).await;
    world.write("m/5_c.up.sql", "create table c ();");
    world.handover("run", &[]).await.success();
    world.handover("finish", &[]).await.success();

    world.write("m/3_late.up.sql", "create table late ();");
    let ended = world.handover("run", &[]).await;
    says(&ended, &["m/3_late.up.sql came late", "m/5_c.up.sql", "a number above all applied ones"]);
    world.handover("abort", &[]).await.success();
    world.handover("finish", &[]).await.success();
    std::fs::remove_file(world.path("m/3_late.up.sql")).unwrap();

    world.write("m/4_b.up.sql", "create table b (changed int);");
    let ended = world.handover("run", &[]).await;
    says(&ended, &["m/4_b.up.sql was changed after it was applied", "put the change into a new migration"]);
    world.handover("abort", &[]).await.success();
    world.handover("finish", &[]).await.success();

    std::fs::remove_file(world.path("m/4_b.up.sql")).unwrap();
    let ended = world.handover("run", &[]).await;
    says(&ended, &["m/4_b.up.sql was applied on", "gone now", "put the file back"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_baseline_is_recorded_and_neither_run_nor_undone() {
    let files = [
        ("m/1_token.up.sql", "create table token (would fail);"),
        ("m/2_a.up.sql", "create table a ();"),
        ("m/2_a.down.sql", "drop table a;"),
    ];
    let world = world_of("dir: m, baseline: '1'", &files).await;
    let before = world.snapshot().await;
    world.handover("run", &[]).await.success();
    assert_eq!(world.blue.value("select to_regclass('a') is not null").await.as_deref(), Some("t"));
    world.handover("rollback", &[]).await.success();
    assert_eq!(before, world.snapshot().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_everything_that_is_wrong_with_the_folders() {
    let files = [
        ("m/1_a.up.sql", "create table a ();\ncommit;"),
        ("m/1_b.up.sql", "create table b ();"),
        ("m/2_c.up.sql", "\\connect elsewhere"),
        ("m/3-typo.up.sql", "select 1;"),
        ("m/4_lonely.down.sql", "select 1;"),
        ("o/2_d.up.sql", "select 1;"),
    ];
    let world = world_of("dir: m, override: o, baseline: '77'", &files).await;
    let ended = world.handover("check", &[]).await;
    assert_ne!(ended.code, Some(0), "{ended}");
    let told = format!("{}{}", ended.stdout, ended.stderr);
    for part in [
        "the number 1 is used twice",
        "is a command of psql",
        "3-typo.up.sql: the file is not a migration",
        "4_lonely.down.sql: a down file without",
        "no migration has this file name",
        "did you mean `2_c.up.sql`?",
    ] {
        assert!(told.contains(part), "`{part}` is missing: {told}");
    }
    let world = world_of("dir: m, baseline: '77'", &[("m/1_a.up.sql", "create table a ();")]).await;
    let ended = world.handover("check", &[]).await;
    let told = format!("{}{}", ended.stdout, ended.stderr);
    for part in ["1_a.up.sql: no down file", "`77` is not the number or name", "undo: none"] {
        assert!(told.contains(part), "`{part}` is missing: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_given_up_in_time_the_holder_named_and_the_file_tried_again() {
    let files = [("m/V1__a.sql", "create table a ();\nalter table token add column b int;")];
    let world = world_of("dir: m, undo: none, lock_timeout: 700ms, lock_attempts: 2", &files).await;
    let mut admin = world.blue.admin().await;
    let holder = admin.transaction().await.unwrap();
    holder.query("select count(*) from token", &[]).await.unwrap();
    let ended = world.handover("run", &[]).await;
    assert_ne!(ended.code, Some(0), "{ended}");
    says(
        &ended,
        &["V1__a.sql:2:", "after 2 attempts", "the lock was held by pid", "select count(*) from token"],
    );
    // Nothing waits any more, so readers and writers pass.
    world.blue.execute("set lock_timeout = '1s'; update token set active = true where id = 1").await;
    holder.commit().await.unwrap();
    world.handover("resume", &[]).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_of_unknown_effect_is_asked_about() {
    let files = [(
        "m/V1__batches.sql",
        "-- handover: no-transaction\ncreate table done (n int);\ncreate procedure p() language plpgsql as $$ begin insert into done values (1); commit; end $$;\ncall p();",
    )];
    let world = world_of("dir: m, undo: none", &files).await;
    world.handover_failing("migrate.statement-done", "run", &[]).await.killed();
    let ended = world.handover("resume", &[]).await.code(1);
    says(&ended, &["V1__batches.sql:4:", "was interrupted", "done-if"]);
    let mended =
        files[0].1.replace("call p()", "-- handover: done-if select exists (select from done)\ncall p()");
    world.write(files[0].0, &mended);
    world.handover("resume", &["--accept-changes"]).await.success();
    assert_eq!(world.blue.value("select count(*) from done").await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_index_is_rebuilt_if_ours_and_reported_if_not() {
    let files = [(
        "m/1_i.sql",
        "create table a (x int);\ninsert into a values (1), (1);\ncreate unique index concurrently i on a (x);",
    )];
    let world = world_of("dir: m, undo: none, search_path: [public]", &files).await;
    let ended = world.handover("run", &[]).await.code(1);
    says(&ended, &["1_i.sql:3:", "SQLSTATE 23505"]);
    assert!(!ended.stderr.contains("(x)=(1)"), "row values are not shown: {ended}");
    world.blue.execute("delete from a; insert into a values (1)").await;
    world.handover("resume", &[]).await.success();
    assert_eq!(
        world.blue.value("select indisvalid from pg_index where indexrelid = 'i'::regclass").await.as_deref(),
        Some("t")
    );

    let files = [("m/1_i.sql", "create index concurrently if not exists token_subject on token (subject);")];
    let world = world_of("dir: m, undo: none", &files).await;
    world.blue.execute("create index token_subject on token (subject)").await;
    let mark = "update pg_index set indisvalid = false where indexrelid = 'token_subject'::regclass";
    world.blue.admin().await.batch_execute(mark).await.unwrap();
    let ended = world.handover("run", &[]).await.code(1);
    says(&ended, &["1_i.sql:1:", "an INVALID index token_subject exists that this run did not make"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_done_file_is_taken_back() {
    let files = [
        (
            "m/1_a.up.sql",
            "create table a (x int);\ncreate index concurrently i on a (x);\nalter table a add column y int;\nalter table nowhere add column y int;",
        ),
        (
            "m/1_a.down.sql",
            "alter table nowhere drop column y;\nalter table a drop column y;\ndrop index i;\ndrop table a;",
        ),
    ];
    let world = world_of("dir: m", &files).await;
    let before = world.snapshot().await;
    let ended = world.handover("run", &[]).await.code(1);
    says(&ended, &["1_a.up.sql:4:", "the statements before it stay done"]);
    world.handover("rollback", &[]).await.success();
    assert_eq!(before, world.snapshot().await);
}

/// A journal that a dry run has no use for.
struct NoJournal;

#[async_trait::async_trait]
impl Memory for NoJournal {
    async fn remember(&self, _: &StepId, _: &str, _: serde_json::Value) -> Result<()> {
        panic!("a dry run remembers nothing")
    }
    fn recall(&self, _: &StepId, _: &str) -> Option<serde_json::Value> {
        None
    }
}

#[async_trait::async_trait]
impl Ledger for NoJournal {
    async fn approval(&self, _: &StepId) -> Result<Option<steps::context::Request>> {
        Ok(None)
    }
    async fn end_standing(&self, _: &StepId, _: &StepId) -> Result<()> {
        panic!("a dry run ends nothing")
    }
    async fn point_of_no_return(&self, _: &StepId) -> Result<()> {
        panic!("a dry run passes no point")
    }
}

/// What a step is given for its dry run: no lease, and a role that may only read.
fn looking(world: &World) -> Context {
    let target = Target {
        url: Secret::new(world.blue.reader_url()),
        reader: Some(Secret::new(world.blue.reader_url())),
        search_path: SearchPath::default(),
    };
    let ledger = Arc::new(NoJournal);
    Context {
        port: Port {
            run: RunId::new(),
            step: StepId::from("migrate"),
            plan: "m".into(),
            base: Arc::new(world.folder.path().to_path_buf()),
            databases: Databases::new([("blue".to_owned(), target)].into()),
            queue: None,
            emitter: Emitter::silent(),
            stop: tokio_util::sync::CancellationToken::new(),
            memory: ledger.clone(),
        },
        links: Arc::default(),
        ledger,
        accept_loss: false,
        export: None,
        may_wait: false,
        critical: Default::default(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_lists_the_files_and_warns_of_locks_and_changes_nothing() {
    let files = [
        (
            "m/1_a.up.sql",
            "create table a (x int);\ncreate index on a (x);\nalter table token alter column subject set not null;",
        ),
        ("m/2_b.up.sql", "create index concurrently i on token (id);"),
        ("m/3_c.up.sql", "-- nothing\n"),
        ("o/3_c.up.sql", "create index token_active on token (active);"),
        ("m/4_d.up.sql", ""),
    ];
    let world = world_of("dir: m, override: o, undo: none", &files).await;
    let step: Migrate = serde_json::from_value(serde_json::json!({
        "on": "blue", "role": "app", "dir": "m", "override": "o", "undo": "none", "search_path": ["public"]
    }))
    .unwrap();
    let before = world.snapshot().await;
    let told = step.describe(&looking(&world)).await.unwrap();
    assert_eq!(told.blockers, Vec::<String>::new());
    let actions = told.actions.join("\n");
    for part in [
        "1: m/1_a.up.sql: in one transaction; no down file",
        "2: m/2_b.up.sql: outside a transaction, statement by statement (CREATE INDEX CONCURRENTLY on line 1)",
        "3: m/3_c.up.sql, replaced by",
        "4: m/4_d.up.sql: blank, recorded only",
    ] {
        assert!(actions.contains(part), "`{part}` is missing: {actions}");
    }
    let warnings = told.warnings.join("\n");
    for part in [
        "m/1_a.up.sql:3: token (",
        "is read whole while locked",
        "o/3_c.up.sql:1: token (",
        "CREATE INDEX CONCURRENTLY, or a `create_index` step",
    ] {
        assert!(warnings.contains(part), "`{part}` is missing: {warnings}");
    }
    assert!(!warnings.contains("1_a.up.sql:2"), "an index on a new table locks nobody out: {warnings}");
    assert_eq!(before, world.snapshot().await);

    // After the run there is nothing to do, and verify can fail.
    world.handover("run", &[]).await.success();
    let told = step.describe(&looking(&world)).await.unwrap();
    assert_eq!(told.actions, ["nothing for 4 migrations that are applied already"]);
    step.verify(&looking(&world)).await.unwrap();
    let admin = world.blue.admin().await;
    let forget = "do $$ begin execute (select format('delete from handover.%I where version = 4', tablename) from pg_tables where tablename like 'migrate%'); end $$";
    admin.batch_execute(forget).await.unwrap();
    let error = step.verify(&looking(&world)).await.unwrap_err();
    assert!(
        error.to_string().contains("1 of 4 migrations are not in the history, first m/4_d.up.sql"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_runs_too_long_is_ended_and_a_stop_cancels_it() {
    let files = [("m/1_a.up.sql", "create table a ();\nselect pg_sleep(60);")];
    let world = world_of("dir: m, undo: none, statement_timeout: 300ms", &files).await;
    let ended = world.handover("run", &[]).await;
    assert_ne!(ended.code, Some(0), "{ended}");
    says(&ended, &["1_a.up.sql:2:", "statement timeout"]);

    let world = world_of("dir: m, undo: none", &files).await;
    let mut run = world.command().arg("run").arg(world.plan()).spawn().unwrap();
    let admin = world.blue.admin().await;
    let sleeping = "select 1 from pg_stat_activity where query like 'select pg_sleep%' and datname = current_database() and state = 'active' and pid <> pg_backend_pid()";
    while admin.query_opt(sleeping, &[]).await.unwrap().is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(run.id().unwrap()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(!run.wait().await.unwrap().success());
    assert!(admin.query_opt(sleeping, &[]).await.unwrap().is_none(), "the statement lives on in the server");
    assert_eq!(world.blue.value("select to_regclass('a') is null").await.as_deref(), Some("t"));
}
