//! What earlier steps relied on, compared with what is: a precondition is a watched fact. A column, table, partition,
//! index, type or sequence that the old side got since the copy is missing on the new side; a captured table that was
//! swapped, or whose trigger was off for a while, has lost writes.

use super::feeds;
use super::options::Cutover;
use crate::error::{Class, Error, Result};
use crate::postgres::Session;
use crate::postgres::fingerprint::{self, CAPTURE, Drift, Facts, RIGHTS, Subject, is_of_one_side};
use crate::problem::few;
use crate::steps::Context;
use crate::steps::watched::{captured, concerns_capture, of_capture};
use handover_copy::Owners;

/// What drifted since earlier steps relied on it, without what the new side has just so.
async fn drifted(cutover: &Cutover, cx: &Context, blue: &Session, green: &Session) -> Result<Vec<Drift>> {
    let now = fingerprint::look(blue).await?;
    let mut out: Vec<Drift> = Vec::new();
    let part = |facts: &Facts, concerned: &dyn Fn(&Subject) -> bool| -> Facts {
        facts.iter().filter(|(s, _)| concerned(s)).map(|(s, f)| (s.clone(), f.clone())).collect()
    };
    let kept = |subject: &Subject| !cutover.except.contains(&subject.relation);
    for (step, copy) in feeds::copies(cutover, cx) {
        let Some(before) = handover_copy::fingerprint::read(green, cx.run, step).await? else { continue };
        let selection = copy.selection();
        let concerned = |subject: &Subject| {
            kept(subject)
                && subject.kind != CAPTURE
                && (copy.owners == Owners::Keep || subject.kind != RIGHTS)
                && if subject.relation.name.is_empty() {
                    selection.schema(&subject.relation.schema)
                } else {
                    selection.relation(&subject.relation)
                }
        };
        out.extend(fingerprint::drift(&part(&before, &concerned), &part(&now, &concerned)));
    }
    for (step, capture) in feeds::captures(cutover, cx) {
        let Some(before) = of_capture(cx, step)? else { continue };
        // Also those that left it since.
        let mut tables = captured(blue, capture).await?;
        tables.extend(before.keys().map(|subject| subject.relation.clone()));
        let concerned = |subject: &Subject| kept(subject) && concerns_capture(subject, &tables);
        out.extend(fingerprint::drift(&part(&before, &concerned), &part(&now, &concerned)));
    }
    if out.is_empty() {
        return Ok(out);
    }
    let there = fingerprint::look(green).await?;
    out.retain(|drift| {
        let of_one_side = is_of_one_side(&drift.subject.kind);
        (of_one_side || there.get(&drift.subject) != drift.is.as_ref())
            && !cutover.allow_drift.contains(&drift.subject.to_string())
    });
    out.sort_by(|a, b| a.subject.cmp(&b.subject));
    out.dedup();
    Ok(out)
}

/// Refuses a cutover whose preconditions drifted, and returns the schema's digest, to be compared behind the lock.
///
/// # Errors
/// What drifted, by name; or what a server says.
pub async fn refuse(cutover: &Cutover, cx: &Context) -> Result<String> {
    let (Some(freeze), Some(to)) = (&cutover.freeze, &cutover.to) else { return Ok(String::new()) };
    let databases = cx.databases.labelled(cx.step.as_str());
    let (blue, green) = (databases.read_only(freeze).await?, databases.read_only(to).await?);
    // First, so that nothing can change unseen between the two looks.
    let digest = fingerprint::digest(&blue).await?;
    let (rights, drifted): (Vec<Drift>, Vec<Drift>) = drifted(cutover, cx, &blue, &green)
        .await?
        .into_iter()
        // Who could not write or read any more would be able to again.
        .partition(|d| d.subject.kind == RIGHTS && !d.takes_rights());
    if !rights.is_empty() {
        cx.warn(format!(
            "rights were granted on {freeze} since the copy, and {to} lacks them: {}",
            few(&rights)
        ));
    }
    let Some(first) = drifted.first() else { return Ok(digest) };
    let hint = if drifted.iter().any(|d| is_of_one_side(&d.subject.kind)) {
        "nothing was paused and the old side serves on. Writes may have been missed meanwhile, which nothing can bring back: `handover rollback` to before the step that watched these tables, then `handover run`; or list the tables under the cutover's `except:`".to_owned()
    } else {
        format!(
            "nothing was paused and the old side serves on. Make the same change on {to} (or take it back on {freeze}), then `handover resume`; or `handover rollback` and `handover run`; or, where {to} differs on purpose, say `allow_drift: [\"{}\"]` in the cutover",
            first.subject
        )
    };
    Err(Error::new(
        Class::Invariant,
        format!("{freeze} is not what earlier steps of this run relied on: {}", few(&drifted)),
    )
    .on_database(freeze)
    .hint(hint))
}

/// Proves behind the lock that nothing changed since the look before it.
///
/// # Errors
/// Something did, which passes: the next attempt looks at what. Or what the server says.
pub async fn assert_unchanged(blue: &Session, digest: &str) -> Result<()> {
    if fingerprint::digest(blue).await? == digest {
        return Ok(());
    }
    Err(Error::new(Class::Contention, "the old side's schema was altered while the pause began")
        .on_database(blue.database())
        .hint("stop schema changes on the old side; the next attempt tells what changed"))
}
