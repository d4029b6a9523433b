//! What the tests share.

// Offered to tests that are yet to be written.
#![allow(dead_code)]

pub mod servers;
pub mod tls;
