//! Keeps a copy in step with its source by Postgres's own logical replication, from server to server.
//!
//! The slot is made by the copy, for which a [`Following`] speaks: the copy reads from the slot's own snapshot, so the
//! stream begins where the copy ends, without a gap and without a row twice. [`run`] subscribes and waits until the
//! other side has caught up; [`stand`] watches from then on, and ends the replication before the slot fills a disk. The
//! engine is not in the way of the data: while it is dead, the servers go on.
//! (<https://www.postgresql.org/docs/current/logical-replication.html>)
//!
//! A [`Gauge`] proves that everything which was committed before a moment has arrived: by a row that travels in the
//! stream, never by comparing positions in a log. [`end()`] and [`discard`] take everything away, on both sides.
//!
//! It needs a port ([`handover_port::Port`]), a publisher whose `wal_level` is `logical`, roles that may publish and
//! subscribe, and psql.
//!
//! ```
//! use handover_core::event::RunId;
//! use handover_replication::{Link, Replicate};
//!
//! let replicate: Replicate = serde_json::from_value(serde_json::json!({ "from": "blue", "to": "green" }))?;
//! let link = Link::new(RunId::new(), &"follow".into(), &replicate);
//! // Names are of the run: what another run left is never taken for this one's.
//! assert_ne!(link.name, Link::new(RunId::new(), &"follow".into(), &replicate).name);
//! # Ok::<(), serde_json::Error>(())
//! ```

mod act;
pub mod ahead;
mod check;
mod emptied;
mod end;
mod following;
pub mod identity;
mod lag;
mod link;
mod marker;
mod options;
mod origin;
mod preflight;
mod publication;
mod slot;
mod subscription;
mod tables;
mod watch;

pub use act::{Summary, describe, run, undo, verify};
pub use check::check;
pub use end::{ENDED, end};
pub use following::Following;
pub use lag::bytes;
pub use link::Link;
pub use marker::Token;
pub use options::Replicate;
pub use origin::{Leave, describe_end, discard};
pub use preflight::look;
pub use tables::{published, tables};
pub use watch::{Gauge, stand};
