//! The contract of the queue, over both implementations and real servers; then what only a broker can do to us.

use crate::support::servers;
use crate::support::tls::{Begin, TlsProxy};
use handover::queue::{Consumer, Delivery, Message, Options, Queue, connect};
use handover::{Class, Error};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

const SOON: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(20);

fn message(partition: u32, number: i64) -> Message {
    Message { partition, number, payload: format!(r#"{{"n":{number}}}"#).into_bytes() }
}

fn messages(partition: u32, numbers: impl IntoIterator<Item = i64>) -> Vec<Message> {
    numbers.into_iter().map(|n| message(partition, n)).collect()
}

fn numbers(deliveries: &[Delivery]) -> Vec<i64> {
    deliveries.iter().map(|d| d.message.number).collect()
}

/// Takes exactly `count` deliveries, or fails.
async fn take(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let deadline = Instant::now() + LONG;
    let mut taken = Vec::new();
    while taken.len() < count {
        assert!(Instant::now() < deadline, "only {} of {count} messages came", taken.len());
        taken.extend(consumer.next(count - taken.len(), SOON).await.unwrap());
    }
    taken
}

async fn nothing(consumer: &mut dyn Consumer) {
    let more = consumer.next(10, SOON).await.unwrap();
    assert!(more.is_empty(), "unexpected messages {:?}", numbers(&more));
}

/// An error as the operator sees it, without what differs from run to run.
fn shown(error: &Error, url: &str) -> String {
    let port = handover::queue::QueueUrl::parse(url).unwrap().authority();
    let text = format!("{:?}: {error}\nnext: {}", error.class(), error.next_step().unwrap());
    text.replace(&port, "HOST:PORT")
}

async fn failure(url: &str) -> String {
    let Err(error) = connect(url, patient_for(2)).await else { panic!("connected") };
    let shown = shown(&error, url);
    assert!(!shown.contains("hunter2"), "{shown}");
    shown
}

fn patient_for(seconds: u64) -> Options {
    let limit = Duration::from_secs(seconds);
    Options { connect_timeout: limit, operation_timeout: limit, ..Options::default() }
}

async fn rabbit_url() -> String {
    servers::rabbit().await.url()
}

async fn embedded_url() -> String {
    static NAME: OnceCell<String> = OnceCell::const_new();
    let server = servers::green().await;
    let name = NAME
        .get_or_init(async || {
            let name = servers::unique("queue");
            server.create_database(&name, None).await.unwrap();
            name
        })
        .await;
    server.handover_url(name)
}

/// A queue and a fresh stream with this many partitions.
async fn stream(url: &str, partitions: u32) -> (Arc<dyn Queue>, String) {
    let queue = connect(url, Options::default()).await.unwrap();
    let stream = servers::unique("stream");
    queue.declare(&stream, partitions).await.unwrap();
    (queue, stream)
}

async fn order_is_kept_in_each_partition(url: &str) {
    let (queue, stream) = stream(url, 3).await;
    let batch: Vec<_> = (1..=300).map(|n| message((n % 3) as u32, n)).collect();
    for part in batch.chunks(70) {
        queue.publish(&stream, part).await.unwrap();
    }
    for partition in 0..3 {
        let mut consumer = queue.consume(&stream, partition, 50).await.unwrap();
        let mut got = Vec::new();
        while got.len() < 100 {
            let batch = take(&mut *consumer, (100 - got.len()).min(50)).await;
            consumer.ack(batch.last().unwrap().tag).await.unwrap();
            got.extend(batch);
        }
        let expected: Vec<_> = (1..=300).filter(|n| n % 3 == i64::from(partition)).collect();
        assert_eq!(numbers(&got), expected);
        assert!(got.iter().all(|d| d.message == message(partition, d.message.number)));
        assert!(got.iter().all(|d| !d.redelivered));
        nothing(&mut *consumer).await;
    }
    queue.delete(&stream).await.unwrap();
}

async fn a_dropped_consumer_gives_back_what_it_held(url: &str) {
    let (queue, stream) = stream(url, 1).await;
    queue.publish(&stream, &messages(0, 1..=20)).await.unwrap();
    let mut first = queue.consume(&stream, 0, 100).await.unwrap();
    let taken = take(&mut *first, 20).await;
    first.ack(taken[4].tag).await.unwrap();
    // Stands by until the first is gone.
    let mut second = queue.consume(&stream, 0, 100).await.unwrap();
    nothing(&mut *second).await;
    drop(first);
    queue.publish(&stream, &messages(0, 21..=22)).await.unwrap();
    let again = take(&mut *second, 17).await;
    assert_eq!(numbers(&again), (6..=22).collect::<Vec<_>>(), "in order, before what came later");
    assert!(again.iter().filter(|d| d.message.number <= 20).all(|d| d.redelivered));
    queue.delete(&stream).await.unwrap();
}

/// A delivery limit would take messages away that were only prefetched when their consumer died.
/// A worker that is ended just when it begins leaves no consumer that holds what nobody reads.
async fn a_cancelled_consumer_leaves_nobody_behind(url: &str) {
    let (queue, stream) = stream(url, 1).await;
    queue.publish(&stream, &messages(0, 1..=5)).await.unwrap();
    for round in 0..60 {
        let starting = queue.consume(&stream, 0, 10);
        let _ = tokio::time::timeout(Duration::from_micros(round * 100), starting).await;
    }
    let mut consumer = queue.consume(&stream, 0, 10).await.unwrap();
    assert_eq!(numbers(&take(&mut *consumer, 5).await), [1, 2, 3, 4, 5]);
    queue.delete(&stream).await.unwrap();
}

async fn many_crashes_take_nothing_away(url: &str) {
    let (queue, stream) = stream(url, 1).await;
    queue.publish(&stream, &messages(0, 1..=30)).await.unwrap();
    for _ in 0..25 {
        let mut consumer = queue.consume(&stream, 0, 30).await.unwrap();
        assert_eq!(numbers(&take(&mut *consumer, 30).await), (1..=30).collect::<Vec<_>>());
    }
    queue.delete(&stream).await.unwrap();
}

async fn acknowledging_reaches_up_to_the_tag(url: &str) {
    let (queue, stream) = stream(url, 1).await;
    queue.publish(&stream, &messages(0, 1..=10)).await.unwrap();
    let mut consumer = queue.consume(&stream, 0, 4).await.unwrap();
    let held = take(&mut *consumer, 4).await;
    // The prefetch is the limit of what is held.
    nothing(&mut *consumer).await;
    consumer.ack(held[1].tag).await.unwrap();
    consumer.ack(held[1].tag).await.unwrap();
    consumer.ack(held[0].tag).await.unwrap();
    let more = take(&mut *consumer, 2).await;
    assert_eq!(numbers(&more), [5, 6]);
    let error = consumer.ack(more[1].tag + 1).await.unwrap_err();
    assert_eq!(error.class(), Class::Internal, "{error}");
    consumer.ack(more[1].tag).await.unwrap();
    assert_eq!(numbers(&take(&mut *consumer, 4).await), [7, 8, 9, 10]);
    drop(consumer);
    let mut next = queue.consume(&stream, 0, 10).await.unwrap();
    assert_eq!(numbers(&take(&mut *next, 4).await), [7, 8, 9, 10]);
    queue.delete(&stream).await.unwrap();
}

async fn a_batch_may_be_published_again(url: &str) {
    let (queue, stream) = stream(url, 1).await;
    queue.publish(&stream, &messages(0, 1..=5)).await.unwrap();
    queue.publish(&stream, &messages(0, 3..=8)).await.unwrap();
    let mut consumer = queue.consume(&stream, 0, 100).await.unwrap();
    let mut seen = Vec::new();
    let mut last = 0;
    while last < 8 {
        for delivery in take(&mut *consumer, 1).await {
            if delivery.message.number > last {
                seen.push(delivery.message.number);
                last = delivery.message.number;
            }
            consumer.ack(delivery.tag).await.unwrap();
        }
    }
    assert_eq!(seen, (1..=8).collect::<Vec<_>>(), "the first deliveries are in order and complete");
    // Repeating what was acknowledged long ago brings it back, and the consumer can acknowledge it away.
    queue.publish(&stream, &messages(0, 2..=3)).await.unwrap();
    let back = take(&mut *consumer, 2).await;
    assert_eq!(numbers(&back), [2, 3]);
    consumer.ack(back[1].tag).await.unwrap();
    nothing(&mut *consumer).await;
    assert_eq!(queue.depth(&stream).await.unwrap(), 0);
    queue.delete(&stream).await.unwrap();
}

/// Events that are asked for again come at the pace of the queue, however busy the old side is meanwhile.
async fn what_is_published_again_does_not_wait_for_silence(url: &str) {
    const LOST: i64 = 400;
    let (queue, stream) = stream(url, 1).await;
    queue.publish(&stream, &messages(0, 1..=LOST)).await.unwrap();
    let mut consumer = queue.consume(&stream, 0, 20).await.unwrap();
    for _ in 0..LOST / 20 {
        let taken = take(&mut *consumer, 20).await;
        consumer.ack(taken[19].tag).await.unwrap();
    }
    let mut last = LOST;
    queue.publish(&stream, &messages(0, 1..=LOST)).await.unwrap();
    let (mut seen, mut next) = (Vec::new(), 1);
    // Each round brings two new ones and takes at most twenty.
    for round in 0..100 {
        queue.publish(&stream, &messages(0, last + 1..=last + 2)).await.unwrap();
        last += 2;
        let taken = consumer.next(20, LONG).await.unwrap();
        for number in numbers(&taken) {
            if number == next {
                next += 1;
            }
            seen.push(number);
        }
        consumer.ack(taken[taken.len() - 1].tag).await.unwrap();
        if next > LOST {
            assert!(round < 60, "only after {round} rounds");
            queue.delete(&stream).await.unwrap();
            return;
        }
    }
    panic!("number {next} has not come again: {seen:?}");
}

/// Whoever asks for events again may have thrown away what it holds: it is not to be taken for delivered.
async fn what_is_published_again_while_it_is_held_comes_again(url: &str) {
    let (queue, stream) = stream(url, 1).await;
    queue.publish(&stream, &messages(0, 1..=5)).await.unwrap();
    let mut consumer = queue.consume(&stream, 0, 100).await.unwrap();
    let held = take(&mut *consumer, 5).await;
    queue.publish(&stream, &messages(0, 2..=6)).await.unwrap();
    consumer.ack(held[4].tag).await.unwrap();
    let again = take(&mut *consumer, 5).await;
    assert_eq!(numbers(&again), [2, 3, 4, 5, 6]);
    consumer.ack(again[4].tag).await.unwrap();
    nothing(&mut *consumer).await;
    assert_eq!(queue.depth(&stream).await.unwrap(), 0);
    queue.delete(&stream).await.unwrap();
}

async fn a_waiting_consumer_is_served_at_once(url: &str) {
    let (queue, stream) = stream(url, 1).await;
    let mut consumer = queue.consume(&stream, 0, 10).await.unwrap();
    nothing(&mut *consumer).await;
    let waiting = tokio::spawn(async move {
        let got = consumer.next(10, LONG).await.unwrap();
        (numbers(&got), Instant::now())
    });
    tokio::time::sleep(SOON).await;
    queue.publish(&stream, &messages(0, [1])).await.unwrap();
    let published = Instant::now();
    let (got, at) = waiting.await.unwrap();
    assert_eq!(got, [1]);
    let late = at.saturating_duration_since(published);
    assert!(late < Duration::from_millis(150), "{late:?}");
    queue.delete(&stream).await.unwrap();
}

async fn ten_thousand_messages_take_seconds(url: &str) {
    let (queue, stream) = stream(url, 4).await;
    let begun = Instant::now();
    let batch: Vec<_> = (1..=10_000_i64).map(|n| message((n % 4) as u32, n)).collect();
    for part in batch.chunks(2_500) {
        queue.publish(&stream, part).await.unwrap();
    }
    let published = begun.elapsed();
    assert_eq!(queue.depth(&stream).await.unwrap(), 10_000);
    let mut got = 0;
    for partition in 0..4 {
        let mut consumer = queue.consume(&stream, partition, 1_000).await.unwrap();
        for _ in 0..5 {
            let batch = take(&mut *consumer, 500).await;
            consumer.ack(batch.last().unwrap().tag).await.unwrap();
            got += batch.len();
        }
    }
    assert_eq!(got, 10_000);
    // A sanity limit that a mistake (a round trip for each message) would break, also on a busy machine.
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "published in {published:?}, all in {:?}",
        begun.elapsed()
    );
    queue.delete(&stream).await.unwrap();
}

async fn declaring_again_is_fine_but_not_otherwise(url: &str) {
    let (queue, stream) = stream(url, 3).await;
    queue.publish(&stream, &messages(1, [1])).await.unwrap();
    queue.declare(&stream, 3).await.unwrap();
    assert_eq!(queue.depth(&stream).await.unwrap(), 1, "declaring again keeps the messages");
    for wrong in [2, 5] {
        let error = queue.declare(&stream, wrong).await.unwrap_err();
        assert_eq!(error.class(), Class::Data, "{error}");
        assert!(error.message().contains("partitions"), "{error}");
        assert!(error.next_step().unwrap().contains("delete the stream"));
    }
    for (name, partitions) in [("", 1), ("a b", 1), ("amq.x", 1), ("fine", 0), ("fine", 257)] {
        assert_eq!(queue.declare(name, partitions).await.unwrap_err().class(), Class::Usage);
    }
    queue.delete(&stream).await.unwrap();
}

async fn declaring_at_once_does_not_race(url: &str) {
    let stream = servers::unique("stream");
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let (url, stream) = (url.to_owned(), stream.clone());
        tasks.push(tokio::spawn(async move {
            let queue = connect(&url, Options::default()).await.unwrap();
            queue.declare(&stream, 3).await
        }));
    }
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    connect(url, Options::default()).await.unwrap().delete(&stream).await.unwrap();
}

async fn purging_empties_and_deleting_removes(url: &str) {
    let (queue, stream) = stream(url, 2).await;
    queue.publish(&stream, &messages(0, 1..=10)).await.unwrap();
    queue.publish(&stream, &messages(1, 1..=5)).await.unwrap();
    assert_eq!(queue.depth(&stream).await.unwrap(), 15);
    queue.purge(&stream).await.unwrap();
    assert_eq!(queue.depth(&stream).await.unwrap(), 0);
    queue.delete(&stream).await.unwrap();
    queue.delete(&stream).await.unwrap();
    for error in [
        queue.depth(&stream).await.unwrap_err(),
        queue.purge(&stream).await.unwrap_err(),
        queue.publish(&stream, &messages(0, [1])).await.unwrap_err(),
        queue.consume(&stream, 0, 1).await.err().unwrap(),
    ] {
        assert_eq!(error.class(), Class::Data, "{error}");
        assert!(error.next_step().unwrap().contains("outbox"), "{error}");
    }
    // Another number of partitions is fine now.
    queue.declare(&stream, 1).await.unwrap();
    let error = queue.publish(&stream, &messages(1, [1])).await.unwrap_err();
    assert_eq!(error.class(), Class::Data, "{error}");
    assert_eq!(queue.consume(&stream, 1, 1).await.err().unwrap().class(), Class::Data);
    // The failure spoils nothing for what follows.
    queue.publish(&stream, &messages(0, [1])).await.unwrap();
    assert_eq!(queue.depth(&stream).await.unwrap(), 1);
    queue.delete(&stream).await.unwrap();
}

async fn deleting_ends_its_consumers(url: &str) {
    let (queue, stream) = stream(url, 1).await;
    let mut consumer = queue.consume(&stream, 0, 10).await.unwrap();
    nothing(&mut *consumer).await;
    connect(url, Options::default()).await.unwrap().delete(&stream).await.unwrap();
    let deadline = Instant::now() + LONG;
    while let Ok(batch) = consumer.next(10, SOON).await {
        assert!(batch.is_empty() && Instant::now() < deadline, "the consumer noticed nothing");
    }
    assert!(consumer.next(10, SOON).await.is_err(), "the error stays");
}

async fn what_it_says_of_itself_holds_no_credentials(url: &str) {
    let queue = connect(url, Options::default()).await.unwrap();
    let secret = url.split([':', '@']).nth(2).unwrap();
    let shown = queue.describe();
    assert!(shown.contains("127.0.0.1:") && !shown.contains(secret), "{shown}");
}

macro_rules! contract {
    ($($case:ident)*) => {
        mod rabbitmq { $(#[tokio::test(flavor = "multi_thread")] async fn $case() { super::$case(&super::rabbit_url().await).await })* }
        mod embedded { $(#[tokio::test(flavor = "multi_thread")] async fn $case() { super::$case(&super::embedded_url().await).await })* }
    };
}

contract! {
    order_is_kept_in_each_partition
    a_dropped_consumer_gives_back_what_it_held
    a_cancelled_consumer_leaves_nobody_behind
    many_crashes_take_nothing_away
    acknowledging_reaches_up_to_the_tag
    a_batch_may_be_published_again
    what_is_published_again_does_not_wait_for_silence
    what_is_published_again_while_it_is_held_comes_again
    a_waiting_consumer_is_served_at_once
    ten_thousand_messages_take_seconds
    declaring_again_is_fine_but_not_otherwise
    declaring_at_once_does_not_race
    purging_empties_and_deleting_removes
    deleting_ends_its_consumers
    what_it_says_of_itself_holds_no_credentials
}

#[tokio::test]
async fn a_refused_login_is_explained() {
    let rabbit = rabbit_url().await;
    let (scheme, rest) = rabbit.split_once("://").unwrap();
    let at = rest.split_once('@').unwrap().1;
    insta::assert_snapshot!(
        "queue_rabbit_wrong_password",
        failure(&format!("{scheme}://handover:hunter2@{at}")).await
    );
    insta::assert_snapshot!("queue_rabbit_no_vhost", failure(&rabbit.replace("%2f", "nowhere")).await);
    insta::assert_snapshot!(
        "queue_rabbit_tls_on_plain_port",
        failure(&rabbit.replace("amqp://", "amqps://")).await
    );

    let postgres = embedded_url().await;
    let at = postgres.split_once('@').unwrap().1;
    let (host, database) = at.split_once('/').unwrap();
    insta::assert_snapshot!(
        "queue_postgres_wrong_password",
        failure(&format!("postgres://handover:hunter2@{at}")).await.replace(database, "DATABASE")
    );
    insta::assert_snapshot!(
        "queue_postgres_no_database",
        failure(&postgres.replace(database, "nowhere")).await
    );
    // A Postgres server behind an AMQP URL.
    insta::assert_snapshot!("queue_amqp_to_postgres", failure(&format!("amqp://u:hunter2@{host}")).await);
}

#[tokio::test]
async fn an_unreachable_server_is_explained() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Accepts and never answers.
    insta::assert_snapshot!(
        "queue_rabbit_silent",
        failure(&format!("amqp://u:hunter2@127.0.0.1:{port}")).await
    );
    insta::assert_snapshot!(
        "queue_postgres_silent",
        failure(&format!("postgres://u:hunter2@127.0.0.1:{port}/d")).await
    );
    drop(listener);
    insta::assert_snapshot!(
        "queue_rabbit_refused",
        failure(&format!("amqp://u:hunter2@127.0.0.1:{port}")).await
    );
    insta::assert_snapshot!(
        "queue_postgres_refused",
        failure(&format!("postgres://u:hunter2@127.0.0.1:{port}/d")).await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_verifies_who_the_server_is() {
    let rabbit = rabbit_url().await;
    let proxy = TlsProxy::start(servers::rabbit().await.port(), Begin::AtOnce).await;
    let (login, _) = rabbit.split_once('@').unwrap();
    let (login, ca) = (login.replace("amqp://", "amqps://"), proxy.ca().display());
    works(&format!("{login}@localhost:{}/%2f?cacertfile={ca}", proxy.port)).await;
    let unknown = format!("{login}@localhost:{}/%2f", proxy.port);
    insta::assert_snapshot!("queue_rabbit_unknown_authority", failure(&unknown).await);
    let misnamed = failure(&format!("{login}@127.0.0.1:{}/%2f?cacertfile={ca}", proxy.port)).await;
    assert!(misnamed.starts_with("Usage:") && misnamed.contains("certificate"), "{misnamed}");
    let no_file = failure(&format!("{login}@localhost:{}/%2f?cacertfile=/nowhere.pem", proxy.port)).await;
    assert!(no_file.contains("/nowhere.pem"), "{no_file}");

    let postgres = embedded_url().await;
    let proxy = TlsProxy::start(servers::green().await.port(), Begin::AfterRequest).await;
    let (login, at) = postgres.split_once('@').unwrap();
    let (_, database) = at.split_once('/').unwrap();
    let database = database.split('?').next().unwrap();
    let (at, ca) = (format!("{login}@localhost:{}/{database}", proxy.port), proxy.ca().display());
    works(&format!("{at}?sslmode=verify-full&sslrootcert={ca}")).await;
    // As libpq: encrypted, whoever answers.
    works(&format!("{at}?sslmode=require")).await;
    let unknown = failure(&format!("{at}?sslmode=verify-full")).await.replace(database, "DATABASE");
    insta::assert_snapshot!("queue_postgres_unknown_authority", unknown);
    let odd = failure(&format!("{at}?sslmode=sometimes")).await;
    assert!(odd.starts_with("Usage:"), "{odd}");
}

/// What the broker is told to reject is set aside, not dropped. We never reject; a policy or a person may.
#[tokio::test(flavor = "multi_thread")]
async fn rejected_messages_go_to_the_dead_letter_queue() {
    use futures_util::StreamExt;
    use lapin::options::{BasicConsumeOptions, BasicGetOptions, BasicRejectOptions};
    let url = rabbit_url().await;
    let (queue, stream) = stream(&url, 2).await;
    queue.publish(&stream, &messages(1, [7])).await.unwrap();
    let connection = lapin::Connection::connect(&url, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let get = async |name: String| channel.basic_get(name.into(), BasicGetOptions::default()).await.unwrap();
    // A queue with a single active consumer refuses basic.get.
    let mut consumer = channel
        .basic_consume(
            format!("{stream}.1").into(),
            "".into(),
            BasicConsumeOptions::default(),
            lapin::types::FieldTable::default(),
        )
        .await
        .unwrap();
    let taken = consumer.next().await.unwrap().unwrap();
    let deadline = Instant::now() + LONG;
    taken.reject(BasicRejectOptions { requeue: false }).await.unwrap();
    let dead = loop {
        if let Some(dead) = get(format!("{stream}.dead")).await {
            break dead;
        }
        assert!(Instant::now() < deadline, "the rejected message never came");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(dead.delivery.data, message(1, 7).payload);
    queue.delete(&stream).await.unwrap();
    assert!(
        channel
            .queue_declare(
                format!("{stream}.dead").into(),
                lapin::options::QueueDeclareOptions { passive: true, ..Default::default() },
                lapin::types::FieldTable::default(),
            )
            .await
            .is_err(),
        "deleting takes the dead letters along"
    );
}

/// Publishes and consumes one message.
async fn works(url: &str) {
    let (queue, stream) = stream(url, 1).await;
    queue.publish(&stream, &messages(0, [1])).await.unwrap();
    let mut consumer = queue.consume(&stream, 0, 1).await.unwrap();
    assert_eq!(numbers(&take(&mut *consumer, 1).await), [1]);
    queue.delete(&stream).await.unwrap();
}

/// Calls until the broker is back.
async fn publish_until_confirmed(queue: &dyn Queue, stream: &str, batch: &[Message]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = queue.publish(stream, batch).await {
        assert!(error.class() == Class::Connection && Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn drain(queue: &dyn Queue, stream: &str, last: i64) -> Vec<i64> {
    let deadline = Instant::now() + LONG;
    let mut consumer = queue.consume(stream, 0, 1_000).await.unwrap();
    let mut got = Vec::new();
    while got.last() != Some(&last) {
        assert!(Instant::now() < deadline, "{last} never came, but {:?}", got.last());
        let batch = consumer.next(1_000, SOON).await.unwrap();
        if let Some(delivery) = batch.last() {
            consumer.ack(delivery.tag).await.unwrap();
        }
        got.extend(numbers(&batch));
    }
    got
}

/// One node lives through everything that only a node of its own can stand, for its start takes seconds: a
/// restart, SIGKILL in the middle of publishing, and a memory alarm.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_fails_loses_nothing_it_confirmed() {
    let server = servers::own_rabbit().await;
    let queue = connect(&server.url(), patient_for(3)).await.unwrap();
    let stream = "survivor";
    queue.declare(stream, 1).await.unwrap();

    // A restart between publishing and consuming; a consumer from before reports that it is broken.
    queue.publish(stream, &messages(0, 1..=500)).await.unwrap();
    let mut consumer = queue.consume(stream, 0, 10).await.unwrap();
    take(&mut *consumer, 10).await;
    server.restart().await.unwrap();
    let deadline = Instant::now() + LONG;
    let error = loop {
        match consumer.next(10, SOON).await {
            Err(error) => break error,
            Ok(_) => assert!(Instant::now() < deadline, "the consumer noticed nothing"),
        }
    };
    assert_eq!(error.class(), Class::Connection, "{error}");
    assert_eq!(drain(&*queue, stream, 500).await, (1..=500).collect::<Vec<_>>());

    // SIGKILL while a publisher is at work.
    let publishing = {
        let queue = queue.clone();
        tokio::spawn(async move {
            let mut confirmed = 0;
            loop {
                let next = confirmed + 1..=confirmed + 200;
                match queue.publish(stream, &messages(0, next)).await {
                    Ok(()) => confirmed += 200,
                    Err(error) => {
                        assert_eq!(error.class(), Class::Connection, "{error}");
                        return confirmed;
                    }
                }
            }
        })
    };
    tokio::time::sleep(Duration::from_millis(700)).await;
    server.kill().await.unwrap();
    let confirmed = publishing.await.unwrap();
    assert!(confirmed > 0, "nothing was confirmed before the kill");
    server.start_again().await.unwrap();
    publish_until_confirmed(&*queue, stream, &messages(0, confirmed + 1..=confirmed + 200)).await;
    let got = drain(&*queue, stream, confirmed + 200).await;
    let mut first = BTreeSet::new();
    let in_order: Vec<_> = got.into_iter().filter(|n| first.insert(*n)).collect();
    assert_eq!(in_order, (1..=confirmed + 200).collect::<Vec<_>>());

    // A length limit from somebody's policy refuses messages instead of dropping confirmed ones.
    ctl(server.folder(), &["set_policy", "--apply-to", "queues", "cap", "^capped", r#"{"max-length":50}"#]);
    queue.declare("capped", 1).await.unwrap();
    let mut confirmed = 0;
    let error = loop {
        match queue.publish("capped", &messages(0, confirmed + 1..=confirmed + 10)).await {
            Ok(()) => confirmed += 10,
            Err(error) => break error,
        }
        assert!(confirmed < 1_000, "the limit never took hold");
    };
    insta::assert_snapshot!("queue_length_limit", shown(&error, &server.url()));
    let mut consumer = queue.consume("capped", 0, 1_000).await.unwrap();
    let kept = take(&mut *consumer, usize::try_from(confirmed).unwrap()).await;
    assert_eq!(numbers(&kept), (1..=confirmed).collect::<Vec<_>>());
    drop(consumer);

    // A user without permissions.
    ctl(server.folder(), &["add_user", "nobody", "hunter2"]);
    let (_, at) = server.url().split_once('@').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let nobody = format!("amqp://nobody:hunter2@{at}");
    insta::assert_snapshot!("queue_rabbit_vhost_refused", failure(&nobody).await);
    ctl(server.folder(), &["set_permissions", "nobody", "", "", ""]);
    let error = connect(&nobody, patient_for(3)).await.unwrap().declare("theirs", 1).await.unwrap_err();
    insta::assert_snapshot!("queue_rabbit_no_permission", shown(&error, &nobody));

    // A memory alarm blocks publishers, not consumers; when it is over, publishing goes on.
    queue.publish(stream, &messages(0, 1..=3)).await.unwrap();
    ctl(server.folder(), &["set_vm_memory_high_watermark", "0.0000001"]);
    let begun = Instant::now();
    let error = loop {
        // The node checks its memory once a second.
        if let Err(error) = queue.publish(stream, &messages(0, [4])).await {
            break error;
        }
        assert!(begun.elapsed() < LONG, "publishing was never blocked");
    };
    insta::assert_snapshot!("queue_blocked", shown(&error, &server.url()));
    let again = Instant::now();
    assert!(queue.publish(stream, &messages(0, [4])).await.unwrap_err().message().contains("alarm"));
    assert!(again.elapsed() < Duration::from_secs(6));
    let mut consumer = queue.consume(stream, 0, 10).await.unwrap();
    let held = take(&mut *consumer, 3).await;
    consumer.ack(held[2].tag).await.unwrap();
    drop(consumer);
    ctl(server.folder(), &["set_vm_memory_high_watermark", "0.6"]);
    publish_until_confirmed(&*queue, stream, &messages(0, [4, 5])).await;
    let mut first = BTreeSet::new();
    let got = drain(&*queue, stream, 5).await;
    assert_eq!(got.into_iter().filter(|n| first.insert(*n)).collect::<Vec<_>>(), [4, 5]);
}

/// Runs rabbitmqctl against the node that lives in `folder`.
fn ctl(folder: &Path, arguments: &[&str]) {
    let script = handover_lab::RabbitServer::installed().unwrap().with_file_name("rabbitmqctl");
    let mapper = std::fs::read_to_string(folder.join("epmd.pid")).unwrap();
    let line = std::fs::read(format!("/proc/{}/cmdline", mapper.trim())).unwrap();
    let line = String::from_utf8(line).unwrap();
    let port = line.split('\0').skip_while(|word| *word != "-port").nth(1).unwrap();
    let name =
        folder.file_name().unwrap().to_string_lossy().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let cookie = std::fs::read_to_string(folder.join(".erlang.cookie")).unwrap();
    let output = Command::new(script)
        .env("ERL_EPMD_PORT", port)
        .env("RABBITMQ_CONF_ENV_FILE", folder.join("empty.conf"))
        .args(["--erlang-cookie", cookie.trim(), "-n", &format!("{name}@localhost")])
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
