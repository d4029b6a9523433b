//! PgBouncer as a participant of a cutover: its entry is paused on every instance while the cutover decides, turned to the
//! other server in its file, and let go on. And the guard beside it, which lets clients go on when whoever paused it is gone.
//!
//! A PAUSE outlives the connection that asked for it, waits for running transactions without limit, and is forgotten when
//! PgBouncer restarts. So nothing here relies on what was done: each act looks first, and may be repeated.
//!
//! It needs a port ([`handover_port::Port`]), the consoles of all instances, and to be where the configuration can be
//! replaced.
//!
//! ```
//! use handover_pooler::PgBouncer;
//!
//! let pooler: PgBouncer = serde_json::from_value(serde_json::json!({
//!     "database": "shop",
//!     "instances": [{ "admin": "${PGBOUNCER_ADMIN_URL}", "config": "/etc/pgbouncer/databases.ini" }],
//!     "to": "green"
//! }))?;
//! assert!(pooler.shown().contains("PAUSE shop"));
//! # Ok::<(), serde_json::Error>(())
//! ```

mod console;
mod entry;
pub mod guard;
mod hold;
mod look;
mod options;
mod pooler;
mod turn;
mod who;

pub use entry::{PROBE, Target};
pub use hold::Hold;
pub use options::{Instance, PgBouncer};
pub use pooler::Pooler;
