//! A new side that served before, and was taken back from: it holds what was written on it in that time, which the
//! rollback said is lost. A second cutover to the same rows would make that live again, beside what the old side wrote
//! since. So it is refused, until the copy is undone and made again, or the plan says that those rows are wanted.

use super::options::Cutover;
use crate::error::Result;
use crate::postgres::ours::OURS;
use crate::postgres::{Session, identity};
use crate::steps::Context;
use handover_copy::fingerprint;

/// Which rows the new side holds: the database, and the copy that filled it.
pub async fn successor(green: &Session) -> Result<String> {
    let who = identity::identify(green).await?;
    let filled = fingerprint::filled(green).await?.unwrap_or_default();
    Ok(format!("{}/{}/{filled}", who.system_identifier, who.oid))
}

/// Why the new side may not take over again, in words; none when it may.
pub async fn before(
    cutover: &Cutover,
    cx: &Context,
    blue: &Session,
    green: &Session,
) -> Result<Option<String>> {
    if cutover.allow_served {
        return Ok(None);
    }
    // A dry run may come before the first run.
    let there = blue.query_one(&format!("select to_regclass('{OURS}.taken_back') is not null"), &[]).await?;
    if !there.get::<_, bool>(0) {
        return Ok(None);
    }
    let row = blue
        .query_opt(
            &format!("select to_char(decided_at at time zone 'UTC', $2), to_char(opened_at at time zone 'UTC', $2), plan
             from {OURS}.taken_back where successor = $1 order by opened_at desc limit 1"),
            &[&successor(green).await?, &"YYYY-MM-DD HH24:MI:SS"],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let text = |i: usize| row.get::<_, String>(i);
    Ok(Some(format!(
        "{} served from {} to {} UTC by plan `{}`, until that was taken back: what was written on it then would be live again; {}",
        green.database(),
        text(0),
        text(1),
        text(2),
        cure(cutover, cx)
    )))
}

/// What to do about it.
fn cure(cutover: &Cutover, cx: &Context) -> String {
    let keep = "or, if those rows are wanted beside what the old side wrote since, say `allow_served: true` under the cutover and `handover resume --accept-changes`";
    let to = cutover.to.as_deref().unwrap_or_default();
    match cx.links.copies.before(cx.place()).rfind(|(_, copy)| copy.to == to) {
        Some((copy, _)) => {
            let undo = match cx.links.before(copy) {
                Some(step) => format!("`handover rollback --to {step}`"),
                None => "`handover rollback`".to_owned(),
            };
            format!(
                "undo the copy with {undo}, and go forward again with `handover resume` or `handover run`; {keep}"
            )
        }
        None => format!("drop the database of {to} and make it anew from the old side; {keep}"),
    }
}
