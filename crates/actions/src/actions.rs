//! Whoever acts for one step.

use handover_core::error::{Error, Result};
use handover_core::redact::Redactor;
use handover_port::Port;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// Does acts outside for one step. Several may go on at once, each under a `unit` of its own.
pub struct Actions<'a> {
    pub(crate) port: &'a Port,
    pub(crate) clients: Mutex<BTreeMap<(bool, Option<PathBuf>), reqwest::Client>>,
}

impl<'a> Actions<'a> {
    /// For the step behind `port`.
    #[must_use]
    pub fn new(port: &'a Port) -> Self {
        Actions { port, clients: Mutex::default() }
    }

    /// A number that rises with every act of a plan, whoever does it: of the lease's token, which rises with each process
    /// that acts, and of the acts of this one. Who keeps the highest that it saw and refuses lower ones is never told
    /// something old by what was held up on its way. None for who only looks, and asks for nothing that could overtake.
    pub(crate) fn next_number(&self) -> Option<String> {
        static ACTS: AtomicU32 = AtomicU32::new(0);
        let token = self.port.own_databases().lease().ok()?.token();
        Some(((i128::from(token) << 32) + i128::from(ACTS.fetch_add(1, Ordering::Relaxed)) + 1).to_string())
    }

    /// Sleeps, unless the run is asked to stop.
    pub(crate) async fn pause(&self, time: std::time::Duration) -> Result<()> {
        tokio::select! {
            () = self.port.stop.cancelled() => Err(Error::cancelled()),
            () = tokio::time::sleep(time) => Ok(()),
        }
    }

    /// Knows what the process knows, and the databases' URLs and passwords whoever gave them.
    pub(crate) fn redactor(&self) -> Redactor {
        let mut redactor = Redactor::of_process();
        let databases = self.port.own_databases();
        for name in databases.names() {
            if let Ok(url) = databases.url(name) {
                redactor.add_url(url);
            }
        }
        redactor
    }
}
