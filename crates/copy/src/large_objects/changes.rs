//! What happened to the large objects of a database since an earlier look, without reading what is in them.
//!
//! A large object is rows of a catalog, a page each, and every row names the transaction that wrote it. Whoever
//! writes to an object, or cuts it off, leaves at least one row of a later transaction; who makes one, or gives it
//! another owner or other rights, writes its row among the metadata; removed ones are missing there. So a look
//! costs one pass over the catalog's heap, however little has changed, and reads no content.
//! (<https://www.postgresql.org/docs/current/catalog-pg-largeobject.html>)

use super::units::PIECE;
use handover_core::error::{Error, Result};
use handover_postgres::Session;
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How far earlier looks reach, as 64-bit transaction numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermark {
    /// What transactions before this one did is known.
    pub before: u64,
    /// For objects up to a number: later. From a round that was interrupted.
    pub head: Option<(u32, u64)>,
}

impl Watermark {
    /// What a snapshot shows, given as the server writes one. Numbers of subtransactions are above those of their
    /// transactions, and are in no list: only what is below the oldest that runs is certain to be seen.
    pub fn in_snapshot(xids: &str) -> Result<Self> {
        bounds(xids).map(|(xmin, _)| Watermark { before: xmin, head: None })
    }

    /// After everything up to an object was brought to what a later look saw.
    pub fn up_to(self, oid: u32, before: u64) -> Self {
        match self.head {
            // What lies between them is at the earlier one.
            Some((further, _)) if further > oid => self,
            _ => Watermark { head: Some((oid, before)), ..self },
        }
    }
}

fn bounds(xids: &str) -> Result<(u64, u64)> {
    let mut parts = xids.split(':').map(str::parse::<u64>);
    match (parts.next(), parts.next()) {
        (Some(Ok(xmin)), Some(Ok(xmax))) => Ok((xmin, xmax)),
        _ => Err(Error::internal(format!("`{xids}` is no snapshot"))),
    }
}

/// What a look found.
#[derive(Debug, Default)]
pub struct Look {
    /// The next look need not go behind this transaction.
    pub before: u64,
    /// Pieces in which something was written, by object.
    pub written: BTreeMap<u32, BTreeSet<i32>>,
    /// Objects that were made, or whose owner or rights changed.
    pub changed: RoaringBitmap,
    /// How many objects there are.
    pub objects: u64,
    /// How long it took.
    pub took: Duration,
}

/// Pages in a piece. A page is a quarter of a block.
pub async fn pages(session: &Session) -> Result<i32> {
    let page: i32 = session.query_one("select current_setting('block_size')::int4 / 4", &[]).await?.get(0);
    Ok((PIECE / page.max(1)).max(1))
}

/// Looks, in the snapshot of the session's open transaction.
pub async fn look(session: &Session, watermark: Watermark, pages: i32) -> Result<Look> {
    let begun = Instant::now();
    let xids: String = session.query_one("select pg_current_snapshot()::text", &[]).await?.get(0);
    let (before, next) = bounds(&xids)?;
    let numbers = |from: u64| {
        // A row has the lower half of a number: those from `from` on are less than `width` above it in that circle.
        let base = i64::try_from(from & u64::from(u32::MAX)).unwrap_or_default();
        let width = i64::try_from(next.saturating_sub(from).min(1 << 32)).unwrap_or(i64::MAX);
        (base, width)
    };
    let (base, width) = numbers(watermark.before);
    let (oid, (head, head_width)) = match watermark.head {
        Some((oid, before)) => (oid, numbers(before)),
        None => (0, (base, width)),
    };
    // 0 to 2 are no transactions; nearly every row is told by the first condition.
    let later = |oid: &str| {
        format!(
            "case when {oid} <= $1 then ((xmin::text::int8 - $2) & 4294967295) < $3
                                   else ((xmin::text::int8 - $4) & 4294967295) < $5 end and xmin::text::int8 > 2"
        )
    };
    let mut found = Look { before, ..Look::default() };
    let rows = session
        .query(
            &format!(
                "select loid, pageno / $6 from pg_catalog.pg_largeobject where {} group by 1, 2",
                later("loid")
            ),
            &[&oid, &head, &head_width, &base, &width, &pages],
        )
        .await?;
    for row in &rows {
        found.written.entry(row.get(0)).or_default().insert(row.get(1));
    }
    let rows = session
        .query(
            &format!("select oid from pg_catalog.pg_largeobject_metadata where {}", later("oid")),
            &[&oid, &head, &head_width, &base, &width],
        )
        .await?;
    found.changed.extend(rows.iter().map(|row| row.get::<_, u32>(0)));
    let count = session.query_one("select count(*) from pg_catalog.pg_largeobject_metadata", &[]).await?;
    found.objects = count.get::<_, i64>(0).unsigned_abs();
    found.took = begun.elapsed();
    Ok(found)
}

/// Objects whose comments two sides do not agree on.
pub async fn commented(a: &Session, b: &Session) -> Result<RoaringBitmap> {
    let digest = "select count(*), md5(coalesce(string_agg(objoid::text || md5(description), ',' order by objoid), ''))
                  from pg_description where classoid = 'pg_largeobject'::regclass";
    let (x, y) = tokio::try_join!(a.query_one(digest, &[]), b.query_one(digest, &[]))?;
    if x.get::<_, String>(1) == y.get::<_, String>(1) {
        return Ok(RoaringBitmap::new());
    }
    let all =
        "select objoid, md5(description) from pg_description where classoid = 'pg_largeobject'::regclass";
    let (x, y) = tokio::try_join!(a.query(all, &[]), b.query(all, &[]))?;
    let set = |rows: &[tokio_postgres::Row]| -> BTreeSet<(u32, String)> {
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    Ok(set(&x).symmetric_difference(&set(&y)).map(|(oid, _)| *oid).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_round_is_never_taken_for_more_than_it_was() {
        let watermark = Watermark::in_snapshot("700:710:703,705").unwrap();
        assert_eq!(watermark, Watermark { before: 700, head: None });
        let once = watermark.up_to(50, 800);
        assert_eq!(once, Watermark { before: 700, head: Some((50, 800)) });
        assert_eq!(once.up_to(20, 900), once, "those between 20 and 50 are at 800");
        assert_eq!(once.up_to(60, 900), Watermark { before: 700, head: Some((60, 900)) });
        assert!(Watermark::in_snapshot("gone").is_err());
    }
}
