//! A verification that was killed goes on where it was, and only if nothing was written since.

use crate::support::world::{World, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

const PLAN: &str = "
handover: 1
name: resuming
databases: { blue: '${BLUE_URL}', green: '${GREEN_URL}' }
control: ${CONTROL_URL}
steps:
  - id: equal
    verify: { before: blue, after: green, checksums: { chunk_rows: 20 }, jobs: 2 }
";

const TABLES: &str = "
    create table token (id int primary key, v text); insert into token select n, md5(n::text) from generate_series(1, 4000) n;
    create table small (id int primary key); insert into small select generate_series(1, 10);
    create table heap (v text); insert into heap select 'v' || n % 9 from generate_series(1, 500) n; analyze;";

async fn killed() -> World {
    let world = World::new(None, None, PLAN, &[]).await;
    tokio::join!(world.blue.execute(TABLES), world.green.execute(TABLES));
    world.handover_failing("verify.chunk:150", "run", &[]).await.killed();
    // The servers count writes late: what the tables were filled with is no write since.
    world
}

/// A number of the step's summary.
fn number(text: &str, name: &str) -> u64 {
    let Some((_, rest)) = text.split_once(&format!("{name}: ")) else { return 0 };
    let digits: String =
        rest.chars().take_while(|c| c.is_ascii_digit() || *c == ',').filter(|c| *c != ',').collect();
    digits.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_agreed_is_not_read_again_unless_it_was_written() {
    let (same, changed, written) = tokio::join!(killed(), killed(), killed());
    // A difference in what had agreed already, made while nobody looked; and a write that makes none.
    changed.green.execute("update token set v = 'other' where id = 25").await;
    let both = "update token set v = 'both' where id = 26; delete from small where id = 3";
    tokio::join!(written.blue.execute(both), written.green.execute(both));

    let (same_end, changed_end, written_end) = tokio::join!(
        same.handover("resume", &[]),
        changed.handover("resume", &[]),
        written.handover("resume", &[])
    );
    let text = same_end.success().stdout;
    let (pieces, resumed) = (number(&text, "pieces"), number(&text, "resumed"));
    assert!(resumed > 50 && pieces < 200, "{pieces} read, {resumed} not: {text}");
    assert!(text.contains("was not read again"), "{text}");

    let text = changed_end.code(8).to_string();
    assert!(text.contains("table token: 1 rows differ (1 changed), changed: (25) in v"), "{text}");

    let events = changed.handover("events", &["--format", "json"]).await.success().stdout;
    let kept = events.lines().find(|line| line.contains(r#""key":"differences""#)).unwrap();
    let kept: serde_json::Value = serde_json::from_str(kept).unwrap();
    let row = &kept["value"]["tables"][0]["shown"][0];
    assert_eq!(*row, serde_json::json!({ "kind": "changed", "key": ["25"], "columns": ["v"] }), "{kept}");

    let text = written_end.success().stdout;
    // The one that was not written may have agreed already.
    assert!([4000 + 9, 4000 + 9 + 500].contains(&number(&text, "rows")), "{text}");
}

/// Keys that are nobody's business, cut into ranges; and a table that is read by block.
const KEYS: &str = "
    create table bytes (id text collate \"C\" primary key, v text);
    insert into bytes select 'secret' || md5(n::text), 'v' || n from generate_series(1, 4000) n order by 1;
    create table words (id text, v text) with (fillfactor = 10);
    insert into words select 'secret' || md5(n::text), repeat('v' || n, 40) from generate_series(1, 10000) n; analyze;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_are_text_are_resumed_by_piece_and_stay_out_of_the_journal() {
    for (table, other, failpoint) in
        [("bytes", "words", "verify.chunk:150"), ("words", "bytes", "verify.chunk:3")]
    {
        let world = World::new(None, None, PLAN, &[]).await;
        let only = format!("{KEYS} drop table {other};");
        tokio::join!(world.blue.execute(&only), world.green.execute(&only));
        world.handover_failing(failpoint, "run", &[]).await.killed();
        let events = world.handover("events", &["--format", "json"]).await.success().stdout;
        assert!(events.contains(r#""key":"agreed.0""#) && !events.contains("secret"), "{table}: {events}");
        let text = world.handover("resume", &[]).await.success().stdout;
        let (pieces, resumed) = (number(&text, "pieces"), number(&text, "resumed"));
        assert!(
            resumed > 0 && pieces > 0 && number(&text, "rows") > 0,
            "{table}: {pieces} read, {resumed} not: {text}"
        );
        if table == "words" {
            // What was read by block counts with what was read before.
            assert_eq!(number(&text, "rows"), 10_000, "{text}");
        } else {
            assert!(resumed > 50, "{pieces} read, {resumed} not: {text}");
        }
        world.drop_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_difference_in_what_was_summed_before_is_found_after_an_interruption() {
    let world = World::new(None, None, PLAN, &[]).await;
    let only = format!("{KEYS} drop table bytes;");
    tokio::join!(world.blue.execute(&only), world.green.execute(&only));
    world.green.execute("update words set v = 'other' where ctid = (select min(ctid) from words)").await;
    world.handover_failing("verify.chunk:3", "run", &[]).await.killed();
    let text = world.handover("resume", &[]).await.code(8).to_string();
    assert!(text.contains("table words: 2 rows differ (1 only before, 1 only after)"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interruption_ends_the_queries_on_both_sides_and_loses_nothing() {
    let plan = PLAN.replace("jobs: 2", "jobs: 1");
    let world = World::new(None, None, &plan, &[]).await;
    tokio::join!(world.blue.execute(TABLES), world.green.execute(TABLES));
    let mut first = world.command();
    first.env("HANDOVER_FAILPOINT", "verify.chunk:150:stop").arg("run").arg(world.plan());
    let mut first = first.spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(first.id().unwrap()).unwrap());
    while !std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The sum of `heap` will take as long as these locks are held.
    let (mut blue, mut green) = (world.blue.admin().await, world.green.admin().await);
    let (one, two) = (blue.transaction().await.unwrap(), green.transaction().await.unwrap());
    for tx in [&one, &two] {
        tx.batch_execute("lock table heap in access exclusive mode").await.unwrap();
    }
    kill(pid, Signal::SIGCONT).unwrap();
    let waiting = "select 1 from pg_stat_activity where application_name like 'handover/%' and datname = current_database()
                   and state = 'active' and wait_event_type = 'Lock'";
    let (probe, other) = (world.blue.admin().await, world.green.admin().await);
    tokio::join!(until(&probe, waiting), until(&other, waiting));

    kill(pid, Signal::SIGINT).unwrap();
    let begun = Instant::now();
    assert_eq!(first.wait().await.unwrap().code(), Some(130));
    assert!(begun.elapsed() < Duration::from_secs(4), "it took {:?} to stop", begun.elapsed());
    let left = "select 1 from pg_stat_activity where application_name like 'handover/%' and datname = current_database() and state = 'active'";
    for probe in [&probe, &other] {
        assert!(
            probe.query(left, &[]).await.unwrap().is_empty(),
            "a sum goes on although nobody waits for it"
        );
    }
    tokio::try_join!(one.rollback(), two.rollback()).unwrap();

    let text = world.handover("resume", &[]).await.success().stdout;
    let (pieces, resumed) = (number(&text, "pieces"), number(&text, "resumed"));
    // All of `token` had agreed; what is left is `heap` and `small`.
    assert!(resumed > 0 && pieces < 10, "{pieces} read, {resumed} not: {text}");
}
