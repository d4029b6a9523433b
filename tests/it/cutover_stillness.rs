//! That nothing is written on the old side after the decision, and who does it all the same is found.

use crate::cutover_blockers::{PLAN, summary, world};

/// What a superuser or a restore may do, by the owner's rights: with the trigger off.
const PAST_THE_TRIGGER: &str = r#"do $$ declare name text; begin
    alter table token disable trigger user;
    insert into token values (4711, true);
    for name in select tgname from pg_trigger where tgrelid = 'token'::regclass loop
        execute format('alter table token enable always trigger %I', name);
    end loop;
end $$"#;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_and_the_report_says_so() {
    let world = world(PLAN).await;
    // Counted late, at the earliest when its session ends.
    let client = world.blue.admin().await;
    client.batch_execute("update token set active = not active where id = 1").await.unwrap();
    world.handover("run", &[]).await.success();
    drop(client);
    let said = summary(&world, "old_side").await;
    assert!(said.starts_with("nothing written since the decision"), "{said}");
    let report = world.handover("report", &[]).await.success();
    assert!(report.stdout.contains("old side: nothing written since the decision"), "{report}");
    let finished = world.handover("finish", &[]).await.success();
    assert!(!finished.stdout.contains("was written to"), "{finished}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_past_the_triggers_fails_the_verification() {
    let verify = "          verify: { command: { run: [sh, -c, \"test -f mended || psql $BLUE_URL -v ON_ERROR_STOP=1 -f intrude.sql\"], env: { BLUE_URL: '${BLUE_URL}' } } }\n";
    let world = world("").await;
    world.write("plan.yaml", &format!("{}{verify}", PLAN.trim_start()));
    world.write("intrude.sql", PAST_THE_TRIGGER);
    let ended = world.handover("run", &[]).await.code(8);
    assert!(
        ended.stderr.contains("blue was written to after the decision: 1 row of public.token")
            || ended.stderr.contains("blue was written to after the decision: 1 row of token"),
        "{ended}"
    );
    world.write("mended", "");
    let still = world.handover("resume", &[]).await.code(8);
    assert!(still.stderr.contains("was written to after the decision"), "{still}");
    let admin = world.blue.admin().await;
    admin
        .batch_execute(
            &PAST_THE_TRIGGER
                .replace("insert into token values (4711, true)", "delete from token where id = 4711"),
        )
        .await
        .unwrap();
    world.handover("resume", &[]).await.success();
    // Found once more when the run is finished.
    admin.batch_execute(PAST_THE_TRIGGER).await.unwrap();
    drop(admin);
    let finished = world.handover("finish", &[]).await.success();
    assert!(finished.stdout.contains("blue was written to after the decision"), "{finished}");
}
