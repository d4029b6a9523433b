//! What a dry run shows is what the server is told when the plan runs: no more, no less, to the letter.

use crate::support::servers::{self, Database};
use crate::support::world::World;
use handover::value::fingerprint;
use handover_lab::{PostgresOptions, PostgresServer, Programs};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Begins each entry of the server's log.
const MARK: &str = "@@";

/// A server that writes down every statement, and who executes it.
async fn logging(programs: &Programs) -> &'static PostgresServer {
    let options = PostgresOptions::new(programs.clone())
        .setting("log_statement", "all")
        .setting("log_replication_commands", "on")
        .setting("log_line_prefix", &format!("{MARK}%a|%d|"))
        .setting("logging_collector", "on")
        .setting("log_rotation_size", "0");
    Box::leak(Box::new(PostgresServer::start(options).await.unwrap()))
}

async fn blue_and_green(blue: &str, green: &str, plan: &str, files: &[(&str, &str)]) -> World {
    let programs = servers::programs().await;
    let blue = Database::with(logging(&programs.blue).await, blue).await;
    let green = Database::with(logging(&programs.green).await, green).await;
    let control = Database::create(servers::green().await, None).await;
    let world = World::of(blue, green, control);
    world.write("plan.yaml", plan);
    for (name, content) in files {
        world.write(name, content);
    }
    world
}

/// What a server was told in a database, by the last part of the client's name, which is the step.
async fn told(database: &Database) -> BTreeMap<String, Vec<String>> {
    let log = database.value("select pg_read_file(pg_current_logfile())").await.unwrap();
    let mut entries: Vec<String> = Vec::new();
    for line in log.lines() {
        match (line.strip_prefix(MARK), entries.last_mut()) {
            (Some(entry), _) => entries.push(entry.to_owned()),
            (None, Some(last)) => {
                last.push('\n');
                last.push_str(line.strip_prefix('\t').unwrap_or(line));
            }
            (None, None) => {}
        }
    }
    let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in &entries {
        let mut parts = entry.splitn(3, '|');
        let (Some(client), Some(name), Some(message)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        // `handover/PLAN/TOKEN/STEP`; who only looks has no token.
        let client: Vec<&str> = client.split('/').collect();
        let (["handover", _, _, step], true) = (&client[..], name == database.name) else { continue };
        let Some(message) = message.strip_prefix("LOG:  ") else { continue };
        let (how, sql) = message.split_once(": ").unwrap_or_default();
        if how == "statement" || how == "received replication command" || how.starts_with("execute ") {
            out.entry((*step).to_owned()).or_default().push(sql.trim().to_owned());
        }
    }
    out
}

/// Whether a statement changes something that is not Handover's own account of what it did.
fn acts(sql: &str) -> bool {
    // Comments may speak of an update.
    let code: Vec<&str> = sql.lines().map(|line| line.split("--").next().unwrap_or_default()).collect();
    let lower = code.join("\n").to_lowercase();
    let words: Vec<&str> = lower.split_whitespace().collect();
    let first = words.first().copied().unwrap_or_default();
    let rows = |(at, pair): (usize, &[&str])| -> bool {
        let before = at.checked_sub(1).map_or("", |at| words[at]);
        let table = match pair {
            // Not `for update`.
            ["update", table] if !matches!(before, "for" | "key" | "do") => *table,
            ["into" | "from", table] if matches!(before, "insert" | "(insert" | "delete" | "(delete") => {
                *table
            }
            ["(update", table] => *table,
            _ => return false,
        };
        !table.starts_with("handover.")
    };
    // A rehearsal, on what nobody else ever sees and what is rolled back.
    if lower.contains("handover.rehearsed_") {
        return false;
    }
    match first {
        "begin" | "start" | "commit" | "rollback" | "set" | "savepoint" | "release" | "show" | "explain" => {
            false
        }
        // What every query takes holds nobody up who writes.
        "lock" => {
            !lower.contains(" in access share mode")
                && !words.get(2).is_some_and(|t| t.starts_with("handover."))
        }
        "select" | "with" | "insert" | "update" | "delete" => {
            lower.contains("setval(")
                || lower.contains("pg_drop_replication_slot(")
                || words.windows(2).enumerate().any(rows)
        }
        _ => true,
    }
}

/// What a dry run shows, by step and database.
async fn shown(world: &World) -> BTreeMap<(String, String), Vec<String>> {
    let said = world.handover("dry-run", &["--format", "json"]).await.success();
    let said: Value = serde_json::from_str(&said.stdout).unwrap();
    let mut out: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for step in said["steps"].as_array().unwrap() {
        assert!(step["details"]["more_sql"].is_null(), "{step}");
        // The actions of this kind are its statements.
        if step["kind"] == "create_index" {
            let acts = step["actions"].as_array().unwrap().iter().map(|sql| sql.as_str().unwrap().to_owned());
            out.insert((step["id"].as_str().unwrap().to_owned(), "blue".to_owned()), acts.collect());
        }
        for one in step["details"]["sql"].as_array().into_iter().flatten() {
            let place = (step["id"].as_str().unwrap().to_owned(), one["on"].as_str().unwrap().to_owned());
            out.entry(place).or_default().push(one["statement"].as_str().unwrap().trim().to_owned());
        }
    }
    out
}

/// With the run's own id in the place of the zeros that a dry run has for it.
fn of_run(sql: &str, run: &str, step: &str) -> String {
    let none = uuid::Uuid::nil().to_string();
    let mark = |run: &str| fingerprint(&format!("{run}/{step}"), 4);
    sql.replace(&none, run)
        .replace(&none.replace('-', ""), &run.replace('-', ""))
        .replace(&mark(&none), &mark(run))
}

/// Compares, for each of these steps: all that is shown is executed, and nothing else that acts is. `by`: whose
/// connections execute what a step shows, where it is not the step's own; those may do more.
#[track_caller]
fn compare(
    run: &str,
    shown: &BTreeMap<(String, String), Vec<String>>,
    logs: &BTreeMap<&str, BTreeMap<String, Vec<String>>>,
    steps: &[(&str, &[&str])],
) {
    for (step, others) in steps {
        let mut count = 0;
        for (name, log) in logs {
            let own = log.get(*step).cloned().unwrap_or_default();
            let with_others: BTreeSet<&String> =
                own.iter().chain(others.iter().filter_map(|step| log.get(*step)).flatten()).collect();
            let shown: Vec<String> = shown
                .get(&((*step).to_owned(), (*name).to_owned()))
                .into_iter()
                .flatten()
                .map(|sql| of_run(sql, run, step))
                .collect();
            count += shown.len();
            for sql in &shown {
                let like =
                    with_others.iter().filter(|told| told.get(..20) == sql.get(..20)).collect::<Vec<_>>();
                assert!(
                    with_others.contains(sql),
                    "step {step} does not execute on {name}: {sql}\nbut {like:#?}"
                );
            }
            for sql in own.iter().filter(|sql| acts(sql)) {
                assert!(
                    shown.contains(sql),
                    "the dry run of step {step} does not show, on {name}: {sql}\nbut {shown:#?}"
                );
            }
        }
        assert!(count > 0, "step {step} shows nothing");
    }
}

async fn run_of(world: &World) -> String {
    let sql = "select id::text from handover.run";
    world.control.value(sql).await.unwrap()
}

/// Dry run, run, and the comparison.
async fn prove(world: &World, steps: &[(&str, &[&str])]) {
    let shown = shown(world).await;
    world.handover("run", &[]).await.success();
    let run = run_of(world).await;
    let logs = BTreeMap::from([("blue", told(&world.blue).await), ("green", told(&world.green).await)]);
    compare(&run, &shown, &logs, steps);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_one_database() {
    const PLAN: &str = "
handover: 1
name: one
databases: { blue: '${BLUE_URL}', green: '${GREEN_URL}' }
control: ${CONTROL_URL}
steps:
  - id: lifetime
    lever:
      sql:
        on: blue
        read: select value from setting where name = 'lifetime'
        apply: update setting set value = value + 29 where name = 'lifetime';
        revert: update setting set value = 1 where name = 'lifetime'
  - id: index
    create_index:
      on: blue
      indexes:
        - { name: account_shown, table: account, columns: [lower(name)] }
        - { name: account_bio, table: account, columns: [bio], where: id > 3, unique: true }
  - id: lower
    cleanup: { on: blue, table: account, action: update, set: { name: lower(name) } }
  - id: gone
    cleanup: { on: blue, table: account, action: delete, where: id > 40, children: archive, expect: { rows: 10 } }
  - id: aside
    cleanup: { on: blue, table: account, action: quarantine, where: id = 40, children: refuse, expect: { rows: 1 } }
  - id: same
    cleanup: { on: blue, table: account, action: backfill, set: { shown: upper(name) }, back: { name: lower(shown) } }
  - id: moved
    cleanup:
      on: blue
      table: account
      action: backfill
      to: { table: profile, key: { account: id }, columns: { bio: bio } }
      back: { bio: bio }
  - id: again
    restore: { from: green, to: blue, table: extra, on_conflict: overwrite }
  - id: cut-same
    cleanup: { on: blue, table: account, action: end_sync, of: same }
  - id: cut-moved
    cleanup: { on: blue, table: account, action: end_sync, of: moved }
  - id: usual
    lever: { revert: lifetime }
";
    const BLUE: &str = "
        create table setting (name text primary key, value int); insert into setting values ('lifetime', 1);
        create table account (id int primary key, name text not null, shown text, bio text);
        insert into account select n, 'Name' || n, null, 'bio' || n from generate_series(1, 50) n;
        create table note (id int primary key, account int references account on delete cascade);
        create table line (note int references note);
        insert into note values (1, 1), (2, 50); insert into line values (1), (2), (2);
        create table profile (account int primary key, bio text);
        create table extra (id int primary key, v text); insert into extra values (1, 'mine')";
    const GREEN: &str =
        "create table extra (id int primary key, v text); insert into extra values (1, 'one'), (2, 'two')";
    let world = blue_and_green(BLUE, GREEN, PLAN, &[]).await;
    let steps = [
        "lifetime",
        "index",
        "lower",
        "gone",
        "aside",
        "same",
        "moved",
        "again",
        "cut-same",
        "cut-moved",
        "usual",
    ];
    prove(&world, &steps.map(|step| (step, &[][..]))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_capture_and_a_cutover() {
    let capture = "on: [insert, update, delete], key: [id] } }";
    let odd = "on: [insert, update, delete], key: [id] }, Odd table: { on: [update], when: old.v > 1, rest: ignore } }";
    let events = "      events:\n";
    let ignored = "      events:\n        Odd table: { update: { ignore: true } }\n";
    let plan = crate::cutover::PLAN.replace(capture, odd).replace(events, ignored);
    let odd = "create table \"Odd table\" (k numeric primary key, v int, tags text[])";
    let (blue, green) = (crate::cutover::BLUE, crate::cutover::GREEN);
    let files = [("switch.conf", "database = blue\n")];
    let world = blue_and_green(&format!("{blue} {odd}"), &format!("{green} {odd}"), &plan, &files).await;
    prove(&world, &[("capture", &[]), ("flip", &[])]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_replication_and_its_end() {
    let plan = crate::replicate::PLAN;
    let files = [("switch.conf", "database = blue\n")];
    let world = blue_and_green(crate::replicate::BLUE, "", plan, &files).await;
    prove(&world, &[("follow", &["copy", "slot"])]).await;
}
