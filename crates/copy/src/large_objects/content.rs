//! What is in large objects that changed: read page by page from the source, written in pieces to the target.
//!
//! Pages are read directly: the functions for large objects take a lock that writers take too.
//! (<https://www.postgresql.org/docs/current/catalog-pg-largeobject.html>)

use super::changes::{self, Look};
use super::object::{Object, as_ourselves, as_owner};
use super::units::{FLUSH, PIECE};
use crate::options::Copy;
use handover_core::error::Result;
use handover_port::Port;
use handover_postgres::{Session, Tx};
use std::collections::BTreeMap;
use tokio_postgres::Row;

/// The last page of an object ends it.
const LENGTHS: &str = "select o.oid, coalesce(l.length, 0) from unnest($1::oid[]) o (oid)
     left join lateral (select pageno::int8 * $2::int4 + octet_length(data) as length from pg_catalog.pg_largeobject
                        where loid = o.oid order by pageno desc limit 1) l on true";

/// The source, in a transaction that keeps to one snapshot.
pub struct Content {
    port: Port,
    copy: Copy,
    /// Where to read.
    pub session: Session,
    /// Pages in a piece.
    pub pages: i32,
}

impl Content {
    /// From that session.
    pub async fn new(port: &Port, copy: &Copy, session: Session) -> Result<Self> {
        let pages = changes::pages(&session).await?;
        Ok(Content { port: port.clone(), copy: copy.clone(), session, pages })
    }

    /// All pieces of these objects that have something in them.
    pub async fn pieces_of(&self, objects: &[&Object]) -> Result<Vec<(u32, i32)>> {
        if objects.is_empty() {
            return Ok(Vec::new());
        }
        let oids: Vec<u32> = objects.iter().map(|o| o.oid).collect();
        let rows = self
            .session
            .query(
                "select distinct loid, pageno / $2 from pg_catalog.pg_largeobject where loid = any($1) order by 1, 2",
                &[&oids, &self.pages],
            )
            .await?;
        Ok(pairs(&rows))
    }

    /// Pieces that were written to, and those of which nothing is left: pages that were cut off and not written
    /// again read as zeros. Such a hole lies between two pieces that were written to, since cutting off writes
    /// the page where it ends; in an object that may have been made anew, also before the first of them.
    pub async fn pieces_that_differ(
        &self,
        look: &Look,
        objects: &[(&Object, &Object)],
        tx: &Tx<'_>,
    ) -> Result<Vec<(u32, i32)>> {
        let mut pieces = Vec::new();
        let (mut oids, mut from, mut to) = (Vec::new(), Vec::new(), Vec::new());
        for (object, _) in objects {
            let Some(written) = look.written.get(&object.oid) else { continue };
            let mut last = if look.changed.contains(object.oid) { Some(-1) } else { None };
            for piece in written {
                if let Some(last) = last
                    && last + 1 < *piece
                {
                    oids.push(object.oid);
                    from.push((last + 1) * self.pages);
                    to.push(*piece * self.pages);
                }
                last = Some(*piece);
                pieces.push((object.oid, *piece));
            }
        }
        if oids.is_empty() {
            return Ok(pieces);
        }
        let rows = self
            .session
            .query(
                "select g.oid, g.a, g.b from unnest($1::oid[], $2::int4[], $3::int4[]) g (oid, a, b)
                 where not exists (select from pg_catalog.pg_largeobject l
                                   where l.loid = g.oid and l.pageno >= g.a and l.pageno < g.b)",
                &[&oids, &from, &to],
            )
            .await?;
        let holes = |n: usize| -> Vec<i32> { rows.iter().map(|row| row.get(n)).collect() };
        let oids: Vec<u32> = rows.iter().map(|row| row.get(0)).collect();
        let rows = tx
            .query(
                "select distinct l.loid, l.pageno / $4 from unnest($1::oid[], $2::int4[], $3::int4[]) g (oid, a, b)
                 join pg_catalog.pg_largeobject l on l.loid = g.oid and l.pageno >= g.a and l.pageno < g.b",
                &[&oids, &holes(1), &holes(2), &self.pages],
            )
            .await?;
        pieces.extend(pairs(&rows));
        Ok(pieces)
    }

    /// How long objects are on the source.
    pub async fn lengths(&self, objects: &BTreeMap<u32, &str>) -> Result<BTreeMap<u32, i64>> {
        let oids: Vec<u32> = objects.keys().copied().collect();
        let rows = self.session.query(LENGTHS, &[&oids, &(PIECE / self.pages)]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Reads pieces from the source, and writes them as their objects' owners. Returns their bytes.
    pub async fn put(
        &self,
        tx: &Tx<'_>,
        owners: &BTreeMap<u32, &str>,
        pieces: &[(u32, i32)],
        lengths: &BTreeMap<u32, i64>,
    ) -> Result<u64> {
        let mut bytes = 0;
        let size = PIECE / self.pages;
        let read = self
            .session
            .prepare(
                "select p.n, l.pageno, l.data from unnest($1::oid[], $2::int4[]) with ordinality p (oid, piece, n)
                 cross join lateral (select pageno, data from pg_catalog.pg_largeobject
                                     where loid = p.oid and pageno >= p.piece * $3 and pageno < (p.piece + 1) * $3
                                     order by pageno) l",
            )
            .await?;
        let mut pieces = pieces.to_vec();
        pieces.sort_by_key(|(oid, piece)| (owners.get(oid).copied().unwrap_or_default(), *oid, *piece));
        let group = FLUSH / (PIECE.unsigned_abs() as usize) * 4;
        for same in pieces.chunk_by(|a, b| owners.get(&a.0) == owners.get(&b.0)) {
            let Some(owner) = owners.get(&same[0].0) else { continue };
            as_owner(tx, &self.copy, owner).await?;
            for some in same.chunks(group) {
                self.port.proceed()?;
                let (oids, numbers): (Vec<u32>, Vec<i32>) = some.iter().copied().unzip();
                let offsets: Vec<i64> = numbers.iter().map(|n| i64::from(*n) * i64::from(PIECE)).collect();
                let mut data: Vec<Vec<u8>> = oids
                    .iter()
                    .zip(&offsets)
                    .map(|(oid, at)| {
                        let rest = lengths.get(oid).copied().unwrap_or_default() - at;
                        vec![0; usize::try_from(rest.clamp(0, i64::from(PIECE))).unwrap_or_default()]
                    })
                    .collect();
                for row in self.session.query(&read, &[&oids, &numbers, &self.pages]).await? {
                    let (n, page, content): (i64, i32, &[u8]) = (row.get(0), row.get(1), row.get(2));
                    let at = (n.unsigned_abs() as usize).wrapping_sub(1);
                    let (Some(piece), Some(number)) = (data.get_mut(at), numbers.get(at)) else { continue };
                    let start = usize::try_from((page - number * self.pages) * size).unwrap_or(usize::MAX);
                    if let Some(place) = piece.get_mut(start..start.saturating_add(content.len())) {
                        place.copy_from_slice(content);
                    }
                }
                bytes += data.iter().map(|d| d.len() as u64).sum::<u64>();
                tx.query(
                    "select pg_catalog.lo_put(o.oid, o.at, o.data)
                     from unnest($1::oid[], $2::int8[], $3::bytea[]) o (oid, at, data) where o.data <> ''",
                    &[&oids, &offsets, &data],
                )
                .await?;
            }
        }
        as_ourselves(tx).await?;
        Ok(bytes)
    }

    /// Truncates objects, or extends them, where they are not as long as on the source.
    pub async fn resize(
        &self,
        tx: &Tx<'_>,
        owners: &BTreeMap<u32, &str>,
        lengths: &BTreeMap<u32, i64>,
    ) -> Result<()> {
        let oids: Vec<u32> = owners.keys().copied().collect();
        for row in tx.query(LENGTHS, &[&oids, &(PIECE / self.pages)]).await? {
            let (oid, length): (u32, i64) = (row.get(0), row.get(1));
            let (Some(wanted), Some(owner)) = (lengths.get(&oid), owners.get(&oid)) else { continue };
            if *wanted == length {
                continue;
            }
            as_owner(tx, &self.copy, owner).await?;
            // Opened for writing (INV_WRITE).
            let sql =
            "select pg_catalog.lo_close(f.fd) from (select pg_catalog.lo_open($1, 131072) as fd offset 0) f
                   where pg_catalog.lo_truncate64(f.fd, $2) = 0";
            tx.query(sql, &[&oid, wanted]).await?;
            as_ourselves(tx).await?;
        }
        Ok(())
    }
}

fn pairs(rows: &[Row]) -> Vec<(u32, i32)> {
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}
