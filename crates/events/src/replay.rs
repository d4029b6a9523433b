//! Applies what was captured to the new side, in order for each key, exactly once in effect.
//!
//! Before a cutover it catches up to near nothing and keeps up; after it, it drains the stream and proves by arithmetic
//! that every captured event has an outcome. An event is applied, is so already, is ignored because the plan says so,
//! or is set aside; anything else is missing, and halts.

mod act;
mod apply;
mod copied;
mod event;
mod fault;
mod load;
mod look;
mod loss;
mod mapping;
mod options;
mod rest;
mod retry;
mod window;
mod worker;

pub use act::{catch_up, counts, drain, finish, keep_up, rehearse, undo, verify};
pub use copied::{Copied, Snapshot};
pub use look::{check, describe};
pub use mapping::{Apply, Effect, Mapping};
pub use options::{Mode, OnPoison, Replay};
pub use worker::Source;
