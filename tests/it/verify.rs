//! `verify` between two real databases, and on one at two points in time.

use crate::support::context::{context, kind};
use crate::support::scenario::Scenario;
use crate::support::servers::{self, Database};
use handover::steps::{CheckContext, Context};
use handover::{Class, Error};
use serde_json::{Value, json};

const PLAN: &str = "
handover: 1
name: verifying
databases: { blue: '${BLUE_URL}', green: '${GREEN_URL}' }
control: ${CONTROL_URL}
steps:
  - id: baseline
    verify:
      before: blue
      record: true
      row_counts: true
      invariants: [ { name: live sessions, before: 'select subject, count(*) from token where active group by 1', key: [subject] } ]
  - id: index
    create_index: { on: blue, indexes: [ { name: token_subject, table: token, columns: [subject] } ] }
  - id: unchanged
    verify:
      before: { from_step: baseline }
      after: blue
      row_counts: true
      invariants: [ { name: live sessions, key: [subject] , after: 'select subject, count(*) from token where active group by subject' } ]
  - id: equal
    verify: { before: blue, after: green, row_counts: true, checksums: { chunk_rows: 100 } }
  - id: following
    verify: { before: blue, after: green, checksums: { chunk_rows: 30 }, retries: { within: 20s } }
";

const TABLES: &str =
    "create sequence s; create table token (id int primary key, subject text, active bool, score float8 default 0.1);
    insert into token select n, 's' || n % 10, n % 3 = 0 from generate_series(1, 1000) n;
    create table pair (a text, b int, secret text, primary key (a, b));
    insert into pair select 'ä' || n, n, 'hidden' || n from generate_series(1, 300) n;
    create table keyless (v text); insert into keyless select 'hidden' || n % 7 from generate_series(1, 70) n;
    create table part (id int primary key) partition by range (id);
    create table part_1 partition of part for values from (0) to (100);
    insert into part select generate_series(1, 50); analyze;";

pub fn scenario() -> Scenario {
    Scenario {
        prefixes: &["verify"],
        plan: PLAN,
        blue: TABLES,
        green: TABLES,
        rollback_restores: true,
        ..Scenario::default()
    }
}

async fn pair() -> (Database, Database, Context) {
    let (blue, green) = tokio::join!(
        Database::with(servers::blue().await, TABLES),
        Database::with(servers::green().await, TABLES)
    );
    let urls = [("blue", blue.handover_url()), ("green", green.handover_url())];
    let (cx, _events) = context("verify", &urls, &["blue"]).await;
    (blue, green, cx)
}

async fn fails(cx: &Context, value: Value) -> Error {
    let error = kind("verify", value).run(cx).await.unwrap_err();
    assert!(error.next_step().is_some());
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn differences_are_named_and_values_are_not_shown() {
    let (_blue, green, cx) = pair().await;
    let step = || json!({ "before": "blue", "after": "green", "row_counts": true, "checksums": { "chunk_rows": 50 }, "jobs": 3 });
    let summary = kind("verify", step()).run(&cx).await.unwrap();
    assert_eq!(summary["compared"], 8, "4 tables counted, 4 summed: {summary}");

    green.execute("delete from token where id = 77; insert into token values (2000, 'x', true)").await;
    green.execute("update pair set secret = 'hidden other' where b = 5; update keyless set v = 'hidden z' where ctid = '(0,3)'").await;
    green.execute("insert into part values (60)").await;
    let error = fails(&cx, step()).await;
    assert_eq!(error.class(), Class::Invariant);
    let text = error.message();
    for expected in [
        "only before: (77)",
        "only after: (2000)",
        "changed: (ä5, 5) in secret",
        "table keyless: ",
        "part has 50 rows before and 51 after",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    assert!(!text.contains("hidden"), "{text}");
    green.execute("drop table keyless; alter table token drop column score").await;
    let text = fails(&cx, step()).await.message().to_owned();
    assert!(text.contains("table keyless is gone") && text.contains("columns score are gone"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariants_compare_by_key_by_place_and_as_multisets() {
    let (_blue, green, cx) = pair().await;
    green.execute("update token set active = true where id = 1; update token set score = 0.1000001").await;
    let check = |invariant: Value| json!({ "before": "blue", "after": "green", "invariants": [invariant] });
    let error = fails(&cx, check(json!({
        "name": "live", "before": "select subject, count(*) n from token where active group by 1;",
        "after": "select subject, count(*)::int as m from token where active group by 1", "key": ["subject"]
    }))).await;
    assert!(
        error
            .message()
            .contains("`live`: 1 of 10 rows before and 10 after differ: (s1): (s1, 33) became (s1, 34)"),
        "{error}"
    );

    // Order matters only where the plan says so; duplicates always do.
    let unordered = json!({ "name": "ids", "before": "select id % 5 from token order by id", "after": "select id % 5 from token order by id desc" });
    kind("verify", check(unordered.clone())).run(&cx).await.unwrap();
    let mut ordered = unordered;
    ordered["ordered"] = true.into();
    assert!(fails(&cx, check(ordered)).await.message().contains("became"));

    let scores = |tolerance: f64| json!({ "name": "score", "before": "select id, score from token", "key": ["id"], "tolerance": tolerance });
    kind("verify", check(scores(0.001))).run(&cx).await.unwrap();
    assert!(fails(&cx, check(scores(0.0))).await.message().contains("1000 of 1000 rows"));

    // A check that cannot fail is an error.
    let nobody = |allow: bool| json!({ "name": "none", "before": "select 1 from token where false", "allow_empty": allow });
    assert!(fails(&cx, check(nobody(false))).await.message().contains("could not fail"));
    kind("verify", check(nobody(true))).run(&cx).await.unwrap();
    let error = fails(&cx, json!({ "before": "blue", "after": "green", "row_counts": { "exclude": ["token", "pair", "keyless", "part"] } })).await;
    assert!(error.message().contains("could not fail"));
    // Nothing can be changed, and nothing runs for ever.
    let error =
        fails(&cx, check(json!({ "name": "w", "before": "select setval('s', 1), 1 from token" }))).await;
    assert!(error.message().contains("`w`") && error.message().contains("read-only"), "{error}");
    let mut slow = check(json!({ "name": "slow", "before": "select 1 from (select pg_sleep(20)) s" }));
    slow["statement_timeout"] = "200ms".into();
    assert_eq!(fails(&cx, slow).await.class(), Class::Timeout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_side_that_lags_is_waited_for() {
    let (blue, green, cx) = pair().await;
    blue.execute("insert into token values (5000, 'late', true)").await;
    let late = tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_secs(4)).await;
        green.execute("insert into token values (5000, 'late', true)").await;
    });
    let step = json!({ "before": "blue", "after": "green", "row_counts": true, "checksums": {}, "retries": { "within": "20s", "every": "200ms" } });
    let summary = kind("verify", step).run(&cx).await.unwrap();
    assert_eq!(summary["settled"], 1, "{summary}");
    late.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_baseline_is_compared_with_the_same_database_later() {
    let (blue, _green, cx) = pair().await;
    let invariants =
        json!([{ "name": "tokens", "before": "select id, subject, active from token", "key": ["id"] }]);
    let record = kind(
        "verify",
        json!({ "before": "blue", "record": true, "row_counts": true, "invariants": invariants }),
    );
    let compare = kind(
        "verify",
        json!({ "before": { "from_step": "verify" }, "after": "blue", "row_counts": true, "invariants": invariants }),
    );
    let steps = handover::steps::Step {
        id: "verify".into(),
        title: None,
        timeout: None,
        retry: handover::steps::Retry::default(),
        on_failure: handover::steps::OnFailure::default(),
        kind_name: "verify",
        kind: record.clone(),
    };
    let mut later = cx.clone();
    later.port.step = "later".into();
    later.links = handover::steps::kind::links(&[steps]).into();
    assert!(record.verify(&cx).await.is_err());
    assert!(compare.run(&later).await.unwrap_err().message().contains("is gone"));
    record.run(&cx).await.unwrap();
    record.verify(&cx).await.unwrap();
    assert!(compare.verify(&later).await.is_err());
    compare.run(&later).await.unwrap();
    compare.verify(&later).await.unwrap();
    blue.execute("update token set active = not active where id = 9; delete from token where id = 10").await;
    let text = compare.run(&later).await.unwrap_err().message().to_owned();
    for expected in [
        "table token had 1000 rows and has 999",
        "(9): (9, s9, true) became (9, s9, false)",
        "only before: (10)",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    record.undo(&cx).await.unwrap();
    assert_eq!(blue.value("select count(*) from handover.checkpoint").await.as_deref(), Some("0"));
}

#[test]
fn steps_that_could_not_fail_are_found_before_they_run() {
    let databases = ["blue".to_owned(), "green".to_owned()].into();
    let problems = |value: Value| {
        let cx = CheckContext {
            base: std::path::Path::new("."),
            databases: &databases,
            has_queue: false,
            links: &handover::steps::Links::default(),
            index: 0,
            on_failure: handover::steps::OnFailure::default(),
            ours: "handover",
        };
        let mut problems = handover::problem::Problems::new();
        kind("verify", value).check(&cx, &mut problems);
        problems.iter().map(|p| p.message.clone()).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(problems(json!({ "before": "blue", "after": "green", "row_counts": true })), "");
    assert!(problems(json!({ "before": "blue", "after": "green" })).contains("checks nothing"));
    assert!(
        problems(json!({ "before": "blue", "after": "green", "row_counts": false }))
            .contains("checks nothing")
    );
    assert!(problems(json!({ "before": "blue", "row_counts": true })).contains("nothing to compare with"));
    assert!(
        problems(json!({ "before": { "from_step": "x" }, "after": "blue", "row_counts": true }))
            .contains("no earlier step `x`")
    );
    for query in ["select 1; select 2", "delete from token", ""] {
        let message = problems(
            json!({ "before": "blue", "after": "green", "invariants": [{ "name": "n", "before": query }] }),
        );
        assert!(message.contains("one query"), "{query}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_says_how_tables_would_be_cut_and_how_long_it_takes() {
    let (_blue, green, cx) = pair().await;
    green.execute("drop table part").await;
    let step = json!({ "before": "blue", "after": "green", "checksums": { "chunk_rows": 100 }, "jobs": 2 });
    let said = kind("verify", step).describe(&cx).await.unwrap();
    let text = format!("{}\n{}", said.actions.join("\n"), said.warnings.join("\n"));
    for expected in [
        "sum table token on both sides, in about 10 ranges of id: 1 MB, about 1000 rows",
        "sum table keyless on both sides, by block in 1 pieces, in 256 buckets by a hash of the row",
        "table keyless has no key",
        "there is no table part on green",
        "every difference is one",
    ] {
        assert!(text.contains(expected), "{expected} in\n{text}");
    }
    let estimate = said.estimate.unwrap();
    assert!(
        estimate.contains(" MB/s, which is what ") && estimate.contains("first blocks of token"),
        "{estimate}"
    );
    let missing = json!({ "before": "blue", "after": "green", "checksums": { "tables": ["absent"] } });
    let said = kind("verify", missing).describe(&cx).await.unwrap();
    assert_eq!(said.blockers, ["there is no table absent to compare"]);
}
