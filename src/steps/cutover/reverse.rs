//! The way back: from the decision on, what is written on the new side is carried to the old one, so that a rollback
//! loses nothing ([`super::back`]). How it is carried, a [`Carrier`] knows.
//!
//! It is made before the pause, so that not even the new side's first write is missed, and flows when nothing goes forward any
//! more. The old side goes on refusing everybody else's writes; only what carries is let through.

use super::attempts;
use super::carrier::Carrier;
use super::freeze;
use super::native::Native;
use super::options::{Cutover, Reverse};
use super::replayed::Replayed;
use super::state::CARRIED_BACK;
use super::stream::{forward, stream};
use crate::error::{Class, Result};
use crate::failpoint;
use crate::postgres::Session;
use crate::problem::{Problems, Segment};
use crate::steps::{CheckContext, Context, Description};
use handover_events::capture::{Rest, words};
use handover_replication::{ENDED, Leave};

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
    match reverse.is_replayed() {
        true => replayed_check(cutover, reverse, (freeze, to), cx, problems),
        false => native_check((freeze, to), cx, problems),
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

/// What the servers' own replication needs of a plan.
fn native_check((freeze, to): (&str, &str), cx: &CheckContext<'_>, problems: &mut Problems) {
    if cx.links.copied(cx.index, freeze, to).is_none() {
        problems
            .error(["reverse"], format!("no step before this one copies {freeze} to {to}"))
            .at_key()
            .hint(
                "the stream back carries the tables of that copy: add a `copy` step, or leave `reverse:` out",
            );
    }
    if let Some((id, _)) = cx.links.captures.before(cx.index).find(|(_, capture)| capture.from == freeze) {
        problems
            .error(
                ["reverse"],
                format!("step `{id}` captures on {freeze}, and what comes back would be captured again"),
            )
            .at_key()
            .hint("say under `reverse:` `tables` and `events` what is captured on the new side and what it means on the old one; without them, `reverse:` is for two sides of one schema, which a `replicate` step keeps in step");
    }
}

/// What capture and replay back need of a plan.
fn replayed_check(
    cutover: &Cutover,
    reverse: &Reverse,
    (freeze, to): (&str, &str),
    cx: &CheckContext<'_>,
    problems: &mut Problems,
) {
    if !cx.has_queue {
        problems
            .error(["reverse"], "the plan has no queue to carry what is captured")
            .at_key()
            .hint("add `queue: ${QUEUE_URL}` (amqp://… for RabbitMQ, postgres://… for the embedded one)");
    }
    if let Some((id, _)) = cx.links.replicated(cx.index, freeze, to) {
        problems
            .error(
                ["reverse", "tables"],
                format!(
                    "step `{id}` replicates {freeze} to {to}, and what is replayed on {freeze} would go round"
                ),
            )
            .at_key()
            .hint("leave `tables` and `events` out: `reverse: {}` is for two sides that replicate");
    }
    let Some(step) = cx.links.ids.get(cx.index) else { return };
    let (capture, replay) = (reverse.capture(to, step), reverse.replay(freeze));
    let mut below = problems.base().clone();
    below.0.push("reverse".into());
    problems.within(below, |problems| {
        handover_events::capture::check(&capture, problems);
        handover_events::replay::check(&replay, &capture, problems);
    });
    for (name, table) in &reverse.tables {
        let at = || [Segment::from("reverse"), "tables".into(), name.to_string().into()];
        let gaps = table.gaps(None);
        if table.rest == Rest::Refuse && !gaps.is_empty() {
            problems
                .error(at(), format!("of what is written to {name} is carried back: {}", words(&gaps)))
                .at_key()
                .hint("capture all of `on: [insert, update, delete]` without `when` and `columns`, or say `rest: ignore` if a rollback may lose the rest");
        }
        if reverse.loses.contains(name) || cutover.except.contains(name) {
            problems
                .error(
                    at(),
                    format!("{name} is both carried back and named as one that is not (`loses`, `except`)"),
                )
                .at_key()
                .hint("leave it out of one of the two");
        }
    }
}

/// How what is written on the new side comes back; none where the plan does not ask for it.
pub fn carrier<'a>(cutover: &'a Cutover, cx: &Context) -> Option<Box<dyn Carrier + 'a>> {
    if let Some(replayed) = Replayed::of(cutover, cx) {
        return Some(Box::new(replayed));
    }
    stream(cutover, cx).map(|stream| Box::new(Native::new(cutover, stream)) as Box<dyn Carrier + 'a>)
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
    match carrier(cutover, cx) {
        Some(carrier) => carrier.describe(cx, blue, green, out).await,
        None => Ok(()),
    }
}

/// Makes it ready, before the pause.
///
/// # Errors
/// What is in its way, or what a server says.
pub async fn ready(cutover: &Cutover, cx: &Context, blue: &Session, green: &Session) -> Result<()> {
    let Some(carrier) = carrier(cutover, cx) else { return Ok(()) };
    let mut said = Description::default();
    carrier.look(cx, blue, green, &mut said).await?;
    if let Some(text) = said.blockers.into_iter().next() {
        return Err(attempts::refusal(blue, text));
    }
    for text in &said.warnings {
        cx.warn(text);
    }
    carrier.make(cx).await?;
    failpoint::at(failpoint::REVERSE_READY)
}

/// The last look before the pause: forgets what was kept for it while the cutover waited, for nobody has written on the new side
/// so far. Says why it would not carry what is written there, as things are now.
///
/// # Errors
/// What a server says.
pub async fn freshen(
    cutover: &Cutover,
    cx: &Context,
    blue: &Session,
    green: &Session,
) -> Result<Option<String>> {
    let Some(carrier) = carrier(cutover, cx) else { return Ok(None) };
    carrier.freshen(cx).await?;
    Ok(carrier
        .unfit(cx, blue, green)
        .await?
        .map(|why| format!("there would be no way back without loss: {why}")))
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

/// Lets it flow, when all have committed and the stream forward is gone. The cutover is complete whatever becomes of the
/// stream, so one that cannot flow is only ended.
///
/// # Errors
/// What may pass, or the journal.
pub async fn flow(cutover: &Cutover, cx: &Context) -> Result<()> {
    let Some(carrier) = carrier(cutover, cx) else { return Ok(()) };
    if ended(cx)?.is_some() {
        return Ok(());
    }
    let reason = match carrier.trouble(cx).await? {
        Some(trouble) => trouble,
        None => match carrier.enable(cx).await {
            Ok(()) => {
                cx.remember(CARRIED_BACK, &true).await?;
                failpoint::at(failpoint::REVERSE_FLOWING)?;
                cx.note(format!(
                    "what is written on {} goes back to {} from here on: a rollback loses nothing{}",
                    carrier.from(),
                    carrier.to(),
                    cutover.but_for()
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
    let carried = cutover.reverse.is_some() && cx.recall::<bool>(CARRIED_BACK)? == Some(true);
    Ok(carried && ended(cx)?.is_none())
}

/// Takes it away.
///
/// # Errors
/// What a server says.
pub async fn discard(cutover: &Cutover, cx: &Context) -> Result<()> {
    match carrier(cutover, cx) {
        Some(carrier) => carrier.discard(cx).await,
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
    let Some(carrier) = carrier(cutover, cx) else { return Ok(()) };
    match ended(cx)? {
        None => carrier.stand(cx).await,
        Some(reason) => {
            discard_or_tell(cutover, cx).await?;
            cx.warn(format!(
                "there is no stream back any more ({reason}): a rollback loses what is written on {}",
                carrier.from()
            ));
            Ok(())
        }
    }
}

/// Why it was ended before its time; none when it was not.
fn ended(cx: &Context) -> Result<Option<String>> {
    cx.recall(ENDED)
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
