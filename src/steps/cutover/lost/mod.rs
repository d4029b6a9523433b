//! What a rollback past a cutover without a stream back loses: counted by table, told before anything is done, and on
//! request written to files first.

mod baseline;
mod captured;
mod count;
mod export;
mod rows;
mod tally;
mod undo;

pub use baseline::{keep, keep_counters, look};
pub use count::count;
pub use undo::{after, before};
