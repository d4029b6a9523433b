//! Statements that an attempt left running in the servers: nothing else may happen before they have ended.

use super::Participant;
use super::options::Cutover;
use crate::error::Result;
use crate::postgres::fence;
use crate::steps::Context;
use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long participants that hold their clients wait until what they execute has ended.
const LIMIT: Duration = Duration::from_secs(2);

/// Ends what a failed attempt left in the servers, so that the decision cannot fall after it was looked for, nor a
/// participant's statement take effect after it was told something else. `decides`: the side on which it falls.
pub async fn end_orphaned(cutover: &Cutover, cx: &Context, decides: Option<&String>) -> Result<()> {
    let own: BTreeSet<&str> = decides.map(String::as_str).into_iter().collect();
    let all: BTreeSet<&str> =
        cutover.participants.iter().flat_map(Participant::databases).chain(own.clone()).collect();
    for name in all {
        let ended = async {
            let session = cx.databases.labelled("engine").writer(name).await?;
            fence::end_step(&session, cx.databases.lease()?, cx.step.as_str()).await
        };
        match ended.await {
            Err(error) if own.contains(name) => return Err(error),
            Err(error) => cx.warn(format!("a statement of a participant may still be running: {error}")),
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Ends what participants that were asked to prepare may still be executing, where that goes at once: what releases them
/// must come last, and they are waiting.
pub async fn end_of_participants(cutover: &Cutover, cx: &Context) {
    let names: BTreeSet<&str> = cutover.participants.iter().flat_map(Participant::databases).collect();
    let end = async |name: &str| {
        let session = cx.databases.labelled("engine").writer(name).await?;
        fence::end_step(&session, cx.databases.lease()?, cx.step.as_str()).await
    };
    let all = join_all(names.into_iter().map(end));
    match tokio::time::timeout(LIMIT, all).await.map(|ended| ended.into_iter().find_map(Result::err)) {
        Ok(None) => {}
        Ok(Some(error)) => cx.warn(format!("a statement of a participant may still be running: {error}")),
        Err(_) => cx.warn("a statement of a participant may still be running: its database does not answer"),
    }
}
