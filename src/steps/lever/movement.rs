//! Moving a lever, and seeing where it is.

use super::hold::{Hold, UNIT};
use super::shape::Lever;
use crate::error::{Error, Result};
use crate::event::StepId;
use crate::steps::Context;
use crate::value::Duration;
use handover_actions::Actions;
use std::time::Instant;

/// How long a check may take to agree.
const WITHIN: Duration = Duration::secs(10);

impl Lever {
    /// Raises it now. `owner` is the lever's own step, which may not be the one that acts.
    pub(super) async fn apply(&self, cx: &Context, actions: &Actions<'_>, owner: &StepId) -> Result<()> {
        if let Some(lever) = &self.command {
            actions.command(UNIT, &lever.with_defaults(&lever.apply)).await?.succeeded()
        } else if let Some(lever) = &self.http {
            actions.request(&lever.apply).await.map(drop)
        } else if let Some(lever) = &self.sql {
            lever.apply(cx, owner).await
        } else if let Some(file) = &self.file {
            actions.file_write(UNIT, file).await
        } else {
            Err(Error::internal("a lever without a way to move it"))
        }
    }

    pub(super) async fn restore(
        &self,
        cx: &Context,
        actions: &Actions<'_>,
        hold: &Hold,
        owner: &StepId,
    ) -> Result<()> {
        if let Some(lever) = &self.command {
            actions.command(UNIT, &lever.with_defaults(&lever.revert)).await?.succeeded()
        } else if let Some(lever) = &self.http {
            actions.request(&lever.revert).await.map(drop)
        } else if let Some(lever) = &self.sql {
            lever.restore(cx, hold, owner).await
        } else if let (Some(file), Some(original)) = (&self.file, &hold.original) {
            actions.file_restore(UNIT, file, original).await
        } else {
            Err(Error::internal("a lever without a way to restore it"))
        }
    }

    /// Whether it is up; none when nothing can tell.
    pub(super) async fn is_up(&self, actions: &Actions<'_>) -> Result<Option<bool>> {
        if let Some(lever) = &self.command {
            let Some(check) = &lever.check else { return Ok(None) };
            let ran = actions.look(&lever.with_defaults(check)).await?;
            match ran.code() {
                Some(0) => Ok(Some(true)),
                Some(1) => Ok(Some(false)),
                _ => Err(Error::external(format!("the check `{}` cannot tell: {}{}", check.shown(), ran.ended(), ran.tail()))
                    .hint("a check exits with 0 for yes and 1 for no; mend what it complains about, then `handover resume`")),
            }
        } else if let Some(lever) = &self.http {
            let Some(check) = &lever.check else { return Ok(None) };
            let answer = actions.send(check).await?;
            match answer.mismatch {
                None => Ok(Some(true)),
                Some(_) if answer.status < 500 => Ok(Some(false)),
                Some(why) => {
                    Err(Error::external(format!("the check {} cannot tell: it {why}", check.shown()))
                        .hint("see the endpoint's own log, then `handover resume`"))
                }
            }
        } else if let Some(lever) = &self.sql {
            let Some(check) = &lever.check else { return Ok(None) };
            actions.holds(&lever.on, check, lever.timeout).await.map(Some)
        } else if let Some(file) = &self.file {
            actions.file_is(file).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Waits until the lever is seen to be up (or down). `owner` is the step whose checkpoint holds what it
    /// was.
    pub(super) async fn agree(
        &self,
        cx: &Context,
        actions: &Actions<'_>,
        hold: &Hold,
        owner: &StepId,
        up: bool,
    ) -> Result<()> {
        let limit = self.within.unwrap_or(WITHIN).0;
        let begun = Instant::now();
        loop {
            let seen = match (&hold.original, up) {
                (Some(original), false) => Some(!actions.file_is_original(original)?),
                _ => match self.is_up(actions).await? {
                    None => self.differs(cx, actions, hold, owner).await?,
                    seen => seen,
                },
            };
            if seen.is_none_or(|seen| seen == up) {
                return Ok(());
            }
            if begun.elapsed() >= limit {
                let (did, says) = if up { ("raised", "down") } else { ("restored", "up") };
                return Err(Error::external(format!(
                    "the lever was {did}, but after {} it still reads as {says}",
                    humantime::format_duration(limit)
                ))
                .hint("see why the setting does not take effect (or why the check cannot see it), or raise `within:`"));
            }
            cx.sleep(std::time::Duration::from_millis(250)).await?;
        }
    }

    /// For a statement with `read` only: whether the value differs from what it was.
    pub(super) async fn differs(
        &self,
        cx: &Context,
        actions: &Actions<'_>,
        hold: &Hold,
        owner: &StepId,
    ) -> Result<Option<bool>> {
        match &self.sql {
            Some(lever) => lever.differs(cx, actions, hold, owner).await,
            None => Ok(None),
        }
    }
}
