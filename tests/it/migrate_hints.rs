//! What a migration says before it runs, and when it fails.

use crate::migrate::{says, world_of};
use crate::support::servers::{self, Database};
use crate::support::world::World;
use handover_lab::{PostgresOptions, PostgresServer};

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_data_migration_names_the_row() {
    let table = "create table doc (id int, part text, raw text, primary key (part, id)); alter table doc owner to app;
        insert into doc select n, 'p', '{\"n\": ' || n || '}' from generate_series(1, 20000) n;
        update doc set raw = 'no json' where id = 13579; grant select on doc to handover_reader;";
    let cases: &[(&str, &str)] = &[
        (
            "update doc d set raw = (d.raw::jsonb - 'n')::text where d.id > 10",
            "doc where \"part\" = 'p' and \"id\" = '13579'",
        ),
        (
            "alter table doc alter column raw type jsonb using raw::jsonb",
            "doc where \"part\" = 'p' and \"id\" = '13579'",
        ),
        (
            "create table other (x jsonb);\ninsert into other (x)\nselect raw::jsonb from doc",
            "doc where \"part\" = 'p' and \"id\" = '13579'",
        ),
        (
            "alter table doc add constraint known check (raw <> 'no json')",
            "doc where \"part\" = 'p' and \"id\" = '13579'",
        ),
    ];
    for (sql, row) in cases {
        let world = world_of("dir: m, undo: none", &[("m/V1__a.sql", sql)]).await;
        world.blue.execute(table).await;
        let ended = world.handover("run", &[]).await.code(1);
        says(&ended, &[&format!("the first such row is {row}"), "V1__a.sql:", "nothing of it was kept"]);
        assert!(
            !ended.stderr.contains("no json") || sql.contains("no json"),
            "row values are not shown: {ended}"
        );
    }

    // What the file itself changed before cannot be looked at from outside, and is not guessed.
    let sql = "update doc set raw = '1' where id = 13579;\nupdate doc set raw = 'wrong' where id = 2;\nalter table doc alter column raw type jsonb using raw::jsonb;";
    let world = world_of("dir: m, undo: none", &[("m/V1__a.sql", sql)]).await;
    world.blue.execute(table).await;
    let ended = world.handover("run", &[]).await.code(1);
    says(&ended, &["V1__a.sql:3:", "SQLSTATE 22P02"]);
    assert!(!ended.stderr.contains("the first such row"), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_suggests_stands_beside_how_the_run_goes_on() {
    let world = world_of("dir: m, undo: none", &[("m/V1__a.sql", "select subjct from token;")]).await;
    let ended = world.handover("run", &[]).await.code(1);
    says(&ended, &["V1__a.sql:1:", "Perhaps you meant", "nothing of it was kept", "handover resume"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dry_run_looks_at_what_is_there_and_at_the_way_back() {
    let files = [
        (
            "m/1_a.up.sql",
            "create table if not exists token (id int);\ncreate index on token (subject);\ncreate table if not exists fresh (id int);\ncreate index on fresh (id);",
        ),
        (
            "m/1_a.down.sql",
            "drop index token_subject_idx;\nalter table token alter column subject set not null;",
        ),
        (
            "m/2_b.up.sql",
            "alter table token add column a text default coalesce(lower(md5(random()::text)), 'x');\nalter table token add column b text default lower('X');\nalter table token add column c int default made_up(1);",
        ),
        ("m/2_b.down.sql", "alter table token drop column a, drop column b, drop column c;"),
    ];
    let world = world_of("dir: m", &files).await;
    let ended = world.handover("dry-run", &[]).await;
    let told = format!("{}{}", ended.stdout, ended.stderr);
    for part in [
        "1_a.up.sql:2: token (",
        "a rollback: ",
        "1_a.down.sql:2: token (",
        "2_b.up.sql:1: token (",
        "2_b.up.sql:3: token (",
        "a rollback runs 3 statements",
    ] {
        assert!(told.contains(part), "`{part}` is missing: {told}");
    }
    assert!(!told.contains("2_b.up.sql:2: token"), "lower is immutable: {told}");
    assert!(!told.contains("1_a.up.sql:4: fresh"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_prepared_whole_rows_are_named_before_a_column_comes() {
    let options = PostgresOptions::new(servers::programs().await.blue.clone())
        .setting("shared_preload_libraries", "pg_stat_statements");
    let server = Box::leak(Box::new(PostgresServer::start(options).await.unwrap()));
    let tables = "create table token (id int primary key, subject text); create table other (id int);";
    let blue = Database::with(server, tables).await;
    let file = "alter table token add column note text;\nalter table token alter column id set default 1;\nalter table other add constraint c check (id > 0);";
    let world = world_of("dir: m", &[("m/1_a.up.sql", file), ("m/1_a.down.sql", "select 1")]).await;
    let world = World { blue, ..world };

    // Not there: one line says how to find out.
    let ended = world.handover("dry-run", &[]).await.success();
    let unknown = "who prepares `select *` on token is not known (the extension pg_stat_statements";
    assert!(ended.stdout.contains(unknown), "{ended}");
    assert!(!ended.stdout.contains("select *` on public.other"), "{ended}");
    let ended = world.handover("doctor", &[]).await;
    assert!(ended.stdout.contains(unknown), "{ended}");

    world.blue.admin().await.batch_execute("create extension pg_stat_statements").await.unwrap();
    let application = world.blue.admin().await;
    let prepared =
        application.prepare("select * from token where subject = 's3cret' or id = $1").await.unwrap();
    application.query(&prepared, &[&1]).await.unwrap();
    application.query("select t.*, o.id from other o join public.token as t using (id)", &[]).await.unwrap();
    application.query("select count(*), (select max(id) * 2 from other) from token", &[]).await.unwrap();
    application.query("select * from other", &[]).await.unwrap();
    let client = "`select * from token where subject = ";
    for (command, code) in [("dry-run", Some(0)), ("doctor", None)] {
        let ended = world.handover(command, &[]).await;
        assert!(code.is_none() || ended.code == code, "{ended}");
        for part in
            ["columns of token change", client, "`select t.*, o.id from other o", "cached plan must not"]
        {
            assert!(ended.stdout.contains(part), "`{part}` is missing: {ended}");
        }
        for part in ["s3cret", "count(*)", "columns of other", "is not known"] {
            assert!(!ended.stdout.contains(part), "`{part}`: {ended}");
        }
    }
    // Nothing is refused for it, and what was said is what happens.
    world.handover("run", &[]).await.success();
    let fails = application.query(&prepared, &[&1]).await.unwrap_err();
    assert!(
        fails.to_string().contains("cached plan") || format!("{fails:?}").contains("cached plan"),
        "{fails:?}"
    );
}
