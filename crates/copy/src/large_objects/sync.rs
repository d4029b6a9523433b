//! Brings the target's large objects to where the source's are now, over and over, each round with what changed since
//! the one before: nothing replicates them.
//!
//! The first round begins at the copy's own snapshot. Each batch commits with how far it got, so that a round which
//! was interrupted is gone on from, and a further round after a complete one has little to do. Only objects of the
//! copy, and those that an earlier round made, are touched on the target.

use super::changes::{self, Look, Watermark};
use super::content::Content;
use super::object::{self, Object, align, as_ourselves, as_owner};
use super::units::{BATCH, explain, made};
use crate::options::{Copy, LargeObjects};
use crate::state;
use handover_core::error::{Class, Error, Result};
use handover_core::event::{Measure, StepId};
use handover_core::failpoint;
use handover_port::Port;
use handover_postgres::{Session, Tx};
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Unit of [`Watermark`]; what units are called in databases stays.
const WATERMARK: &str = "carried";
/// Units of [`Synced`], followed by their numbers.
const SYNCED: &str = "carried:";
/// Pieces in a batch: bytes that are lost when a transaction is.
const PIECES: usize = 256;
/// What is shown while a round runs.
const PROGRESS: &str = "large objects that changed";

/// What one transaction made and removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Synced {
    /// They grow.
    number: u64,
    made: Vec<u32>,
    removed: Vec<u32>,
}

/// What a round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SyncRound {
    /// Objects that there are on the source.
    pub objects: u64,
    /// Objects that were made on the target.
    pub made: u64,
    /// Objects whose content, owner, rights or comment were brought up to date.
    pub changed: u64,
    /// Objects that were removed.
    pub removed: u64,
    /// Bytes that travelled.
    pub bytes: u64,
    /// Milliseconds to find out what changed: the same whatever did, and the least that a round takes.
    pub look_ms: u64,
    /// Milliseconds for all of it.
    pub total_ms: u64,
}

impl SyncRound {
    /// Adds what another did; its times count as the latest.
    #[must_use]
    pub fn and(self, later: SyncRound) -> SyncRound {
        SyncRound {
            made: self.made + later.made,
            changed: self.changed + later.changed,
            removed: self.removed + later.removed,
            bytes: self.bytes + later.bytes,
            ..later
        }
    }
}

/// Numbers of the objects on the target that come from the copy step or the rounds after it.
pub async fn ours(green: &Session, port: &Port, step: &StepId) -> Result<RoaringBitmap> {
    Ok(history(green, port, step).await?.0)
}

/// [`ours`], and the number of the next [`Synced`].
async fn history(green: &Session, port: &Port, step: &StepId) -> Result<(RoaringBitmap, u64)> {
    let mut oids = made(green, port, step).await?;
    let mut synced = state::states::<Synced>(green, port.run, step, SYNCED).await?;
    synced.sort_by_key(|c| c.number);
    let next = synced.last().map_or(0, |c| c.number + 1);
    for one in synced {
        oids.extend(one.made);
        for oid in one.removed {
            oids.remove(oid);
        }
    }
    Ok((oids, next))
}

/// Refuses unless both servers let this role look at large objects' pages.
async fn assert_readable(session: &Session) -> Result<()> {
    if readable(session, None).await? {
        return Ok(());
    }
    Err(Error::new(
        Class::Privilege,
        "no right to look at the pages of large objects, which tells what changed in them since the copy",
    )
    .on_database(session.database())
    .hint(format!("{FIX}; or say `large_objects: skip` in the copy if the new side needs none")))
}

/// How to get the right that [`readable`] asks for.
pub const FIX: &str = "as a superuser, in that database: `grant select on pg_catalog.pg_largeobject to` the role (members of pg_read_all_data, which came with Postgres 14, have it)";

/// Whether a role, or the session's own, may look at the pages of large objects.
pub async fn readable(session: &Session, role: Option<&str>) -> Result<bool> {
    let row = session
        .query_one(
            "select coalesce((select has_table_privilege(oid, 'pg_catalog.pg_largeobject', 'select') from pg_roles
                              where rolname = coalesce($1, current_user::text)), false)",
            &[&role],
        )
        .await?;
    Ok(row.get(0))
}

/// Synchronizes the large objects of two sides.
pub struct Synchronizer {
    port: Port,
    copy: Copy,
    /// The copy's: what is synchronized is undone with it.
    step: StepId,
    blue: Content,
    green: Session,
    watermark: Watermark,
    ours: RoaringBitmap,
    number: u64,
}

impl Synchronizer {
    /// Connects to both sides; none when the plan leaves large objects behind.
    ///
    /// # Errors
    /// No connection, no right to look, or a copy that is not there.
    pub async fn open(port: &Port, step: &StepId, copy: &Copy) -> Result<Option<Self>> {
        if copy.large_objects == LargeObjects::Skip {
            return Ok(None);
        }
        let blue = port.databases.labelled(port.step.as_str()).read_only(&copy.from).await?;
        let mut green = port.writer(&copy.to).await?;
        let Some(copied) = state::read(&green, port.run, step).await? else { return Ok(None) };
        let none = "select from pg_largeobject_metadata limit 1";
        if !readable(&blue, None).await? && blue.query_opt(none, &[]).await?.is_none() {
            return Ok(None);
        }
        for session in [&blue, &green] {
            session.set("statement_timeout", "0").await?;
            assert_readable(session).await?;
        }
        let (ours, number) = history(&green, port, step).await?;
        let tx = green.transaction().await?;
        let watermark: Option<Watermark> = tx.checkpoint(port.run, step, WATERMARK).await?;
        tx.rollback().await?;
        let watermark = match watermark {
            Some(watermark) => watermark,
            None => Watermark::in_snapshot(&copied.snapshot.xids)?,
        };
        let blue = Content::new(port, copy, blue).await?;
        let (port, copy, step) = (port.clone(), copy.clone(), step.clone());
        Ok(Some(Synchronizer { port, copy, step, blue, green, watermark, ours, number }))
    }

    /// The session on the source, between rounds.
    #[must_use]
    pub fn source(&self) -> &Session {
        &self.blue.session
    }

    /// Bounds each of its statements, so that one which is given up on ends.
    ///
    /// # Errors
    /// What a server says.
    pub async fn limit(&self, time: Duration) -> Result<()> {
        let time = format!("{}ms", time.as_millis());
        for session in [&self.blue.session, &self.green] {
            session.set("statement_timeout", &time).await?;
        }
        Ok(())
    }

    /// One round.
    ///
    /// # Errors
    /// What a server says, or an object on the target that is not ours. What is committed stays, and is gone on
    /// from.
    pub async fn round(&mut self) -> Result<SyncRound> {
        self.blue.session.query("begin isolation level repeatable read, read only", &[]).await?;
        let result = self.all().await.map_err(explain);
        let ended = self.blue.session.query("rollback", &[]).await;
        let round = result?;
        ended.map(|_| round)
    }

    /// Objects that changed since the last round, in numbers: for a last look.
    pub async fn changed_since(&self) -> Result<Vec<u32>> {
        self.blue.session.query("begin isolation level repeatable read, read only", &[]).await?;
        let look = changes::look(&self.blue.session, self.watermark, self.blue.pages).await?;
        self.blue.session.query("rollback", &[]).await?;
        let all: RoaringBitmap = look.written.keys().copied().collect();
        Ok((all | look.changed).into_iter().collect())
    }

    async fn all(&mut self) -> Result<SyncRound> {
        let begun = Instant::now();
        let look = changes::look(&self.blue.session, self.watermark, self.blue.pages).await?;
        let commented = changes::commented(&self.blue.session, &self.green).await? & &self.ours;
        let new = &look.changed - &self.ours;
        let mut round = SyncRound { objects: look.objects, ..SyncRound::default() };
        // All that were there, and the new ones: if there are fewer, some were removed.
        if look.objects != self.ours.len() + new.len() {
            let rows = self.blue.session.query("select oid from pg_largeobject_metadata", &[]).await?;
            let all: RoaringBitmap = rows.iter().map(|row| row.get::<_, u32>(0)).collect();
            let gone: Vec<u32> = (&self.ours - &all).into_iter().collect();
            round.look_ms = millis(begun.elapsed());
            for gone in gone.chunks(BATCH.unsigned_abs() as usize) {
                round.removed += self.remove(gone).await?;
            }
        } else {
            round.look_ms = millis(begun.elapsed());
        }
        let mut candidates = &look.changed | commented;
        candidates.extend(look.written.keys().copied());
        let candidates: Vec<u32> = candidates.into_iter().collect();
        let mut at = 0;
        while at < candidates.len() {
            let (mut end, mut pieces) = (at, 0);
            while end < candidates.len()
                && end - at < BATCH.unsigned_abs() as usize
                && (pieces < PIECES || end == at)
            {
                pieces += look.written.get(&candidates[end]).map_or(0, BTreeSet::len);
                end += 1;
            }
            self.port.proceed()?;
            self.batch(&look, &candidates[at..end], &mut round).await?;
            at = end;
            self.port.progress(PROGRESS, at as u64, Some(candidates.len() as u64), Measure::Items);
        }
        self.port.unit_done(PROGRESS);
        let watermark = Watermark { before: look.before, head: None };
        let tx = self.green.transaction().await?;
        tx.save_checkpoint(self.port.run, &self.step, WATERMARK, &watermark).await?;
        tx.commit().await?;
        self.watermark = watermark;
        failpoint::at(failpoint::REPLICATE_LARGE_OBJECTS)?;
        round.total_ms = millis(begun.elapsed());
        Ok(round)
    }

    async fn remove(&mut self, gone: &[u32]) -> Result<u64> {
        self.port.proceed()?;
        let tx = self.green.transaction().await?;
        let rows = tx
            .query(
                "select pg_catalog.lo_unlink(oid) from pg_catalog.pg_largeobject_metadata where oid = any($1)",
                &[&gone],
            )
            .await?;
        let synced = Synced { number: self.number, removed: gone.to_vec(), ..Synced::default() };
        self.number = save(&tx, &self.port, &self.step, &synced).await?;
        tx.commit().await?;
        for oid in gone {
            self.ours.remove(*oid);
        }
        failpoint::at(failpoint::REPLICATE_LARGE_OBJECTS)?;
        Ok(rows.len() as u64)
    }

    /// Brings some objects up to date, in one transaction.
    async fn batch(&mut self, look: &Look, oids: &[u32], round: &mut SyncRound) -> Result<()> {
        let wanted = self.blue.session.query(&object::query("m.oid = any($1)"), &[&oids]).await?;
        let wanted = object::read(&wanted)?;
        let tx = self.green.transaction().await?;
        let there = object::read(&tx.query(&object::query("m.oid = any($1)"), &[&oids]).await?)?;
        let there: BTreeMap<u32, Object> = there.into_iter().map(|o| (o.oid, o)).collect();
        let (mut new, mut old, mut missing) = (Vec::new(), Vec::new(), Vec::new());
        for object in &wanted {
            match (there.get(&object.oid), self.ours.contains(object.oid)) {
                (None, false) => new.push(object),
                (Some(there), true) => old.push((object, there)),
                (None, true) => missing.push(object.oid),
                (Some(_), false) => return Err(taken(object.oid, &self.copy)),
            }
        }
        if !missing.is_empty() {
            self.port.warn(format!(
                "{} large objects were removed on {} since the copy, and what {} wrote to them is not carried over: {}",
                missing.len(),
                self.copy.to,
                self.copy.from,
                handover_core::problem::few(&missing)
            ));
        }
        create(&tx, &self.copy, &new).await?;
        let mut pieces: Vec<(u32, i32)> = self.blue.pieces_of(&new).await?;
        pieces.extend(self.blue.pieces_that_differ(look, &old, &tx).await?);
        // A new object has what an owner has by default: nobody else's rights yet.
        let mut owners: BTreeMap<u32, &str> = new.iter().map(|o| (o.oid, o.owner.as_str())).collect();
        owners.extend(old.iter().map(|(_, there)| (there.oid, there.owner.as_str())));
        let touched: BTreeSet<u32> = pieces.iter().map(|(oid, _)| *oid).collect();
        let lengths = self.blue.lengths(&owners).await?;
        let mut realign = RoaringBitmap::new();
        for (_, object) in &old {
            let written = touched.contains(&object.oid) || look.written.contains_key(&object.oid);
            let written = written || look.changed.contains(object.oid);
            if written && !object.is_open_to_owner() {
                as_owner(&tx, &self.copy, &object.owner).await?;
                tx.batch(&format!("grant all on large object {} to {}", object.oid, object.owner)).await?;
                as_ourselves(&tx).await?;
                realign.insert(object.oid);
            }
        }
        round.bytes += self.blue.put(&tx, &owners, &pieces, &lengths).await?;
        self.blue.resize(&tx, &owners, &lengths).await?;
        realign.extend(new.iter().map(|o| o.oid));
        realign.extend(old.iter().filter(|(a, b)| !align(&self.copy, a, b).is_empty()).map(|(a, _)| a.oid));
        let numbers: Vec<u32> = realign.into_iter().collect();
        if !numbers.is_empty() {
            let now = object::read(&tx.query(&object::query("m.oid = any($1)"), &[&numbers]).await?)?;
            let wanted: BTreeMap<u32, &Object> = wanted.iter().map(|o| (o.oid, o)).collect();
            let sql: String =
                now.iter().filter_map(|o| Some(align(&self.copy, wanted.get(&o.oid)?, o))).collect();
            if !sql.is_empty() {
                tx.batch(&sql).await?;
            }
        }
        if !new.is_empty() {
            let made = new.iter().map(|o| o.oid).collect();
            let synced = Synced { number: self.number, made, ..Synced::default() };
            self.number = save(&tx, &self.port, &self.step, &synced).await?;
        }
        let watermark = match oids.last() {
            Some(last) => self.watermark.up_to(*last, look.before),
            None => self.watermark,
        };
        tx.save_checkpoint(self.port.run, &self.step, WATERMARK, &watermark).await?;
        tx.commit().await?;
        self.watermark = watermark;
        self.ours.extend(new.iter().map(|o| o.oid));
        round.made += new.len() as u64;
        round.changed += old.len() as u64;
        failpoint::at(failpoint::REPLICATE_LARGE_OBJECTS)?;
        Ok(())
    }
}

/// Makes objects, each as its owner.
async fn create(tx: &Tx<'_>, copy: &Copy, objects: &[&Object]) -> Result<()> {
    let mut objects = objects.to_vec();
    objects.sort_by(|a, b| a.owner.cmp(&b.owner));
    for same in objects.chunk_by(|a, b| a.owner == b.owner) {
        let oids: Vec<u32> = same.iter().map(|object| object.oid).collect();
        as_owner(tx, copy, &same[0].owner).await?;
        tx.query("select pg_catalog.lo_create(oid) from unnest($1::oid[]) o (oid)", &[&oids]).await?;
    }
    as_ourselves(tx).await
}

async fn save(tx: &Tx<'_>, port: &Port, step: &StepId, synced: &Synced) -> Result<u64> {
    tx.save_checkpoint(port.run, step, &format!("{SYNCED}{}", synced.number), synced).await?;
    Ok(synced.number + 1)
}

fn taken(oid: u32, copy: &Copy) -> Error {
    Error::new(
        Class::Invariant,
        format!("large object {oid} was made on {} since the copy, and {} has another of that number", copy.from, copy.to),
    )
    .on_database(&copy.to)
    .hint(format!("see who made it there; where it is not needed, `select lo_unlink({oid})` on that side, then `handover resume`"))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
