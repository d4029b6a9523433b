//! Handover executes declarative upgrade plans against live Postgres databases and a message queue.

pub mod child;
pub mod cli;
pub mod demo;
pub mod doctor;
pub mod engine;
pub mod error;
pub mod event;
pub mod failpoint;
pub mod journal;
pub mod local;
pub mod outbox;
pub mod outside;
pub mod plan;
pub mod postgres;
pub mod problem;
pub mod queue;
pub mod redact;
pub mod steps;
pub mod tls;
pub mod ui;
pub mod value;

pub use error::{Class, Error, Result};
