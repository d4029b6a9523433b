//! What copies of the plan have brought of a replay's events.

use crate::error::{Error, Result};
use crate::postgres::Session;
use crate::steps::Context;
use handover_copy::state;
use handover_events::replay::{Copied, Snapshot};

/// Looks up what the copies before this step have brought. Rows of a partitioned table are copied partition
/// by partition, each of which may be left out, so its events are applied as they are.
pub(super) async fn find(cx: &Context, green: &Session, from: &str, to: &str) -> Result<Copied> {
    let mut all = Copied::default();
    for (step, _) in cx.links.copies_of(cx.place(), from, to) {
        let Some(state) = state::read(green, cx.run, step).await? else { continue };
        let snapshot = Snapshot::parse(&state.snapshot.xids)
            .ok_or_else(|| Error::internal("the copy's snapshot cannot be read").on_database(to))?;
        all.add(&snapshot, state.tables.iter().map(|table| table.name.to_string()));
    }
    Ok(all)
}
