//! Checksums while blue is written all the time and Postgres replicates it to green.

use crate::support::context::{context, kind};
use crate::support::servers::{self, Database};
use crate::support::world::World;
use async_trait::async_trait;
use handover::Result;
use handover::steps::Context;
use handover_compare::contents::{self, Wanted};
use handover_compare::fence::Fence;
use handover_compare::found::{Kind, TableFound};
use handover_compare::{Checksums, Evidence, Sessions, Tables};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const TABLES: &str = "
    create table marker (n bigint primary key);
    create table hot (id int primary key, n bigint not null default 0, flag bool not null default false, note text);
    create table busy (id bigint primary key, v text, body text);
    create table label (name text primary key, n int);
    create table jobs (id bigint primary key, what text);
    create table heap (v text, n int); alter table heap replica identity full;
    create index on heap (v);
    create table logs (id bigint, at date not null, n int, primary key (id, at)) partition by range (at);
    create table logs_1 partition of logs for values from ('2026-01-01') to ('2026-02-01');
    create table logs_2 partition of logs default;";

const ROWS: &str = "
    insert into hot (id) select generate_series(1, 5);
    insert into busy select n, 'v' || n, repeat(md5(n::text), 5) from generate_series(1, 5000) n;
    insert into label select md5(n::text), n from generate_series(1, 3000) n;
    insert into logs select n, '2026-01-01'::date + n % 60, n from generate_series(1, 1000) n;
    insert into heap select 'v' || n % 50, n from generate_series(1, 500) n; analyze;";

struct Replication {
    blue: Database,
    green: Database,
    stop: Arc<AtomicBool>,
    /// Green is far behind: writers wait. On a busy machine they would otherwise outrun it for good.
    behind: Arc<AtomicBool>,
    writes: Arc<AtomicU64>,
    writers: Vec<tokio::task::JoinHandle<()>>,
}

impl Replication {
    async fn start() -> Self {
        let (blue, green) = tokio::join!(servers::own_blue(), servers::own_green());
        let (blue, green): (&'static _, &'static _) = (Box::leak(Box::new(blue)), Box::leak(Box::new(green)));
        let (blue, green) = tokio::join!(Database::with(blue, TABLES), Database::with(green, TABLES));
        blue.execute(ROWS).await;
        blue.admin().await.batch_execute("create publication p for all tables").await.unwrap();
        let url = blue.server.admin_url(&blue.name);
        green
            .admin()
            .await
            .batch_execute(&format!("create subscription s connection '{url}' publication p"))
            .await
            .unwrap();
        let ready = "select bool_and(srsubstate = 'r') from pg_subscription_rel";
        while green.value(ready).await.as_deref() != Some("t") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        green.execute("analyze").await;
        let mut it = Replication {
            blue,
            green,
            stop: Arc::default(),
            behind: Arc::default(),
            writes: Arc::default(),
            writers: Vec::new(),
        };
        it.watch_lag().await;
        it.write("update hot set n = n + 1 where id = 1", 1).await;
        it.write("update hot set flag = not flag where id = 2", 2).await;
        it.write("update hot set n = n + 1, note = md5(n::text) where id > 2", 3).await;
        // Keys above 1000 only: those below stand still.
        it.write("update busy set v = v || '.' where id = 1001 + (random() * 3999)::int", 2).await;
        it.write("with gone as (delete from busy where id = 1001 + (random() * 3999)::int returning id, v, body) insert into busy select id + 100000, v, body from gone", 5).await;
        it.write("update label set n = n + 1 where name = md5((10 + (random() * 2990)::int)::text)", 3).await;
        it.write("insert into jobs select coalesce(max(id), 0) + 1, 'do' from jobs", 4).await;
        it.write("delete from jobs where id = (select min(id) from jobs)", 4).await;
        it.write("update logs set n = n + 1 where id > 100 and id % 9 = 0", 4).await;
        it.write("update heap set n = n + 1 where v = 'v' || (10 + (random() * 39)::int) and n % 7 = 0", 10)
            .await;
        it.hold_up().await;
        it
    }

    /// Makes green late: applying waits for a lock, again and again.
    async fn hold_up(&mut self) {
        let client = self.green.admin().await;
        let stop = self.stop.clone();
        self.writers.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let sql = "begin; lock table hot in exclusive mode; select pg_sleep(0.12); commit";
                client.batch_execute(sql).await.unwrap();
                tokio::time::sleep(Duration::from_millis(60)).await;
            }
        }));
    }

    /// Keeps `behind` true while green has more than a megabyte to apply.
    async fn watch_lag(&mut self) {
        let client = self.blue.admin().await;
        let (stop, behind) = (self.stop.clone(), self.behind.clone());
        self.writers.push(tokio::spawn(async move {
            let sql = "select coalesce(max(pg_current_wal_lsn() - replay_lsn), 0) > 1000000 \
                from pg_stat_replication where application_name = 's'";
            while !stop.load(Ordering::Relaxed) {
                behind.store(client.query_one(sql, &[]).await.unwrap().get(0), Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            behind.store(false, Ordering::Relaxed);
        }));
    }

    /// Executes a statement over and over, `every` milliseconds.
    async fn write(&mut self, sql: &'static str, every: u64) {
        let client = self.blue.server.admin(&self.blue.name).await.unwrap();
        let (stop, behind, writes) = (self.stop.clone(), self.behind.clone(), self.writes.clone());
        self.writers.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                while behind.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                // Two writers may meet: one of them is not needed.
                if client.execute(sql, &[]).await.is_ok() {
                    writes.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(every)).await;
            }
        }));
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await.unwrap();
        }
        self.green.admin().await.batch_execute("drop subscription s").await.unwrap();
    }
}

/// A row that is replicated like the others.
struct Marker {
    blue: tokio_postgres::Client,
    green: tokio_postgres::Client,
}

#[async_trait]
impl Fence for Marker {
    async fn pass(&mut self) -> Result<bool> {
        let sql = "insert into marker select coalesce(max(n), 0) + 1 from marker returning n";
        let n: i64 = self.blue.query_one(sql, &[]).await.unwrap().get(0);
        let begun = Instant::now();
        while self.green.query("select 1 from marker where n >= $1", &[&n]).await.unwrap().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(60), "replication stands still");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(true)
    }

    fn proves(&self) -> bool {
        true
    }
}

async fn compare(cx: &Context, it: &Replication, rows: u32, within: u64) -> Vec<TableFound> {
    let sums = Checksums { chunk_rows: Some(rows), ..Checksums::default() };
    let wanted = Wanted { sums: Some(&sums), counts: None, copy: None, aside: None };
    compare_wanted(cx, it, wanted, within).await
}

async fn compare_wanted(cx: &Context, it: &Replication, wanted: Wanted<'_>, within: u64) -> Vec<TableFound> {
    let mut fence = Marker { blue: it.blue.admin().await, green: it.green.admin().await };
    let timeout = Duration::from_secs(60);
    let sessions = Sessions::Moving { databases: &cx.databases, names: ("blue", "green"), timeout };
    contents::moving(
        cx,
        wanted,
        sessions,
        2,
        "blue",
        (&mut fence, Duration::from_secs(within)),
        &Evidence::new(),
    )
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_all_the_time_agrees_and_one_wrong_row_does_not() {
    let it = Replication::start().await;
    let urls = [("blue", it.blue.handover_url()), ("green", it.green.handover_url())];
    let (cx, _events) = context("verify", &urls, &[]).await;

    for rows in [200, 50_000] {
        let writes = it.writes.load(Ordering::Relaxed);
        let found = compare(&cx, &it, rows, 120).await;
        assert!(found.iter().all(TableFound::equal), "{found:#?}");
        assert!(
            found.iter().map(|t| t.settled).sum::<u64>() > 0,
            "nothing was written meanwhile: {found:#?}"
        );
        assert!(it.writes.load(Ordering::Relaxed) > writes + 10);
    }
    // Numbers of rows alone, behind the same marks.
    let all = Tables::default();
    let counted = Wanted { sums: None, counts: Some(&all), copy: None, aside: None };
    let found = compare_wanted(&cx, &it, counted, 120).await;
    assert!(found.len() == 7 && found.iter().all(TableFound::equal), "{found:#?}");
    let step = |seconds| json!({ "before": "blue", "after": "green", "checksums": { "chunk_rows": 500 }, "retries": { "within": seconds, "every": "700ms" } });
    let summary = kind("verify", step("120s")).run(&cx).await.unwrap();
    assert_eq!((&summary["checksums"]["tables"], &summary["checksums"]["differing"]), (&json!(7), &json!(0)));

    // Nobody replicates what happens on green. Rows that stand still on blue, and one that does not.
    it.green
        .execute(
            "update busy set body = 'x' where id = 77; delete from busy where id = 78; insert into busy values (-5, 'new');
             update label set n = -1 where name = md5('3'); insert into heap values ('v3', -1); delete from hot where id = 1;
             update logs set n = -1 where id = 40",
        )
        .await;
    let found = compare(&cx, &it, 200, 25).await;
    let words: Vec<String> = found.iter().filter_map(TableFound::words).collect();
    let text = words.join("\n");
    for expected in [
        "table busy: 3 rows differ (1 only before, 1 only after, 1 changed)",
        "changed: (77) in body",
        "only before: (78)",
        "only after: (-5)",
        "table label: 1 rows differ (1 changed), changed: (eccbc87e4b5ce2fe28308fd9f2a7baf3) in n",
        "table heap: 1 rows differ (1 only after)",
        "table logs: 1 rows differ (1 changed), changed: (40, 2026-02-10) in n",
        // It was written too fast to be caught standing still, and is not called equal for that.
        "table hot: ",
    ] {
        assert!(text.contains(expected), "{expected} in\n{text}");
    }
    assert_eq!(words.len(), 5, "{text}");
    let hot = found.iter().find(|t| t.table == "hot").unwrap();
    assert_eq!((hot.shown.len(), &hot.shown[0].key), (1, &vec!["1".to_owned()]), "{hot:#?}");
    assert!(matches!(hot.shown[0].kind, Kind::Unsettled | Kind::OnlyBefore), "{hot:#?}");

    let found = compare_wanted(&cx, &it, counted, 15).await;
    let text: Vec<String> = found.iter().filter_map(TableFound::words).collect();
    let text = text.join("\n");
    assert!(text.contains("table busy: 2 rows differ (1 only before, 1 only after)"), "{text}");
    assert!(!text.contains("table label") && !text.contains("table logs"), "{text}");

    // By time alone a difference is found as well, though a row that is merely late may look like one.
    let error = kind("verify", step("4s")).run(&cx).await.unwrap_err();
    assert!(
        error.message().contains("table busy: ") && error.message().contains("only after: (-5)"),
        "{error}"
    );
    let kept: serde_json::Value = cx.recall("differences").unwrap().unwrap();
    let busy = kept["tables"].as_array().unwrap().iter().find(|t| t["table"] == "busy").unwrap();
    let shown =
        |key: &str| busy["shown"].as_array().unwrap().iter().find(|row| row["key"] == json!([key])).cloned();
    assert_eq!(shown("77").unwrap()["columns"], json!(["body"]), "{busy}");
    assert_eq!(shown("78").unwrap()["kind"], "only_before", "{busy}");
    it.end().await;
}

const PLAN: &str = r#"
handover: 1
name: following
databases: { blue: '${BLUE_URL}', green: '${GREEN_URL}' }
control: ${CONTROL_URL}
steps:
  - id: copy
    copy: { from: blue, to: green, jobs: 2 }
  - id: follow
    replicate: { from: blue, to: green }
  - id: equal
    verify: { before: blue, after: green, checksums: { chunk_rows: 300 }, jobs: 2 }
  - id: accident
    lever:
      sql:
        on: green
        apply: update busy set body = 'x' where id = 77
        revert: update busy set body = repeat(md5('77'), 5) where id = 77
        check: select body = 'x' from busy where id = 77
  - id: wrong
    verify: { before: blue, after: green, checksums: { chunk_rows: 300 } }
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_verifies_behind_the_marks_of_its_replication() {
    let world = World::new(None, None, PLAN, &[]).await;
    world.blue.execute(TABLES).await;
    world.blue.execute(ROWS).await;
    let (client, stop) = (world.blue.admin().await, Arc::new(AtomicBool::new(false)));
    let writer = {
        let stop = stop.clone();
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let sql = "update hot set n = n + 1; update busy set v = v || '.' where id > 4000 and id % 97 = (random() * 96)::int;
                           insert into jobs select coalesce(max(id), 0) + 1, 'do' from jobs";
                client.batch_execute(sql).await.unwrap();
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        })
    };
    // Killed while it sums, and while it looks again at what differed.
    world.handover_failing("verify.chunk:9", "run", &[]).await.killed();
    world.handover_failing("verify.summed", "resume", &[]).await.killed();
    let ended = world.handover("resume", &[]).await.code(8);
    assert!(ended.stdout.contains("equal: done"), "{ended}");
    let text = ended.to_string();
    assert!(text.contains("table busy: 1 rows differ (1 changed), changed: (77) in body"), "{text}");
    assert!(!text.contains("unsettled"), "{text}");
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    world.handover("rollback", &["--accept-loss"]).await.success();
}
