//! Queries whose answers must survive a flip: before the pause, and within it.

use crate::cutover_blockers::{PLAN, world};

fn with(invariants: &str) -> String {
    PLAN.replace(
        "      blockers: { do: terminate, older_than: 300ms }\n",
        &format!("      invariants:\n        - {invariants}\n"),
    )
}

/// The participant that prepares makes the difference: nothing before the pause could find it.
const IN_PREPARE: (&str, &str) = (
    "prepare: { command: [sh, -c, \"echo held > service.state; until test -f go; do sleep 0.02; done\"] }",
    "prepare: { sql: { on: green, execute: update token set active = not active where id = 1 } }",
);

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_one_is_asked_before_anybody_prepares() {
    let world =
        world(&with("{ name: active tokens, before: select count(*) from token where active }")).await;
    world.green.execute("update token set active = false where id < 4").await;
    let ended = world.handover("run", &[]).await.code(8);
    assert!(
        ended.stderr.contains("before and after differ") && ended.stderr.contains("active tokens"),
        "{ended}"
    );
    assert!(!world.path("service.state").exists(), "a participant was asked to prepare");
    world.green.execute("update token set active = true").await;
    world.handover("resume", &[]).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quick_one_is_asked_in_the_pause_and_calls_the_attempt_off() {
    let one = "{ name: active tokens, key: [active], before: \"select active, count(*) from token group by 1\", quick: true }";
    let world = world(&with(one).replace(IN_PREPARE.0, IN_PREPARE.1)).await;
    let ended = world.handover("run", &[]).await.code(8);
    assert!(ended.stderr.contains("in the pause: before and after differ: `active tokens`"), "{ended}");
    assert_eq!(std::fs::read_to_string(world.path("service.state")).unwrap(), "blue\n");
    world.blue.execute("insert into token values (4711, true); delete from token where id = 4711").await;
    // What prepares next puts it right again.
    let ended = world.handover("resume", &[]).await.success();
    let kept =
        "select f ->> 'count' from handover.record, jsonb_array_elements(record -> 'value' -> 'terms') f
                where record ->> 'key' = 'forecast' and f ->> 'what' = 'invariants' limit 1";
    assert_eq!(world.control.value(kept).await.unwrap(), "1", "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_takes_longer_than_the_budget_is_found_before_the_pause() {
    let slow = "{ name: slow, before: \"select 1 from pg_sleep(2)\", quick: true }";
    let world = world(&with(slow).replace("write_pause: 3s", "write_pause: 1s")).await;
    let ended = world.handover("run", &[]).await;
    assert_ne!(ended.code, Some(0), "{ended}");
    assert!(ended.stderr.contains("invariant `slow`"), "{ended}");
    assert!(!world.path("service.state").exists(), "a participant was asked to prepare");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_gates_is_found_without_a_connection() {
    for (gate, says) in [
        (
            "invariants: [{ name: a, before: select 1 }, { name: a, before: delete from token }]",
            &["two invariants `a`", "an invariant is one query"][..],
        ),
        ("window: { from: '02:00' }", &["days and times need a `zone`"]),
        ("window: { days: [sat], zone: Europe/Zurch }", &["no time zone `Europe/Zurch`"]),
        ("window: { from: 2 o'clock, zone: UTC }", &["`from` cannot be the text `2 o'clock`"]),
        ("window: {}", &["always open"]),
        ("blockers: { do: terminate, except: [{}] }", &["this exception names nobody"]),
        ("approve: { when: before_freeze, message: ' ' }", &["the message is empty"]),
    ] {
        let world = world(&PLAN.replace("blockers: { do: terminate, older_than: 300ms }", gate)).await;
        let ended = world.handover("check", &[]).await.code(2);
        let text = format!("{ended}");
        assert!(says.iter().all(|part| text.contains(part)), "{gate}: {text}");
    }
}
