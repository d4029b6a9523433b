//! What copies of the plan have brought of a replay's events.

use crate::error::{Error, Result};
use crate::event::StepId;
use crate::postgres::Session;
use crate::steps::{Context, Step, of_kind};
use handover_copy::{Copy, state};
use handover_events::replay::{Copied, Snapshot};

/// The copies from one database to another.
pub(super) fn copies<'a>(
    steps: &'a [Step],
    from: &'a str,
    to: &'a str,
) -> impl Iterator<Item = (&'a StepId, &'a Copy)> {
    of_kind::<Copy>(steps).filter(move |(_, copy)| copy.from == from && copy.to == to)
}

/// Looks up what the copies before this step have brought. Rows of a partitioned table are copied partition
/// by partition, each of which may be left out, so its events are applied as they are.
pub(super) async fn find(cx: &Context, green: &Session, from: &str, to: &str) -> Result<Copied> {
    let mut all = Copied::default();
    for (step, _) in copies(super::earlier(cx), from, to) {
        let Some(state) = state::read(green, cx.run, step).await? else { continue };
        let snapshot = Snapshot::parse(&state.snapshot.xids)
            .ok_or_else(|| Error::internal("the copy's snapshot cannot be read").on_database(to))?;
        all.add(&snapshot, state.tables.iter().map(|table| table.name.to_string()));
    }
    Ok(all)
}
