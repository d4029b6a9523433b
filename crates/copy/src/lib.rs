//! Fills an empty database with everything another one holds at one point in time.
//!
//! The schema is pg_dump's, the rows travel by parallel COPY from one snapshot, and what hangs on a table follows
//! as soon as its rows are there. Each piece commits on the target together with its checkpoint, and the
//! source itself keeps the snapshot open for a while without us: an attempt that was interrupted goes on from where it
//! was. Only when the snapshot is gone is it taken back and begun again, so that rows of two points in time are never
//! mixed.
//!
//! [`describe()`] says what would be done, [`run`] does it and goes on where it was, [`verify`] proves that the target
//! holds what the source held, [`Undo`] takes exactly that away again. What a copy kept for those who come after it is
//! in [`state`] and [`fingerprint`]; [`large_objects::sync`] brings large objects over once more, since no replication
//! does. A stream that is to go on where the copy ends is a [`Follower`].
//!
//! It needs a port ([`handover_port::Port`]), a source that it may read, an empty target that it may write to, and
//! pg_dump.
//!
//! ```
//! use handover_copy::Copy;
//! use handover_postgres::TableName;
//!
//! let copy: Copy = serde_json::from_value(serde_json::json!({
//!     "from": "blue",
//!     "to": "green",
//!     "exclude": { "schemas": ["scratch"] },
//!     "without_data": ["app.log"],
//! }))?;
//! assert!(copy.takes_rows(&TableName::new("app", "orders")));
//! assert!(copy.takes(&TableName::new("app", "log")) && !copy.takes_rows(&TableName::new("app", "log")));
//! assert!(!copy.takes(&TableName::new("scratch", "orders")));
//! # Ok::<(), serde_json::Error>(())
//! ```

mod attempt;
mod board;
mod builds;
mod catalog;
mod check;
mod compare;
pub mod counters;
mod created;
mod data;
mod definitions;
mod dependents;
mod describe;
mod dump;
mod estimate;
mod extensions;
pub mod fingerprint;
mod follower;
mod graph;
mod jobs;
pub mod large_objects;
mod lock;
mod options;
mod plan;
mod pool;
mod preflight;
mod privileges;
mod rights;
mod sample;
mod schema;
mod snapshot_holder;
mod source;
mod split;
pub mod state;
mod target;
mod tune;
mod undo;
mod violation;

pub use attempt::{Summary, run};
pub use check::check;
pub use compare::verify;
pub use describe::describe;
pub use dump::Program;
pub use follower::{Beginning, Follower};
pub use options::{Copy, Dependents, LargeObjects, Names, OnViolation, Owners, Selection, SplitBy};
pub use source::roots;
pub use undo::{Undo, Undone};
