//! What every part of Handover speaks in.
//!
//! - [`error`]: the one error type. It says what happened, where, and what to do next.
//! - [`event`]: what a run tells whoever watches it, and the names it tells it with.
//! - [`table`]: a small table that a step gives with its summary.
//! - [`value`]: values of a plan that are more than text: durations, references to the environment, secrets.
//! - [`redact`]: takes every secret out of a text before anybody sees it.
//! - [`problem`]: what is wrong with a plan, all of it at once.
//! - [`failpoint`]: places where a test kills, stops or fails this process.
//! - [`child`]: programs that get nothing of our environment.
//!
//! It needs no server and no plan, and knows of no other part.
//!
//! ```
//! use handover_core::{Class, Error};
//!
//! let error = Error::new(Class::Contention, "somebody holds a lock").on_database("blue");
//! assert!(error.class().is_transient());
//! assert_eq!(error.to_string(), "database blue: somebody holds a lock");
//! ```

pub mod child;
mod connection_string;
pub mod error;
pub mod event;
pub mod failpoint;
pub mod problem;
pub mod redact;
mod secret;
pub mod table;
pub mod value;

pub use error::{Class, Error, Result};
