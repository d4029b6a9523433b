//! The engine: one pure decision, one loop that acts on it, and the guards around them.

mod absent;
pub mod advice;
mod command;
mod compare;
pub mod decide;
pub mod decided;
pub mod dry_run;
mod foretell;
mod frozen;
mod heartbeat;
mod held;
mod loss;
pub mod policy;
mod recorder;
pub mod run;
mod runner;
mod standing;
pub mod status;

pub use command::{Command, Ended, Options};
pub use run::{Outcome, execute};
