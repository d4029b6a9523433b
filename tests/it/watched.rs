//! What was proven once is looked at again: between the step that relied on it and the flip, and behind the lock.

use crate::support::servers::{self, Database};
use crate::support::world::World;

/// Halts at the flip until there is a file `go`, so that the old side can be changed before it.
fn plan(before: &str, participant: &str) -> String {
    format!(
        r#"
handover: 1
name: watched
databases: {{ blue: '${{BLUE_URL}}', green: '${{GREEN_URL}}' }}
control: ${{CONTROL_URL}}
queue: ${{QUEUE_URL}}
steps:
{before}
  - id: flip
    retry: {{ attempts: 1 }}
    cutover:
      freeze: blue
      to: green
      attempts: 2
      backoff: 100ms
      patience: 10s
      participants:
        - name: service
          check: {{ command: [test, -e, go] }}
          commit: {{ command: ["true"] }}
          revert: {{ command: ["true"] }}
{participant}"#
    )
}

const COPY: &str = "  - id: copy\n    copy: { from: blue, to: green }";

const SCHEMA: &str = "
    create table payment (id int primary key, x int);
    create table doomed (id int primary key);
    create type mood as enum ('sad');
    create table log (id int primary key, m mood) partition by range (id);
    create table log_1 partition of log for values from (0) to (100);";

async fn halted(plan: &str, blue: &str, green: &str) -> World {
    let blue = Database::with(servers::blue().await, blue).await;
    let green = Database::with(servers::green().await, green).await;
    let world = World::new(Some(&blue.name), Some(&green.name), plan, &[]).await;
    world.handover("run", &[]).await.code(1);
    world.write("go", "");
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_old_side_got_since_the_copy_is_named_unless_the_new_side_has_it_too() {
    let text = plan(COPY, "");
    let world = halted(&text, SCHEMA, "").await;
    let changes =
        "alter table payment add column note text; create index payment_x on payment (x); drop table doomed;
                   create sequence fresh; alter table payment alter x type bigint";
    world.blue.execute(changes).await;
    let refused = world.handover("resume", &[]).await.code(8);
    for drift in [
        "column payment.note was made",
        "index payment.payment_x was made",
        "table doomed is gone",
        "sequence fresh was made",
        "column payment.x was integer and is bigint",
    ] {
        assert!(refused.stderr.contains(drift), "{drift}: {refused}");
    }
    assert!(refused.stderr.contains("nothing was paused"), "{refused}");
    // The advice is true.
    world.green.execute(changes).await;
    world.blue.execute("alter type mood add value 'glad'").await;
    world
        .blue
        .execute("alter table log detach partition log_1; alter table payment add column extra int")
        .await;
    let refused = world.handover("resume", &[]).await.code(8);
    for drift in ["type public.mood was altered", "table log_1 was altered", "column payment.extra was made"]
    {
        assert!(refused.stderr.contains(drift), "{drift}: {refused}");
    }
    assert!(!refused.stderr.contains("payment.note"), "{refused}");
    world.green.execute("alter type mood add value 'glad'").await;
    world.green.execute("alter table log detach partition log_1").await;
    let allowed = text.replace("patience: 10s", "patience: 10s\n      allow_drift: ['column payment.extra']");
    world.write("plan.yaml", &allowed);
    world.handover("resume", &["--accept-changes"]).await.success();
    world.drop_now().await;
}

const MEANING: &str = r#"
    create table pt (id int primary key, v text); alter table pt enable row level security;
    create policy own on pt for select to public using (true);
    grant select, insert on pt to handover_reader; grant select (v) on pt to handover_reader;
    create view vv as select id from pt;
    create sequence ticket; grant usage on sequence ticket to handover_reader;
    create function f(i int) returns bool language sql begin atomic select i > 10; end;
    create function g() returns int language sql as 'select 1';
    create schema side; grant usage on schema side to handover_reader;"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_only_changes_who_may_do_what_or_what_a_name_means_is_seen() {
    let text = plan(COPY, "");
    let world = halted(&text, MEANING, "").await;
    // What is granted is told, and no obstacle.
    world.blue.execute("grant update on pt to handover_reader; grant select on vv to handover_reader").await;
    let changes = "
        alter policy own on pt to app;
        alter view vv set (security_barrier = on);
        create or replace function f(i int) returns bool language sql begin atomic select i > 99999; end;
        alter function g() set work_mem = '8MB';
        alter table pt alter v type text collate \"C\";
        create rule silent as on delete to pt do instead nothing;
        revoke insert on pt from handover_reader; revoke select (v) on pt from handover_reader;
        revoke usage on sequence ticket from handover_reader; revoke usage on schema side from handover_reader;
        revoke execute on function g() from public;";
    world.blue.execute(changes).await;
    let mut left: Vec<&str> = vec![
        "policy pt.own was altered",
        "view vv was altered",
        "routine public.f(i integer) was altered",
        "routine public.g() was altered",
        "collation of pt.v was made",
        "rule pt.silent was made",
        "rights on pt was",
        "rights on pt.v is gone",
        "rights on ticket was",
        "rights on schema side was",
        "rights on public.g() was",
    ];
    // A refusal names a few; what is allowed makes room for the others.
    let mut allowed = Vec::new();
    while !left.is_empty() {
        let refused = world.handover("resume", &["--accept-changes"]).await.code(8);
        let told = refused.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        let before = left.len();
        left.retain(|drift| {
            let found = told.contains(drift);
            if found {
                let subject = [" was", " is gone"].iter().find_map(|end| Some(drift.split_once(end)?.0));
                allowed.push(format!("'{}'", subject.unwrap_or(drift)));
            }
            !found
        });
        assert!(left.len() < before, "{left:?} {told}");
        let allow = format!("patience: 10s\n      allow_drift: [{}]", allowed.join(", "));
        world.write("plan.yaml", &text.replace("patience: 10s", &allow));
    }
    let done = world.handover("resume", &["--accept-changes"]).await.success();
    let told = format!("{done}").split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(told.contains("rights were granted on blue") && told.contains("rights on vv"), "{told}");
    world.drop_now().await;
}

const CAPTURE: &str = r#"  - id: capture
    capture: { from: blue, tables: { token: { on: [insert, update, delete], key: [id] } } }
  - id: tail
    replay:
      to: green
      events:
        token:
          insert: { apply: "insert into token select * from json_populate_record(null::token, $new) on conflict (id) do update set active = excluded.active" }
          update: { apply: "update token set active = $new.active::bool where id = $key.id::int" }
          delete: { apply: "delete from token where id = $key.id::int", already: "select not exists (select from token where id = $key.id::int)" }"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_captured_table_that_was_swapped_or_whose_trigger_was_off_is_refused() {
    let text = plan(CAPTURE, "");
    let token = "create table token (id int primary key, active bool)";
    for (change, drift) in [
        (
            "create table token_new (like token including all); alter table token rename to token_old;
             alter table token_new rename to token; drop table token_old",
            "table token was replaced by another of that name",
        ),
        (
            "alter table token disable trigger user; alter table token enable trigger user",
            "_insert was altered",
        ),
        ("alter table token rename column active to enabled", "column token.active is gone"),
    ] {
        let world = halted(&text, token, token).await;
        world.blue.execute(change).await;
        let refused = world.handover("resume", &[]).await.code(8);
        assert!(refused.stderr.contains(drift), "{drift}: {refused}");
        world.drop_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_between_the_preflight_and_the_lock_calls_the_attempt_off() {
    let participant = r#"        - name: late
          prepare: { sql: { on: blue, execute: "alter table payment add column if not exists late int" } }
          abort: { command: ["true"] }
          commit: { command: ["true"] }
          revert: { command: ["true"] }
"#;
    let world = halted(&plan(COPY, participant), SCHEMA, "").await;
    let refused = world.handover("resume", &[]).await.code(8);
    let said = format!("{refused}");
    assert!(said.contains("schema was altered while the pause began"), "{refused}");
    assert!(refused.stderr.contains("column payment.late was made"), "{refused}");
    world.blue.execute("insert into payment values (1)").await;
    world.drop_now().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_while_the_cutover_waits_is_found_before_the_pause() {
    let world = halted(&plan(COPY, ""), SCHEMA, "").await;
    let old = world.blue.admin().await;
    old.batch_execute("begin; lock table doomed in row exclusive mode").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    let write = async {
        // The look before has passed by now, and waits for the old transaction.
        tokio::time::sleep(std::time::Duration::from_secs(4)).await;
        world.blue.execute("insert into payment values (7)").await;
        old.batch_execute("commit").await.unwrap();
    };
    let (refused, ()) = tokio::join!(world.handover("resume", &[]), write);
    let refused = refused.code(8);
    assert!(refused.stderr.contains("written to since the copy"), "{refused}");
    assert!(refused.stderr.contains("payment"), "{refused}");
    world.drop_now().await;
}
