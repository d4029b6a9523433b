//! `cutover` at its edges: a synchronous standby that goes away, a new side that served before, requests that arrive late,
//! tables whose rows others reach.

use crate::cutover::{BLUE, GREEN, PLAN};
use crate::support::servers::{self, Database};
use crate::support::world::{Ended, World};
use handover_lab::PostgresServer;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const SWITCH: &[(&str, &str)] = &[("switch.conf", "database = blue\n")];

async fn world(plan: &str) -> World {
    let blue = Database::with(servers::blue().await, BLUE).await;
    let green = Database::with(servers::green().await, GREEN).await;
    World::new(Some(&blue.name), Some(&green.name), plan, SWITCH).await
}

/// With an old side on a server of its own.
async fn alone() -> World {
    let mut world = World::new(None, None, PLAN, SWITCH).await;
    let server: &'static PostgresServer = Box::leak(Box::new(servers::own_blue().await));
    world.blue = Database::with(server, BLUE).await;
    world.green.execute(GREEN).await;
    world
}

/// Commits wait for a standby that does not exist, from now on or no more.
async fn standby(world: &World, gone: bool) {
    let admin = world.blue.admin().await;
    let name = if gone { "nobody" } else { "" };
    // Neither waits itself.
    admin.batch_execute("set synchronous_commit = local").await.unwrap();
    admin.batch_execute(&format!("alter system set synchronous_standby_names = '{name}'")).await.unwrap();
    admin.batch_execute("select pg_reload_conf()").await.unwrap();
    let shown = format!("select current_setting('synchronous_standby_names') = '{name}'");
    crate::support::world::until(&world.blue.admin().await, &shown).await;
}

fn words(ended: &Ended) -> String {
    format!("{ended}").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn ended(output: std::process::Output) -> String {
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_goes_away_in_the_pause_holds_nobody_up() {
    let world = alone().await;
    // A server under load may be slow to learn of all this.
    world.write("plan.yaml", &PLAN.replace("write_pause: 3s", "write_pause: 8s"));
    let mut command = world.command();
    command
        .env("HANDOVER_FAILPOINT", "cutover.drained:1:stop")
        .env("HANDOVER_FAILPOINT_MARK", world.path("mark"));
    command.arg("run").arg(world.plan()).stdout(std::process::Stdio::piped());
    let run = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    while !world.path("mark").exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    standby(&world, true).await;
    // Whoever waits for us may have taken all the server's connections.
    let owner = world.blue.owner_url();
    let connect = async || {
        let (client, wire) = tokio_postgres::connect(&owner, tokio_postgres::NoTls).await?;
        tokio::spawn(wire);
        Ok::<_, tokio_postgres::Error>(client)
    };
    let taken = futures_util::future::join_all((0..500).map(|_| connect())).await;
    assert!(taken.iter().any(Result::is_err), "there are connections left");
    kill(Pid::from_raw(i32::try_from(run.id().unwrap()).unwrap()), Signal::SIGCONT).unwrap();
    let begun = Instant::now();
    while std::fs::read_to_string(world.path("service.state")).unwrap_or_default() != "green\n" {
        assert!(begun.elapsed() < Duration::from_secs(30), "the participants wait for the standby");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(taken);
    standby(&world, false).await;
    let output = run.wait_with_output().await.unwrap();
    let success = output.status.success();
    let said = ended(output);
    assert!(success && said.contains("a commit on blue took longer than"), "{said}");
    let write = world.blue.admin().await.batch_execute("insert into token (active) values (true)").await;
    assert_eq!(write.unwrap_err().code().unwrap().code(), "25006");
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_wait_for_a_standby_are_found_before_the_pause() {
    let world = alone().await;
    // Something to wait for, so that the standby goes away between what the steps before commit and the pause.
    let holder = world.blue.admin().await;
    let run = async {
        let mut command = world.command();
        ended(command.arg("run").arg(world.plan()).output().await.unwrap())
    };
    let disturb = async {
        let captured = "select count(*) > 0 from pg_trigger where tgrelid = 'token'::regclass and tgname like '%handover%'";
        crate::support::world::until(&world.blue.admin().await, captured).await;
        holder.batch_execute("begin; update token set active = active where id = 1").await.unwrap();
        let hung = "select count(*) > 0 from pg_stat_activity where application_name like '%/flip'";
        crate::support::world::until(&world.blue.admin().await, hung).await;
        standby(&world, true).await;
        holder.batch_execute("set local synchronous_commit = local; commit").await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let admin = world.blue.admin().await;
        admin.batch_execute("set synchronous_commit = local").await.unwrap();
        // Nobody holds writers off meanwhile.
        let begun = Instant::now();
        admin.batch_execute("insert into token (active) values (true)").await.unwrap();
        assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
        assert!(!world.path("service.state").exists(), "a participant was asked to prepare");
        standby(&world, false).await;
    };
    let (said, ()) = tokio::join!(run, disturb);
    assert!(said.contains("flip: done"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_side_that_served_before_does_not_take_over_with_what_was_written_then() {
    let plan = PLAN.replace("      allow_served: true\n", "");
    let world = world(&plan).await;
    world.handover("run", &[]).await.success();
    world.green.execute("insert into token (id, active) values (9000, true)").await;
    world.handover("rollback", &["--accept-loss"]).await.success();
    for verb in ["dry-run", "run"] {
        let refused = world.handover(verb, &[]).await;
        let said = words(&refused);
        assert!(said.contains("green served from") && said.contains("would be live again"), "{said}");
        assert!(said.contains("make it anew") && said.contains("allow_served: true"), "{said}");
        assert_ne!(refused.code, Some(0), "{said}");
    }
    assert_eq!(read(&world, "service.state"), "blue\n");
    world.write("plan.yaml", PLAN);
    world.handover("resume", &["--accept-changes"]).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_the_old_side_lost_still_counts_as_one_that_was_taken_back() {
    let plan = PLAN.replace("      allow_served: true\n", "");
    let world = world(&plan).await;
    world.handover_failing("cutover.committed", "run", &[]).await.killed();
    // As after a restore, or a failover to a server that had not received it.
    world.blue.admin().await.batch_execute("delete from handover.decision").await.unwrap();
    world.handover("rollback", &["--accept-loss"]).await.success();
    let said = words(&world.handover("run", &[]).await);
    assert!(said.contains("green served from") && said.contains("would be live again"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_objects_of_the_application_change_nothing() {
    let world = world(PLAN).await;
    let blue = world.blue.clone();
    let busy = tokio::spawn(async move {
        loop {
            let (client, wire) =
                tokio_postgres::connect(&blue.owner_url(), tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(wire);
            for i in 0..20 {
                let make = format!(
                    "create temp table t{i} (id serial); create temp view v{i} as select id from t{i}"
                );
                client.batch_execute(&make).await.unwrap();
            }
        }
    });
    let ended = world.handover("run", &[]).await.success();
    busy.abort();
    assert!(!format!("{ended}").contains("was called off"), "{ended}");
}

fn read(world: &World, name: &str) -> String {
    std::fs::read_to_string(world.path(name)).unwrap()
}

/// A service whose requests are held up on their way: what comes first arrives after `delay`, and is answered by nobody.
struct Late {
    url: String,
    /// What it was told, in the order in which it arrived.
    told: Arc<Mutex<Vec<(String, i128)>>>,
}

impl Late {
    async fn start(late: &'static str, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let told = Arc::new(Mutex::new(Vec::new()));
        let (arrived, first) = (Arc::clone(&told), Arc::new(AtomicBool::new(true)));
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let (arrived, first) = (Arc::clone(&arrived), Arc::clone(&first));
                tokio::spawn(async move {
                    let mut buffer = vec![0; 4096];
                    loop {
                        let Ok(n @ 1..) = socket.read(&mut buffer).await else { return };
                        let text = String::from_utf8_lossy(&buffer[..n]).to_lowercase();
                        let act =
                            text.split_whitespace().nth(1).unwrap_or_default().trim_matches('/').to_owned();
                        let number = text.lines().find_map(|line| line.strip_prefix("handover-sequence: "));
                        let number = number.unwrap_or("0").trim().parse::<i128>().unwrap();
                        // A first one only: the next is in time.
                        if act == late && first.swap(false, Ordering::SeqCst) {
                            tokio::time::sleep(delay).await;
                        }
                        arrived.lock().unwrap().push((act, number));
                        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                    }
                });
            }
        });
        Late { url, told }
    }

    fn told(&self) -> Vec<(String, i128)> {
        self.told.lock().unwrap().clone()
    }
}

fn of_service(url: &str) -> String {
    format!(
        "
handover: 1
name: upgrade
databases: {{ blue: '${{BLUE_URL}}' }}
control: ${{CONTROL_URL}}
steps:
  - id: flip
    retry: {{ attempts: 1 }}
    cutover:
      attempts: 1
      commit_timeout: 10s
      participants:
        - name: service
          prepare: {{ http: {{ method: POST, url: '{url}/prepare', timeout: 1s }} }}
          commit: {{ http: {{ method: POST, url: '{url}/commit', timeout: 1s }} }}
          abort: {{ http: {{ method: POST, url: '{url}/abort', timeout: 1s }} }}
          revert: {{ http: {{ method: POST, url: '{url}/revert', timeout: 1s }} }}
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_arrives_late_does_not_have_the_last_word() {
    for (late, last, verbs) in
        [("prepare", "abort", &["run"][..]), ("commit", "revert", &["run", "rollback"])]
    {
        let service = Late::start(late, Duration::from_millis(1800)).await;
        let world = World::new(None, None, &of_service(&service.url), &[]).await;
        let mut said = String::new();
        for verb in verbs {
            said.push_str(&words(&world.handover(verb, &[]).await));
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let told = service.told();
        assert!(told.iter().any(|(act, _)| act == late), "{told:?}");
        assert_eq!(told.last().unwrap().0, last, "{told:?} {said}");
        // Whoever keeps the highest number he saw refuses the late one by himself.
        let highest =
            |act: &str| told.iter().filter(|(a, _)| a == act).map(|(_, n)| *n).max().unwrap_or_default();
        assert!(highest(late) > 0 && highest(last) > highest(late), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_excepted_table_through_which_frozen_rows_are_reached_is_refused() {
    let plan = PLAN.replace("      write_pause: 3s\n", "      write_pause: 3s\n      except: [log, event]\n");
    let world = world(&plan).await;
    let tables = "create table log (id int primary key, note text); create table log_old () inherits (log);
        create table event (id int) partition by range (id); create table event_1 partition of event for values from (0) to (9);";
    world.blue.execute(tables).await;
    world.green.execute(tables).await;
    for verb in ["dry-run", "run"] {
        let refused = words(&world.handover(verb, &[]).await);
        assert!(refused.contains("a write to it reaches rows of event_1, which is frozen"), "{refused}");
    }
    let all = plan.replace("[log, event]", "[log, log_old, event, event_1]");
    world.write("plan.yaml", &all);
    world.handover("resume", &["--accept-changes"]).await.success();
}
