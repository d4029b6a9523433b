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

/// The engine's own failpoints, around a step whose effect is easily seen.
fn engine_scenario() -> Scenario {
    Scenario { prefixes: &["engine", "journal"], ..crate::create_index::scenario() }
}
