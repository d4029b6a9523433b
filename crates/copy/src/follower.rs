//! What may follow a copy: a stream of changes that begins at the copy's own point in time.

use crate::options::Copy;
use async_trait::async_trait;
use handover_core::error::{Error, Result};
use handover_port::Description;
use handover_postgres::Session;

/// A stream of changes that goes on where a copy ends. The copy must begin at the stream's point in time, so it asks for
/// the stream's beginning before it reads its first row; what the stream is made of is not its business.
#[async_trait]
pub trait Follower: Send + Sync {
    /// Says what stands in the way of the stream. Asked before the copy does anything, so that nobody learns of it hours
    /// later.
    ///
    /// # Errors
    /// What a server says.
    async fn look(&self, copy: &Copy, blue: &Session, green: &Session, out: &mut Description) -> Result<()>;

    /// Makes the beginning of the stream. What an earlier attempt left is dropped before: a beginning belongs to one
    /// snapshot.
    ///
    /// # Errors
    /// What a server says, or a beginning that waits too long for transactions that write.
    async fn begin(&self, copy: &Copy) -> Result<Box<dyn Beginning>>;

    /// Whether the beginning is still there. A copy can go on from its snapshot only if it is.
    async fn is_there(&self) -> Result<bool>;

    /// Watches what the stream keeps on the source's disk while the copy runs. Returns only when the copy must end, with
    /// the reason.
    async fn guard(&self) -> Error;
}

/// A point in time of the source that both the copy and the stream begin at.
#[async_trait]
pub trait Beginning: Send {
    /// The name to import its snapshot by.
    fn snapshot(&self) -> &str;

    /// Lets go of it, once another transaction has imported the snapshot.
    async fn release(self: Box<Self>);
}

/// See [`Follower::guard`]; for ever when nothing follows.
pub async fn guard(follower: Option<&dyn Follower>) -> Error {
    match follower {
        Some(follower) => follower.guard().await,
        None => std::future::pending().await,
    }
}
