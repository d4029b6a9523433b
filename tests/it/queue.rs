//! The contract of the queue, over both implementations and real servers; then what only a broker can do to us.

use crate::support::servers;
use handover::queue::{Consumer, Delivery, Message, Options, Queue, connect};
use handover::{Class, Error};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

pub const SOON: Duration = Duration::from_millis(300);
pub const LONG: Duration = Duration::from_secs(20);

pub fn message(partition: u32, number: i64) -> Message {
    Message { partition, number, payload: format!(r#"{{"n":{number}}}"#).into_bytes() }
}

pub fn messages(partition: u32, numbers: impl IntoIterator<Item = i64>) -> Vec<Message> {
    numbers.into_iter().map(|n| message(partition, n)).collect()
}

pub fn numbers(deliveries: &[Delivery]) -> Vec<i64> {
    deliveries.iter().map(|d| d.message.number).collect()
}

/// Takes exactly `count` deliveries, or fails.
pub async fn take(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let deadline = Instant::now() + LONG;
    let mut taken = Vec::new();
    while taken.len() < count {
        assert!(Instant::now() < deadline, "only {} of {count} messages came", taken.len());
        taken.extend(consumer.next(count - taken.len(), SOON).await.unwrap());
    }
    taken
}

pub async fn nothing(consumer: &mut dyn Consumer) {
    let more = consumer.next(10, SOON).await.unwrap();
    assert!(more.is_empty(), "unexpected messages {:?}", numbers(&more));
}

/// An error as the operator sees it, without what differs from run to run.
pub fn shown(error: &Error, url: &str) -> String {
    let port = handover::queue::QueueUrl::parse(url).unwrap().authority();
    let text = format!("{:?}: {error}\nnext: {}", error.class(), error.next_step().unwrap());
    text.replace(&port, "HOST:PORT")
}

pub async fn failure(url: &str) -> String {
    let Err(error) = connect(url, patient_for(2)).await else { panic!("connected") };
    let shown = shown(&error, url);
    assert!(!shown.contains("hunter2"), "{shown}");
    shown
}

pub fn patient_for(seconds: u64) -> Options {
    let limit = Duration::from_secs(seconds);
    Options { connect_timeout: limit, operation_timeout: limit, ..Options::default() }
}

pub async fn rabbit_url() -> String {
    servers::rabbit().await.url()
}

pub async fn embedded_url() -> String {
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
pub async fn stream(url: &str, partitions: u32) -> (Arc<dyn Queue>, String) {
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
