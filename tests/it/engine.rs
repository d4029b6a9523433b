//! The engine where it is attacked: broken connections, others in the way, changed plans, failing tasks.

use crate::support::proxy::Proxy;
use crate::support::servers::{self, Database};
use crate::support::world::{BUILDING, World, until};
use async_trait::async_trait;
use handover::engine::{Command, Options, execute};
use handover::event::{Emitter, Record, RunId};
use handover::journal::{Held, Journal, this_process};
use handover::plan::Plan;
use handover::postgres::Lease;
use handover::problem::Problems;
use handover::steps::{Access, CheckContext, Context, Description, OnFailure, Retry, Step, StepKind, Undo};
use handover::value::{EnvString, Secret};
use handover::{Class, Error};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const TABLE: &str = "create table token (id int primary key, subject text, active bool);
    insert into token select n, 's' || n % 10, n % 3 = 0 from generate_series(1, 100) n;";

const HEAD: &str = "
handover: 1
name: attacked
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
";

fn step(id: &str, name: &str, columns: &str) -> String {
    format!(
        "  - {{ id: {id}, create_index: {{ on: blue, indexes: [{{ name: {name}, table: token, columns: [{columns}] }}] }} }}\n"
    )
}

async fn world_of(steps: &str) -> World {
    let template = Database::with(servers::blue().await, TABLE).await;
    World::new(Some(&template.name), None, &format!("{HEAD}{steps}"), &[]).await
}

async fn world() -> World {
    world_of(&step("index", "token_subject", "subject")).await
}

async fn journal(world: &World, url: String) -> (Journal, RunId, i64) {
    let journal = Journal::open(Secret::new(&url), Duration::from_secs(10)).await.unwrap();
    let run = RunId::new();
    let held = journal.acquire("attacked", run, &this_process(), Duration::from_secs(60)).await.unwrap();
    let Held::Ours(token) = held else { panic!("{held:?}") };
    journal.create_run(run, "attacked").await.unwrap();
    drop(world.control.value("select 1").await);
    (journal, run, token)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_commit_was_not_heard_of_is_written_once() {
    let world = world().await;
    let proxy = Proxy::start(world.control.server.port()).await;
    let (journal, run, token) = journal(&world, proxy.through(&world.control.handover_url())).await;
    // Numbers that jsonb words differently, and a character it does not hold.
    let value = json!({ "large": 1e16, "small": -0.0, "text": "a\0b" });
    let record = Record::StepFact { step: "a".into(), key: "k".into(), value };
    proxy.switches.cut_after_insert.store(true, Ordering::SeqCst);
    let entry = journal.append("attacked", token, run, 1, &record).await.unwrap();
    assert!(!proxy.switches.cut_after_insert.load(Ordering::SeqCst), "the connection was never cut");
    assert_eq!(entry.seq, 1);
    assert_eq!(journal.entries(run).await.unwrap().len(), 1);
    let other = Record::StandingEnded { step: "b".into(), by: None };
    let refused = journal.append("attacked", token, run, 1, &other).await.unwrap_err();
    assert_eq!(refused.class(), Class::LeaseLost, "another record has that number: {refused}");
    let refused = journal.append("attacked", token - 1, run, 2, &other).await.unwrap_err();
    assert_eq!(refused.class(), Class::LeaseLost, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_whose_control_database_hangs_stops_when_its_lease_ends() {
    let world = world().await;
    let proxy = Proxy::start(world.control.server.port()).await;
    let mut admin = world.blue.admin().await;
    let old = admin.transaction().await.unwrap();
    old.query("select count(*) from token", &[]).await.unwrap();
    let mut command = world.command();
    command.env("CONTROL_URL", proxy.through(&world.control.handover_url())).arg("run").arg(world.plan());
    let mut run = command.args(["--lease-ttl", "6s"]).spawn().unwrap();
    until(&world.blue.admin().await, BUILDING).await;
    proxy.switches.hang.store(true, Ordering::SeqCst);
    let begun = Instant::now();
    assert_eq!(run.wait().await.unwrap().code(), Some(5), "the code for a lost journal");
    // Six seconds at most, one in which it only asks why, and time for a loaded machine.
    assert!(
        begun.elapsed() < Duration::from_millis(9500),
        "it acted for {:?} after its last word",
        begun.elapsed()
    );
    old.commit().await.unwrap();
    world.handover("resume", &["--wait", "20s"]).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_before_a_database_is_refused() {
    let world = world().await;
    let proxy = Proxy::start(world.blue.server.port()).await;
    proxy.switches.drop_options.store(true, Ordering::SeqCst);
    let mut command = world.command();
    command.env("BLUE_URL", proxy.through(&world.blue.handover_url())).arg("run").arg(world.plan());
    let output = command.output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && text.contains("pooler"), "{text}");
    // It was refused before anything was made: there is no run that somebody would have to end, and no journal.
    assert_eq!(world.control.value("select to_regclass('handover.run')::text").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_request_to_abort_does_not_end_the_rollback() {
    let world = world().await;
    let mut admin = world.blue.admin().await;
    let old = admin.transaction().await.unwrap();
    old.query("select count(*) from token", &[]).await.unwrap();
    let fast = ["--lease-ttl", "2s"];
    let mut run = world.command().arg("run").arg(world.plan()).args(fast).spawn().unwrap();
    let probe = world.blue.admin().await;
    until(&probe, BUILDING).await;
    world.handover("abort", &[]).await.success();
    assert!(run.wait().await.unwrap().success());
    let mut rollback = world.command().arg("rollback").arg(world.plan()).args(fast).spawn().unwrap();
    let dropping = "select 1 from pg_stat_activity where query like 'drop index%' and state = 'active' and datname = current_database()";
    until(&probe, dropping).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    old.commit().await.unwrap();
    assert!(rollback.wait().await.unwrap().success());
    let last = "select record ->> 'record' from handover.record order by seq desc limit 1";
    assert_eq!(world.control.value(last).await.unwrap(), "run_rolled_back");
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_changes_keep_what_has_begun() {
    let (first, second) = (step("first", "token_subject", "subject"), step("second", "token_x", "nothing"));
    let world = world_of(&format!("{first}{second}")).await;
    world.handover("run", &[]).await.code(1);
    let change = |steps: String| world.write("plan.yaml", &format!("{HEAD}{steps}"));
    let accept = ["--accept-changes"];

    change(format!("{}{second}", step("renamed", "token_subject", "subject")));
    let refused = world.handover("resume", &accept).await.code(6);
    assert!(refused.stderr.contains("no longer has step `first`"), "{refused}");
    let refused = world.handover("rollback", &accept).await.code(6);
    assert!(refused.stderr.contains("no longer has step `first`"), "{refused}");
    change(format!("{second}{first}"));
    let refused = world.handover("resume", &accept).await.code(6);
    assert!(refused.stderr.contains("where this run began step `first`"), "{refused}");
    // The plan is not what it was; giving up is possible all the same.
    change(format!("{first}{}", step("second", "token_x", "active")));
    world.handover("resume", &accept).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_can_be_given_up_without_its_databases() {
    let world = world_of(&step("index", "token_x", "nothing")).await;
    world.handover("run", &[]).await.code(1);
    let mut command = world.command();
    command.env("BLUE_URL", "postgres://nobody@127.0.0.1:1/gone").arg("abort").arg(world.plan());
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_holds_the_fence_is_ended_or_named() {
    let world = world().await;
    world.handover("run", &[]).await.success();
    world.handover("rollback", &[]).await.success();
    let hold = async |name: &str| {
        let (client, connection) =
            tokio_postgres::connect(&world.blue.handover_url(), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let sql = format!("set application_name = '{name}'; begin; select from handover.fence for share");
        client.batch_execute(&sql).await.unwrap();
        client
    };
    let stranger = hold("psql").await;
    let refused = world.handover("run", &[]).await.code(1);
    assert!(refused.stderr.contains("handover.fence"), "{refused}");
    drop(stranger);
    let _predecessor = hold(&format!("{}0/index", Lease::application_prefix("attacked"))).await;
    let ended = world.handover("run", &[]).await.success();
    assert!(ended.stdout.contains("earlier runner left"), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_of_somebody_else_is_explained() {
    let world = world().await;
    world.blue.admin().await.batch_execute("create schema handover").await.unwrap();
    let refused = world.handover("run", &[]).await.code(1);
    for part in ["permission denied", "handover", "next:"] {
        assert!(refused.stderr.contains(part), "no `{part}` in {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_duplicates_is_left_without_a_broken_index() {
    let unique = step("index", "token_subject", "subject").replace("columns", "unique: true, columns");
    let world = world_of(&unique).await;
    let ended = world.handover("run", &[]).await.code(1);
    for part in ["duplicates", "having count(*) > 1", "group by subject"] {
        assert!(ended.stderr.contains(part), "no `{part}` in {ended}");
    }
    assert_eq!(world.blue.value("select to_regclass('token_subject')").await, None);
    world.blue.execute("delete from token where id > 10").await;
    world.handover("resume", &[]).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_another_definition_is_not_taken_for_done() {
    let world = world_of(&step("index", "token_subject", "'lower(subject) desc', id")).await;
    for other in ["(lower(subject), id)", "(lower(subject) desc)", "(lower(subject) desc, id) where active"] {
        world.blue.execute(&format!("create index token_subject on token {other}")).await;
        let verb = if other.ends_with("subject), id)") { "run" } else { "resume" };
        let ended = world.handover(verb, &[]).await.code(1);
        assert!(ended.stderr.contains("another definition"), "{other}: {ended}");
        world.blue.execute("drop index token_subject").await;
    }
    world
        .blue
        .execute("create index token_subject on token using btree (LOWER(token.subject) desc, id asc)")
        .await;
    world.handover("resume", &[]).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_is_refused_with_a_way_out() {
    let world = world_of(&step("index", "parts_id", "id").replace("table: token", "table: parts")).await;
    let missing = world.handover("run", &[]).await.code(1);
    assert!(missing.stderr.contains("there is no table parts"), "{missing}");
    world.blue.execute("create table parts (id int) partition by range (id)").await;
    let refused = world.handover("resume", &[]).await.code(1);
    assert!(refused.stderr.contains("partitioned") && refused.stderr.contains("on only parts"), "{refused}");
    world.handover("abort", &[]).await.success();
}

/// A step of these tests' own.
#[derive(Debug, Clone)]
struct Fake {
    /// How long a run takes.
    takes: Duration,
    /// What its standing task does after a moment.
    stands: Option<Standing>,
    /// Whether the task is to fail; a mended cause lets it live.
    broken: Arc<AtomicBool>,
    /// Whether what it does must not be cut short.
    critical: bool,
}

#[derive(Debug, Clone, Copy)]
enum Standing {
    Fails,
    Panics,
}

#[async_trait]
impl StepKind for Fake {
    fn check(&self, _: &CheckContext<'_>, _: &mut Problems) {}
    fn databases(&self) -> Vec<(&str, Access)> {
        Vec::new()
    }
    fn reversibility(&self) -> Undo {
        Undo::Nothing
    }
    async fn describe(&self, _: &Context) -> handover::Result<Description> {
        Ok(Description::default())
    }
    async fn run(&self, cx: &Context) -> handover::Result<Value> {
        // It does not stop when asked to, as a step in the middle of a unit of work.
        let _section = self.critical.then(|| cx.critical("a fake flip"));
        tokio::time::sleep(self.takes).await;
        Ok(Value::Null)
    }
    async fn verify(&self, _: &Context) -> handover::Result<()> {
        Ok(())
    }
    async fn undo(&self, _: &Context) -> handover::Result<Value> {
        Ok(Value::Null)
    }
    fn stands(&self) -> bool {
        self.stands.is_some()
    }
    async fn stand(&self, cx: &Context) -> handover::Result<()> {
        tokio::time::sleep(Duration::from_millis(200)).await;
        match self.stands {
            Some(Standing::Fails) if self.broken.load(Ordering::SeqCst) => {
                Err(Error::data("the relay broke"))
            }
            Some(Standing::Panics) if self.broken.load(Ordering::SeqCst) => panic!("the relay panicked"),
            _ => {
                cx.stop.cancelled().await;
                Ok(())
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standing_task_that_fails_halts_the_run_until_it_is_mended() {
    // The last one in a section that is longer than a step has to stop.
    for (standing, critical, takes) in
        [(Standing::Fails, false, 1), (Standing::Panics, false, 1), (Standing::Fails, true, 11)]
    {
        let world = world().await;
        let mut plan = Plan::load(&world.plan()).unwrap();
        plan.control = EnvString(world.control.handover_url());
        plan.databases.clear();
        let broken = Arc::new(AtomicBool::new(true));
        let fake = |id: &str, takes, stands| Step {
            id: id.into(),
            title: None,
            timeout: None,
            retry: Retry::default(),
            on_failure: OnFailure::Halt,
            kind_name: "fake",
            kind: Arc::new(Fake { takes, stands, broken: broken.clone(), critical }),
        };
        let short = Duration::from_millis(1);
        plan.steps = Arc::new([
            fake("stands", short, Some(standing)),
            fake("works", Duration::from_secs(takes), None),
            fake("after", short, None),
        ]);
        let go = async |command| {
            execute(&plan, command, Options::default(), Emitter::silent(), CancellationToken::new()).await
        };
        let error = go(Command::Run).await.unwrap_err();
        assert!(error.to_string().contains("standing task of step `stands` failed"), "{error}");
        let begun = "select string_agg(record ->> 'step', ' ' order by seq) from handover.record
             where record ->> 'record' = 'step_done'";
        // The step under way ended well, and the next one was not begun without the task.
        assert_eq!(world.control.value(begun).await.unwrap(), "stands works");
        broken.store(false, Ordering::SeqCst);
        go(Command::Resume).await.unwrap();
        assert_eq!(world.control.value(begun).await.unwrap(), "stands works after");
    }
}
