//! What a capture on the new side says of the time since the cutover: each of its events was written in the transaction of
//! the write itself, so that for a table that is captured as a whole nothing is left out and nothing is there that was
//! rolled back.

use super::baseline::Mark;
use crate::error::Result;
use crate::postgres::Session;
use crate::postgres::ours::OURS;
use crate::steps::Context;
use crate::steps::cutover::feeds;
use crate::steps::cutover::options::Cutover;
use handover_events::Stream;
use std::collections::BTreeMap;

/// Rows inserted, updated and deleted since the mark, by table, of those tables of which everything is captured and kept.
///
/// # Errors
/// What the server says.
pub async fn since(
    cutover: &Cutover,
    cx: &Context,
    green: &Session,
    mark: &Mark,
) -> Result<BTreeMap<String, [i64; 3]>> {
    let mut out = BTreeMap::new();
    for (id, capture) in feeds::captures_on(cutover.to.as_ref(), cx) {
        let Some(stream) = Stream::find(green, cx.run, id).await? else { continue };
        // What was applied elsewhere is trimmed, and then nothing here tells how much of it is newer than the mark.
        let trimmed = green
            .query_one(
                &format!(
                    "select coalesce(sum(trimmed), 0)::int8 from {OURS}.outbox_partition where capture = $1"
                ),
                &[&stream.id],
            )
            .await?;
        if trimmed.get::<_, i64>(0) > 0 {
            continue;
        }
        for name in
            capture.tables.iter().filter(|(_, table)| table.gaps(None).is_empty()).map(|(name, _)| name)
        {
            let rows = green
                .query(
                    // An update that changes the key is two events.
                    &format!(
                        "select coalesce(e.via, e.op), count(*) from (
                             select tbl, op, via, txid from {OURS}.outbox where capture = $1
                             union all select tbl, op, via, txid from {OURS}.outbox_numbered where capture = $1) e
                         where e.tbl = $2 and not (coalesce(e.via, '') = 'update' and e.op = 'delete')
                           and not pg_visible_in_snapshot(e.txid, $3::text::pg_snapshot)
                         group by 1"
                    ),
                    &[&stream.id, &name.to_string(), &mark.snapshot],
                )
                .await?;
            let of = |operation: &str| {
                rows.iter()
                    .find(|row| row.get::<_, &str>(0) == operation)
                    .map_or(0, |row| row.get::<_, i64>(1))
            };
            out.insert(name.to_string(), [of("insert"), of("update"), of("delete")]);
        }
    }
    Ok(out)
}
