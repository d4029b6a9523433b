//! A copy that is interrupted goes on from the same snapshot, or begins again.

use crate::copy::{PIECES, Pair, content, relations};
use crate::support::context::{context, kind};
use crate::support::servers::{self, Database};
use crate::support::snapshot::assert_same;
use handover::Class;
use handover::event::Event;
use handover::steps::{Context, Port, StepKind};
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;

/// Whether the rows are counted or the server's counters vouch for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_somebody_adds_or_takes_away_are_missed() {
    let pair = Pair::new(PIECES).await;
    let (cx, _events) = context("copy", &pair.urls(), &["green"]).await;
    let step = kind("copy", json!({ "from": "blue", "to": "green", "jobs": 2, "chunk_mb": 1 }));
    step.run(&cx).await.unwrap();
    step.verify(&cx).await.unwrap();
    let green = pair.green.admin().await;
    for (meddle, mend, there) in [
        ("delete from z where id = 3", "insert into z values (3)", 9),
        ("insert into z values (11)", "delete from z where id = 11", 11),
        ("truncate z", "insert into z select i from generate_series(1, 10) i", 0),
    ] {
        green.batch_execute(meddle).await.unwrap();
        green.batch_execute("select pg_stat_force_next_flush()").await.unwrap();
        let error = step.verify(&cx).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("table z has {there} rows, and 10 were copied")), "{meddle}: {text}");
        // The counters have seen too much by now; the rows are right.
        green.batch_execute(mend).await.unwrap();
        step.verify(&cx).await.unwrap();
    }
}

/// Runs the copy until the first pieces of `a` are committed, and stops it there.
async fn interrupted(step: &dyn StepKind, cx: &Context, events: &mut UnboundedReceiver<Event>) {
    let first = Context {
        port: Port { stop: tokio_util::sync::CancellationToken::new(), ..cx.port.clone() },
        ..cx.clone()
    };
    let stop = first.stop.clone();
    let listen = async {
        while let Some(event) = events.recv().await {
            if let Event::Progress { unit, done, .. } = &event
                && unit == "a"
                && *done > 0
            {
                return stop.cancel();
            }
        }
    };
    let (result, ()) = tokio::join!(step.run(&first), listen);
    assert_eq!(result.unwrap_err().class(), Class::Cancelled);
}

const HOLDERS: &str = "select count(*) from pg_stat_activity where starts_with(application_name, 'handover-snapshot/') and datname = current_database()";

async fn pieces(green: &Database) -> i64 {
    let sql = "select count(*) from handover.checkpoint where unit like 'rows:%'";
    green.value(sql).await.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_was_stopped_goes_on_from_the_same_snapshot() {
    let pair = Pair::new(PIECES).await;
    let (cx, mut events) = context("copy", &pair.urls(), &["green"]).await;
    let step = kind("copy", json!({ "from": "blue", "to": "green", "jobs": 1, "chunk_mb": 1 }));
    let as_it_was = content(&pair.blue).await;
    interrupted(&*step, &cx, &mut events).await;
    let before = pieces(&pair.green).await;
    assert!((1..7).contains(&before), "{before}");
    assert_eq!(
        pair.blue.value(HOLDERS).await.as_deref(),
        Some("1"),
        "nobody of ours is connected, the server holds it"
    );
    let verify = step.verify(&cx).await.unwrap_err();
    assert!(verify.message().contains("not recorded"), "{verify}");
    // Meanwhile blue moves on; what is copied must not show it.
    pair.blue.execute("delete from a where id <= 15000; update z set id = id + 100").await;
    pair.blue.admin().await.batch_execute("vacuum").await.unwrap();
    let kept =
        "select xmin::text || at from handover.checkpoint where unit like 'rows:%' order by at limit 1";
    let first = pair.green.value(kept).await;
    step.run(&cx).await.unwrap();
    step.verify(&cx).await.unwrap();
    assert_eq!(first, pair.green.value(kept).await, "what was there was not loaded again");
    assert_same("copied", &as_it_was, &content(&pair.green).await);
    assert_eq!(pair.blue.value(HOLDERS).await.as_deref(), Some("0"));
    // A row that nobody copied is found.
    pair.green.execute("insert into z values (999)").await;
    let error = step.verify(&cx).await.unwrap_err();
    assert!(error.message().contains("z has 11 rows"), "{error}");
    pair.green.execute("delete from z where id = 999; drop table a").await;
    assert!(step.verify(&cx).await.unwrap_err().message().contains("catalog differs"));
    // Somebody else's work is not dropped by undo.
    pair.green.execute("create table theirs (id int)").await;
    step.undo(&cx).await.unwrap();
    assert_eq!(relations(&pair.green).await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_snapshot_is_gone_the_copy_begins_again() {
    let pair = Pair::new(PIECES).await;
    let (cx, mut events) = context("copy", &pair.urls(), &["green"]).await;
    let step = kind("copy", json!({ "from": "blue", "to": "green", "jobs": 1, "chunk_mb": 1 }));
    interrupted(&*step, &cx, &mut events).await;
    let end = HOLDERS.replace("count(*)", "pg_terminate_backend(pid)");
    pair.blue.value(&end).await;
    pair.blue.execute("delete from a where id <= 15000; update z set id = id + 100").await;
    step.run(&cx).await.unwrap();
    step.verify(&cx).await.unwrap();
    pair.assert_equal().await;
    // Undone midway, nothing is held any more.
    step.undo(&cx).await.unwrap();
    interrupted(&*step, &cx, &mut events).await;
    step.undo(&cx).await.unwrap();
    assert_eq!(pair.blue.value(HOLDERS).await.as_deref(), Some("0"));
    assert_eq!(relations(&pair.green).await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_source_needs_no_snapshot_to_go_on_and_a_forgotten_one_is_let_go_of() {
    let pair = Pair::new(PIECES).await;
    let (cx, mut events) = context("copy", &pair.urls(), &["green"]).await;
    let step = kind(
        "copy",
        json!({ "from": "blue", "to": "green", "jobs": 1, "chunk_mb": 1, "source_is_quiet": true, "hold": "1s" }),
    );
    interrupted(&*step, &cx, &mut events).await;
    let before = pieces(&pair.green).await;
    // Nobody comes back in time.
    for _ in 0..100 {
        if pair.blue.value(HOLDERS).await.as_deref() == Some("0") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(pair.blue.value(HOLDERS).await.as_deref(), Some("0"));
    assert_eq!(pieces(&pair.green).await, before);
    step.run(&cx).await.unwrap();
    step.verify(&cx).await.unwrap();
    pair.assert_equal().await;
    let notes: Vec<String> = std::iter::from_fn(|| events.try_recv().ok())
        .filter_map(|e| match e {
            Event::Note { text, .. } => Some(text),
            _ => None,
        })
        .collect();
    let told = "goes on from one of";
    assert!(notes.iter().any(|n| n.contains(told) && n.contains(&format!("{before} of"))), "{notes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_work_is_refused_before_anything_is_done() {
    let pair = Pair::new(
        "create table a (id int primary key); create table b (a int references a);
         create schema s; create table s.t (id int); insert into a values (1); insert into b values (1)",
    )
    .await;
    let (cx, _events) = context("copy", &pair.urls(), &["green"]).await;
    let refused = async |value: serde_json::Value| {
        let error = kind("copy", value).run(&cx).await.unwrap_err();
        assert!(error.next_step().is_some());
        assert_eq!(relations(&pair.green).await, "0");
        error.message().to_owned()
    };
    let message = refused(json!({ "from": "blue", "to": "green", "exclude": { "tables": ["a"] } })).await;
    assert!(message.contains("foreign key b_a_fkey of b points to a"), "{message}");
    let message = refused(json!({ "from": "blue", "to": "green", "programs": "/nowhere" })).await;
    assert!(message.contains("no pg_dump of version"), "{message}");

    pair.blue
        .admin()
        .await
        .batch_execute("create role copy_stranger; alter table s.t owner to copy_stranger")
        .await
        .unwrap();
    let message = refused(json!({ "from": "blue", "to": "green" })).await;
    assert!(message.contains("roles are missing on the target: copy_stranger"), "{message}");

    pair.blue.admin().await.batch_execute("alter table s.t enable row level security").await.unwrap();
    let message = refused(json!({ "from": "blue", "to": "green" })).await;
    assert!(message.contains("row security would hide rows of s.t"), "{message}");

    pair.blue
        .admin()
        .await
        .batch_execute("drop table s.t; drop role copy_stranger; select lo_create(0)")
        .await
        .unwrap();
    let message = refused(json!({ "from": "blue", "to": "green" })).await;
    assert!(message.contains("no right to read 1 of 1 large objects"), "{message}");

    let step = kind(
        "copy",
        json!({
            "from": "blue", "to": "green", "large_objects": "skip", "owners": "skip",
            "include": { "tables": ["a", "b"] }, "without_data": ["b"]
        }),
    );
    step.run(&cx).await.unwrap();
    step.verify(&cx).await.unwrap();
    assert_eq!(pair.green.value("select count(*) from a").await.as_deref(), Some("1"));
    assert_eq!(pair.green.value("select count(*) from b").await.as_deref(), Some("0"));
    assert_eq!(
        pair.green.value("select tableowner from pg_tables where tablename = 'a'").await.as_deref(),
        Some("handover")
    );

    // Another run finds a target that is not empty; and swapped or equal URLs are caught.
    let (other, _events) = context("copy", &pair.urls(), &["green"]).await;
    let error = kind("copy", json!({ "from": "blue", "to": "green" })).run(&other).await.unwrap_err();
    assert!(error.message().contains("not empty"), "{error}");
    let blue = Database::create(servers::blue().await, None).await;
    let same = [("blue", blue.handover_url()), ("green", blue.handover_url())];
    let (same, _events) = context("copy", &same, &["green"]).await;
    let error = kind("copy", json!({ "from": "blue", "to": "green" })).run(&same).await.unwrap_err();
    assert!(error.message().contains("one and the same database"), "{error}");
}
