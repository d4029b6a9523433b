//! Postgres as the engine sees it: connections, sessions bound to a lease, identifiers, the catalog, errors.
//!
//! It promises that a writing [`Session`] acts only while its lease is held, that no default of a role or a server
//! changes what our SQL does ([`profile`]), and that nothing that was created by somebody else is taken for ours
//! ([`ours`]). What *the application's tables* are is said in [`catalog`] only, who is in the way in [`blockers`] only.
//!
//! It needs a Postgres server from 13 on. It knows of no plan, no step and no journal: a [`Lease`] is whatever
//! says so.
//!
//! ```
//! use handover_postgres::{TableName, quote_literal};
//!
//! assert_eq!(TableName::new("app", "order").to_string(), "app.order");
//! assert_eq!(quote_literal("it's"), "'it''s'");
//! ```

pub mod address;
pub mod binding;
pub mod blockers;
pub mod catalog;
pub mod clock;
pub mod connect;
mod connection_string;
pub mod creators;
pub mod ending;
pub mod error;
pub mod fence;
pub mod fingerprint;
pub mod foreign;
pub mod ident;
pub mod identity;
pub mod index;
pub mod install;
pub mod lease;
pub mod leftovers;
pub mod locks;
pub mod ours;
pub mod patience;
pub mod plain;
pub mod profile;
pub mod programs;
mod refused;
pub mod routine;
pub mod session;
pub mod sql;
pub mod standby;
pub mod tls;
pub mod worker;

pub use connect::Databases;
pub use ident::{TableName, quote_ident, quote_literal};
pub use lease::Lease;
pub use session::{Session, Tx};
pub use worker::Worker;
