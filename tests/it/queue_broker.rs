//! What only a broker, and the way to it, can do to us.

use crate::queue::{
    LONG, SOON, embedded_url, failure, message, messages, numbers, patient_for, rabbit_url, shown, stream,
    take,
};
use crate::support::servers;
use crate::support::tls::{Begin, TlsProxy};
use handover::Class;
use handover::queue::{Message, Queue, connect};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

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
