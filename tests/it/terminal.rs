//! What a person at the terminal meets: refusals that leave no trace, one point of no return, texts that never invite
//! a loss in silence, and dry runs that find what can be found.

use crate::cutover;
use crate::support::servers::{self, Database};
use crate::support::world::{Ended, World};
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};

pub const PLAN: &str = "
handover: 1
name: shop
databases:
  blue: { url: '${BLUE_URL}', reader: '${BLUE_READER_URL}' }
control: ${CONTROL_URL}
steps:
  - id: index
    create_index: { on: blue, indexes: [{ name: token_subject, table: token, columns: [subject] }] }
  - id: go-live
    approve: { message: go on, by: [alice] }
";

pub const TABLE: &str = "create table token (id int primary key, subject text, active bool);
    insert into token select n, 's' || n % 10, n % 3 = 0 from generate_series(1, 1000) n;";

async fn world(plan: &str) -> World {
    let template = Database::with(servers::blue().await, TABLE).await;
    World::new(Some(&template.name), None, plan, &[]).await
}

fn object(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}: {ended}"))
}

/// A plan of one step on blue.
pub fn one(step: &str) -> String {
    format!(
        "handover: 1\nname: one\ndatabases: {{ blue: '${{BLUE_URL}}' }}\ncontrol: ${{CONTROL_URL}}\nsteps:\n  - id: step\n    {step}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_is_the_point_of_no_return_everywhere_and_no_text_hides_what_going_back_loses() {
    let scenario = cutover::scenario();
    let blue = Database::with(servers::blue().await, scenario.blue).await;
    let green = Database::with(servers::green().await, scenario.green).await;
    let world = World::new(Some(&blue.name), Some(&green.name), scenario.plan, scenario.files).await;
    let check = object(&world.handover("check", &["--format", "json"]).await.success());
    let ended = world.handover("dry-run", &["--format", "json"]).await;
    let look = object(&ended);
    assert_eq!(check["point_of_no_return"]["step"], "flip");
    assert_eq!(look["point_of_no_return"]["step"], "flip", "{ended}");
    let lost = "what was written on green since the cutover";
    assert!(look["point_of_no_return"]["what"].as_str().unwrap().contains(lost), "{ended}");

    let run = world.handover("run", &[]).await.success();
    assert!(run.stdout.contains(lost) && run.stdout.contains("--accept-loss"), "{run}");
    let status = world.handover("status", &[]).await.success();
    assert!(status.stdout.contains("rolling back now is not free"), "{status}");
    let next = status.stdout.rsplit("next:").next().unwrap();
    assert!(next.contains(lost), "{status}");
    assert!(next.find("rollback") < next.find("finish"), "what cannot be taken back comes last: {status}");
    let report = world.handover("report", &[]).await.success();
    assert!(report.stdout.lines().next().unwrap().contains(lost), "{report}");
    let again = world.handover("run", &[]).await.code(2);
    assert!(again.stderr.contains(lost), "{again}");
    // What the application reads.
    let (client, connection) =
        tokio_postgres::connect(&world.blue.owner_url(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let refused = client.execute("insert into token (active) values (true)", &[]).await.unwrap_err();
    let hint = refused.as_db_error().unwrap().hint().unwrap().to_owned();
    assert!(hint.contains("loses what was written on the successor"), "{hint}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_commands_leave_no_trace() {
    let world = world(PLAN).await;
    let never = world.handover("rollback", &[]).await.code(2);
    assert!(never.stderr.contains("never run"), "{never}");
    let made = "select count(*) from pg_namespace where nspname = 'handover'";
    assert_eq!(world.control.value(made).await.as_deref(), Some("0"), "a refused command made our schema");

    let waiting = world.handover("run", &["--no-wait"]).await.code(7);
    assert!(!waiting.stdout.contains("failed"), "waiting is no failure: {waiting}");
    for line in ["[1/2] index: started", "[1/2] index: done", "[2/2] go-live: started"] {
        assert!(waiting.stdout.contains(line), "{line}: {waiting}");
    }
    let trace = "select (select count(*) from handover.record) || ' ' || (select token from handover.lease)
        || ' ' || (select count(*) from handover.request)";
    let before = world.control.value(trace).await;
    let typo = world.handover("rollback", &["--to", "indx"]).await.code(2);
    assert!(typo.stderr.contains("did you mean `index`?"), "{typo}");
    world.handover("rollback", &["--to", "nothing-like-it"]).await.code(2);
    world.handover("finish", &[]).await.code(2);
    world.handover("run", &[]).await.code(2);
    assert!(
        waiting.stderr.contains(&format!("`handover approve {} go-live`", world.plan().display())),
        "{waiting}"
    );
    // Another plan than the run began with.
    world.write("plan.yaml", &PLAN.replace("go on", "go on now"));
    world.handover("resume", &[]).await.code(6);
    world.handover("rollback", &[]).await.code(6);
    let status = world.handover("status", &[]).await.success();
    assert!(status.stdout.contains("`approve: { message: go on, by: [alice] }` is now"), "{status}");
    assert!(status.stdout.contains("--accept-changes"), "{status}");
    world.write("plan.yaml", PLAN);
    // Another role than the one whose tables ours are.
    for verb in ["resume", "rollback"] {
        let mut command = world.command();
        let output = command
            .env("BLUE_URL", world.blue.reader_url())
            .arg(verb)
            .arg(world.plan())
            .output()
            .await
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let typo = world.handover("approve", &["go-life"]).await.code(2);
    assert!(typo.stderr.contains("did you mean `go-live`?"), "{typo}");
    let stranger = world.handover("approve", &["go-live", "--by", "mallory"]).await.code(2);
    assert!(
        stranger.stderr.contains("mallory does not count") && stranger.stderr.contains("alice"),
        "{stranger}"
    );
    assert_eq!(before, world.control.value(trace).await);
    let status = world.handover("status", &[]).await.success();
    assert!(status.stdout.contains("stopped: step `go-live`: waiting for the approval of alice"), "{status}");
    assert!(!status.stdout.contains("failed"), "{status}");
    assert_eq!(object(&world.handover("status", &["--format", "json"]).await)["halted"]["class"], "waiting");
    assert!(!status.stdout.contains("approve       step `go-live`"), "the step is named already: {status}");
    assert!(!waiting.stdout.contains("go-live: step `go-live`"), "{waiting}");
    let report = world.handover("report", &[]).await.success();
    assert!(!report.stdout.contains("fail") && !report.stdout.contains(" PLAN "), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_before_it_did_anything_is_undone_by_nothing() {
    for (step, missing) in [
        (
            "cleanup: { on: blue, table: token, action: backfill, to: { table: moved, key: { id: id }, columns: { subject: subject } } }",
            "moved",
        ),
        ("cleanup: { on: blue, table: gone, action: backfill, set: { a: b } }", "gone"),
        ("cleanup: { on: blue, table: gone, action: quarantine, where: 'true' }", "gone"),
        ("create_index: { on: blue, indexes: [{ name: i, table: gone, columns: [a] }] }", "gone"),
        ("capture: { from: blue, tables: { gone: { on: [update], key: [id] } }, stream: s }", "gone"),
    ] {
        let mut plan = one(step);
        if step.starts_with("capture") {
            plan = plan.replacen("control:", "queue: '${QUEUE_URL}'\ncontrol:", 1);
        }
        let world = world(&plan).await;
        let failed = world.handover("run", &[]).await;
        assert!(failed.code != Some(0) && failed.stderr.contains(missing), "{step}: {failed}");
        let back = world.handover("rollback", &[]).await;
        assert_eq!(back.code, Some(0), "{step}: {back}");
        assert!(back.stdout.contains("step: undoing\n") && !back.stdout.contains("again"), "{step}: {back}");
        world.drop_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_asks_the_server_about_indexes() {
    let plan = |index: &str| one(&format!("create_index: {{ on: blue, indexes: [{index}] }}"));
    let world = world(&plan("{ name: i, table: token, columns: [sbject] }")).await;
    let look = async |index: &str, code: i32, says: &str| {
        world.write("plan.yaml", &plan(index));
        let ended = world.handover("dry-run", &[]).await.code(code);
        assert!(ended.stdout.contains(says), "{index}: {ended}");
    };
    look("{ name: i, table: token, columns: [sbject] }", 8, "column \"sbject\" does not exist").await;
    look("{ name: i, table: token, columns: [id], where: activ }", 8, "column \"activ\" does not exist")
        .await;
    look("{ name: i, table: token, columns: [id], include: [nothing] }", 8, "does not exist").await;
    look("{ name: i, table: token, columns: ['lowr(subject) desc'] }", 8, "does not exist").await;
    world.blue.execute("alter table token add column doc json").await;
    look("{ name: i, table: token, columns: [doc] }", 8, "ordering operator").await;
    look(
        "{ name: i, table: token, columns: ['lower(subject) text_pattern_ops'], where: active }",
        0,
        "create index",
    )
    .await;

    // One is there: the same in other words, and others.
    world
        .blue
        .execute("create unique index i on token (lower(subject) collate \"C\", id desc) include (active) where id > 1 and not active")
        .await;
    let same = "name: i, table: token, unique: true, include: [active]";
    let columns = "columns: ['LOWER( subject ) collate \"C\"', 'id DESC NULLS FIRST']";
    let condition = "where: '(id > 1) and (not active)'";
    look(&format!("{{ {same}, {columns}, {condition} }}"), 0, "exists already").await;
    for other in [
        format!("{{ name: i, table: token, include: [active], {columns}, {condition} }}"),
        format!("{{ {same}, columns: ['lower(subject)', 'id desc'], {condition} }}"),
        format!("{{ {same}, columns: ['lower(subject) collate \"C\"', id], {condition} }}"),
        format!("{{ {same}, columns: ['upper(subject) collate \"C\"', 'id desc'], {condition} }}"),
        format!("{{ {same}, {columns}, where: 'id > 2 and not active' }}"),
        format!("{{ {same}, {columns} }}"),
        format!("{{ name: i, table: token, unique: true, {columns}, {condition} }}"),
        format!(
            "{{ {same}, columns: ['lower(subject) collate \"C\" text_pattern_ops', 'id desc'], {condition} }}"
        ),
    ] {
        look(&other, 8, "another definition").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn not_in_over_a_long_list_is_counted_and_run_in_time() {
    let plan = one(
        "cleanup: { on: blue, table: payment, action: quarantine, where: order_id not in (select id from orders) }",
    );
    let world = world(&plan).await;
    world
        .blue
        .execute(
            "create table orders as select generate_series(1, 300000)::bigint id;
             create table payment (id int primary key, order_id bigint);
             insert into payment select n, n from generate_series(1, 306000) n; analyze",
        )
        .await;
    let begun = Instant::now();
    let ended = world.handover("dry-run", &[]).await.success();
    assert!(ended.stdout.contains("quarantine 6000 rows"), "{ended}");
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    // The run and its look at what is left are no slower.
    let begun = Instant::now();
    let ended = world.handover("run", &[]).await.success();
    assert!(ended.stdout.contains("step: done"), "{ended}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    // One that cannot be counted in time says how it guesses, and gives a sign of life.
    world.write(
        "plan.yaml",
        &one("cleanup: { on: blue, table: payment, action: quarantine, where: \"order_id < 0 or pg_sleep(0.001) is null\" }").replace("name: one", "name: two"),
    );
    let ended = world.handover("dry-run", &[]).await.success();
    assert!(ended.stdout.contains("by a sample of"), "{ended}");
    assert!(ended.stderr.contains("looking at step 1 of 1, `step`"), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_needs_no_writer_where_a_reader_is_named() {
    let world = world(PLAN).await;
    let output =
        world.command().env_remove("BLUE_URL").arg("dry-run").arg(world.plan()).output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_was_killed_reads_the_same_everywhere() {
    let world = world(PLAN).await;
    world.handover_failing("engine.step-started", "run", &[]).await.killed();
    let status = world.handover("status", &[]).await.success();
    assert!(status.stdout.contains("interrupted, its runner died"), "{status}");
    let report = world.handover("report", &[]).await.success();
    let (_, steps) = report.stdout.split_once("\nSteps\n").unwrap();
    let line = steps.lines().next().unwrap();
    assert!(
        line.contains("index") && line.ends_with("interrupted"),
        "nobody knows how long it worked: {report}"
    );
    assert!(!report.stdout.contains("not ended") || report.stdout.starts_with("Not ended"), "{report}");
    let json = object(&world.handover("report", &["--format", "json"]).await);
    assert_eq!(json["steps"][0]["attempts"][0]["outcome"], "interrupted", "{json}");
    assert_eq!(json["steps"][0]["seconds"], Value::Null, "{json}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_that_cannot_be_is_not_called_one() {
    let plan = one("migrate: { on: blue, role: app, dir: steps, undo: none }");
    let template = Database::with(servers::blue().await, TABLE).await;
    let world = World::new(Some(&template.name), None, &plan, &[("steps/V1__one.sql", "select 1;")]).await;
    let look = world.handover("dry-run", &[]).await.success();
    assert!(
        !look.stdout.contains("undo cannot") && !look.stdout.contains("rollback from here on cannot"),
        "{look}"
    );
    assert!(look.stdout.contains("a rollback from here on stops at it, for it cannot be undone: "), "{look}");
    assert!(look.stdout.contains("(the point of no return): it cannot be undone: "), "{look}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_behind_the_flip_tells_the_loss_once_and_a_way_back_that_works() {
    let scenario = cutover::scenario();
    let blue = Database::with(servers::blue().await, scenario.blue).await;
    let green = Database::with(servers::green().await, scenario.green).await;
    let plan = format!(
        "{}\n  - id: soak\n    monitor: {{ for: 2s, every: 200ms, breaches: 1, probes: [{{ name: never, sql: {{ on: green, query: select 0 }}, min: 1 }}] }}\n",
        scenario.plan.trim_end()
    );
    let world = World::new(Some(&blue.name), Some(&green.name), &plan, scenario.files).await;
    let run = world.handover("run", &[]).await;
    assert_ne!(run.code, Some(0), "{run}");
    let status = world.handover("status", &[]).await.success();
    let next = status.stdout.rsplit("next:").next().unwrap();
    assert_eq!(next.matches("loses what was written on green").count(), 1, "{status}");
    let back = format!("`handover rollback {} --accept-loss`", world.plan().display());
    for text in [next, &run.stderr] {
        assert!(text.contains(&back) && !text.contains("rollback`"), "{text}");
        assert!(text.contains(&format!("`handover resume {}`", world.plan().display())), "{text}");
    }
    let report = world.handover("report", &[]).await.success();
    assert!(!report.stdout.contains("`handover resume`"), "{report}");
    let events = world.handover("events", &[]).await.success();
    assert!(!events.stdout.contains("`successor`"), "{events}");
    let rollback = world.handover("rollback", &["--accept-loss"]).await.success();
    assert!(rollback.stdout.matches("turning back\n").count() <= 1, "{rollback}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_lists_what_is_this_plans_only() {
    let plan = "
handover: 1
name: other
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
queue: ${QUEUE_URL}
steps:
  - id: watch
    capture: { from: blue, tables: { token: { on: [update], key: [id] } } }
  - id: idle
    cleanup: { on: blue, table: token, action: quarantine, where: not active }
";
    let world = world(PLAN).await;
    world.handover("run", &["--no-wait"]).await.code(7);
    let file = world.write("other.yaml", plan);
    let call = async |verb: &str, file: &std::path::Path| {
        let output = world.command().arg(verb).arg(file).args(["--format", "json"]).output().await.unwrap();
        assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    call("run", &file).await;
    let held = |stdout: Vec<u8>| serde_json::from_slice::<Value>(&stdout).unwrap()["held"].clone();
    let theirs = held(call("status", &file).await).to_string();
    assert!(theirs.contains("trigger") && theirs.contains("archive (667 rows"), "{theirs}");
    assert_eq!(held(call("status", &world.plan()).await), json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_cannot_be_read_does_not_keep_its_run() {
    let world = world(PLAN).await;
    world.handover("run", &["--no-wait"]).await.code(7);
    world.write("plan.yaml", &PLAN.replace("steps:", "steps: [{{{"));
    let broken = world.handover("status", &[]).await.code(2);
    assert!(broken.stderr.contains("handover status --control '${CONTROL_URL}' --plan shop"), "{broken}");
    let kept = async |verb: &str, control: &str, code: i32| {
        let mut command = world.command();
        let output = command.args([verb, "--control", control, "--plan", "shop"]).output().await.unwrap();
        let all = [output.stdout, output.stderr].concat();
        let all = String::from_utf8(all).unwrap();
        assert_eq!(output.status.code(), Some(code), "{verb}: {all}");
        all
    };
    let status = kept("status", "${CONTROL_URL}", 0).await;
    assert!(status.contains("waiting for the approval of alice"));
    // Only `approve` and others that need the file name it.
    let called = "--control '${CONTROL_URL}' --plan shop";
    assert!(status.contains(&format!("go-live`, then `handover resume {called}`")), "{status}");
    let refused = kept("finish", "${CONTROL_URL}", 2).await;
    assert!(refused.contains(&format!("`handover resume {called}`")), "{refused}");
    assert!(kept("events", "CONTROL_URL", 0).await.contains("index: done"));
    assert!(kept("report", "${CONTROL_URL}", 0).await.contains("go-live"));
    let literal = kept("status", &world.control.handover_url(), 2).await;
    assert!(literal.contains("a password stands on the command line"), "{literal}");
    kept("run", "${CONTROL_URL}", 2).await;
    kept("abort", "${CONTROL_URL}", 0).await;
    let aborted = kept("status", "${CONTROL_URL}", 0).await;
    for verb in ["rollback", "finish"] {
        assert!(aborted.contains(&format!("`handover {verb} {called}`")), "{aborted}");
    }
    kept("rollback", "${CONTROL_URL}", 0).await;
    assert_eq!(world.blue.value("select to_regclass('token_subject')::text").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_a_changed_plan_names_what_changed() {
    let plan = "
handover: 1
name: changed
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
  - id: migrate
    migrate: { on: blue, role: app, dir: steps, undo: none }
  - id: go
    approve: { message: go on }
";
    let template = Database::with(servers::blue().await, TABLE).await;
    let files = [("steps/V1__note.sql", "alter table token add column note text;")];
    let world = World::new(Some(&template.name), None, plan, &files).await;
    world.handover("run", &["--no-wait"]).await.code(7);
    world.write("steps/V2__more.sql", "select 1;");
    world.write("plan.yaml", &plan.replace("message: go on", "message: go on now"));
    let refused = world.handover("resume", &["--no-wait"]).await.code(6);
    assert!(refused.stderr.contains("file steps/V2__more.sql is new"), "{refused}");
    assert!(
        refused.stderr.contains(
            "from line 10 on: `approve: { message: go on }` is now `approve: { message: go on now }`"
        ),
        "{refused}"
    );
    let look = world.handover("dry-run", &[]).await;
    assert!(look.stdout.contains("file steps/V2__more.sql is new"), "{look}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_told_at_once() {
    let plan = one("lever: { command: { apply: [sleep, '4'], revert: ['true'] } }");
    let world = world(&plan).await;
    let mut run = world.command().arg("run").arg(world.plan()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        if line.contains("step: started") {
            break;
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let asked = Instant::now();
    let pid = nix::unistd::Pid::from_raw(run.id().unwrap().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let mut told = None;
    while let Some(line) = lines.next_line().await.unwrap() {
        if line.contains("stopping: step `step` (at work for") {
            told = Some(asked.elapsed());
            assert!(!line.contains("ends it at once") && line.contains("must not be cut short"), "{line}");
        }
    }
    assert!(told.is_some_and(|after| after < Duration::from_secs(1)), "{told:?}");
    assert_eq!(run.wait().await.unwrap().code(), Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_to_do_next_can_be_pasted_where_nothing_was_begun() {
    let world = world(PLAN).await;
    let call = async |verb: &str, variable: &str, value: &str| {
        let mut command = world.command();
        let output = command.env(variable, value).arg(verb).arg(world.plan()).output().await.unwrap();
        assert!(!output.status.success(), "{verb}");
        String::from_utf8(output.stderr).unwrap()
    };
    let away = "postgres://u:pw@127.0.0.1:9/nowhere";
    for verb in ["run", "status", "events", "runs", "report"] {
        for (variable, value, says) in [
            ("CONTROL_URL", "", "environment variable CONTROL_URL is empty"),
            ("CONTROL_URL", away, "127.0.0.1:9"),
        ] {
            let text = call(verb, variable, value).await;
            assert!(text.contains(says), "{verb}: {text}");
            assert!(!text.contains("handover resume"), "nothing was begun: {verb}: {text}");
            let again = format!("`handover {verb} {}`", world.plan().display());
            assert!(value.is_empty() || text.contains(&again), "{verb}: {text}");
        }
    }
    for verb in ["dry-run", "doctor"] {
        let output =
            world.command().env("CONTROL_URL", away).arg(verb).arg(world.plan()).output().await.unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(text.contains("127.0.0.1:9") && text.contains("then look again"), "{verb}: {text}");
        assert!(!text.contains("handover resume"), "{verb}: {text}");
    }
    let text = call("run", "BLUE_URL", "").await;
    assert!(
        text.contains("environment variable BLUE_URL is empty") && text.contains("export BLUE_URL="),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn our_schema_names_no_command_that_does_not_exist() {
    let world = world(PLAN).await;
    world.handover("run", &["--no-wait"]).await.code(7);
    let help = String::from_utf8(world.command().arg("help").output().await.unwrap().stdout).unwrap();
    let comments = "select string_agg(obj_description(oid, 'pg_namespace'), ' ') from pg_namespace where nspname like 'handover%'";
    for database in [&world.blue, &world.control] {
        let comment = database.value(comments).await.unwrap();
        assert!(comment.contains("Handover's own"), "{comment}");
        for (i, _) in comment.match_indices("`handover ") {
            let command = comment[i + 10..].split(['`', ' ']).next().unwrap();
            let rest = comment[i + 10..].split('`').next().unwrap();
            assert!(help.contains(&format!("  {command} ")) && !rest.contains("--"), "{comment}");
        }
    }
}
