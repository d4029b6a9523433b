//! Local servers: they start, stop, recover and end with the process that started them.

use crate::support::servers::{self, Database};
use handover_lab::{PostgresOptions, PostgresServer, RabbitServer};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

async fn connect(url: &str) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < limit, "{what} did not happen within {limit:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn is_running(pid: u32) -> bool {
    // A process that ended and was not waited for still has an entry, but no command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|text| !text.is_empty())
}

fn number(file: &Path) -> u32 {
    std::fs::read_to_string(file).unwrap().trim().parse().unwrap()
}

fn postmaster_pid(folder: &Path) -> u32 {
    let text = std::fs::read_to_string(folder.join("data/postmaster.pid")).unwrap();
    text.lines().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn blue_is_older_than_green_and_both_allow_logical_replication() {
    let pair = servers::programs().await;
    assert!(pair.blue.version() < pair.green.version(), "{pair:?}");
    for server in [servers::blue().await, servers::green().await] {
        let client = server.admin("postgres").await.unwrap();
        let row = client
            .query_one(
                "select current_setting('wal_level'), current_setting('server_version_num')::int / 10000",
                &[],
            )
            .await
            .unwrap();
        assert_eq!(row.get::<_, String>(0), "logical");
        assert_eq!(u32::try_from(row.get::<_, i32>(1)).unwrap(), server.version().major);
    }
}

#[tokio::test]
async fn two_servers_have_different_system_identifiers_and_settings_are_taken() {
    let programs = servers::programs().await.blue.clone();
    let options = PostgresOptions::new(programs).setting("work_mem", "7MB").setting("fsync", "on");
    let mine = PostgresServer::start(options).await.unwrap();
    let identifier = async |server: &PostgresServer| -> i64 {
        let client = server.admin("postgres").await.unwrap();
        client.query_one("select system_identifier from pg_control_system()", &[]).await.unwrap().get(0)
    };
    assert_ne!(identifier(&mine).await, identifier(servers::blue().await).await);
    let client = mine.admin("postgres").await.unwrap();
    let row = client
        .query_one("select current_setting('work_mem') || current_setting('fsync')", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, String>(0), "7MBon");
}

#[tokio::test]
async fn a_killed_server_comes_back_on_its_port_with_its_data() {
    let server = servers::own_green().await;
    server.create_database("kept", None).await.unwrap();
    server.execute_as_owner("kept", "create table t as select 1 as x").await.unwrap();
    let port = server.port();

    server.kill().await.unwrap();
    assert!(connect(&server.admin_url("kept")).await.is_err());
    assert!(server.kill().await.is_err(), "it is down already");
    server.start_again().await.unwrap();
    assert!(server.log().contains("not properly shut down"), "kill is a crash: {}", server.log());
    server.restart().await.unwrap();

    assert_eq!(server.port(), port);
    let client = connect(&server.owner_url("kept")).await.unwrap();
    assert_eq!(client.query_one("select x from t", &[]).await.unwrap().get::<_, i32>(0), 1);

    let (folder, guardian) = (server.folder().to_owned(), server.guardian_pid());
    let postmaster = postmaster_pid(&folder);
    drop(server);
    assert!(!folder.exists() && !is_running(guardian) && !is_running(postmaster));
}

#[tokio::test]
async fn passwords_are_asked_for() {
    let server = servers::blue().await;
    let url = server.admin_url("postgres");
    let (before, after) = url.split_once("postgres:").unwrap().1.split_once('@').unwrap();
    assert!(before.len() > 20);
    let error = connect(&format!("postgres://postgres:wrong@{after}")).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "28P01");
}

#[tokio::test]
async fn grants_give_the_engine_what_it_needs_and_the_reader_nothing_to_write_with() {
    for server in [servers::blue().await, servers::green().await] {
        let database =
            Database::with(server, "create table item (id int primary key); insert into item values (1)")
                .await;
        let engine = connect(&database.handover_url()).await.unwrap();
        let row = engine
            .query_one("select rolsuper or rolcreaterole or rolcreatedb or rolbypassrls from pg_roles where rolname = current_user", &[])
            .await
            .unwrap();
        // REPLICATION is granted here, for plans that replicate.
        assert!(!row.get::<_, bool>(0), "an ordinary role");
        engine.batch_execute("create schema handover; create table handover.outbox (id int)").await.unwrap();
        engine.batch_execute("alter table item add column note text").await.unwrap();
        engine.batch_execute("create index concurrently item_note on item (note)").await.unwrap();
        engine.batch_execute("begin; lock table item in exclusive mode nowait; commit").await.unwrap();
        for maintenance in ["analyze item", "vacuum item"] {
            engine.batch_execute(maintenance).await.unwrap();
        }
        engine.batch_execute("set session_replication_role = replica").await.unwrap();
        engine.batch_execute("set role app; create table theirs (x int); reset role").await.unwrap();
        engine.query("select * from pg_stat_replication", &[]).await.unwrap();
        engine.query("select system_identifier from pg_control_system()", &[]).await.unwrap();

        let reader = connect(&database.reader_url()).await.unwrap();
        let seen: i64 = reader.query_one("select count(*) from item", &[]).await.unwrap().get(0);
        assert_eq!(seen, 1);
        reader.query("select * from handover.outbox", &[]).await.unwrap();
        reader.batch_execute("set default_transaction_read_only = off").await.unwrap();
        for refused in [
            "insert into item values (2)",
            "create table mine (x int)",
            "alter table item add y int",
            "create schema mine",
        ] {
            let error = reader.batch_execute(refused).await.unwrap_err();
            assert_eq!(error.code().unwrap().code(), "42501", "{refused}");
        }
        // Again, and as psql runs it.
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/grants.sql");
        let status = Command::new(server.programs().program("psql"))
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", script, &server.admin_url(&database.name)])
            .env("PGOPTIONS", "-c handover.grant_owner=app -c handover.grant_replicate=on -c handover.grant_role=replicator")
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        let replicates =
            database.value("select rolreplication from pg_roles where rolname = 'replicator'").await;
        assert_eq!(replicates.as_deref(), Some("t"));
    }
}

#[tokio::test]
async fn an_administrator_who_is_no_superuser_can_grant() {
    let server = servers::green().await;
    let database = Database::create(server, None).await;
    let (admin, owner) = (servers::unique("admin"), servers::unique("owner"));
    let root = database.admin().await;
    root.batch_execute(&format!(
        "create role {owner}; create role {admin} login createrole password 'secret';
         grant {owner}, pg_read_all_data, pg_monitor, pg_signal_autovacuum_worker to {admin} with admin option;
         alter database {} owner to {admin}",
        database.name
    ))
    .await
    .unwrap();
    let url = server.admin_url(&database.name);
    let (_, address) = url.rsplit_once('@').unwrap();
    let client = connect(&format!("postgres://{admin}:secret@{address}")).await.unwrap();
    let (engine, reader) = (servers::unique("engine"), servers::unique("reader"));
    client
        .batch_execute(&format!(
            "set handover.grant_role = '{engine}'; set handover.grant_reader = '{reader}';
             set handover.grant_owner = '{owner}'"
        ))
        .await
        .unwrap();
    for _ in 0..2 {
        client.batch_execute(handover_lab::GRANTS).await.unwrap();
    }
    let able = format!(
        "select pg_has_role('{engine}', '{owner}', 'usage') and pg_has_role('{engine}', '{owner}', 'set')
            and has_schema_privilege('{engine}', 'public', 'create')
            and has_database_privilege('{engine}', current_database(), 'create')
            and pg_has_role('{reader}', 'pg_read_all_data', 'usage')"
    );
    assert_eq!(database.value(&able).await.as_deref(), Some("t"));
}

#[tokio::test]
async fn databases_are_cloned_from_a_template() {
    let server = servers::green().await;
    let template = Database::with(server, "create table item as select generate_series(1, 10) as id").await;
    let (one, two) = tokio::join!(
        Database::create(server, Some(&template.name)),
        Database::create(server, Some(&template.name))
    );
    for clone in [one, two] {
        assert_eq!(clone.value("select count(*) from item").await.as_deref(), Some("10"));
        let engine = connect(&clone.handover_url()).await.unwrap();
        engine.batch_execute("create schema handover; alter table item add primary key (id)").await.unwrap();
        drop(engine);
        clone.drop_now().await;
    }
}

#[tokio::test]
async fn an_unknown_owner_is_named_with_a_way_out() {
    let server = servers::green().await;
    let database = Database::create(server, None).await;
    let error = server.grant(&database.name, Some("nobody_here")).await.unwrap_err();
    assert!(error.to_string().contains("nobody_here"), "{error}");
}

/// Not a test of its own: the process that the next test kills. Without its variable it has nothing to do.
#[tokio::test]
async fn holder() {
    let Ok(file) = std::env::var("HANDOVER_TEST_HOLDER") else { return };
    let server = servers::own_blue().await;
    if std::env::var_os("HANDOVER_TEST_KEEP").is_some() {
        server.keep().await.unwrap();
    }
    let text = format!("{}\n{}\n{}\n", server.guardian_pid(), server.port(), server.folder().display());
    std::fs::write(format!("{file}.part"), text).unwrap();
    std::fs::rename(format!("{file}.part"), file).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
}

/// The same with RabbitMQ.
#[tokio::test]
async fn rabbit_holder() {
    let Ok(file) = std::env::var("HANDOVER_TEST_RABBIT_HOLDER") else { return };
    let server = RabbitServer::start().await.unwrap();
    std::fs::write(format!("{file}.part"), server.folder().display().to_string()).unwrap();
    std::fs::rename(format!("{file}.part"), file).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
}

#[tokio::test]
async fn nothing_is_left_of_a_broker_whose_process_was_killed() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("holder");
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "local::rabbit_holder"])
        .env("HANDOVER_TEST_RABBIT_HOLDER", &file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("the holder's start", Duration::from_secs(120), || file.exists()).await;
    let folder = PathBuf::from(std::fs::read_to_string(&file).unwrap());
    let pids = ["node.pid", "epmd.pid"].map(|name| number(&folder.join(name)));
    assert!(pids.iter().all(|pid| is_running(*pid)));
    holder.kill().unwrap();
    holder.wait().unwrap();
    until("the broker's end", Duration::from_secs(20), || {
        !folder.exists() && !pids.iter().any(|pid| is_running(*pid))
    })
    .await;
}

/// Starts the holder, and kills it with SIGKILL when its server is up. Gives the guardian's process id, the
/// postmaster's, and the folder.
async fn kill_a_holder(keep: bool) -> (u32, u32, PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("holder");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "local::holder"]).env("HANDOVER_TEST_HOLDER", &file);
    if keep {
        command.env("HANDOVER_TEST_KEEP", "1");
    }
    let mut holder =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the holder's start", Duration::from_secs(60), || file.exists()).await;
    let text = std::fs::read_to_string(&file).unwrap();
    let mut lines = text.lines();
    let guardian = lines.next().unwrap().parse().unwrap();
    let _port = lines.next().unwrap();
    let folder = PathBuf::from(lines.next().unwrap());
    let postmaster = postmaster_pid(&folder);
    assert!(is_running(guardian) && is_running(postmaster));
    holder.kill().unwrap();
    holder.wait().unwrap();
    (guardian, postmaster, folder)
}

#[tokio::test]
async fn nothing_is_left_of_a_server_whose_process_was_killed() {
    let (guardian, postmaster, folder) = kill_a_holder(false).await;
    until("the guardian's end", Duration::from_secs(20), || {
        !folder.exists() && !is_running(postmaster) && !is_running(guardian)
    })
    .await;
}

#[tokio::test]
async fn a_kept_server_outlives_its_process_and_can_be_removed() {
    let (guardian, postmaster, folder) = kill_a_holder(true).await;
    until("the guardian's end", Duration::from_secs(20), || !is_running(guardian)).await;
    assert!(is_running(postmaster), "the server stays");
    let removed = Command::new("sh").arg(folder.join("server.sh")).arg("remove").status().unwrap();
    assert!(removed.success());
    assert!(!folder.exists() && !is_running(postmaster));
}

#[tokio::test]
async fn rabbitmq_runs_on_its_own_ports_and_leaves_nothing() {
    use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
    use lapin::types::{AMQPValue, FieldTable};
    let server = RabbitServer::start().await.unwrap();
    let folder = server.folder().to_owned();
    let connect = async || {
        lapin::Connection::connect(&server.url(), lapin::ConnectionProperties::default()).await.unwrap()
    };
    // A quorum queue, as ours are: what it confirmed is on disk, and so is that it exists.
    let publish = async || {
        let connection = connect().await;
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        let mut quorum = FieldTable::default();
        quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        channel.queue_declare("kept".into(), options, quorum).await.unwrap();
        // Which files are whose queue's is written a moment later; `queue::rabbitmq` waits as long.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let properties = lapin::BasicProperties::default().with_delivery_mode(2);
        let confirmation = channel
            .basic_publish("".into(), "kept".into(), BasicPublishOptions::default(), b"x", properties)
            .await
            .unwrap()
            .await
            .unwrap();
        assert!(confirmation.is_ack(), "{confirmation:?}");
        connection.close(200, "done".into()).await.unwrap();
    };
    // A queue is found before it has counted what it recovered.
    let holds = async |messages: u32| {
        let connection = connect().await;
        let channel = connection.create_channel().await.unwrap();
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let mut found = 0;
        for _ in 0..200 {
            let queue = channel.queue_declare("kept".into(), options, FieldTable::default()).await.unwrap();
            found = queue.message_count();
            if found == messages {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        connection.close(200, "done".into()).await.unwrap();
        assert_eq!(found, messages, "a confirmed message survives SIGKILL and a restart");
    };
    publish().await;
    server.kill().await.unwrap();
    assert!(lapin::Connection::connect(&server.url(), lapin::ConnectionProperties::default()).await.is_err());
    server.start_again().await.unwrap();
    holds(1).await;
    publish().await;
    server.stop().await.unwrap();
    server.start_again().await.unwrap();
    holds(2).await;

    let (node, mapper) = (number(&folder.join("node.pid")), number(&folder.join("epmd.pid")));
    assert!(is_running(node) && is_running(mapper));
    drop(server);
    until("the node's end", Duration::from_secs(10), || {
        !folder.exists() && !is_running(node) && !is_running(mapper)
    })
    .await;
}

#[tokio::test]
async fn a_server_of_limited_space_reports_a_full_disk_and_serves_on() {
    let options = PostgresOptions::new(servers::programs().await.green.clone()).limited_space(48 << 20);
    let server = PostgresServer::start(options).await.unwrap();
    server.create_database("small", None).await.unwrap();
    server.execute_as_owner("small", "create table t as select 1 as x").await.unwrap();
    let client = connect(&server.owner_url("small")).await.unwrap();
    let error = client
        .batch_execute(
            "create table big as select repeat(md5(i::text), 20) from generate_series(1, 200000) i",
        )
        .await
        .unwrap_err();
    assert_eq!(error.code().unwrap().code(), "53100", "{error}");
    client.batch_execute("insert into t values (2)").await.unwrap();
    server.kill().await.unwrap();
    server.start_again().await.unwrap();
    let folder = server.folder().to_owned();
    let client = connect(&server.owner_url("small")).await.unwrap();
    assert_eq!(client.query_one("select count(*) from t", &[]).await.unwrap().get::<_, i64>(0), 2);
    drop(server);
    assert!(!folder.exists());
    assert!(!std::fs::read_to_string("/proc/mounts").unwrap().contains("handover /mnt"));
}
