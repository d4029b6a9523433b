//! Where the stream begins: publication and slot, made by the copy before it reads its first row.

use crate::link::Link;
use crate::options::Replicate;
use crate::subscription::Begin;
use crate::{publication, slot, subscription};
use async_trait::async_trait;
use handover_copy::{Beginning, Copy};
use handover_core::error::{Error, Result};
use handover_core::failpoint;
use handover_port::{Description, Port};
use handover_postgres::Session;

/// What is left of a replication that is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Nothing.
    Nothing,
    /// The publication, for when it begins again.
    Publication,
}

/// A point in time of the source that both the copy and the stream begin at.
#[derive(Debug)]
pub struct Origin {
    fresh: slot::Fresh,
}

#[async_trait]
impl Beginning for Origin {
    fn snapshot(&self) -> &str {
        &self.fresh.snapshot
    }

    /// Lets the slot's own connection go.
    async fn release(self: Box<Self>) {
        self.fresh.release().await;
    }
}

/// Makes publication and slot for the replication that follows a copy.
/// What an earlier attempt left is dropped before: a slot belongs to one snapshot.
///
/// # Errors
/// What a server says, or a slot that waits too long for transactions that write.
pub async fn prepare(port: &Port, replicate: &Replicate, copy: &Copy, link: &Link) -> Result<Origin> {
    discard(port, link).await?;
    let made = async {
        publication::announce(port, copy, link).await?;
        subscription::rehearse(port, replicate, link).await?;
        // Before the slot: the stream is decoded with the catalogs of its time, and must find it there.
        publication::publish(port, copy, link).await?;
        failpoint::at(failpoint::REPLICATE_PUBLISHED)?;
        let folder = replicate.programs.as_deref().or(copy.programs.as_deref());
        slot::create(port, link, folder, replicate.patience.0).await
    };
    let fresh = match made.await {
        Ok(fresh) => fresh,
        Err(error) => {
            if let Err(e) = discard(port, link).await {
                port.warn(format!("what was made for the replication is still there: {e}"));
            }
            return Err(error);
        }
    };
    failpoint::at(failpoint::REPLICATE_SLOT_CREATED)?;
    port.note(format!("replication begins at log position {} of {}", fresh.lsn, link.from));
    Ok(Origin { fresh })
}

/// Says what [`prepare`] executes, and what subscribes.
///
/// # Errors
/// What a server says.
pub async fn describe(
    port: &Port,
    copy: &Copy,
    link: &Link,
    blue: &Session,
    out: &mut Description,
) -> Result<()> {
    // Away with what an earlier attempt left.
    for sql in publication::removal(link) {
        out.statement(&link.from, &sql);
    }
    let (publications, emptied) = publication::statements(port, blue, copy, link).await?;
    for sql in publications.iter().chain([&slot::creation(link)]) {
        out.statement(&link.from, sql);
    }
    for sql in subscription::creation(link, &publication::names(link, emptied), Begin::Now) {
        out.statement(&link.to, &sql);
    }
    Ok(())
}

/// Says what ends it after a cutover, where all is there.
pub fn describe_end(link: &Link, leave: Leave, out: &mut Description) {
    for sql in subscription::removal(link) {
        out.statement(&link.to, &sql);
    }
    out.statement(&link.from, slot::REMOVAL);
    for sql in publication::removal(link).iter().filter(|_| leave == Leave::Nothing) {
        out.statement(&link.from, sql);
    }
}

/// Refuses unless slot and publication are there.
///
/// # Errors
/// One of them is gone, or the slot has lost its log.
pub async fn assert_there(port: &Port, link: &Link) -> Result<()> {
    match trouble(port, link).await? {
        Some(trouble) => Err(link.over(&trouble)),
        None => Ok(()),
    }
}

/// Whether the publication is there.
pub async fn is_published(port: &Port, link: &Link) -> Result<bool> {
    let blue = port.databases.labelled(port.step.as_str()).read_only(&link.from).await?;
    let sql = "select exists (select from pg_publication where pubname = $1)";
    Ok(blue.query_one(sql, &[&link.name]).await?.get(0))
}

/// What is wrong with slot or publication; none when they are there.
pub async fn trouble(port: &Port, link: &Link) -> Result<Option<String>> {
    let blue = port.databases.labelled(port.step.as_str()).read_only(&link.from).await?;
    let row = blue
        .query_one(
            "select exists (select from pg_publication where pubname = $1),
                    (select coalesce(wal_status, 'lost') from pg_replication_slots
                     where slot_name = $1 and database = current_database())",
            &[&link.name],
        )
        .await?;
    let status: Option<String> = row.get(1);
    Ok(match (row.get::<_, bool>(0), status.as_deref()) {
        (true, Some("lost")) => Some(format!("the slot on {} has lost its log", link.from)),
        (true, Some(_)) => None,
        (false, _) => Some(format!("its publication on {} is not there", link.from)),
        (true, None) => Some(format!("its slot on {} is not there", link.from)),
    })
}

/// Drops subscription, slot and publication, as far as they are there. Should the subscriber be out of reach, the
/// slot is dropped all the same, for it holds back log on a side that serves; then the error follows.
///
/// # Errors
/// What a server says.
pub async fn discard(port: &Port, link: &Link) -> Result<()> {
    take_away(port, link, Leave::Nothing).await
}

/// As [`discard`]; where the publication is left, what it publishes, and that nobody altered it, goes on being true.
///
/// # Errors
/// What a server says.
pub async fn take_away(port: &Port, link: &Link, leave: Leave) -> Result<()> {
    let unsubscribed = subscription::remove(port, link).await;
    if unsubscribed.is_ok() {
        failpoint::at(failpoint::REPLICATE_UNDO_UNSUBSCRIBED)?;
    }
    slot::remove(port, link).await?;
    failpoint::at(failpoint::REPLICATE_UNDO_SLOT_DROPPED)?;
    let mut blue = port.writer(&link.from).await?;
    blue.set("lock_timeout", "30s").await?;
    let tx = blue.transaction().await?;
    for sql in publication::removal(link).iter().filter(|_| leave == Leave::Nothing) {
        tx.execute(sql, &[]).await.map_err(|e| e.context("dropping the publication"))?;
    }
    subscription::forget_marks(&tx, link).await?;
    tx.commit().await?;
    unsubscribed.map_err(|e: Error| e.context("the subscription is still there"))
}
