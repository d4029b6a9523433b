//! A lever that is a statement: what it was is kept in the transaction that raises it, where it can run in one.

use super::hold::{Hold, UNIT};
use super::shape::SqlLever;
use crate::error::Result;
use crate::event::StepId;
use crate::postgres::Tx;
use crate::steps::Context;
use handover_actions::{Actions, sql};
use serde::{Deserialize, Serialize};

/// The checkpoint of a statement's lever: it is raised, and this is what it was.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Raised {
    previous: Option<String>,
}

/// The checkpoint that stands in the place of [`UNIT`] once a lever is restored.
const LOWERED: &str = "lowered";

impl SqlLever {
    /// What raises it.
    pub(super) fn raising(&self) -> Result<&str> {
        sql::single(&self.apply)
    }

    /// What restores it, with [`sql::PREVIOUS`] in the place of what it was.
    pub(super) fn restoring(&self) -> Result<&str> {
        sql::single(&self.revert)
    }

    /// Raises it. `owner` is the lever's own step, which may not be the one that acts.
    pub(super) async fn apply(&self, cx: &Context, owner: &StepId) -> Result<()> {
        let mut session = cx.operator_writer(&self.on).await?;
        self.limit(&session).await?;
        let statement = self.raising()?;
        if !self.in_transaction() {
            cx.proceed()?;
            return session.autocommit(statement, &[]).await.map(drop);
        }
        let tx = session.transaction().await?;
        if tx.checkpoint::<Raised>(cx.run, owner, UNIT).await?.is_some() {
            return tx.rollback().await;
        }
        // Raised again after it was restored: what it was at first still counts.
        let raised = match tx.checkpoint::<Raised>(cx.run, &cx.step, LOWERED).await? {
            Some(raised) => raised,
            None => Raised { previous: self.read_in(&tx).await? },
        };
        tx.execute(statement, &[]).await?;
        if *owner != cx.step {
            tx.forget_checkpoints(cx.run, &cx.step).await?;
        }
        tx.save_checkpoint(cx.run, owner, UNIT, &raised).await?;
        tx.commit().await
    }

    async fn read_in(&self, tx: &Tx<'_>) -> Result<Option<String>> {
        let Some(query) = &self.read else { return Ok(None) };
        let row = tx.query_opt(&sql::as_text(query)?, &[]).await?;
        Ok(row.and_then(|row| row.get(0)))
    }

    /// Restores it.
    pub(super) async fn restore(&self, cx: &Context, hold: &Hold, owner: &StepId) -> Result<()> {
        let mut session = cx.operator_writer(&self.on).await?;
        self.limit(&session).await?;
        let statement =
            |previous: Option<&str>| self.restoring().map(|revert| sql::with_previous(revert, previous));
        if !self.in_transaction() {
            cx.proceed()?;
            return session.autocommit(&statement(hold.previous.as_deref())?, &[]).await.map(drop);
        }
        let tx = session.transaction().await?;
        let Some(raised) = tx.checkpoint::<Raised>(cx.run, owner, UNIT).await? else {
            return tx.rollback().await;
        };
        tx.execute(&statement(raised.previous.as_deref())?, &[]).await?;
        tx.forget_checkpoints(cx.run, owner).await?;
        tx.save_checkpoint(cx.run, &cx.step, LOWERED, &raised).await?;
        tx.commit().await
    }

    /// For one with `read`: whether the value differs from what it was. `owner` is the step whose checkpoint holds
    /// that.
    pub(super) async fn differs(
        &self,
        cx: &Context,
        actions: &Actions<'_>,
        hold: &Hold,
        owner: &StepId,
    ) -> Result<Option<bool>> {
        let Some(query) = &self.read else { return Ok(None) };
        let previous = if self.in_transaction() {
            let mut session = cx.reader(&self.on).await?;
            let tx = session.transaction().await?;
            match tx
                .checkpoint::<Raised>(cx.run, owner, UNIT)
                .await?
                .or(tx.checkpoint::<Raised>(cx.run, owner, LOWERED).await?)
            {
                Some(raised) => raised.previous,
                None => return Ok(None),
            }
        } else {
            hold.previous.clone()
        };
        Ok(Some(actions.value(&self.on, query, self.timeout).await? != previous))
    }
}
