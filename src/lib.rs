//! Handover executes declarative upgrade plans against live Postgres databases and a message queue.

pub mod cli;
#[cfg(feature = "lab")]
pub mod demo;
pub mod doctor;
pub mod engine;
pub mod journal;
pub mod plan;
pub mod steps;
pub mod ui;

pub use handover_core::{
    Class, Error, Result, child, error, event, failpoint, problem, redact, table, value,
};
pub use handover_postgres as postgres;
pub use handover_queue as queue;
