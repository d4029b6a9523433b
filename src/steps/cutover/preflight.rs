//! Everything that can be found out before anybody is paused.

use super::book::Book;
use super::feeds;
use super::forecast::Measured;
use super::gate::Gate;
use super::gates::Rule;
use super::options::Cutover;
use super::window::Watch;
use super::{
    approval, arrivals, attempts, blockers as sessions, forecast, freeze, large_objects, quarantine, reverse,
    sequences, served, stream, subscriptions, switch, uncaptured, watched,
};
use crate::error::{Class, Error, Result};
use crate::event::Measure;
use crate::postgres::catalog::{self, application};
use crate::postgres::locks::Room;
use crate::postgres::{Session, TableName, blockers, fingerprint, quote_literal};
use crate::problem::few;
use crate::steps::{Context, Description};
use handover_actions::Actions;
use handover_replication::Gauge;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What was proven before the pause, and must be the same behind the lock.
#[derive(Debug, Default)]
pub struct Proof {
    /// The digest of the old side's schema.
    pub schema: String,
    /// Which rows the new side holds; see [`served`].
    pub successor: String,
    /// Whether the new side refuses writes, since an earlier way back was taken.
    pub successor_is_shut: bool,
    /// The tables whose writes nothing carries over, with how often the server counted a write to each.
    pub exposed: BTreeMap<TableName, i64>,
}

/// Proves all that a waiting cannot mend. One place, called whenever something may have changed.
async fn prove(cutover: &Cutover, cx: &Context, blue: &Session, green: &Session) -> Result<Proof> {
    if let Some(text) = look(cutover, cx, blue, green).await?.into_iter().next() {
        return Err(attempts::refusal(blue, text));
    }
    let exposed = uncaptured::refuse(cutover, cx, blue, green).await?;
    let successor = served::successor(green).await?;
    let successor_is_shut = Gate::of(cx).is_shut(green).await?;
    Ok(Proof { schema: watched::refuse(cutover, cx).await?, successor, successor_is_shut, exposed })
}

/// Waits until a pause would be short, or fails with what is in the way.
pub async fn ready(cutover: &Cutover, cx: &Context, book: &Book<'_>) -> Result<Proof> {
    let actions = Actions::new(cx);
    for participant in &cutover.participants {
        participant.check(cx, book, &actions, cutover.freeze.as_deref()).await?;
    }
    let (Some(freeze), Some(to)) = (&cutover.freeze, &cutover.to) else { return Ok(Proof::default()) };
    let (mut blue, green) = (cx.writer(freeze).await?, cx.reader(to).await?);
    let mut successor = cx.writer(to).await?;
    let unknown = never_analyzed(&green).await?;
    if let Some(first) = unknown.first() {
        cx.warn(format!(
            "never analyzed on {to}: {}; their first queries may be slow: `analyze {first}`, and so on",
            few(&unknown)
        ));
    }
    let mut proof = prove(cutover, cx, &blue, &green).await?;
    let mut gauge = match feeds::link(cutover, cx) {
        Some(link) => Some(Gauge::open(cx, &link).await?),
        None => None,
    };
    large_objects::catch_up(cutover, cx).await?;
    reverse::ready(cutover, cx, &blue, &green).await?;
    let begun = Instant::now();
    let mut waited = false;
    let mut measured = Measured::default();
    loop {
        let obstacle = match arrivals::late(cx, gauge.as_mut(), &mut measured).await? {
            None => match obstacle(cutover, cx, &blue, &green).await? {
                None => match Gate::of(cx).raise(&mut blue, cx, cutover).await? {
                    None => unconfirmed(cutover, cx, [&mut blue, &mut successor], &mut measured).await?,
                    some => some,
                },
                some => some,
            },
            late => late,
        };
        let Some(obstacle) = obstacle else {
            let sides = (&mut blue, &green, &mut successor);
            let forecast = forecast::rehearse(cutover, cx, sides, &measured).await?;
            // What is slow for the moment only. What grows with the schema was refused.
            if let Some(text) = forecast.exceeds(cutover.write_pause) {
                wait(cutover, cx, begun, &text).await?;
                measured = Measured::default();
                waited = true;
                continue;
            }
            if let Some(text) = reverse::freshen(cutover, cx, &blue, &green).await? {
                wait(cutover, cx, begun, &text).await?;
                waited = true;
                continue;
            }
            // Last of all, and all of it: what was written, made or altered while we waited counts as well.
            if std::mem::take(&mut waited) {
                proof = prove(cutover, cx, &blue, &green).await?;
                continue;
            }
            if fingerprint::digest(&blue).await? != proof.schema {
                wait(cutover, cx, begun, &format!("the schema of {freeze} is being changed")).await?;
                waited = true;
                continue;
            }
            // Objects changed also while we waited.
            if begun.elapsed() > Duration::from_secs(1) {
                large_objects::catch_up(cutover, cx).await?;
            }
            forecast::keep(&forecast, cx).await?;
            return Ok(proof);
        };
        wait(cutover, cx, begun, &obstacle).await?;
        waited = true;
    }
}

/// Waits for a moment for what is in the way, unless that took too long already.
async fn wait(cutover: &Cutover, cx: &Context, begun: Instant, obstacle: &str) -> Result<()> {
    let patience = cutover.patience;
    if begun.elapsed() >= patience.0 {
        return Err(Error::new(Class::Timeout, format!("not ready for the cutover within {patience}: {obstacle}"))
            .on_database(cutover.freeze.as_deref().unwrap_or_default())
            .hint("nothing was paused and the old side serves on; remove what is in the way, then `handover resume`"));
    }
    cx.progress("waiting to begin", begun.elapsed().as_secs(), Some(patience.0.as_secs()), Measure::Seconds);
    cx.sleep(Duration::from_millis(250)).await
}

/// What no waiting mends, in words.
async fn look(cutover: &Cutover, cx: &Context, blue: &Session, green: &Session) -> Result<Vec<String>> {
    let there = cx.databases.worker(blue.database())?.role(blue).await?;
    let here = cx.databases.worker(green.database())?.role(green).await?;
    // First of all: reading a sequence's position locks it, too.
    let mut out = rooms(cutover, blue, green).await?;
    if out.is_empty() {
        out.extend(sequences::look((blue, there.as_deref()), (green, here.as_deref())).await?);
    }
    out.extend(subscriptions::writing(blue, cutover).await?);
    out.extend(freeze::reached_by_excepted(blue, cutover).await?.iter().map(|(top, below)| {
        format!("`except` has {top}, and a write to it reaches rows of {below}, which is frozen: except {below} too, or neither")
    }));
    out.extend(served::before(cutover, cx, blue, green).await?);
    out.extend(sessions::rights(&cutover.blockers.rule(), blue, there.as_deref()).await?);
    Ok(out)
}

/// Which table of locks is too small for a pause as things stand now, in words that name the setting it takes.
pub async fn rooms(cutover: &Cutover, blue: &Session, green: &Session) -> Result<Vec<String>> {
    let mut out = Vec::new();
    let tables = freeze::tables(blue, cutover).await?.len() as u64;
    let sequences = catalog::sequences(blue).await?.len() as u64;
    let what = "holding writers off and reading all sequences";
    out.extend(Room::of(blue).await?.lacks(tables + sequences, what, blue.database()));
    let sequences = catalog::sequences(green).await?.len() as u64;
    out.extend(Room::of(green).await?.lacks(sequences, "setting all sequences", green.database()));
    Ok(out)
}

/// After an attempt that found a table of locks full, and is called off: none when there is room by now, so that another
/// attempt may succeed; else what it takes.
pub async fn out_of_locks(cutover: &Cutover, cx: &Context, error: Error) -> Option<Error> {
    let (freeze, to) = cutover.freeze.as_ref().zip(cutover.to.as_ref())?;
    let lacking = async { rooms(cutover, &cx.reader(freeze).await?, &cx.reader(to).await?).await };
    match lacking.await {
        Ok(lacking) if lacking.is_empty() => None,
        Ok(lacking) => Some(error.context(lacking.join("; ")).hint(
            "nothing is paused and the old side serves on; when the setting is raised, or those who hold so many locks there are done, `handover resume`",
        )),
        // It cannot even be counted: no room for what a connection takes.
        Err(_) => Some(error),
    }
}

/// Which side's commits wait for a standby that does not answer, in words.
pub async fn unconfirmed(
    cutover: &Cutover,
    cx: &Context,
    sides: [&mut Session; 2],
    measured: &mut Measured,
) -> Result<Option<String>> {
    let limit = (cutover.write_pause.0 / 4).max(Duration::from_millis(200));
    measured.commit = None;
    for session in sides {
        let begun = Instant::now();
        if let Some(obstacle) = freeze::confirms(session, cx, limit).await? {
            return Ok(Some(obstacle));
        }
        // The old side's, which comes first, is the one that the pause waits for.
        measured.commit.get_or_insert(begun.elapsed());
    }
    Ok(None)
}

/// What would make a pause long, in words.
async fn obstacle(
    cutover: &Cutover,
    cx: &Context,
    blue: &Session,
    green: &Session,
) -> Result<Option<String>> {
    for stream in feeds::streams(cutover, cx, blue).await? {
        let counts = handover_events::backlog(blue, green, &stream).await?;
        if counts.missing > 0 {
            return Err(Error::new(
                Class::Invariant,
                format!("replay of `{}` stands at an event that does not apply", stream.name),
            )
            .hint("see `handover status`; the replay step says which event and what to do"));
        }
        if counts.waiting > i64::from(cutover.max_backlog) {
            return Ok(Some(format!("{} events wait for replay ({counts})", counts.waiting)));
        }
    }
    if let Some(pending) = quarantine::pending(cutover, cx, blue, green).await? {
        return Ok(Some(pending));
    }
    held(&cutover.blockers.rule(), cx, blue, cutover.max_transaction_age.0).await
}

/// Who holds what writers of a side take, and so would make its pause long, in words. Whom the rule ends is ended.
pub async fn held(rule: &Rule, cx: &Context, blue: &Session, age: Duration) -> Result<Option<String>> {
    if let Some(prepared) = blockers::prepared_of_freeze(blue, age).await?.into_iter().next() {
        // No session is behind it, so nobody can be ended: somebody has to say what becomes of it.
        if let blockers::Blocker::Prepared { gid, owner, .. } = &prepared {
            let gid = quote_literal(gid);
            cx.warn(format!(
                "waits for a transaction that {owner} prepared: `rollback prepared {gid}` (or `commit prepared {gid}`) as {owner} on {}",
                blue.database()
            ));
        }
        return Ok(Some(prepared.to_string()));
    }
    sessions::clear(rule, cx, blue).await?;
    let Some(first) = blockers::of_freeze(blue, age).await?.into_iter().next() else { return Ok(None) };
    if let Some(pid) = first.autovacuum() {
        // It begins again by itself some other time. Where this is not allowed to us (before Postgres 18 only to
        // a superuser) it is waited for like the others.
        let _ = blue.query("select pg_cancel_backend($1)", &[&pid]).await;
    }
    Ok(Some(format!("a transaction has held locks that writers take: {first}")))
}

/// Tables with content that the planner knows nothing of.
async fn never_analyzed(green: &Session) -> Result<Vec<TableName>> {
    let sql = format!(
        "select n.nspname::text, c.relname::text from {}
         and c.reltuples = -1 and pg_relation_size(c.oid) > 0 order by 1, 2",
        application("'r'")
    );
    let rows = green.query(&sql, &[]).await?;
    Ok(rows.iter().map(|r| TableName::new(r.get::<_, String>(0), r.get::<_, String>(1))).collect())
}

/// What a dry run says.
pub async fn describe(cutover: &Cutover, cx: &Context) -> Result<Description> {
    let mut out = Description::default();
    let mut forecast = None;
    out.actions.extend(Watch::new(cutover.window.as_ref(), cutover.freeze.as_deref()).words()?);
    if let (Some(freeze), Some(to)) = (&cutover.freeze, &cutover.to) {
        let blue = cx.reader(freeze).await?;
        let tables = freeze::tables(&blue, cutover).await?;
        out.action(format!(
            "wait up to {} until nothing would make the pause long (backlog at most {} events, no writing transaction older than {})",
            cutover.patience, cutover.max_backlog, cutover.max_transaction_age
        ));
        let gate = stream::gate(cutover, cx);
        gate.describe_raise(&blue, cx, cutover, &mut out).await?;
        out.statement(freeze, &freeze::locking(&tables));
        out.statement(to, &sequences::setting());
        out.statement(freeze, &gate.shutting()).statement(freeze, &freeze::deciding());
        out.action(format!(
            "lock {} of {freeze} in SHARE ROW EXCLUSIVE mode: readers go on, writers wait at most {}",
            crate::problem::count(tables.len(), "table"),
            cutover.write_pause
        ));
        out.action(format!(
            "make a trigger on each of them before, which lets every write to {freeze} through until the decision",
        ));
        if let Some(text) = sessions::words(&cutover.blockers.rule()) {
            out.action(text);
        }
        let sequences = catalog::sequences(&blue).await?.len();
        out.action(format!(
            "drain what was captured into {to}, and set its sequences (there are {sequences} on {freeze}) {} steps beyond where the old ones stand",
            cutover.sequence_margin
        ));
        let green = cx.reader(to).await?;
        for text in look(cutover, cx, &blue, &green).await? {
            out.blocker(text);
        }
        if out.blockers.is_empty() {
            let there = cx.databases.worker(blue.database())?.role(&blue).await?;
            let here = cx.databases.worker(green.database())?.role(&green).await?;
            let roles = (there.as_deref(), here.as_deref());
            forecast = Some(forecast::describe(cutover, (&blue, &green), roles, &mut out).await?);
        }
        for text in blockers::prepared_of_freeze(&blue, cutover.max_transaction_age.0).await? {
            out.warning(format!("writers of {freeze} cannot be held off while it lasts: {text}"));
        }
        large_objects::describe(cutover, cx, &blue, &mut out).await?;
        reverse::describe(cutover, cx, &blue, &green, &mut out).await?;
        out.action(format!(
            "refuse writes on {freeze} from then on, in the same transaction{}",
            if cutover.reverse.is_some() { "" } else { ": the point of no return" }
        ));
        uncaptured::describe(cutover, cx, &blue, &mut out).await?;
        if tables.is_empty() {
            out.blocker(format!("{freeze} has no table to freeze"));
        }
        if let Some(link) = feeds::link(cutover, cx) {
            out.action(format!(
                "begin only when changes arrive on {to} within {:?}; go on only when a row written behind the last write has arrived there, and end the replication of step `{}` afterwards",
                link.max_lag, link.step
            ));
        }
        for stream in feeds::replayed(cutover, cx) {
            out.action(format!("go on only when replay of step `{stream}` has passed the fence marker"));
        }
    }
    for invariant in &cutover.invariants {
        let when = if invariant.quick { "within the pause" } else { "before the pause" };
        out.action(format!("compare `{}` on both sides {when}", invariant.name));
    }
    if let Some(ask) = &cutover.approve {
        let asked = approval::as_step(ask);
        out.action(format!(
            "when all of that is proven, wait for the approval of {}: {}",
            asked.whose(),
            asked.message
        ));
    }
    for participant in &cutover.participants {
        out.action(participant.shown());
        for (on, sql) in participant.statements()? {
            out.statement(on, sql);
        }
        switch::Flipping::of(participant, cx).describe(cutover.freeze.as_deref(), &mut out).await;
    }
    if let Some(freeze) = &cutover.freeze {
        stream::gate(cutover, cx).describe_bolt(&cx.reader(freeze).await?, cutover, &mut out).await?;
    }
    if let Some(link) = feeds::link(cutover, cx) {
        handover_replication::describe_end(&link, stream::leaves(cutover), &mut out);
    }
    out.estimate = Some(format!(
        "a pause of at most {} for writers, by budget; else it is called off and tried again up to {} times{}",
        cutover.write_pause,
        cutover.attempts,
        forecast.map_or_else(String::new, |words| format!("; {words}"))
    ));
    Ok(out)
}
