//! Captures every write to some tables into the outbox, in the writer's own transaction.
//!
//! Triggers catch what logical decoding would, without a replication slot that could hold back WAL, and let the
//! plan say which changes count and what of a row may travel. They cost the writer one row more. Order is kept
//! for each key; that needs a key that identifies its row.

mod cascades;
mod gaps;
mod install;
mod look;
mod options;

pub use gaps::{Gap, OPERATIONS, Why, words};
pub use install::{assert_hung, begin, leaves_out, remove, verify};
pub use look::{check, describe};
pub use options::{Capture, Rest, Table, Truncate, When, for_queue};
