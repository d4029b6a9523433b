//! The stream back: from the decision on, what is written on the new side is replicated to the old one, so that a rollback
//! loses nothing ([`super::back`]).
//!
//! It is made before the pause, so that not even the new side's first write is missed, and nothing that came from the
//! old side goes back to it ([`handover_replication::ahead`]). It flows when the stream forward is gone: two streams at
//! once would send each other's changes round. The old side goes on refusing everybody else's writes; only the stream's
//! own workers are let through.

use super::differences::{differences, firing};
use super::options::Cutover;
use super::state::CARRIED_BACK;
use super::stream::{Stream, forward, stream};
use super::{attempts, freeze};
use crate::error::{Class, Result};
use crate::failpoint;
use crate::postgres::{Session, catalog};
use crate::problem::{Problems, Segment, few};
use crate::steps::{CheckContext, Context, Description};
use handover_replication::{ENDED, Leave, ahead};

/// The fact that an earlier way back shut the new side, which is to be opened before anybody is sent there.
const SUCCESSOR_IS_SHUT: &str = "successor_is_shut";

/// Finds what is wrong with it in a plan.
pub fn check(cutover: &Cutover, cx: &CheckContext<'_>, problems: &mut Problems) {
    let Some(reverse) = &cutover.reverse else { return };
    let (Some(freeze), Some(to)) = (&cutover.freeze, &cutover.to) else {
        problems
            .error(["reverse"], "`reverse:` needs `freeze:` and `to:`")
            .at_key()
            .hint("a stream back goes from the new side to the old one");
        return;
    };
    if cx.links.copied(cx.index, freeze, to).is_none() {
        problems
            .error(["reverse"], format!("no step before this one copies {freeze} to {to}"))
            .at_key()
            .hint(
                "the stream back carries the tables of that copy: add a `copy` step, or leave `reverse:` out",
            );
    }
    if let Some((id, _)) = cx.links.captures.before(cx.index).find(|(_, capture)| capture.from == *freeze) {
        problems
            .error(
                ["reverse"],
                format!("step `{id}` captures on {freeze}, and what comes back would be captured again"),
            )
            .at_key()
            .hint("`reverse:` is for two sides of one schema, which a `replicate` step keeps in step");
    }
    for (i, participant) in cutover.participants.iter().enumerate() {
        let at = vec![Segment::from("participants"), i.into()];
        if !participant.can_revert() {
            problems
                .error(
                    at,
                    format!(
                        "participant `{}` cannot be turned back, so `reverse:` is of no use",
                        participant.name
                    ),
                )
                .hint("say under `revert:` what turns it back, or leave `reverse:` out");
        } else if participant.file.is_some() && participant.prepare.is_some() {
            problems
                .error(at, "with `reverse:`, a participant that holds its clients needs `commit:`, and not `file:`")
                .hint("when a way back is called off, `commit` is told again to let the clients go on with the new side");
        }
    }
    if reverse.wal_budget_mb == Some(0) {
        problems
            .error(["reverse", "wal_budget_mb"], "a slot always keeps some log")
            .hint("write 1024 or more");
    }
}

/// Says what would be done for it; what makes it impossible is among the blockers.
///
/// # Errors
/// What a server says.
pub async fn describe(
    cutover: &Cutover,
    cx: &Context,
    blue: &Session,
    green: &Session,
    out: &mut Description,
) -> Result<()> {
    let Some(stream) = stream(cutover, cx) else { return Ok(()) };
    let Stream { replicate, copy, link } = &stream;
    out.action(format!(
        "before the pause: publish the tables of {0}, make a slot there and a subscription on {1} that is disabled; from the decision on, what is written on {0} goes back to {1}{2}",
        replicate.from,
        replicate.to,
        but_for(cutover)
    ));
    look(cutover, cx, &stream, blue, green, out).await?;
    if !catalog::tables(green).await?.is_empty() {
        ahead::describe(cx, copy, link, green, out).await?;
    }
    Ok(())
}

/// What makes it impossible, among the blockers, and what is to be known of it.
async fn look(
    cutover: &Cutover,
    cx: &Context,
    stream: &Stream,
    blue: &Session,
    green: &Session,
    out: &mut Description,
) -> Result<()> {
    let Stream { replicate, copy, link } = stream;
    for session in [blue, green] {
        let version = session.major().await?;
        if version < ahead::TELLS_ORIGIN {
            out.blocker(format!(
                "the stream back needs Postgres {} on both sides, which tell where a change came from, and {} is {version}: leave `reverse:` out",
                ahead::TELLS_ORIGIN,
                session.database()
            ));
        }
    }
    // What is there already counts as taken.
    if !ahead::is_there(cx, link).await? {
        let mut said = Description::default();
        handover_replication::look(replicate, copy, &cx.databases, green, blue, &mut said).await?;
        out.blockers.extend(said.blockers.into_iter().map(|text| format!("the stream back: {text}")));
    }
    let firing = firing(blue).await?;
    if !firing.is_empty() {
        out.warning(format!(
            "triggers that are enabled ALWAYS or REPLICA fire on {} for each row that comes back to {}: what they write arrives twice",
            replicate.to,
            few(&firing)
        ));
    }
    for text in differences(cutover, stream, blue, green).await? {
        out.blocker(text);
    }
    Ok(())
}

/// Makes it ready, before the pause.
///
/// # Errors
/// What is in its way, or what a server says.
pub async fn ready(cutover: &Cutover, cx: &Context, blue: &Session, green: &Session) -> Result<()> {
    let Some(stream) = stream(cutover, cx) else { return Ok(()) };
    let mut said = Description::default();
    look(cutover, cx, &stream, blue, green, &mut said).await?;
    if let Some(text) = said.blockers.into_iter().next() {
        return Err(attempts::refusal(blue, text));
    }
    for text in &said.warnings {
        cx.warn(text);
    }
    ahead::make(cx, &stream.replicate, &stream.copy, &stream.link).await?;
    failpoint::at(failpoint::REVERSE_READY)
}

/// Forgets what the log kept for it while the cutover waited: nobody has written on the new side so far.
///
/// # Errors
/// What a server says.
pub async fn freshen(cutover: &Cutover, cx: &Context) -> Result<()> {
    match stream(cutover, cx) {
        Some(stream) => ahead::freshen(cx, &stream.link).await,
        None => Ok(()),
    }
}

/// Keeps that an earlier way back shut the new side, before a decision can fall.
///
/// # Errors
/// The journal failing.
pub async fn keep_shut(cx: &Context, is_shut: bool) -> Result<()> {
    if is_shut { cx.remember(SUCCESSOR_IS_SHUT, &true).await } else { Ok(()) }
}

/// Behind the decision, before any participant commits: opens the new side, where an earlier way back has shut it.
/// Tried again for as long as a commit would be: the decision stands. `ready` is a session of the new side's for the first
/// try, because clients wait.
///
/// # Errors
/// The lease or the journal, or a new side that cannot be opened.
pub async fn open_successor(
    cutover: &Cutover,
    outer: &Context,
    cx: &Context,
    mut ready: Option<Session>,
) -> Result<()> {
    let is_shut = cx.recall::<bool>(SUCCESSOR_IS_SHUT)? == Some(true);
    let Some(to) = cutover.to.as_ref().filter(|_| is_shut) else { return Ok(()) };
    let begun = std::time::Instant::now();
    loop {
        let opened = open_with(ready.take(), to, cx);
        let Err(error) = opened.await else { return Ok(()) };
        if matches!(error.class(), Class::LeaseLost | Class::Journal) {
            return Err(error);
        }
        if begun.elapsed() >= cutover.commit_timeout.0 || outer.stop.is_cancelled() {
            return Err(error
                .context(format!("the decision stands, but {to} refuses writes and could not be opened"))
                .hint("only forward is safe: see what is wrong there, then `handover resume`")
                .exhausted());
        }
        cx.warn(format!("{to} cannot be opened: {error}; it is tried again, for the decision stands"));
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
}

/// Opens a side by the session that is ready, or by a new one. May be repeated.
///
/// # Errors
/// What the server says.
pub async fn open_with(ready: Option<Session>, side: &str, cx: &Context) -> Result<()> {
    if let Some(mut session) = ready {
        match freeze::open(&mut session, cx).await {
            // The connection was lost since: once more by a new one.
            Err(error) if error.class().is_transient() => {}
            opened => return opened,
        }
    }
    freeze::open(&mut cx.writer(side).await?, cx).await
}

/// Tables that a rollback loses, as the end of a sentence.
fn but_for(cutover: &Cutover) -> String {
    match cutover.reverse.as_ref().filter(|reverse| !reverse.loses.is_empty()) {
        Some(reverse) => format!(", but for {}", few(&reverse.loses.iter().collect::<Vec<_>>())),
        None => String::new(),
    }
}

/// Lets it flow, when all have committed and the stream forward is gone. The cutover is complete whatever becomes of the
/// stream, so one that cannot flow is only ended.
///
/// # Errors
/// What may pass, or the journal.
pub async fn flow(cutover: &Cutover, cx: &Context) -> Result<()> {
    let Some(stream) = stream(cutover, cx) else { return Ok(()) };
    if ahead::ended(cx, &stream.link)?.is_some() {
        return Ok(());
    }
    let reason = match ahead::trouble(cx, &stream.link).await? {
        Some(trouble) => trouble,
        None => match ahead::enable(cx, &stream.link).await {
            Ok(()) => {
                cx.remember(CARRIED_BACK, &true).await?;
                failpoint::at(failpoint::REVERSE_FLOWING)?;
                cx.note(format!(
                    "what is written on {} goes back to {} from here on: a rollback loses nothing{}",
                    stream.link.from,
                    stream.link.to,
                    but_for(cutover)
                ));
                return Ok(());
            }
            Err(error)
                if error.class().is_transient()
                    || matches!(error.class(), Class::LeaseLost | Class::Journal) =>
            {
                return Err(error);
            }
            Err(error) => error.message().to_owned(),
        },
    };
    cx.remember(ENDED, &reason).await?;
    cx.warn(format!("the cutover is complete, and there is no way back without loss: {reason}"));
    Ok(())
}

/// Whether it flows, as far as the journal knows.
///
/// # Errors
/// A fact that cannot be read.
pub fn flows(cutover: &Cutover, cx: &Context) -> Result<bool> {
    let Some(stream) = stream(cutover, cx) else { return Ok(false) };
    let carried = cx.recall::<bool>(CARRIED_BACK)? == Some(true);
    Ok(carried && ahead::ended(cx, &stream.link)?.is_none())
}

/// Takes it away.
///
/// # Errors
/// What a server says.
pub async fn discard(cutover: &Cutover, cx: &Context) -> Result<()> {
    match stream(cutover, cx) {
        Some(stream) => handover_replication::discard(cx, &stream.link).await,
        None => Ok(()),
    }
}

/// As [`discard`], where nothing may fail any more because of it.
pub async fn discard_or_tell(cutover: &Cutover, cx: &Context) -> Result<()> {
    match discard(cutover, cx).await {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.class(), Class::LeaseLost | Class::Journal) => Err(error),
        Err(error) => {
            cx.warn(format!(
                "the stream back could not be taken away: {error}; `handover status` names what is left"
            ));
            Ok(())
        }
    }
}

/// The standing task: watches it until the end of the run. Once it is over, the run goes on without.
///
/// # Errors
/// A stream that is over, the first time; what a server says.
pub async fn stand(cutover: &Cutover, cx: &Context) -> Result<()> {
    let Some(stream) = stream(cutover, cx) else { return Ok(()) };
    if let Some(reason) = ahead::ended(cx, &stream.link)? {
        discard_or_tell(cutover, cx).await?;
        cx.warn(format!(
            "there is no stream back any more ({reason}): a rollback loses what is written on {}",
            stream.link.from
        ));
        return Ok(());
    }
    let result = handover_replication::stand(&stream.replicate, cx, &stream.link).await;
    // One that is over stays so.
    if let Err(error) = &result
        && error.class() == Class::Resources
        && ahead::ended(cx, &stream.link)?.is_none()
    {
        cx.remember(ENDED, &error.message()).await?;
    }
    result
}

/// Takes away what the stream forward has, where it does not begin again.
///
/// # Errors
/// The lease or the journal.
pub async fn detach_forward(cutover: &Cutover, cx: &Context) -> Result<()> {
    match forward(cutover, cx).filter(|_| cutover.reverse.is_some()) {
        Some(stream) => handover_replication::end(cx, &stream.link, Leave::Publication).await,
        None => Ok(()),
    }
}
