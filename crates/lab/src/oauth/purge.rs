//! The job that deletes expired tokens: a writer beside the service, which an upgrade has to hold.

use super::endpoint::Gate;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(1);

/// Purges until it is aborted, except while the file `hold` is there.
pub async fn purge(gate: Arc<Gate>, hold: PathBuf) {
    loop {
        tokio::time::sleep(EVERY).await;
        let (_pass, backend) = gate.enter().await;
        if !hold.exists() {
            // A pass that failed is made up for by the next one.
            let _ = backend.purge().await;
        }
    }
}
