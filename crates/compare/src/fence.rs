//! How to know that a change has arrived on the other side.

use async_trait::async_trait;
use handover_core::error::Result;
use handover_port::Port;
use std::time::Duration;

/// Something between "before" and "after" that changes cannot overtake.
#[async_trait]
pub trait Fence: Send {
    /// Waits until whatever was committed before when this was called is visible after. False when that is not
    /// certain.
    ///
    /// # Errors
    /// No connection, a replication that is over, or a run that is asked to stop.
    async fn pass(&mut self) -> Result<bool>;

    /// Whether it can be certain. If not, a row that differs to the end of the time is taken to be different.
    fn proves(&self) -> bool;
}

/// Nothing but time, for a side that follows in a way we do not know.
pub struct Pause {
    /// For its stop.
    pub cx: Port,
    /// How long.
    pub every: Duration,
}

#[async_trait]
impl Fence for Pause {
    async fn pass(&mut self) -> Result<bool> {
        self.cx.sleep(self.every).await?;
        Ok(false)
    }

    fn proves(&self) -> bool {
        false
    }
}
