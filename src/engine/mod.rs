//! The engine: one pure decision, one loop that acts on it, and the guards around them.

pub mod advice;
mod compare;
pub mod decide;
pub mod dry_run;
mod heartbeat;
mod held;
pub mod policy;
mod recorder;
pub mod run;
mod runner;
mod standing;
pub mod status;

pub use run::{Command, Ended, Options, Outcome, execute};
