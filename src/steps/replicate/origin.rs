//! Where the stream begins: publication and slot, made by the copy before it reads its first row.

use super::{Following, Link, emptied, identity, preflight, slot, subscription};
use crate::error::{Class, Error, Result};
use crate::failpoint;
use crate::postgres::catalog::application;
use crate::postgres::ours::OURS;
use crate::postgres::{Session, TableName, quote_ident, quote_literal};
use crate::steps::{Context, Description};
use async_trait::async_trait;
use handover_copy::{Beginning, Copy, roots};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long the locks for a publication may be waited for.
const PATIENCE: Duration = Duration::from_secs(120);

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

/// What stands in the way of a replication that follows a copy.
///
/// # Errors
/// What a server says.
pub async fn look(
    following: &Following<'_>,
    copy: &Copy,
    blue: &Session,
    green: &Session,
    out: &mut Description,
) -> Result<()> {
    let Following { cx, replicate, link } = following;
    let tables = preflight::look(replicate, copy, &cx.databases, blue, green, out).await?;
    // What the catalogs show need not be tried; and what they refuse could not be.
    if out.blockers.is_empty() {
        let roots = roots(blue, copy).await?;
        let published: BTreeSet<&TableName> = tables.iter().map(|t| roots.get(t).unwrap_or(t)).collect();
        let published: Vec<TableName> = published.into_iter().cloned().collect();
        identity::rehearse(cx, link, &published, out).await?;
    }
    Ok(())
}

/// Makes publication and slot for the replication that follows a copy.
/// What an earlier attempt left is dropped before: a slot belongs to one snapshot.
///
/// # Errors
/// What a server says, or a slot that waits too long for transactions that write.
pub async fn prepare(following: &Following<'_>, copy: &Copy) -> Result<Origin> {
    let Following { cx, replicate, link } = following;
    discard(cx, link).await?;
    let made = async {
        announce(cx, copy, link).await?;
        subscription::rehearse(cx, replicate, link).await?;
        // Before the slot: the stream is decoded with the catalogs of its time, and must find it there.
        publish(cx, copy, link).await?;
        failpoint::at(failpoint::REPLICATE_PUBLISHED)?;
        let folder = replicate.programs.as_deref().or(copy.programs.as_deref());
        slot::create(cx, link, folder, replicate.patience.0).await
    };
    let fresh = match made.await {
        Ok(fresh) => fresh,
        Err(error) => {
            if let Err(e) = discard(cx, link).await {
                cx.warn(format!("what was made for the replication is still there: {e}"));
            }
            return Err(error);
        }
    };
    failpoint::at(failpoint::REPLICATE_SLOT_CREATED)?;
    cx.note(format!("replication begins at log position {} of {}", fresh.lsn, link.from));
    Ok(Origin { fresh })
}

/// Tables of the copy that can be published: those with rows of their own that are logged.
///
/// # Errors
/// What the server says.
pub async fn tables(blue: &Session, copy: &Copy) -> Result<Vec<TableName>> {
    let rows = blue
        .query(
            &format!(
                "select n.nspname::text, c.relname::text from {} and c.relpersistence = 'p' order by 1, 2",
                application("'r'")
            ),
            &[],
        )
        .await?;
    let all = rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)));
    Ok(all.filter(|table| copy.takes_rows(table)).collect())
}

/// Makes publications without tables.
async fn announce(cx: &Context, copy: &Copy, link: &Link) -> Result<()> {
    let mut blue = cx.writer(&link.from).await?;
    let emptied = emptied::find(&blue, copy).await?;
    let name = quote_ident(&link.name);
    let about = format!("Handover: plan {}, step {}, run {}", cx.plan, link.step, cx.run);
    let tx = blue.transaction().await?;
    let failed = |e: Error| e.context("creating the publication");
    // Each table is published as itself, unless one above it is published.
    let sql = format!("create publication {name} with (publish_via_partition_root = true)");
    tx.execute(&sql, &[]).await.map_err(failed)?;
    tx.execute(&format!("comment on publication {name} is {}", quote_literal(&about)), &[]).await?;
    if !emptied.tables.is_empty() {
        let name = quote_ident(&emptied::publication(link));
        let sql = format!("create publication {name} with (publish = 'truncate')");
        tx.execute(&sql, &[]).await.map_err(failed)?;
        tx.execute(&format!("comment on publication {name} is {}", quote_literal(&about)), &[]).await?;
    }
    tx.commit().await
}

/// Adds the tables to it.
async fn publish(cx: &Context, copy: &Copy, link: &Link) -> Result<()> {
    let mut blue = cx.writer(&link.from).await?;
    blue.wait_for_locks(Duration::from_secs(2)).await?;
    let begun = Instant::now();
    loop {
        cx.proceed()?;
        let roots = roots(&blue, copy).await?;
        let tables = tables(&blue, copy).await?;
        let tables: BTreeSet<&TableName> = tables.iter().map(|t| roots.get(t).unwrap_or(t)).collect();
        let mut list: Vec<String> = tables.iter().map(|t| format!("only {}", t.sql())).collect();
        list.push(format!("{OURS}.replication_marker"));
        let mut sql = format!("alter publication {} add table {};", quote_ident(&link.name), list.join(", "));
        let emptied = emptied::find(&blue, copy).await?.tables;
        if !emptied.is_empty() {
            let list: Vec<String> = emptied.iter().map(|t| format!("only {}", t.sql())).collect();
            let name = quote_ident(&emptied::publication(link));
            sql.push_str(&format!("alter publication {name} add table {}", list.join(", ")));
        }
        let tx = blue.transaction().await?;
        match tx.batch(&sql).await {
            Ok(()) => return tx.commit().await,
            // A table that is altered, vacuumed or gone since we looked.
            Err(e)
                if (e.class() == Class::Contention || e.message().contains("42P01"))
                    && begun.elapsed() < PATIENCE =>
            {
                tx.rollback().await?;
                cx.sleep(Duration::from_millis(500)).await?;
            }
            Err(e) => return Err(e.context("publishing the tables")),
        }
    }
}

/// Whether slot and publication are there.
///
/// # Errors
/// What the server says.
pub async fn is_there(cx: &Context, link: &Link) -> Result<bool> {
    Ok(trouble(cx, link).await?.is_none())
}

/// Refuses unless slot and publication are there.
///
/// # Errors
/// One of them is gone, or the slot has lost its log.
pub async fn assert_there(cx: &Context, link: &Link) -> Result<()> {
    match trouble(cx, link).await? {
        Some(trouble) => Err(super::end::over(link, &trouble)),
        None => Ok(()),
    }
}

async fn trouble(cx: &Context, link: &Link) -> Result<Option<String>> {
    let blue = cx.databases.labelled(cx.step.as_str()).read_only(&link.from).await?;
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

/// The publications of a link that are there, quoted for a statement.
///
/// # Errors
/// What the server says.
pub(super) async fn publications(cx: &Context, link: &Link) -> Result<Vec<String>> {
    let blue = cx.databases.labelled(cx.step.as_str()).read_only(&link.from).await?;
    let sql = "select pubname::text from pg_publication where pubname in ($1, $2) order by pubname";
    let rows = blue.query(sql, &[&link.name, &emptied::publication(link)]).await?;
    Ok(rows.iter().map(|row| quote_ident(&row.get::<_, String>(0))).collect())
}

/// Drops what belongs to the replication that follows the copy step `cx` is of, if there is one.
///
/// # Errors
/// See [`discard`].
pub async fn discard_after_copy(cx: &Context) -> Result<()> {
    match super::following(cx) {
        Some(following) => discard(cx, &following.link).await,
        None => Ok(()),
    }
}

/// Drops subscription, slot and publication, as far as they are there. Should the subscriber be out of reach, the
/// slot is dropped all the same, for it holds back log on a side that serves; then the error follows.
///
/// # Errors
/// What a server says.
pub async fn discard(cx: &Context, link: &Link) -> Result<()> {
    let unsubscribed = subscription::remove(cx, link).await;
    if unsubscribed.is_ok() {
        failpoint::at(failpoint::REPLICATE_UNDO_UNSUBSCRIBED)?;
    }
    slot::remove(cx, link).await?;
    failpoint::at(failpoint::REPLICATE_UNDO_SLOT_DROPPED)?;
    let mut blue = cx.writer(&link.from).await?;
    blue.set("lock_timeout", "30s").await?;
    let tx = blue.transaction().await?;
    for name in [&link.name, &emptied::publication(link)] {
        tx.execute(&format!("drop publication if exists {}", quote_ident(name)), &[])
            .await
            .map_err(|e| e.context("dropping the publication"))?;
    }
    subscription::forget_marks(&tx, link).await?;
    tx.commit().await?;
    unsubscribed.map_err(|e: Error| e.context("the subscription is still there"))
}
