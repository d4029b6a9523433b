//! A verification that was killed goes on where it was, and only if nothing was written since.

use crate::support::world::World;

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
