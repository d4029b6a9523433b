//! Postgres as the engine sees it: connections, sessions bound to a lease, identifiers, errors.

pub mod address;
pub mod binding;
pub mod blockers;
pub mod catalog;
pub mod clock;
pub mod connect;
pub mod creators;
pub mod error;
pub mod fence;
pub mod fingerprint;
pub mod foreign;
pub mod ident;
pub mod identity;
pub mod index;
pub mod install;
pub mod leftovers;
pub mod locks;
pub mod ours;
pub mod patience;
pub mod profile;
pub mod programs;
pub mod routine;
pub mod session;
pub mod sql;
pub mod standby;

pub use connect::{Databases, Lease};
pub use ident::{TableName, quote_ident, quote_literal};
pub use session::{Session, Tx};
