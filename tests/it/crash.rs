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
    replicate => crate::replicate::scenario(),
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
// is lost. A restore that is done looks at all rows again when it is tried again: at every checkpoint it would never end.
checkpoints! {
    checkpoints_of_cleanup => crate::cleanup::scenario(), ["cut"];
    checkpoints_of_migrate => crate::migrate::scenario(), ["cut", "error:40001"];
    checkpoints_of_lever => crate::lever::scenario(), ["cut", "error:40001"];
}

/// The engine's own failpoints, around a step whose effect is easily seen.
fn engine_scenario() -> Scenario {
    Scenario { prefixes: &["engine", "journal"], ..crate::create_index::scenario() }
}
