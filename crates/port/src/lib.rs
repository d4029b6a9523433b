//! What an engine is given to work with: a [`Port`].
//!
//! An engine (copying, comparing, replicating, moving rows, applying migrations, acting outside the databases) knows no
//! plan, no step and no journal. It asks its port who it is, whether it may go on, for sessions and for what it kept,
//! and tells it how far it is. What it would do goes into a [`Description`].
//!
//! A port promises that what [`Port::remember`] kept is durable when it returns, that [`Port::proceed`] refuses from
//! the moment the lease is lost, and that writers are fenced. It needs the databases' addresses, and somebody who
//! keeps facts ([`Memory`]).
//!
//! ```
//! use handover_port::Description;
//!
//! let mut says = Description::default();
//! says.action("copy 3 tables").warning("2 of them have no key");
//! assert_eq!(says.actions.len() + says.warnings.len(), 2);
//! ```

mod description;
mod memory;
mod port;
mod turns;

pub use description::Description;
pub use memory::{Memory, Precedent};
pub use port::Port;
pub use turns::Turns;
