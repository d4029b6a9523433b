//! The journal: what is durably known of runs. The state of a run is a pure fold over its records.

pub mod lease;
pub mod postgres;
pub mod state;

pub use lease::{Held, LeaseRow, this_process};
pub use postgres::{Journal, RequestRow, RunRow};
pub use state::{Phase, RunState, Status, StepState};
