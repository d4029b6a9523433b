//! What a condition would take is compared with what was expected, and its names with where they lead.

use crate::support::context::{context, kind};
use crate::support::servers::{self, Database};
use handover::steps::StepKind;
use serde_json::{Value, json};
use std::sync::Arc;

const TABLES: &str = "
    create table payment (id int primary key, order_id int not null, note text);
    insert into payment select i, i % 700, 'n' from generate_series(1, 2000) i;
    create table archive (id int, number int);
    insert into archive select i, i from generate_series(1, 50) i;";

fn step(more: Value) -> Arc<dyn StepKind> {
    let mut step = json!({ "on": "blue", "table": "payment", "action": "delete" });
    step.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    kind("cleanup", step)
}

/// What the dry run says stands in the way, and what the run says.
async fn said(blue: &Database, step: &Arc<dyn StepKind>) -> (Vec<String>, Option<String>) {
    let (cx, _events) = context("x", &[("blue", blue.handover_url())], &["blue"]).await;
    let blockers = step.describe(&cx).await.unwrap().blockers;
    let error = step.run(&cx).await.err();
    if error.is_none() {
        step.verify(&cx).await.unwrap();
        step.undo(&cx).await.unwrap();
    }
    (blockers, error.map(|e| format!("{e}")))
}

const ALL: &str = "select md5(string_agg(p::text, ',' order by id)) from payment p";

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_a_sub_select_does_not_have_is_no_column_of_the_outer_table() {
    let blue = Database::with(servers::blue().await, TABLES).await;
    let before = blue.value(ALL).await;
    let update = |what: &str| json!({ "action": "update", "set": { "note": what } });
    for wrong in [
        json!({ "where": "order_id in (select order_id from archive)", "action": "quarantine" }),
        json!({ "where": "order_id not in (select order_id from archive a where a.id > 3 order by 1)" }),
        json!({ "where": "order_id = any (select distinct order_id from archive union select id from archive)" }),
        json!({ "where": "id in (with a as (select * from archive) select order_id from a)" }),
        json!({ "where": "id in (select id from archive where number in (select order_id from archive))" }),
        update("(select max(order_id)::text from archive)"),
    ] {
        let (blockers, error) = said(&blue, &step(wrong.clone())).await;
        for text in blockers.iter().chain(&error) {
            assert!(text.contains("takes a column of the outer query in `"), "{wrong}: {text}");
            assert!(text.contains("column \"order_id\" does not exist"), "{wrong}: {text}");
        }
        assert_eq!((blockers.len(), error.is_some()), (1, true), "{wrong}");
        assert_eq!(blue.value(ALL).await, before, "{wrong}");
    }
    for right in [
        json!({ "where": "order_id in (select number from archive)" }),
        json!({ "where": "exists (select order_id from archive where archive.id = payment.order_id)" }),
        json!({ "where": "order_id in (select payment.order_id from archive where number = payment.order_id)" }),
        json!({ "where": "order_id in (select a.n from (select number as n from archive where id = order_id) a)" }),
        json!({ "where": "order_id in (select n from generate_series(1, payment.order_id % 3) n)" }),
        update("(select 'found' || count(*) from archive where number = order_id)"),
    ] {
        let told = said(&blue, &step(right.clone())).await;
        assert_eq!(told, (vec![], None), "{right}");
        assert_eq!(blue.value(ALL).await, before, "{right}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_verifies_is_looked_at_too() {
    let blue = Database::with(servers::blue().await, TABLES).await;
    let (cx, _events) = context("x", &[("blue", blue.handover_url())], &["blue"]).await;
    let step = kind(
        "verify",
        json!({ "before": "blue", "after": "blue", "invariants": [{ "name": "kept",
            "before": "select count(*) from payment where order_id in (select order_id from archive)",
            "after": "select count(*) from payment where order_id in (select order_id from archive)" }] }),
    );
    let described = step.describe(&cx).await.unwrap();
    assert!(described.blockers.iter().any(|b| b.contains("takes a column of the outer")), "{described:?}");
    let error = step.run(&cx).await.unwrap_err();
    assert!(error.message().contains("the SQL under `kept` takes a column of the outer"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_and_no_fewer_rows_are_touched_than_expected() {
    let blue = Database::with(servers::blue().await, TABLES).await;
    let before = blue.value(ALL).await;
    let all_but_one = "id <> 1";
    for (more, in_the_way, refused) in [
        // Nothing said.
        (
            json!({ "where": all_but_one }),
            "`where` takes 1999 of the 2000 rows of payment",
            "`where` takes 1999",
        ),
        (json!({ "where": "id < 1700" }), "", ""),
        (json!({ "where": "true" }), "", ""),
        (json!({ "where": all_but_one, "action": "update", "set": { "note": "'x'" } }), "", ""),
        (
            json!({ "where": "id not in (select 1)", "action": "update", "set": { "note": "'x'" } }),
            "`where` takes 1999",
            "`where` takes 1999",
        ),
        // And said.
        (json!({ "where": all_but_one, "expect": { "rows": 1999, "within_percent": 0 } }), "", ""),
        (json!({ "where": all_but_one, "expect": { "rows": 1850 } }), "", ""),
        (json!({ "where": all_but_one, "expect": { "at_most": 1999 } }), "", ""),
        (
            json!({ "where": all_but_one, "expect": { "rows": 492 } }),
            "`expect` allows 541",
            "than the 541 that were",
        ),
        (
            json!({ "where": "id < 10", "expect": { "rows": 492 } }),
            "`expect` asks for 443",
            "no fewer than 443",
        ),
        (
            json!({ "where": "id < 10", "expect": { "at_least": 10 } }),
            "`expect` asks for 10",
            "9 rows of payment match",
        ),
        (json!({ "where": "id < 10", "expect": { "at_least": 9, "at_most": 9 } }), "", ""),
        (json!({ "where": "id < 10", "expect": { "rows": 0 } }), "`expect` allows 0", "than the 0 that were"),
    ] {
        let (blockers, error) = said(&blue, &step(more.clone())).await;
        assert_eq!(blockers.is_empty(), in_the_way.is_empty(), "{more}: {blockers:?}");
        assert!(blockers.iter().all(|b| b.contains(in_the_way)), "{more}: {blockers:?}");
        assert_eq!(error.is_none(), refused.is_empty(), "{more}: {error:?}");
        assert!(error.iter().all(|e| e.contains(refused)), "{more}: {error:?}");
        assert_eq!(blue.value(ALL).await, before, "{more}");
    }
    let (cx, _events) = context("x", &[("blue", blue.handover_url())], &[]).await;
    let said = step(json!({ "where": "id < 10" })).describe(&cx).await.unwrap();
    assert!(said.actions.iter().any(|a| a.contains("`expect: { rows: 9 }`")), "{said:?}");
}
