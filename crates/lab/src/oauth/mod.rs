//! An OAuth service to upgrade: its data, its endpoint with the old and the new release behind a gate, clients that know
//! what they must be answered, and the servers that all of it runs on.

pub mod audit;
pub mod dataset;
pub mod endpoint;
pub mod ledger;
pub mod purge;
pub mod servers;
pub mod traffic;
