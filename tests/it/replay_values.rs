//! What an event carries: each column as its type writes it, whatever the type, and whatever its size.

use crate::capture::embedded_queue;
use crate::queue::{messages, patient_for};
use crate::support::bench::Bench;
use crate::support::servers::{self, Database};
use crate::support::world::World;
use handover::Class;
use handover::queue::connect;
use serde_json::{Value, json};
use std::io::Write;
use std::time::Duration;

const ODD: &str = r#"
    create extension hstore;
    create type pair as (a int, b text);
    create type mood as enum ('happy', 'so so');
    create domain words as text[];
    create function half(pair) returns text language sql immutable as 'select $1.b';
    create cast (pair as text) with function half(pair);
    create table odd (
        id int primary key, tags text[], grid int[][], p pair, ps pair[], w words, h hstore, r int4range, mr int4multirange,
        doc json, docb jsonb, n numeric, f float8, b bool, c char(5), x text, at timestamptz, m mood, y bytea, t text
    );"#;

fn columns() -> Vec<(&'static str, &'static str)> {
    vec![
        ("id", "int"),
        ("tags", "text[]"),
        ("grid", "int[]"),
        ("p", "pair"),
        ("ps", "pair[]"),
        ("w", "words"),
        ("h", "hstore"),
        ("r", "int4range"),
        ("mr", "int4multirange"),
        ("doc", "json"),
        ("docb", "jsonb"),
        ("n", "numeric"),
        ("f", "float8"),
        ("b", "bool"),
        ("c", "char(5)"),
        ("x", "text"),
        ("at", "timestamptz"),
        ("m", "mood"),
        ("y", "bytea"),
        ("t", "text"),
    ]
}

fn odd() -> Vec<(&'static str, &'static str, Value)> {
    let values: Vec<String> = columns().iter().map(|(name, of)| format!("$new.{name}::{of}")).collect();
    let set: Vec<String> =
        columns().iter().skip(1).map(|(name, of)| format!("{name} = $new.{name}::{of}")).collect();
    vec![
        (
            "capture",
            "capture",
            json!({ "from": "blue", "tables": { "odd": { "on": ["insert", "update", "delete"] } } }),
        ),
        (
            "drain",
            "replay",
            json!({ "to": "green", "mode": "drain", "events": { "odd": {
                "insert": { "apply": format!("insert into odd values ({})", values.join(", ")) },
                "update": { "apply": format!("update odd set {} where id = $key.id::int", set.join(", ")) },
                "delete": { "apply": "delete from odd where id = $old.id::int" }
            } } }),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_can_be_cast_back() {
    let world = Bench::new(ODD, ODD, &embedded_queue().await, &odd()).await;
    world.run("capture").await.unwrap();
    world
        .blue
        .execute(
            r#"insert into odd values
               (1, '{a,"b c",null,"\"q\""}', '{{1,2},{3,4}}', '(1,"x, y")', array['(1,a)', '(,)']::pair[], '{w}', '"k"=>"v, w", "n"=>NULL',
                '[1,5)', '{[1,3),[5,7)}', '{"a": "\u0000", "b":  [1.50]}', '{"z": [1, {"k": null}]}', 1.10, 'NaN', true, 'ab',
                '<?xml version="1.0"?><a b="c">d</a>', '2024-02-03 04:05:06.7+02', 'so so', '\x00ff', E'line\n"quoted"\\'),
               (2, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null),
               (3, '{}', '{}', '(,)', '{}', '{}', '', 'empty', '{}', 'null', 'null', 'Infinity', '-0', false, '', '', 'infinity',
                'happy', '', ''),
               (4, null, null, null, null, null, null, null, null, '"a word"', '"a word"', 12345678901234567890.123456789, 1e300, null,
                null, null, '4713-01-01 00:00:00+00 BC', null, null, null),
               (5, null, null, null, null, null, null, null, null, '[1, "\u0000"]', '7', null, null, null, null, null, null, null,
                null, null);
               update odd set t = 'changed' where id in (1, 3);
               delete from odd where id = 5;"#,
        )
        .await;
    // What an older version captured has no forms, and is as readable as it was.
    world
        .blue
        .admin()
        .await
        .batch_execute(
            r#"insert into handover.outbox (capture, partition, tbl, op, key, new)
               select id, 0, 'odd', 'insert', '{"id" : 77}', '{"id":77,"n":1.50,"doc":{"a": 1},"t":"old"}' from handover.capture"#,
        )
        .await
        .unwrap();
    let counts = world.run("drain").await.unwrap();
    assert_eq!(counts["waiting"], 0, "{counts}");
    assert_eq!(
        world.green.value("select n || t || doc from odd where id = 77").await.unwrap(),
        "1.50old{\"a\": 1}"
    );
    // Of a row, the record's own output is that of every column's type.
    let rows = "select string_agg(format('%s', o), chr(10) order by id) from odd o where id <> 77";
    let (blue, green) = (world.blue.value(rows).await.unwrap(), world.green.value(rows).await.unwrap());
    assert!(blue.lines().count() >= 4 && blue.contains("so so"), "{blue}");
    assert_eq!(blue, green);
    // A document that is null is not NULL.
    let nulls = "select count(*) from odd where doc is null and docb is null and tags is null";
    assert_eq!(world.green.value(nulls).await.unwrap(), "1");
    world.undo("drain").await.unwrap();
    world.undo("capture").await.unwrap();
}

fn large() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        (
            "capture",
            "capture",
            json!({ "from": "blue", "tables": { "doc": { "on": ["insert", "update"] } } }),
        ),
        (
            "tail",
            "replay",
            json!({ "to": "green", "caught_up": 0, "events": { "doc": {
                "insert": { "apply": "insert into doc values ($key.id::int, $new.text)" },
                "update": { "apply": "update doc set text = $new.text where id = $key.id::int" }
            } } }),
        ),
    ]
}

const DOC: &str = "create table doc (id int primary key, text text);";

/// Restarts a broker of our own with another limit.
async fn limited(rabbit: &handover_lab::RabbitServer, bytes: u32) {
    rabbit.stop().await.unwrap();
    let path = rabbit.folder().join("rabbitmq.conf");
    let kept: String = std::fs::read_to_string(&path)
        .unwrap()
        .lines()
        .filter(|l| !l.starts_with("max_"))
        .map(|l| format!("{l}\n"))
        .collect();
    let mut file = std::fs::OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
    writeln!(file, "{kept}max_message_size = {bytes}").unwrap();
    rabbit.start_again().await.unwrap();
}

/// However many messages are on their way when the broker refuses one, and closes the channel on all of them.
async fn names_the_limit(url: &str) {
    let queue = connect(url, patient_for(30)).await.unwrap();
    queue.declare("limit", 1).await.unwrap();
    let mut batch = messages(0, 1..=1500);
    batch[0].payload = vec![b'l'; 6_001];
    for _ in 0..20 {
        let error = queue.publish("limit", &batch).await.unwrap_err();
        assert!(error.message().contains("takes no message above 6000 bytes, and one has 6001"), "{error}");
    }
    queue.delete("limit").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_above_the_brokers_limit_goes_round_it() {
    let rabbit = servers::own_rabbit().await;
    limited(&rabbit, 6_000).await;
    names_the_limit(&rabbit.url()).await;
    let world = Bench::new(DOC, DOC, &rabbit.url(), &large()).await;
    world.run("capture").await.unwrap();
    // Small ones, some above the limit and below what usually stays in the outbox, and one far above.
    world
        .blue
        .execute(
            "insert into doc select n, repeat('s', 10) from generate_series(1, 50) n;
             insert into doc select n, repeat('m', 9000) from generate_series(51, 60) n;
             insert into doc values (61, repeat('l', 3000000)); update doc set text = text || 'x' where id > 45;",
        )
        .await;
    let counts = world.run("tail").await.unwrap();
    assert_eq!((&counts["applied"], &counts["waiting"]), (&json!(77), &json!(0)), "{counts}");
    let said = world.said();
    assert!(said.iter().any(|text| text.contains("takes no message above 6000 bytes")), "{said:?}");
    assert!(!said.iter().any(|text| text.contains("lost the stream")), "{said:?}");
    let sums = "select md5(string_agg(id || text, ',' order by id)) from doc";
    assert_eq!(world.blue.value(sums).await, world.green.value(sums).await);
    world.undo("tail").await.unwrap();

    // Not even a note fits: that halts, and says what and where.
    world.ledger.ended.lock().unwrap().clear();
    limited(&rabbit, 100).await;
    world.blue.execute("insert into doc values (99, 'last')").await;
    world.crash("capture").await;
    let error = world.outcome("capture").await.unwrap_err();
    assert_eq!(error.class(), Class::Resources, "{error}");
    for text in ["above 100 bytes", "of doc {\"id\" : 99}", "bytes"] {
        assert!(error.message().contains(text), "{error}");
    }
    assert!(error.next_step().unwrap().contains("max_message_size"), "{error:?}");
    world.undo("capture").await.unwrap();
}

const BOUNDED: &str = "
handover: 1
name: bounded
databases: { blue: '${BLUE_URL}', green: '${GREEN_URL}' }
control: ${CONTROL_URL}
queue: ${QUEUE_URL}
steps:
  - id: capture
    capture: { from: blue, partitions: 8, tables: { doc: { on: [insert, update] } } }
  - id: tail
    replay: &replay
      to: green
      caught_up: 0
      events:
        doc:
          insert: { apply: 'insert into doc values ($key.id::int, $new.text)' }
          update: { apply: 'update doc set text = $new.text where id = $key.id::int' }
  - id: drain
    replay: { to: green, mode: drain, events: { doc: { insert: { ignore: true }, update: { ignore: true } } } }
";

/// Rows of a megabyte, far more of them than may be in memory at once.
async fn memory_is_bounded(queue: Option<String>) {
    let blue = Database::with(servers::blue().await, DOC).await;
    let green = Database::with(servers::green().await, DOC).await;
    let mut world = World::new(Some(&blue.name), Some(&green.name), BOUNDED, &[]).await;
    if let Some(queue) = queue {
        world.queue = queue;
    }
    world.handover_failing("engine.step-started:2", "run", &[]).await.killed();
    world
        .blue
        .execute(
            "insert into doc select n, repeat(chr(96 + n % 26), 1000000) from generate_series(1, 160) n;
             insert into doc select n, 'small' from generate_series(1001, 3000) n;
             update doc set text = text || 'x' where id <= 60;",
        )
        .await;
    let mut child = world
        .command()
        .arg("resume")
        .arg(world.plan())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id().unwrap());
    let mut peak = 0_u64;
    let ended = async { child.wait().await.unwrap() };
    tokio::pin!(ended);
    let ended = loop {
        tokio::select! {
            ended = &mut ended => break ended,
            () = tokio::time::sleep(Duration::from_millis(20)) => {
                let text = std::fs::read_to_string(&status).unwrap_or_default();
                let high = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                let high = high.and_then(|kb| kb.trim().trim_end_matches(" kB").parse().ok());
                peak = peak.max(high.unwrap_or(0));
            }
        }
    };
    assert!(ended.success(), "{ended:?}");
    let sums = "select md5(string_agg(id || text, ',' order by id)) from doc";
    assert_eq!(world.blue.value(sums).await, world.green.value(sums).await);
    assert!(peak > 1_000 && peak < 200 << 10, "a peak of {} MiB", peak >> 10);
    world.drop_now().await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_bounded_with_the_embedded_queue() {
    memory_is_bounded(None).await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_bounded_with_rabbitmq() {
    memory_is_bounded(Some(servers::rabbit().await.url())).await;
}
