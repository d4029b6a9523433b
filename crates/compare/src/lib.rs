//! Two databases compared, or one at two points in time: row counts, checksums of tables, and the plan's own queries.
//!
//! Both servers sum the hashes of their rows, piece by piece; only pieces that differ are read again, for their rows.
//! What stands still is compared at one point in time on each side, and every difference is one. What is written
//! meanwhile and carried over is looked at again behind a [`fence`], until a row was seen equal or is certain to differ.
//! Keys are shown and values never are: they may be secrets. A comparison that compares nothing is an error, because it
//! could not fail.
//!
//! It needs a port ([`handover_port::Port`]), read-only sessions on both sides, and what earlier steps say of them
//! ([`Given`]). It knows no copy and no replication.
//!
//! ```
//! use handover_compare::found::TableFound;
//!
//! let found = TableFound { table: "app.person".into(), rows_before: 3, rows_after: 3, ..TableFound::default() };
//! assert!(found.equal() && found.words().is_none());
//! let lost = TableFound { only_before: 1, ..found };
//! assert_eq!(lost.words().as_deref(), Some("table app.person: 1 rows differ (1 only before)"));
//! ```

pub mod contents;
pub mod fence;
pub mod found;
pub mod hash;
pub mod shape;

mod agreed;
mod aside;
mod attempt;
mod baseline;
mod checksum;
mod dry_run;
mod evaluate;
mod findings;
mod given;
mod narrow;
mod options;
mod quick;
mod rows;
mod sessions;
mod settle;
mod side;
mod split;
mod tally;
mod watched;

pub use agreed::Evidence;
pub use given::{Carried, Given};
pub use options::{Before, Checksums, Invariant, Recorded, Retries, RowCounts, Tables, Verify};
pub use quick::Quick;
pub use rows::Matching;
pub use sessions::Sessions;
pub use side::Side;
