//! What the tests share.

// Offered to tests that are yet to be written.
#![allow(dead_code)]

pub mod application;
pub mod bench;
pub mod context;
pub mod pooler;
pub mod proxy;
pub mod scenario;
pub mod servers;
pub mod snapshot;
pub mod sources;
pub mod standby;
pub mod tls;
pub mod world;
