//! Step kinds. A kind is one file: what it reads from the plan, and what it does about it.

pub mod approve;
pub mod capture;
mod cleanup;
pub mod context;
mod copy;
pub mod create_index;
pub mod critical;
pub mod cutover;
pub mod export;
pub mod kind;
pub mod lever;
pub mod links;
pub mod migrate;
pub mod monitor;
pub mod needs;
pub mod replay;
pub mod replicate;
mod restore;
mod section;
mod verify;
mod watched;

pub use context::{Context, Ledger};
pub use critical::Critical;
pub use handover_port::{Description, Memory, Port, Precedent};
pub use kind::{
    Access, CheckContext, Counted, Kind, Midway, OnFailure, Parsed, Retry, Step, StepKind, Tells, Undo,
    read_file,
};
pub use links::Links;
pub use needs::{Locks, Need};

use crate::error::{Error, Result};
use std::sync::OnceLock;

/// The kinds a plan may use: the key in the plan, and the type behind it. A new kind is one line here.
const OURS: &[Kind] = &[
    Kind::of::<create_index::CreateIndex>("create_index"),
    Kind::of::<handover_migrations::Migrate>("migrate"),
    Kind::of::<lever::Lever>("lever"),
    Kind::of::<handover_rows::Cleanup>("cleanup"),
    Kind::of::<handover_copy::Copy>("copy"),
    Kind::of::<handover_events::capture::Capture>("capture"),
    Kind::of::<handover_events::replay::Replay>("replay"),
    Kind::of::<handover_replication::Replicate>("replicate"),
    Kind::of::<handover_compare::Verify>("verify"),
    Kind::of::<cutover::Cutover>("cutover"),
    Kind::of::<monitor::Monitor>("monitor"),
    Kind::of::<approve::Approve>("approve"),
    Kind::of::<handover_rows::Restore>("restore"),
];

static KINDS: OnceLock<Vec<Kind>> = OnceLock::new();

/// Every step kind.
#[must_use]
pub fn kinds() -> &'static [Kind] {
    KINDS.get_or_init(|| OURS.to_vec())
}

/// Adds step kinds of a program that is built around this library, before it reads its first plan. Every command then
/// knows them; see `examples/toy_kind.rs`.
///
/// # Errors
/// A name that is taken, or kinds that were asked for before.
pub fn add_kinds(more: &[Kind]) -> Result<()> {
    let mut all = OURS.to_vec();
    for kind in more {
        if all.iter().any(|known| known.name == kind.name) {
            return Err(Error::usage(format!("there are two step kinds `{}`", kind.name)));
        }
        all.push(kind.clone());
    }
    KINDS.set(all).map_err(|_| Error::usage("step kinds are added before the first plan is read, and once"))
}
