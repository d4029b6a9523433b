//! Handover executes declarative upgrade plans against live Postgres databases and a message queue.

pub mod error;
pub mod failpoint;

pub use error::{Class, Error, Result};
