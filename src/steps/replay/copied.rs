//! Events that a copy has brought already.
//!
//! Capture begins before the copy's snapshot is taken, so the two overlap. An event carries the transaction that
//! wrote it, and the copy keeps what its snapshot sees: an event of a transaction that it sees is in the copied
//! rows, together with all that came after it up to that moment. To apply it once more would set rows back for a
//! while, bring back what was deleted, or find nothing to change. So the stream begins where the copy ends.
//! (<https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT>)

use crate::error::{Error, Result};
use crate::event::StepId;
use crate::postgres::Session;
use crate::steps::copy::{Copy, state};
use crate::steps::{Context, Step, of_kind};
use std::collections::{HashMap, HashSet};

/// The copies from one database to another.
pub(super) fn copies<'a>(
    steps: &'a [Step],
    from: &'a str,
    to: &'a str,
) -> impl Iterator<Item = (&'a StepId, &'a Copy)> {
    of_kind::<Copy>(steps).filter(move |(_, copy)| copy.from == from && copy.to == to)
}

/// Which transactions a copy of which table shows.
#[derive(Debug, Default)]
pub(super) struct Copied(HashMap<String, Snapshot>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Snapshot {
    /// All below have ended.
    min: u64,
    /// None from here on had begun.
    max: u64,
    /// Those between that were under way.
    running: HashSet<u64>,
}

impl Snapshot {
    /// Reads `xmin:xmax:xid,xid,…`.
    fn parse(text: &str) -> Option<Snapshot> {
        let mut parts = text.split(':');
        let min = parts.next()?.parse().ok()?;
        let max = parts.next()?.parse().ok()?;
        let running =
            parts.next()?.split(',').filter(|x| !x.is_empty()).map(str::parse).collect::<Result<_, _>>();
        Some(Snapshot { min, max, running: running.ok()? })
    }

    fn sees(&self, xid: u64) -> bool {
        xid < self.min || xid < self.max && !self.running.contains(&xid)
    }
}

impl Copied {
    /// Looks up what the copies before this step have brought. Rows of a partitioned table are copied partition
    /// by partition, each of which may be left out, so its events are applied as they are.
    pub async fn find(cx: &Context, green: &Session, from: &str, to: &str) -> Result<Copied> {
        let mut all = HashMap::new();
        for (step, _) in copies(super::earlier(cx), from, to) {
            let Some(state) = state::read(green, cx.run, step).await? else { continue };
            let snapshot = Snapshot::parse(&state.snapshot.xids)
                .ok_or_else(|| Error::internal("the copy's snapshot cannot be read").on_database(to))?;
            all.extend(state.tables.iter().map(|table| (table.name.to_string(), snapshot.clone())));
        }
        Ok(Copied(all))
    }

    /// Whether the copy of a table shows what a transaction wrote.
    pub fn has(&self, table: &str, xid: u64) -> bool {
        self.0.get(table).is_some_and(|snapshot| snapshot.sees(xid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_sees_what_had_ended() {
        let snapshot = Snapshot::parse("10:20:12,15").unwrap();
        let seen: Vec<u64> = (8..22).filter(|xid| snapshot.sees(*xid)).collect();
        assert_eq!(seen, [8, 9, 10, 11, 13, 14, 16, 17, 18, 19]);
        assert!(Snapshot::parse("10:10:").unwrap().sees(9) && !Snapshot::parse("10:10:").unwrap().sees(10));
        assert_eq!(Snapshot::parse("10:20"), None);
    }
}
