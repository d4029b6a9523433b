//! Large objects: content, owner, rights and comment, in batches that commit with their checkpoints.
//!
//! Objects that fit into one piece travel many to a transaction; larger ones become units of their own, and
//! their transactions end after a stretch, so that neither memory nor lost work grows with an object.
//! Everything is read through the copy's snapshot: reading a large object follows the transaction's.
//! (<https://www.postgresql.org/docs/current/lo-interfaces.html>)

mod changes;
mod content;
mod load;
mod object;
pub mod sync;
mod units;

use crate::options::Copy;
use crate::target;
use handover_core::error::{Error, Result};
use handover_core::failpoint;
use handover_port::Port;
use handover_postgres::Session;
pub use load::copy;
use units::{BATCH, made};
pub use units::{Total, total};

/// Compares what is on green with what was copied: each object there, and as many bytes in all of them.
///
/// # Errors
/// What is missing, or what the server says.
pub async fn verify(port: &Port, copy: &Copy) -> Result<()> {
    let green = target::reader(port, copy).await?;
    green.set("statement_timeout", "0").await?;
    let (expected, oids) = (total(&green, port).await?, made(&green, port, &port.step).await?);
    let oids: Vec<u32> = oids.into_iter().collect();
    let mut found = Total::default();
    for oids in oids.chunks(BATCH.unsigned_abs() as usize) {
        port.proceed()?;
        // Opened for reading (INV_READ), sought to the end; the statement's end closes them.
        let row = green
            .query_one(
                "select count(*), coalesce(sum(pg_catalog.lo_lseek64(pg_catalog.lo_open(oid, 262144), 0, 2)), 0)::bigint
                 from pg_largeobject_metadata where oid = any($1)",
                &[&oids],
            )
            .await?;
        found.objects += row.get::<_, i64>(0).unsigned_abs();
        found.bytes += row.get::<_, i64>(1).unsigned_abs();
    }
    if found == expected {
        return Ok(());
    }
    Err(Error::data(format!(
        "{} large objects with {} bytes are there, and {} with {} were copied",
        found.objects, found.bytes, expected.objects, expected.bytes
    ))
    .on_database(&copy.to)
    .hint("somebody writes to the target already: stop that, `handover rollback` to before the copy, and run again"))
}

/// Unlinks the objects that the copy made, or a cutover behind it, as far as they are still there.
pub async fn discard(port: &Port, green: &mut Session) -> Result<u64> {
    let oids: Vec<u32> = sync::ours(green, port, &port.step).await?.into_iter().collect();
    let mut dropped = 0;
    for oids in oids.chunks(BATCH.unsigned_abs() as usize) {
        port.proceed()?;
        let tx = green.transaction().await?;
        let rows = tx
            .query(
                "select pg_catalog.lo_unlink(oid) from pg_catalog.pg_largeobject_metadata where oid = any($1)",
                &[&oids],
            )
            .await?;
        tx.commit().await?;
        dropped += rows.len() as u64;
        failpoint::at(failpoint::COPY_UNDO_UNLINKED)?;
    }
    Ok(dropped)
}
