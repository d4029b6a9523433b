//! A person's word just before the freeze: when everything slow is done and proven, and nothing is held.
//!
//! It is the word of [`crate::steps::approve`], asked for at another time. One that was given before it was asked for does
//! not speak of what was proven. Once given it holds for the attempts of this step, through a crash and a stop, until they
//! are spent or the cutover is undone.

use super::gates::Ask;
use crate::error::Result;
use crate::failpoint;
use crate::steps::Context;
use crate::steps::approve::{Approve, Granted};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// The journal's fact: it is being asked for.
const ASKED: &str = "approval_asked";
/// The journal's fact: it was given.
const GRANTED: &str = "approval";

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Asked {
    /// When the last word before was given, which does not count.
    after: Option<Timestamp>,
}

/// What is asked for, as an `approve` step would.
#[must_use]
pub fn as_step(ask: &Ask) -> Approve {
    let (message, by) = match ask {
        Ask::When(_) => (None, Vec::new()),
        Ask::Whose(whose) => (whose.message.clone(), whose.by.clone()),
    };
    Approve { message: message.unwrap_or_else(|| "everything is proven; freeze and flip now".to_owned()), by }
}

/// Waits for it, unless it was given. True when it came now: meanwhile anything may have changed.
///
/// # Errors
/// Nobody to wait for, a stop that was asked for, or the journal failing.
pub async fn obtain(ask: Option<&Ask>, cx: &Context) -> Result<bool> {
    let Some(ask) = ask else { return Ok(false) };
    if given(cx)?.is_some() {
        return Ok(false);
    }
    let asked = match cx.recall::<Asked>(ASKED)? {
        Some(asked) => asked,
        None => {
            let asked = Asked { after: cx.ledger.approval(&cx.step).await?.map(|earlier| earlier.at) };
            cx.remember(ASKED, &asked).await?;
            asked
        }
    };
    failpoint::at(failpoint::GATE_APPROVAL_ASKED)?;
    let granted = as_step(ask).wait(cx, asked.after).await?;
    cx.remember(GRANTED, &granted).await?;
    cx.forget(ASKED).await?;
    cx.note(format!("approved by {}; what was proven is proven again", granted.by));
    failpoint::at(failpoint::GATE_APPROVED)?;
    Ok(true)
}

/// Who gave it.
///
/// # Errors
/// A fact of another version.
pub fn given(cx: &Context) -> Result<Option<Granted>> {
    cx.recall(GRANTED)
}

/// The attempts it was given for are spent: another run of the step asks anew.
///
/// # Errors
/// The journal failing.
pub async fn spend(cx: &Context) -> Result<()> {
    if given(cx)?.is_some() { cx.forget(GRANTED).await } else { Ok(()) }
}

/// Whether a step with these facts waits for it.
#[must_use]
pub fn is_asked(facts: Option<&BTreeMap<String, Value>>) -> bool {
    facts.is_some_and(|facts| facts.contains_key(ASKED) && !facts.contains_key(GRANTED))
}
