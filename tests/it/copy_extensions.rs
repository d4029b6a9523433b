//! `copy` of rows that users keep in tables of extensions.

use crate::support::context::{context, kind};
use crate::support::servers::{self, Database};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The one that is referred to is named last.
const SCRIPT: &str = "
create table kept_unit (id int primary key, name text, own bool default true, twice int generated always as (id * 2) stored);
insert into kept_unit values (1, 'metre', false);
create sequence kept_numbers;
create sequence kept_untouched;
create table kept_use (unit int references kept_unit, note text);
create table kept_cache (id int);
insert into kept_cache values (1);
select pg_catalog.pg_extension_config_dump('kept_use', '');
select pg_catalog.pg_extension_config_dump('kept_numbers', '');
select pg_catalog.pg_extension_config_dump('kept_untouched', '');
select pg_catalog.pg_extension_config_dump('kept_unit', 'where own');
";

/// A database whose server finds the extension `kept`.
async fn database(folder: &Path) -> Database {
    let database = Database::create(servers::green().await, None).await;
    let sql = format!(
        "alter database {} set extension_control_path = '{}:$system'",
        database.name,
        folder.display()
    );
    database.admin().await.batch_execute(&sql).await.unwrap();
    database
}

const ROWS: &str = "select concat((select string_agg(u::text, ';' order by id) from kept_unit u), (select string_agg(k::text, ';' order by k::text) from kept_use k),
    (select last_value || ' ' || is_called from kept_numbers), (select count(*) from kept_cache))";

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_users_keep_in_tables_of_extensions_come_along() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("extension");
    std::fs::create_dir(&inner).unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(inner.join("kept.control"), "default_version = '1'\nsuperuser = false\n").unwrap();
    std::fs::write(inner.join("kept--1.sql"), SCRIPT).unwrap();
    let blue = database(folder.path()).await;
    blue.execute(
        "create schema ext; create extension kept schema public;
         insert into kept_unit values (2, 'ell'), (3, E'f\\\\t\\tü'); insert into kept_use values (1, 'a'), (2, null), (2, null);
         select setval('kept_numbers', 41); insert into kept_cache values (2)",
    )
    .await;
    let expected = blue.value(ROWS).await.unwrap().replace("true2", "true1");
    // Made by the copy, and there before.
    for before in [false, true] {
        let green = database(folder.path()).await;
        if before {
            green
                .execute("create extension kept schema public; insert into kept_unit values (7, 'own')")
                .await;
        }
        let (cx, _events) =
            context("copy", &[("blue", blue.handover_url()), ("green", green.handover_url())], &["green"])
                .await;
        let step = kind(
            "copy",
            json!({ "from": "blue", "to": "green", "programs": servers::programs().await.green.folder() }),
        );
        if before {
            for told in [
                step.describe(&cx).await.unwrap().blockers.join(" "),
                step.run(&cx).await.unwrap_err().to_string(),
            ] {
                assert!(told.contains("already hold rows of users: kept_unit (kept)"), "{told}");
            }
            green.execute("delete from kept_unit where own").await;
        }
        let described = step.describe(&cx).await.unwrap();
        assert_eq!(described.blockers, Vec::<String>::new());
        assert!(described.actions.iter().any(|a| a.contains("kept_use (kept)")), "{described:?}");
        assert!(!described.actions.iter().any(|a| a.contains("kept_untouched")), "{described:?}");
        step.run(&cx).await.unwrap();
        step.verify(&cx).await.unwrap();
        assert_eq!(green.value(ROWS).await.as_deref(), Some(expected.as_str()));
        let sql = "update kept_unit set name = 'yard' where id = 2";
        green.admin().await.batch_execute(sql).await.unwrap();
        let error = step.verify(&cx).await.unwrap_err();
        assert!(error.message().contains("kept_unit of the extension kept has 2 rows of users"), "{error}");
        step.undo(&cx).await.unwrap();
        let left = "select count(*) || ' ' || (select count(*) from kept_use) from kept_unit";
        if before {
            assert_eq!(green.value(left).await.as_deref(), Some("1 0"));
        } else {
            assert_eq!(green.value("select to_regclass('kept_unit')").await, None);
        }
    }
}
