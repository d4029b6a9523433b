//! Integration tests: one binary, so that it links once and its tests share their servers.

// Tests fail by panicking; clippy's own exception covers only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod approve;
mod bad_input;
mod bluegreen;
mod capture;
mod capture_partial;
mod cleanup;
mod cleanup_expect;
mod cli;
mod copy;
mod copy_dry_run;
mod copy_extensions;
mod copy_keys;
mod copy_meaning;
mod copy_tls;
mod copy_zoo;
mod crash;
mod create_index;
mod cutover;
mod cutover_durable;
mod cutover_scale;
mod decide;
mod demo;
mod docs;
mod engine;
mod lease;
mod lever;
mod local;
mod migrate;
mod migrate_hints;
mod migrate_locks;
mod migrate_vendors;
mod monitor;
mod peers;
mod plans;
mod quarantine;
mod queue;
mod readers;
mod replay;
mod replay_values;
mod replicate;
mod replicate_large_objects;
mod replicate_resume;
mod restore;
mod secrets;
mod sessions;
mod support;
mod sync;
mod terminal;
mod verify;
mod verify_checksums;
mod verify_moving;
mod verify_resume;
mod watched;
