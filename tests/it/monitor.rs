//! `monitor` with real probes.

use crate::support::scenario::Scenario;
use crate::support::servers::{self, Database};
use crate::support::world::World;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const TABLE: &str = "create table session (id int primary key);
    insert into session select generate_series(1, 100);";

const HEAD: &str = "
handover: 1
name: watch
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
";

const SOAKS: &str = "
handover: 1
name: watch
databases: { blue: '${BLUE_URL}' }
control: ${CONTROL_URL}
steps:
  - id: usual
    monitor:
      for: 600ms
      every: 200ms
      record: true
      probes:
        - { name: sessions, sql: { on: blue, query: select count(*) from session }, min: 1 }
  - id: soak
    monitor:
      for: 1500ms
      every: 200ms
      baseline: usual
      breaches: 2
      probes:
        - { name: sessions, sql: { on: blue, query: select count(*) from session }, within: 20% }
        - { name: healthy, sql: { on: blue, query: 'select not pg_is_in_recovery()' } }
        - { name: load, command: [echo, '3.5'], max: 4 }
";

pub fn scenario() -> Scenario {
    Scenario {
        prefixes: &["monitor"],
        plan: SOAKS,
        blue: TABLE,
        rollback_restores: true,
        ..Scenario::default()
    }
}

async fn world(steps: &str) -> World {
    let template = Database::with(servers::blue().await, TABLE).await;
    World::new(Some(&template.name), None, &format!("{HEAD}{steps}"), &[]).await
}

async fn summary(world: &World, step: &str) -> serde_json::Value {
    let text = world
        .control
        .value(&format!(
            "select record->'summary' from handover.record where record->>'record' = 'step_done' and record->>'step' = '{step}' order by at desc limit 1"
        ))
        .await
        .unwrap();
    serde_json::from_str(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breach_stops_the_plan_and_a_mended_world_passes() {
    let world = world(SOAKS.strip_prefix(HEAD).unwrap()).await;
    world.blue.execute("create table gone as table session").await;
    let mut run = world.command();
    run.arg("run").arg(world.plan());
    let run = tokio::spawn(async move { run.output().await.unwrap() });
    let recorded = "select 1 from handover.record where record->>'record' = 'step_done'";
    for _ in 0..200 {
        let there = world.control.value("select to_regclass('handover.record')").await.is_some();
        if there && world.control.value(recorded).await.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.blue.execute("delete from session where id > 50").await;
    let output = run.await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_ne!(output.status.code(), Some(0));
    assert!(stderr.contains("breach of probe `sessions`: 50.000 is not within 20% of the baseline's 100.000 (2 times in a row)"), "{stderr}");
    world.blue.execute("truncate session; insert into session table gone").await;
    world.handover("resume", &[]).await.success();
    let soak = summary(&world, "soak").await;
    assert!(soak["seconds"].as_f64().unwrap() >= 1.5, "watched again from the start: {soak}");
    assert_eq!(soak["probes"]["load"]["value"]["median"], 3.5);
    assert_eq!(soak["probes"]["sessions"]["bad"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_watch_goes_on_where_it_was() {
    let world = world("  - { id: soak, monitor: { for: 8s, every: 200ms, probes: [ { name: up, sql: { on: blue, query: select true } } ] } }\n").await;
    // Kept twice a second: the tenth time is after about five seconds.
    world.handover_failing("monitor.kept:10", "run", &[]).await.killed();
    let begun = Instant::now();
    world.handover("resume", &[]).await.success();
    assert!(begun.elapsed() < Duration::from_millis(6500), "{:?}", begun.elapsed());
    let soak = summary(&world, "soak").await;
    assert!(soak["seconds"].as_f64().unwrap() >= 8.0, "{soak}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_asked_is_no_pass() {
    for (probe, message) in [
        ("{ name: x, http: { url: 'http://127.0.0.1:1/' } }", "refused"),
        ("{ name: x, command: [sh, -c, 'exit 3'] }", "exit code 3"),
        ("{ name: x, command: [echo, many], max: 3 }", "`many` is not a number"),
        ("{ name: x, sql: { on: blue, query: select * from nowhere } }", "nowhere"),
        ("{ name: x, sql: { on: blue, query: select 1 } }", "not true"),
    ] {
        // Even where breaches are only told: a watch that saw nothing good proves nothing.
        for on_breach in ["halt", "warn"] {
            let world = world(&format!("  - {{ id: soak, monitor: {{ for: 300ms, every: 100ms, breaches: 2, on_breach: {on_breach}, probes: [ {probe} ] }} }}\n")).await;
            let ended = world.handover("run", &[]).await;
            assert_ne!(ended.code, Some(0));
            assert!(ended.stderr.contains(message), "{ended}");
            world.drop_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_endpoint_rolls_the_plan_back() {
    let delay = Arc::new(AtomicU64::new(0));
    let mine = delay.clone();
    let answer = async move || {
        tokio::time::sleep(Duration::from_millis(mine.load(Ordering::SeqCst))).await;
        axum::Json(serde_json::json!({ "queue": { "depth": 7 } }))
    };
    let app = axum::Router::new().route("/health", axum::routing::get(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/health", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let world = world(
        "  - { id: raise, lever: { sql: { on: blue, apply: delete from session where id = 1, revert: insert into session values (1), check: 'select not exists (select from session where id = 1)' } } }
  - id: soak
    on_failure: rollback
    monitor:
      for: 600ms
      every: 100ms
      breaches: 2
      on_breach: rollback
      probes:
        - { name: time, http: { url: '${URL}' }, latency: { max: 150ms } }
        - { name: depth, http: { url: '${URL}' }, value: /queue/depth, equals: 7 }
",
    )
    .await;
    let handover = async |verb: &str| {
        let output = world.command().env("URL", &url).arg(verb).arg(world.plan()).output().await.unwrap();
        let all = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&all).into_owned())
    };
    delay.store(300, Ordering::SeqCst);
    let (code, stderr) = handover("run").await;
    assert_eq!(code, Some(8), "a run that was rolled back is not what was asked for: {stderr}");
    assert!(stderr.contains("breach of probe `time`") && stderr.contains("more than 150ms"), "{stderr}");
    assert_eq!(world.blue.value("select count(*) from session").await.as_deref(), Some("100"), "{stderr}");
    delay.store(0, Ordering::SeqCst);
    let (code, stderr) = handover("run").await;
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(summary(&world, "soak").await["probes"]["depth"]["last"], "7");
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_monitors_are_refused() {
    for (monitor, message) in [
        (
            "{ for: 1s, every: 1s, on_breach: rollback, probes: [ { name: a, command: [x] } ] }",
            "would not roll back",
        ),
        (
            "{ for: 1s, every: 1s, probes: [ { name: a, command: [x], within: 20% } ] }",
            "no baseline to compare with",
        ),
        (
            "{ for: 1s, every: 1s, baseline: usual, probes: [ { name: a, command: [x], within: 20% } ] }",
            "is not an earlier monitor that records",
        ),
        (
            "{ for: 1s, every: 1s, probes: [ { name: a, command: [x] }, { name: a, command: [y] } ] }",
            "named twice",
        ),
        ("{ for: 1s, every: 1s, probes: [ { name: a } ] }", "one of `sql`, `http`, `command` is missing"),
        (
            "{ for: 1s, every: 1s, probes: [ { name: a, http: { url: 'http://x' }, max: 3 } ] }",
            "there is no value to compare",
        ),
    ] {
        let world = world(&format!("  - {{ id: soak, monitor: {monitor} }}\n")).await;
        let ended = world.handover("check", &[]).await.code(2);
        assert!(format!("{}{}", ended.stdout, ended.stderr).contains(message), "{monitor}: {ended}");
        world.drop_now().await;
    }
}

/// A service whose answers take as many milliseconds as are in the returned number; its URL.
async fn slow_service() -> (Arc<AtomicU64>, String) {
    let delay = Arc::new(AtomicU64::new(0));
    let mine = delay.clone();
    let answer = async move || {
        tokio::time::sleep(Duration::from_millis(mine.load(Ordering::SeqCst))).await;
        "well"
    };
    let app = axum::Router::new().route("/health", axum::routing::get(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/health", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (delay, url)
}

/// The cells of a table's row.
fn row<'a>(table: &'a serde_json::Value, name: &str, figure: &str) -> &'a Vec<serde_json::Value> {
    let rows = table["rows"].as_array().unwrap_or_else(|| panic!("no rows in {table}"));
    let found = rows.iter().find(|row| row[0] == name && row[1] == figure);
    found.and_then(|row| row.as_array()).unwrap_or_else(|| panic!("no {figure} of {name} in {table}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_that_becomes_slower_shows_the_change() {
    let (delay, url) = slow_service().await;
    let world = world(
        "  - { id: usual, monitor: { for: 500ms, every: 50ms, record: true, probes: [ { name: login, http: { url: '${URL}' } } ] } }
  - { id: go, approve: { message: the service becomes slower now } }
  - id: soak
    monitor:
      for: 1500ms
      every: 50ms
      probes:
        - { name: login, http: { url: '${URL}' } }
        - { name: sessions, sql: { on: blue, query: select count(*) from session }, min: 1 }
",
    )
    .await;
    let handover = async |failpoint: &str, args: &[&str]| {
        let mut command = world.command();
        command.env("URL", &url).args(args);
        if !failpoint.is_empty() {
            command.env("HANDOVER_FAILPOINT", failpoint);
        }
        let output = command.output().await.unwrap();
        let all = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&all).into_owned())
    };
    let plan = world.plan();
    let plan = plan.to_str().unwrap();
    let (code, said) = handover("", &["run", plan, "--no-wait"]).await;
    assert_eq!(code, Some(7), "{said}");
    let has_line = |text: &str, words: &[&str]| {
        text.lines().any(|line| line.split_whitespace().collect::<Vec<_>>() == words)
    };
    assert!(has_line(&said, &["probe", "figure", "now"]), "it has nothing to be compared with: {said}");
    delay.store(100, Ordering::SeqCst);
    let (code, said) = handover("", &["approve", plan, "go"]).await;
    assert_eq!(code, Some(0), "{said}");
    // The baseline is there for whoever goes on, also in the midst of the watch.
    let (code, said) = handover("monitor.sampled:3", &["resume", plan]).await;
    assert_eq!(code, None, "{said}");
    let (code, said) = handover("", &["resume", plan]).await;
    assert_eq!(code, Some(0), "{said}");

    let summary = summary(&world, "soak").await;
    for figure in ["median", "p95", "p99"] {
        let cells = row(&summary["table"], "login, ms", figure);
        let [before, now, change] = [2, 3, 4].map(|at| cells[at].as_f64().unwrap());
        assert!(before < 60.0 && now >= 100.0, "{summary}");
        let exact = (now - before) * 100.0 / before;
        assert!((change - exact).abs() <= 0.051, "{change} is not {exact}");
    }
    let samples = row(&summary["table"], "login, ms", "samples");
    assert!(samples[2].as_u64().unwrap() >= 5 && samples[3].as_u64().unwrap() >= 5, "{summary}");
    let sessions = row(&summary["table"], "sessions", "median");
    assert_eq!(sessions[2..], [serde_json::Value::Null, 100.0.into(), serde_json::Value::Null]);
    assert_eq!(summary["probes"]["sessions"]["value"]["p95"], 100.0);

    // On every screen and in every report, with the sign that says that it became slower.
    assert!(has_line(&said, &["probe", "figure", "baseline", "now", "change"]), "{said}");
    let slower = |text: &str, start: &str| {
        let mut lines = text.lines().filter(|line| line.trim_start().starts_with(start));
        assert!(lines.any(|line| line.contains(" +") && line.contains(" %")), "no change in {text}");
    };
    slower(&said, "login, ms     median");
    for (format, start) in
        [("text", "login, ms     median"), ("md", "| login, ms | median |"), ("html", "<section")]
    {
        let report = world.handover("report", &["--format", format]).await.success().stdout;
        if format == "html" {
            assert!(report.contains("<td>login, ms</td><td>median</td><td class=\"number\">"), "{report}");
            assert!(report.contains("<td class=\"number\">+"), "{report}");
        } else {
            slower(&report, start);
        }
    }
    let report = world.handover("report", &["--format", "json"]).await.success().stdout;
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["steps"][2]["table"], summary["table"]);
    assert_eq!(report["steps"][1]["table"], serde_json::Value::Null);
}

/// A probe whose value is how often it was asked; from the fourth time on that is too much.
const RISING: &str = "{ name: rising, command: [sh, -c, 'echo x >> seen; wc -l < seen'], max: 3 }";

#[tokio::test(flavor = "multi_thread")]
async fn a_breach_needs_enough_samples() {
    let plan = |samples: u32| {
        format!(
            "  - {{ id: soak, monitor: {{ for: 1s, every: 50ms, breaches: 2, min_samples: {samples}, probes: [ {RISING} ] }} }}\n"
        )
    };
    let few = world(&plan(1000)).await;
    let said = few.handover("check", &[]).await.success();
    assert!(
        format!("{}{}", said.stdout, said.stderr).contains("nothing can be a breach: it needs 1000 samples"),
        "{said}"
    );
    let said = few.handover("run", &[]).await.success();
    for told in [
        "5 is more than 3 (2 times in a row), no breach yet: 5 of the 1000 samples that one needs",
        "of the 1000 samples that a breach needs: too few to judge it by",
    ] {
        assert!(said.stdout.contains(told), "{told}: {said}");
    }
    assert_eq!(summary(&few, "soak").await["probes"]["rising"]["breaches"], 0);

    let enough = world(&plan(6)).await;
    let said = enough.handover("run", &[]).await.code(8);
    assert!(said.stderr.contains("breach of probe `rising`: 6 is more than 3 (3 times in a row)"), "{said}");
    // What was seen up to the breach is told, too.
    let median = |line: &str| line.trim_start().starts_with("rising      median ") && line.ends_with(" 3");
    assert!(said.stdout.lines().any(median), "{said}");
    let report = enough.handover("report", &["--format", "json"]).await.success().stdout;
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(row(&report["steps"][0]["table"], "rising", "samples")[3], 6);
    assert_eq!(row(&report["steps"][0]["table"], "rising", "p99")[3], 6.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thin_baseline_judges_nothing() {
    let plan = |samples: u32| {
        format!(
            "  - {{ id: usual, monitor: {{ for: 400ms, every: 50ms, record: true, probes: [ {{ name: n, command: [echo, '1'] }} ] }} }}
  - {{ id: soak, monitor: {{ for: 1s, every: 50ms, min_samples: {samples}, probes: [ {{ name: n, command: [echo, '9'], within: 10% }} ] }} }}\n"
        )
    };
    let thin = world(&plan(100)).await;
    let said = thin.handover("run", &[]).await.success();
    assert!(said.stdout.contains("probe `n` is not judged by `within`: its baseline has "), "{said}");
    // But the change is shown.
    assert_eq!(row(&summary(&thin, "soak").await["table"], "n", "median")[4], 800.0);
    let enough = world(&plan(2)).await;
    // Without `baseline:`, the last monitor that records is the one.
    let said = enough.handover("run", &[]).await.code(8);
    assert!(said.stderr.contains("9.000 is not within 10% of the baseline's 1.000"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_baseline_from_behind_the_cutover_is_told() {
    let monitor = |id: &str, more: &str| {
        format!(
            "  - {{ id: {id}, monitor: {{ for: 1s, every: 100ms, {more}, probes: [ {{ name: n, command: [echo, '1'] }} ] }} }}\n"
        )
    };
    let flip =
        "  - { id: flip, cutover: { participants: [ { name: f, file: { path: f, content: x } } ] } }\n";
    let usual = monitor("usual", "record: true");
    let soak = monitor("soak", "baseline: usual");
    for (steps, told) in [(format!("{flip}{usual}{soak}"), true), (format!("{usual}{flip}{soak}"), false)] {
        let world = world(&steps).await;
        let said = world.handover("check", &[]).await.success();
        let all = format!("{}{}", said.stdout, said.stderr);
        assert_eq!(all.contains("step `usual` records behind the cutover `flip`"), told, "{all}");
        world.drop_now().await;
    }
}
