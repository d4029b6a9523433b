//! What a step does in a section that ends by itself only.

use super::context::Context;
use super::critical::Guard;
use handover_port::Port;
use std::ops::Deref;
use tokio_util::sync::CancellationToken;

/// A step's context inside a section: its `stop` never fires, so nothing in it is asked to stop and no command is
/// ended. A lost lease still refuses every new act; what runs already ends within its own limits.
pub struct Section {
    cx: Context,
    _guard: Guard,
}

impl Deref for Section {
    type Target = Context;
    fn deref(&self) -> &Context {
        &self.cx
    }
}

impl Context {
    /// Opens a section that only ends by itself: until it is dropped, the engine neither drops the step nor lets the
    /// step's commands be ended, whatever happens. Everything inside must have limits of its own. Call
    /// [`Port::proceed`] just before: a stop that was asked for earlier counts.
    #[must_use]
    pub fn critical(&self, what: impl Into<String>) -> Section {
        let port = Port { stop: CancellationToken::new(), ..self.port.clone() };
        let cx = Context { port, ..self.clone() };
        Section { cx, _guard: self.critical.enter(what) }
    }
}
