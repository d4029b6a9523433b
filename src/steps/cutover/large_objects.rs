//! Large objects are synchronized at the cutover: nothing replicates or captures them, and no lock of ours holds
//! their writers off.
//!
//! Most of it happens before the pause, in rounds that each leave less to the next. What the pause pays for is
//! finding out what changed since the last of them, which costs the same whatever did, and those few objects. How
//! long that takes is known before anybody is held off.

use super::feeds;
use super::options::Cutover;
use crate::error::{Class, Error, Result};
use crate::postgres::Session;
use crate::problem::few;
use crate::steps::{Context, Description};
use handover_copy::large_objects::sync::{self, SyncRound, Synchronizer};
use handover_copy::{Copy, LargeObjects};
use handover_replication::bytes;
use std::time::Duration;

/// Rounds before the pause; whoever writes faster than they transfer is not caught up with.
const ROUNDS: usize = 8;
/// What a dry run reads to tell how fast the source looks through its large objects, in blocks.
const SAMPLE: i64 = 8192;

/// What synchronizes the two sides; none when no copy took large objects.
pub async fn open(cutover: &Cutover, cx: &Context) -> Result<Option<Synchronizer>> {
    let found = feeds::copies(cutover, cx).filter(|(_, copy)| copy.large_objects == LargeObjects::Copy);
    match found.last() {
        Some((step, copy)) => Synchronizer::open(cx, step, copy).await,
        None => Ok(None),
    }
}

/// Synchronizes what changed since the copy, or since the last time, while the application goes on.
pub async fn catch_up(cutover: &Cutover, cx: &Context) -> Result<()> {
    let Some(mut synchronizer) = open(cutover, cx).await? else { return Ok(()) };
    let budget = cutover.write_pause.0;
    let mut all = SyncRound::default();
    for _ in 0..ROUNDS {
        let round = synchronizer.round().await?;
        all = all.and(round);
        // What is left of a round that transfers for so short a time fits into the pause.
        if transfer_time(&round) <= budget / 10 {
            break;
        }
    }
    if all.objects > 0 || all.removed > 0 {
        cx.note(said(&all));
    }
    let look = Duration::from_millis(all.look_ms);
    if look > budget / 2 {
        return Err(Error::new(
            Class::Invariant,
            format!(
                "looking for changes in {} large objects takes {look:?}, and writers would wait for it in a pause of {} at most",
                all.objects, cutover.write_pause
            ),
        )
        .on_database(synchronizer.source().database())
        .hint(format!(
            "nothing was paused and the old side serves on. Raise `write_pause` to {} or more; or stop whatever writes large objects, and say `large_objects: skip` in a later plan",
            crate::value::Duration::secs(look.as_secs() * 3 + 1)
        )));
    }
    if transfer_time(&all) > budget / 2 {
        cx.warn(format!(
            "large objects change so fast that carrying them takes {:?} again and again; the pause may not suffice",
            transfer_time(&all)
        ));
    }
    Ok(())
}

fn transfer_time(round: &SyncRound) -> Duration {
    Duration::from_millis(round.total_ms.saturating_sub(round.look_ms))
}

fn said(round: &SyncRound) -> String {
    format!(
        "large objects: {} made, {} brought up to date, {} removed ({}); the last look at all {} took {} ms, and the pause pays for one more",
        round.made,
        round.changed,
        round.removed,
        bytes(round.bytes),
        round.objects,
        round.look_ms
    )
}

/// Waits until no transaction is left that wrote to large objects before writers were held off, then synchronizes
/// the rest. Those that wait for a lock wait for us: they cannot commit.
pub async fn sync_rest(synchronizer: &mut Synchronizer) -> Result<SyncRound> {
    let sql = "select 1 from pg_stat_activity a join pg_locks l on l.pid = a.pid
               where l.relation = 'pg_catalog.pg_largeobject'::regclass and l.mode = 'RowExclusiveLock'
                 and l.database = (select oid from pg_database where datname = current_database())
                 and a.backend_xid is not null and a.wait_event_type is distinct from 'Lock' limit 1";
    while synchronizer.source().query_opt(sql, &[]).await?.is_some() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    synchronizer.round().await
}

/// Warns of what was written to large objects of the old side after they were synchronized: its triggers refuse
/// writes to tables, and there are none for these.
pub async fn look_back(cx: &Context, synchronizer: &Synchronizer) {
    match synchronizer.changed_since().await {
        Ok(late) if late.is_empty() => {}
        Ok(late) => cx.warn(format!(
            "large objects were written to on the old side after they had been carried over, by transactions that wrote no row of any table: {}; see what is in them, and whether the new side needs it",
            few(&late)
        )),
        Err(error) => cx.warn(format!("whether large objects were written to on the old side meanwhile is not known ({error})")),
    }
}

/// What a dry run says.
pub async fn describe(cutover: &Cutover, cx: &Context, blue: &Session, out: &mut Description) -> Result<()> {
    let copies: Vec<&Copy> = feeds::copies(cutover, cx).map(|(_, copy)| copy).collect();
    if copies.iter().all(|copy| copy.large_objects == LargeObjects::Skip) {
        return Ok(());
    }
    let row = blue
        .query_one(
            "select (select count(*) from pg_largeobject_metadata), pg_relation_size('pg_catalog.pg_largeobject'),
                    current_setting('block_size')::int8",
            &[],
        )
        .await?;
    let (objects, size, block): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    out.action(format!(
        "carry over what changed in large objects since the copy: most of it before the pause, the rest in it ({objects} large objects now)"
    ));
    if objects == 0 {
        return Ok(());
    }
    if !sync::readable(blue, None).await? {
        out.warning(format!(
            "how long it takes to look for changed large objects ({}) is not known: this role may not see their pages",
            bytes(size.unsigned_abs())
        ));
        return Ok(());
    }
    let blocks = size / block.max(1);
    let major = blue.major().await?;
    if blocks > SAMPLE && major < 14 {
        // Parts of a table are read by place only from 14 on.
        return Ok(());
    }
    let begun = std::time::Instant::now();
    let part = if major < 14 { String::new() } else { format!("and ctid < '({SAMPLE},0)'") };
    let sql = format!("select count(*) from pg_catalog.pg_largeobject where xmin::text::int8 > 2 {part}");
    blue.query_one(&sql, &[]).await?;
    let share = blocks as f64 / blocks.clamp(1, SAMPLE) as f64;
    let look = begun.elapsed().mul_f64(share);
    let text = format!(
        "the pause pays for one look through large objects ({}): about {:.2} s, by a sample of {}",
        bytes(size.unsigned_abs()),
        look.as_secs_f64(),
        bytes((blocks.clamp(1, SAMPLE) * block).unsigned_abs())
    );
    if look > cutover.write_pause.0 / 2 {
        out.blocker(format!("{text}; raise `write_pause`, which is {}", cutover.write_pause));
    } else {
        out.action(text);
    }
    Ok(())
}
