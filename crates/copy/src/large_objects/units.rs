//! In which units large objects are copied, and what their checkpoints say.

use crate::state;
use handover_core::error::{Class, Error, Result};
use handover_core::event::StepId;
use handover_port::Port;
use handover_postgres::Session;
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

/// Bytes read at once. An object that is larger is a unit of its own.
pub const PIECE: i32 = 256 << 10;
/// Objects in a transaction: a comment or a grant locks its object until the end, and the server's table of
/// locks is finite.
pub const BATCH: i64 = 500;
/// Bytes that wait for the next statement that writes.
pub const FLUSH: usize = 1 << 20;
/// Units of batches, followed by the first object's number.
pub const BATCHES: &str = "objects:";
/// Units of objects that are larger than a piece, followed by the object's number.
pub const SINGLES: &str = "object:";

/// What a batch's checkpoint says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Those that were made, as runs of numbers: the first, and how many.
    pub made: Vec<(u32, u32)>,
    /// Their bytes.
    pub bytes: u64,
    /// Those that are larger than a piece.
    pub left: Vec<u32>,
}

/// What a single object's checkpoint says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Single {
    /// Its number.
    pub oid: u32,
    /// Bytes that are there.
    pub bytes: u64,
    /// Whether that is all of it.
    pub complete: bool,
}

/// Large objects that were copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Total {
    /// How many.
    pub objects: u64,
    /// Bytes in them, holes included.
    pub bytes: u64,
}

pub fn explain(error: Error) -> Error {
    let error = error.context("copying large objects");
    if error.class() != Class::Privilege {
        return error;
    }
    error.hint("the role must be a member of their owners on both sides (docs/grants.md); mend it, then `handover resume`, or say `large_objects: skip`")
}

/// What was copied, by the checkpoints.
pub async fn total(green: &Session, port: &Port) -> Result<Total> {
    let mut total = Total::default();
    for batch in state::states::<Batch>(green, port.run, &port.step, BATCHES).await? {
        total.objects += batch.made.iter().map(|(_, n)| u64::from(*n)).sum::<u64>();
        total.bytes += batch.bytes;
    }
    for single in state::states::<Single>(green, port.run, &port.step, SINGLES).await? {
        total.objects += 1;
        total.bytes += single.bytes;
    }
    Ok(total)
}

/// Numbers of the objects that the copy made.
pub async fn made(green: &Session, port: &Port, step: &StepId) -> Result<RoaringBitmap> {
    let mut oids = RoaringBitmap::new();
    for batch in state::states::<Batch>(green, port.run, step, BATCHES).await? {
        batch.made.iter().for_each(|run| insert(&mut oids, *run));
    }
    let singles = state::states::<Single>(green, port.run, step, SINGLES).await?;
    oids.extend(singles.into_iter().map(|single| single.oid));
    Ok(oids)
}

fn insert(oids: &mut RoaringBitmap, (first, count): (u32, u32)) {
    if count > 0 {
        oids.insert_range(first..=first.saturating_add(count - 1));
    }
}
