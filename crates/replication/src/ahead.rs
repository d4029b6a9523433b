//! A replication that is made ahead of its time: publication, slot, and a subscription that is disabled. It carries what
//! is written on the publisher itself, and nothing that came to it from the other side before: both servers know where a
//! change came from, and the publisher leaves the others out. That takes Postgres 16 on both.
//! (<https://www.postgresql.org/docs/current/sql-createsubscription.html#SQL-CREATESUBSCRIPTION-PARAMS-WITH-ORIGIN>)

use crate::end::ENDED;
use crate::link::Link;
use crate::options::Replicate;
use crate::origin::Leave;
use crate::subscription::{self, Begin};
use crate::{origin, publication, slot};
use handover_copy::Copy;
use handover_core::error::Result;
use handover_core::failpoint;
use handover_port::{Description, Port};
use handover_postgres::Session;
use std::time::Duration;

/// From this version on servers tell where a change came from.
pub const TELLS_ORIGIN: u32 = 16;
/// How long the slot may wait for transactions that write.
const PATIENCE: Duration = Duration::from_secs(30);
/// Makes it, unless it is there. `copy` says which tables of `link.from` are carried.
///
/// # Errors
/// What a server says.
pub async fn make(port: &Port, replicate: &Replicate, copy: &Copy, link: &Link) -> Result<()> {
    if is_there(port, link).await? {
        return Ok(());
    }
    if origin::is_published(port, link).await? {
        origin::take_away(port, link, Leave::Publication).await?;
    } else {
        origin::discard(port, link).await?;
        publication::announce(port, copy, link).await?;
        publication::publish(port, copy, link).await?;
    }
    slot::reserve(port, link, PATIENCE).await?;
    failpoint::at(failpoint::REVERSE_SLOT_CREATED)?;
    subscription::create(port, replicate, link, Begin::Ahead).await?;
    port.note(format!("{} is ready to follow {} as subscription {}", link.to, link.from, link.name));
    Ok(())
}

/// Says what [`make`] and [`enable`] execute, as things are now.
///
/// # Errors
/// What a server says.
pub async fn describe(
    port: &Port,
    copy: &Copy,
    link: &Link,
    publisher: &Session,
    out: &mut Description,
) -> Result<()> {
    let (publications, emptied) = publication::statements(port, publisher, copy, link).await?;
    for sql in publications.iter().map(String::as_str).chain([slot::RESERVATION]) {
        out.statement(&link.from, sql);
    }
    for sql in subscription::creation(link, &publication::names(link, emptied), Begin::Ahead) {
        out.statement(&link.to, &sql);
    }
    out.statement(&link.to, &subscription::enabling(link));
    Ok(())
}

/// Whether all of it is there.
///
/// # Errors
/// What a server says.
pub async fn is_there(port: &Port, link: &Link) -> Result<bool> {
    Ok(trouble(port, link).await?.is_none())
}

/// Lets the slot of one that does not flow yet begin now: nobody has written on the publisher itself so far, and what its
/// server keeps for it since it was made is of no use.
///
/// # Errors
/// What the server says.
pub async fn freshen(port: &Port, link: &Link) -> Result<()> {
    slot::advance(port, link).await
}

/// Lets it flow.
///
/// # Errors
/// What a server says.
pub async fn enable(port: &Port, link: &Link) -> Result<()> {
    subscription::enable(port, link).await
}

/// What is wrong with its slot or publication, or that it has no subscription; none when all is there.
///
/// # Errors
/// What a server says.
pub async fn trouble(port: &Port, link: &Link) -> Result<Option<String>> {
    if let Some(trouble) = origin::trouble(port, link).await? {
        return Ok(Some(trouble));
    }
    let subscriber = port.databases.labelled(port.step.as_str()).read_only(&link.to).await?;
    let there = subscription::find(&subscriber, &link.name).await?.is_some();
    Ok((!there).then(|| format!("its subscription on {} is not there", link.to)))
}

/// Why it was ended before its time; none when it was not.
///
/// # Errors
/// A fact that cannot be read.
pub fn ended(port: &Port, link: &Link) -> Result<Option<String>> {
    debug_assert_eq!(port.step, link.step, "a stream's facts are its step's");
    port.recall(ENDED)
}
