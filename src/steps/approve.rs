//! `approve`: waits until somebody says `handover approve`.
//!
//! An approval counts when it was given after the step began; one from before, or from before the step was
//! undone, does not speak of what is there now (see [`super::Ledger::approval`]).

pub(super) mod options;

use super::context::Request;
use super::{Access, CheckContext, Context, Description, Links, Need, StepKind, Undo};
use crate::error::{Class, Error, Result};
use crate::event::StepId;
use crate::failpoint;
use crate::problem::{Problems, Segment};
use async_trait::async_trait;
pub use options::Approve;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// What the journal knows once it was answered.
const GRANTED: &str = "granted";
/// How often the control database is asked.
const POLL: Duration = Duration::from_secs(1);

/// An approval that counted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Granted {
    /// Who gave it.
    pub by: String,
    /// In their words.
    pub note: Option<String>,
    /// When, by the control database's clock.
    pub at: jiff::Timestamp,
}

#[async_trait]
impl StepKind for Approve {
    fn link(self: Arc<Self>, id: &StepId, place: usize, links: &mut Links) {
        links.approvals.add(id, place, self);
    }

    fn check(&self, _cx: &CheckContext<'_>, problems: &mut Problems) {
        if self.message.trim().is_empty() {
            problems.error(["message"], "the message is empty").hint("say what is to be approved");
        }
        for (i, name) in self.by.iter().enumerate() {
            if name.trim().is_empty() {
                problems.error([Segment::from("by"), i.into()], "the name is empty");
            }
        }
    }

    fn databases(&self) -> Vec<(&str, Access)> {
        Vec::new()
    }

    fn needs(&self, _: Access) -> &'static [Need] {
        &[]
    }

    fn asks_a_person(&self) -> bool {
        true
    }

    fn reversibility(&self) -> Undo {
        Undo::Nothing
    }

    async fn describe(&self, _cx: &Context) -> Result<Description> {
        let mut out = Description { estimate: Some("as long as it takes".into()), ..Description::default() };
        out.action(format!("wait for the approval of {}: {}", self.whose(), self.message));
        Ok(out)
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        if let Some(granted) = cx.recall::<Granted>(GRANTED)? {
            return Ok(summary(&granted));
        }
        failpoint::at(failpoint::APPROVE_ASKED)?;
        let granted = self.wait(cx, None).await?;
        failpoint::at(failpoint::APPROVE_FOUND)?;
        cx.remember(GRANTED, &granted).await?;
        cx.note(format!("approved by {}", granted.by));
        Ok(summary(&granted))
    }

    async fn verify(&self, cx: &Context) -> Result<()> {
        match cx.recall::<Granted>(GRANTED)? {
            Some(granted) if self.may(&granted.by) => Ok(()),
            _ => Err(self.missing(cx)),
        }
    }

    async fn undo(&self, cx: &Context) -> Result<Value> {
        cx.forget(GRANTED).await?;
        Ok(json!({}))
    }
}

fn summary(granted: &Granted) -> Value {
    json!({ "approved_by": granted.by, "note": granted.note, "at": granted.at })
}

impl Approve {
    fn command(cx: &Context) -> String {
        format!("handover approve PLAN {}", cx.step)
    }

    fn missing(&self, cx: &Context) -> Error {
        Error::new(
            Class::Waiting,
            format!("waiting for the approval of {}: {}", self.whose(), self.message.trim()),
        )
        .hint(format!("`{}`, then `handover resume`", Self::command(cx)))
    }

    /// Waits for the word of somebody that it counts of, given later than `after`.
    ///
    /// # Errors
    /// [`Class::Waiting`] where nobody is there to wait for; a stop that was asked for, or the control database failing.
    pub async fn wait(&self, cx: &Context, after: Option<jiff::Timestamp>) -> Result<Granted> {
        let mut told = false;
        let mut refused = None;
        loop {
            cx.proceed()?;
            let later = |request: &Request| after.is_none_or(|after| request.at > after);
            match cx.ledger.approval(&cx.step).await?.filter(later) {
                Some(request) if self.may(&request.by) => {
                    return Ok(Granted { by: request.by, note: request.note, at: request.at });
                }
                Some(request) if refused != Some(request.at) => {
                    refused = Some(request.at);
                    cx.warn(format!(
                        "{} approved, but the plan asks for {}; still waiting",
                        request.by,
                        self.whose()
                    ));
                }
                _ => {}
            }
            if !cx.may_wait {
                return Err(self.missing(cx));
            }
            if !told {
                told = true;
                cx.note(format!(
                    "waiting for the approval of {}: {}; to approve: {}",
                    self.whose(),
                    self.message.trim(),
                    Self::command(cx)
                ));
            }
            cx.sleep(POLL).await?;
        }
    }
}
