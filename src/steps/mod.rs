//! Step kinds. A kind is one file: what it reads from the plan, and what it does about it.

pub mod approve;
pub mod capture;
mod cleanup;
pub mod context;
mod copy;
pub mod create_index;
pub mod critical;
pub mod cutover;
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
    Access, AtStake, CheckContext, Kind, OnFailure, Parsed, Retry, Step, StepKind, Undo, read_file,
};
pub use links::Links;
pub use needs::{Locks, Need};

/// The kinds a plan may use: the key in the plan, and the type behind it. A new kind is one line here.
macro_rules! kinds {
    ($($key:literal => $type:ty),* $(,)?) => {
        /// Every step kind.
        pub const KINDS: &[Kind] = &[$(Kind {
            name: $key,
            parse: kind::parse::<$type>,
            schema: |generator| generator.subschema_for::<$type>(),
        }),*];
    };
}

kinds! {
    "create_index" => create_index::CreateIndex,
    "migrate" => handover_migrations::Migrate,
    "lever" => lever::Lever,
    "cleanup" => handover_rows::Cleanup,
    "copy" => handover_copy::Copy,
    "capture" => handover_events::capture::Capture,
    "replay" => handover_events::replay::Replay,
    "replicate" => handover_replication::Replicate,
    "verify" => handover_compare::Verify,
    "cutover" => cutover::Cutover,
    "monitor" => monitor::Monitor,
    "approve" => approve::Approve,
    "restore" => handover_rows::Restore,
}
