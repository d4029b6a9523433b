//! How to know that a change has arrived on the other side.

use crate::error::Result;
use crate::steps::Context;
use crate::steps::replicate::Gauge;
use async_trait::async_trait;
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

/// Marks in the stream of a `replicate` step.
pub struct Marks {
    /// Where they are written and seen.
    pub gauge: Gauge,
    /// Under which name.
    pub name: String,
    /// How long one is waited for.
    pub patience: Duration,
    /// For its stop.
    pub cx: Context,
}

#[async_trait]
impl Fence for Marks {
    async fn pass(&mut self) -> Result<bool> {
        self.gauge.mark(&self.cx, &self.name, self.patience).await
    }

    fn proves(&self) -> bool {
        true
    }
}

/// Nothing but time, for a side that follows in a way we do not know.
pub struct Pause {
    /// For its stop.
    pub cx: Context,
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
