//! The plan's queue.

use handover_core::{Error, Result};
use handover_port::Port;
use handover_queue::{self as queue, Queue};
use std::sync::Arc;

/// Connects to the plan's queue.
pub async fn connect_queue(port: &Port) -> Result<Arc<dyn Queue>> {
    let url = port
        .queue
        .as_ref()
        .ok_or_else(|| Error::usage("the plan has no queue").hint("add `queue: ${QUEUE_URL}` to the plan"))?;
    let options = queue::Options { name: format!("handover {}", port.step), ..Default::default() };
    queue::connect(url.address()?.expose(), options).await
}
