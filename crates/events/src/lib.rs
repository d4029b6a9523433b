//! Changes on the old side as events: captured into an outbox, relayed to a queue, replayed on the new side.
//!
//! - [`capture`]: triggers write each change of a captured row into the *outbox*, in the writer's own transaction, so
//!   that there is no change without its event and no event without its change.
//! - [`relay`]: a standing task that numbers the events of each partition without gaps, publishes them, and notes what
//!   the queue confirmed.
//! - [`replay`]: applies only the next number of a partition. Effect and offset commit together; a duplicate is
//!   recognised, a loss is seen at once and asked for again. What cannot be applied halts it, or goes into the
//!   [`quarantine`].
//!
//! A capture is one [`Stream`] of events, cut into partitions by key. It promises that each event takes effect once, and
//! in order for each key. An event leaves the outbox when the new side holds its offset, so the queue may be lost as a
//! whole.
//!
//! It needs a port ([`handover_port::Port`]), our schema in both databases ([`handover_postgres::install`]), and a queue
//! ([`handover_queue`]).
//!
//! # For a cutover
//! 1. Before the freeze, [`backlog`] says how far replay is behind.
//! 2. With writers frozen and drained, [`write_fence_marker`] on *another* session than the one that holds the
//!    freeze; go on when [`marker_passed`] says so, or give up and try again later: a marker does no harm.
//! 3. If events will flow back from the new side, have each capture leave out the other's stream ([`capture::begin`]): no
//!    trigger is ever switched. Where something else writes what flows back, [`close`] in the deciding transaction keeps the
//!    triggers from capturing that; [`reopen`] in its undo.
//!
//! ```
//! use handover_events::Counts;
//!
//! let counts = Counts { captured: 3, applied: 1, already: 1, quarantined: 1, ..Counts::default() };
//! assert!(counts.complete());
//! ```

pub mod applies;
mod budget;
pub mod capture;
pub mod catalog;
mod connect;
mod json;
mod offsets;
pub mod outbox;
pub mod quarantine;
pub mod relay;
pub mod replay;
mod stream;
pub mod trigger;

pub use stream::{Counts, Marker, Stream, backlog, close, marker_passed, reopen, write_fence_marker};
