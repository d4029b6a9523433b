//! The triggers that keep moved columns in step while old and new code run side by side.
//!
//! They are created before the first batch, and CREATE TRIGGER waits for every transaction that wrote to the
//! table before it, so each row is either written under the triggers or seen by the batches. A batch locks its
//! source rows before it reads them, so no writer can come between its reading and its writing: a writer that
//! waits for such a row fires its trigger afterwards, upon what the batch wrote.

mod install;
mod moved;
mod triggers;

pub use install::{removal, trigger_prefix};
pub(crate) use install::{remove, touched};
pub use moved::MoveTo;
pub(crate) use moved::{Move, Shape};
