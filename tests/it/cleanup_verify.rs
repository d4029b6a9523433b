//! What the verification and the dry run of a cleanup see.

use crate::cleanup::{HEAD, TABLES, number, world};
use crate::support::servers::{self, Database};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn verification_fails_when_rows_come_back_or_triggers_go() {
    for (step, damage, message) in [
        (
            "where: 'id < 5', action: delete",
            "insert into account (id, name) values (3, 'again')",
            "1 rows of account need the delete again",
        ),
        (
            "action: backfill, set: { display_name: upper(name) }",
            "drop trigger T on account",
            "triggers of the backfill are not there",
        ),
    ] {
        let plan =
            format!("{HEAD}  - id: x\n    cleanup: {{ on: blue, table: account, {step}, pause: 0ms }}\n");
        let world = world(&plan, TABLES).await;
        let mut run = world.command();
        run.env("HANDOVER_FAILPOINT", "cleanup.batch:2:stop").arg("run").arg(world.plan());
        let mut run =
            run.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        let name = "select coalesce(max(tgname::text), '') from pg_trigger where tgname like 'zz_handover%'";
        let done = "select count(*) from handover.checkpoint where state->>'done' = 'true'";
        let begun = "select count(*) from pg_class where relname = 'checkpoint'";
        while number(&world, begun).await == 0 || number(&world, done).await == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if run.try_wait().unwrap().is_some() {
                break;
            }
        }
        let trigger = world.blue.value(name).await.unwrap();
        world.blue.execute(&damage.replace(" T ", &format!(" {trigger} "))).await;
        let pid = nix::unistd::Pid::from_raw(i32::try_from(run.id().unwrap_or(0)).unwrap());
        if pid.as_raw() != 0 {
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
        }
        let output = run.wait_with_output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(message), "{step}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_description_counts_and_warns_without_touching() {
    let database = Database::with(servers::blue().await, TABLES).await;
    let urls = [("blue", database.reader_url())];
    let (cx, _events) = crate::support::context::context("x", &urls, &[]).await;
    let step = serde_json::json!({ "on": "blue", "table": "consent", "action": "quarantine",
        "where": "client_id not in (select id from client)", "expect": { "at_most": 5 } });
    let said = crate::support::context::kind("cleanup", step).describe(&cx).await.unwrap();
    assert!(said.actions.iter().any(|a| a.contains("quarantine 114 rows of consent")), "{said:?}");
    assert!(said.blockers.iter().any(|b| b.contains("`expect` allows 5")), "{said:?}");
    assert!(said.warnings.iter().any(|w| w.contains("has no index on (tenant, consent)")), "{said:?}");
    let broken =
        serde_json::json!({ "on": "blue", "table": "consent", "action": "delete", "where": "nothing = 1" });
    let said = crate::support::context::kind("cleanup", broken).describe(&cx).await.unwrap();
    assert!(said.blockers.iter().any(|b| b.contains("`where` is not accepted")), "{said:?}");
}
