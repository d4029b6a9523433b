//! Every step kind survives SIGKILL at each of its failpoints, and run → rollback → run.

use crate::support::scenario::Scenario;
use handover::failpoint;
use std::collections::BTreeSet;

macro_rules! proofs {
    ($($name:ident => $scenario:expr),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            $scenario.prove().await;
        })*

        /// Each failpoint belongs to a scenario, which fails when it does not reach it.
        #[test]
        fn every_failpoint_is_reached() {
            let covered: BTreeSet<&str> = [$($scenario.prefixes),*].concat().into_iter().collect();
            let all: BTreeSet<&str> = failpoint::ALL.iter().filter_map(|name| name.split('.').next()).collect();
            assert_eq!(all, covered, "failpoints (left) and the scenarios that reach them (right)");
        }
    };
}

proofs! {
    engine => engine_scenario(),
    create_index => crate::create_index::scenario(),
    copy => crate::copy::scenario(),
    cleanup => crate::cleanup::scenario(),
    restore => crate::restore::scenario(),
    lever => crate::lever::scenario(),
    monitor => crate::monitor::scenario(),
    approve => crate::approve::scenario(),
    verify => crate::verify::scenario(),
    migrate => crate::migrate::scenario(),
    capture_and_replay => crate::replay::scenario(),
    quarantine => crate::quarantine::scenario(),
    cutover => crate::cutover::scenario(),
    gates => crate::cutover_gates::scenario(),
    replicate => crate::replicate::scenario(),
    reverse => crate::reverse::scenario(),
    carry => crate::carry::scenario(),
    pooler => crate::pooler::scenario(),
    lost => crate::lost::scenario(),
}

macro_rules! checkpoints {
    ($($name:ident => $scenario:expr, $failures:expr);* $(;)?) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            $scenario.prove_checkpoints(&$failures).await;
        })*
    };
}

// A cleanup tries its batches again by itself when there is contention, which takes its time, so for it only the connection
// is lost.
checkpoints! {
    checkpoints_of_cleanup => crate::cleanup::scenario(), ["cut"];
    checkpoints_of_migrate => crate::migrate::scenario(), ["cut", "error:40001"];
    checkpoints_of_lever => crate::lever::scenario(), ["cut", "error:40001"];
}

/// A copy of a little of everything, and a restore in a few batches.
fn few_checkpoints() -> Scenario {
    Scenario {
        prefixes: &["copy", "restore"],
        plan: "
handover: 1
name: few
databases: { blue: '${BLUE_URL}', green: '${GREEN_URL}' }
control: ${CONTROL_URL}
steps:
  - id: copy
    retry: { attempts: 3, backoff: 0ms }
    copy: { from: blue, to: green, jobs: 1 }
  - id: back
    retry: { attempts: 3, backoff: 0ms }
    restore: { from: blue, to: green, table: account, from_table: client, columns: { ref: id, label: upper(name) }, batch: 20, pause: 0ms }
",
        blue: "create table client (id int primary key, name text); insert into client select n, 'client ' || n from generate_series(1, 30) n;
               create table account (ref int primary key, label text); create table day (at date) partition by range (at);
               create table day_1 partition of day for values from ('2026-01-01') to ('2026-02-01'); insert into day values ('2026-01-02');
               select lo_from_bytea(0, 'large')",
        rollback_restores: true,
        ..Scenario::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_of_copy_and_restore() {
    few_checkpoints().prove_each_checkpoint("cut").await;
}

/// The engine's own failpoints, around a step whose effect is easily seen.
fn engine_scenario() -> Scenario {
    Scenario { prefixes: &["engine", "journal"], ..crate::create_index::scenario() }
}
