//! Taking a copy back.

use crate::options::Copy;
use crate::state::State;
use crate::{created, snapshot_holder, state, target, tune};
use handover_core::error::Result;
use handover_core::problem::few;
use handover_port::Port;
use handover_postgres::Session;

/// A copy that is being taken back: settings are put back, and the source is let go of.
pub struct Undo<'a> {
    port: &'a Port,
    copy: &'a Copy,
    green: Session,
    state: Option<State>,
}

/// What was taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undone {
    /// How many objects were dropped.
    pub dropped: u64,
    /// What is other on the target than before the copy, in words.
    pub left_behind: Vec<String>,
}

impl<'a> Undo<'a> {
    /// Begins it, whether the copy was complete or not.
    ///
    /// # Errors
    /// No connection, or what a server says.
    pub async fn begin(copy: &'a Copy, port: &'a Port) -> Result<Self> {
        tune::restore(port, copy).await?;
        let mut green = port.writer(&copy.to).await?;
        snapshot_holder::release(
            &port.databases.labelled(port.step.as_str()),
            &copy.from,
            port.run,
            &port.step,
        )
        .await?;
        let state = state::load(&mut green, port.run, &port.step).await?;
        Ok(Undo { port, copy, green, state })
    }

    /// The session on the target.
    #[must_use]
    pub fn target(&self) -> &Session {
        &self.green
    }

    /// Drops what the copy made, and warns of what is left. `given_up` names the unit by which a later step wrote down
    /// that the whole database goes: then so does whatever came after the copy, and that unit is forgotten last.
    pub async fn complete(mut self, given_up: Option<&str>) -> Result<Undone> {
        let (port, copy) = (self.port, self.copy);
        let dropped = created::discard(port, &mut self.green, given_up).await?;
        let before = self.state.as_ref().and_then(|state| state.shown.as_ref());
        let left_behind = target::left_behind(port, copy, before).await?;
        if !left_behind.is_empty() {
            port.warn(format!(
                "{} is not as it was before the copy: {}; look at it, and take it back by hand if nobody needs it",
                copy.to,
                few(&left_behind)
            ));
        }
        Ok(Undone { dropped, left_behind })
    }
}
