//! Rows of a live table, changed, taken away, moved and brought back, in batches that can be undone.
//!
//! Each batch is one fenced transaction with its effect, the archived old rows and its checkpoint. A walk goes by key,
//! never by OFFSET, so it costs the same at the end of a table as at its beginning. Whoever writes meanwhile is not
//! held up for longer than a batch, and what somebody wrote since is never overwritten when rows are put back: such a
//! row stays in the archive, with the reason. Triggers of the table fire, in batches and when rows are put back: to
//! keep them from it (`session_replication_role`) would take a superuser and would skip foreign keys as well.
//!
//! - [`cleanup`]: changes rows, deletes them, sets them aside, or moves columns while old and new code run side by side.
//! - [`restore`]: brings rows back from another database or from the archive.
//! - [`aside`]: sets rows aside that somebody else found.
//!
//! It needs a port ([`handover_port::Port`]), and our schema in the database that it writes to.
//!
//! ```
//! use handover_rows::Cleanup;
//!
//! let cleanup: Cleanup = serde_json::from_value(serde_json::json!({
//!     "on": "blue", "table": "app.person", "action": "delete", "where": "gone_since < now() - interval '1 year'",
//! }))?;
//! assert_eq!(cleanup.batch, 5000);
//! # Ok::<(), serde_json::Error>(())
//! ```

pub mod aside;
pub mod cleanup;
pub mod restore;

mod archive;
mod batch;
mod children;
mod count;
mod expected;
mod pace;
mod prepare;
mod sync;
mod table;
mod throttle;

pub use cleanup::Cleanup;
pub use expected::Expect;
pub use restore::Restore;
pub use sync::{MoveTo, removal, trigger_prefix};
pub use throttle::Throttle;
