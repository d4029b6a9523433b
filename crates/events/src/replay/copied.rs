//! Events that a copy has brought already.
//!
//! Capture begins before the copy's snapshot is taken, so the two overlap. An event carries the transaction that
//! wrote it, and the copy keeps what its snapshot sees: an event of a transaction that it sees is in the copied
//! rows, together with all that came after it up to that moment. To apply it once more would set rows back for a
//! while, bring back what was deleted, or find nothing to change. So the stream begins where the copy ends.
//! (<https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT>)

use std::collections::{HashMap, HashSet};

/// Which transactions a copy of which table shows.
#[derive(Debug, Default)]
pub struct Copied(HashMap<String, Snapshot>);

/// What a snapshot sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// All below have ended.
    min: u64,
    /// None from here on had begun.
    max: u64,
    /// Those between that were under way.
    running: HashSet<u64>,
}

impl Snapshot {
    /// Reads `xmin:xmax:xid,xid,…`; none of another text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Snapshot> {
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
    /// Notes what the copy of some tables has brought: what its snapshot sees.
    pub fn add(&mut self, snapshot: &Snapshot, tables: impl IntoIterator<Item = String>) {
        self.0.extend(tables.into_iter().map(|table| (table, snapshot.clone())));
    }

    /// Whether the copy of a table shows what a transaction wrote.
    pub(crate) fn has(&self, table: &str, xid: u64) -> bool {
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
