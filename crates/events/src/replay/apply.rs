//! Applying a batch of events: effects and mark in one transaction.
//!
//! The fast way sends all statements of a batch without waiting for answers in between. When one fails or
//! changes nothing, the batch is rolled back and done again event by event, which finds the one and settles
//! what is to become of it.

use super::copied::Copied;
use super::event::{Event, Fields};
use super::fault::is_the_events;
use super::mapping::{Effects, Prepared, PreparedEffect};
use super::options::OnPoison;
use crate::offsets::{self, Tally};
use crate::quarantine::{self, Quarantined};
use crate::stream::Stream;
use futures_util::future::BoxFuture;
use futures_util::poll;
use handover_core::error::{Class, Error, Result};
use handover_core::failpoint;
use handover_postgres::{Session, Tx};
use std::borrow::Cow;
use std::collections::HashSet;
use std::task::Poll;
use tokio_postgres::types::ToSql;

/// Why an event could not be applied.
#[derive(Debug, Clone)]
pub struct Stuck {
    pub number: i64,
    pub table: String,
    pub op: String,
    pub cause: Cause,
}

/// What stands in an event's way.
#[derive(Debug, Clone)]
pub enum Cause {
    /// It changed nothing, and its effect is not there.
    Missing(&'static str),
    /// The server refused it.
    Refused(Error),
    /// The plan says nothing of it: no fault of the event's, and never a reason to set it aside.
    Unmapped,
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Cause::Missing(why) => f.write_str(why),
            Cause::Refused(error) => f.write_str(error.message()),
            Cause::Unmapped => f.write_str("the plan does not say what it means"),
        }
    }
}

/// Applies the events of one partition.
pub struct Applier<'a> {
    pub stream: &'a Stream,
    pub copied: &'a Copied,
    pub partition: i32,
    pub effects: Effects,
    /// Keys with an event in quarantine.
    pub blocked: HashSet<(String, String)>,
    /// Whether to ask each `already` along with its event, because the last batch had some that changed nothing.
    pub ask: bool,
    pub on_missing: OnPoison,
    pub on_error: OnPoison,
}

/// What a batch came to.
pub struct Applied {
    pub tally: Tally,
    /// The event that it stopped at.
    pub stuck: Option<Stuck>,
}

enum Answer {
    Rows(u64),
    Already(bool),
}

/// A statement on its way: its event's place in the batch, and its answer, now or later.
type Sent<'a> = (usize, BoxFuture<'a, Result<Answer>>, Option<Result<Answer>>);

impl Applier<'_> {
    /// Applies as much of a batch as can be. `final_try`: an event that is stuck is not given more time but
    /// treated as the plan says.
    pub async fn batch(&mut self, green: &mut Session, events: &[Event], final_try: bool) -> Result<Applied> {
        if !final_try {
            if let Some(tally) = self.fast(green, events).await? {
                return Ok(Applied { tally, stuck: None });
            }
            if !self.ask {
                self.ask = true;
                if let Some(tally) = self.fast(green, events).await? {
                    return Ok(Applied { tally, stuck: None });
                }
            }
        }
        self.slow(green, events, final_try).await
    }

    async fn begin<'t>(&self, green: &'t mut Session, events: &[Event]) -> Result<Tx<'t>> {
        let tx = green.transaction().await?;
        let done = offsets::lock(&tx, self.stream, self.partition).await?;
        if events.first().is_some_and(|event| event.number != done + 1) {
            // Another replay of the same stream got ahead of us; with the mark read again all is well.
            return Err(Error::new(Class::Contention, "the partition's mark moved meanwhile")
                .hint("it is read again by itself"));
        }
        Ok(tx)
    }

    async fn commit(&self, tx: Tx<'_>, tally: &Tally) -> Result<()> {
        offsets::advance(&tx, self.stream, self.partition, tally).await?;
        failpoint::at(failpoint::REPLAY_BEFORE_COMMIT)?;
        tx.commit().await
    }

    fn effect(&self, event: &Event) -> Option<&PreparedEffect> {
        let op = match event.op.as_str() {
            "insert" => "insert",
            "update" => "update",
            "delete" => "delete",
            _ => return None,
        };
        self.effects.get(&(event.table.clone(), op))
    }

    /// The event taken apart, if it means something that needs its values.
    fn fields<'e>(&self, event: &'e Event) -> Result<Option<Fields<'e>>> {
        let needed = event.marker.is_none()
            && self.effect(event).is_some_and(|effect| !effect.ignore)
            && !self.copied.has(&event.table, event.txid);
        if needed { event.fields().map(Some) } else { Ok(None) }
    }

    fn is_blocked(&self, event: &Event) -> bool {
        !self.blocked.is_empty() && self.blocked.contains(&(event.table.clone(), event.key.clone()))
    }

    /// All at once; none if that did not work out and nothing was changed.
    async fn fast(&mut self, green: &mut Session, events: &[Event]) -> Result<Option<Tally>> {
        let mut tally = Tally::default();
        let tx = self.begin(green, events).await?;
        let fields = events.iter().map(|event| self.fields(event)).collect::<Result<Vec<_>>>()?;
        let mut sent: Vec<Sent<'_>> = Vec::new();
        let mut unanswered = Vec::new();
        for (index, event) in events.iter().enumerate() {
            if let Some(marker) = event.marker {
                tally.markers += 1;
                tally.marker = tally.marker.max(marker);
                continue;
            }
            if self.copied.has(&event.table, event.txid) {
                tally.already += 1;
                continue;
            }
            if self.is_blocked(event) {
                return Ok(None);
            }
            let Some(effect) = self.effect(event) else { return Ok(None) };
            if effect.ignore {
                tally.ignored += 1;
                continue;
            }
            unanswered.push(index);
            // The first poll of a future sends its request, and requests are answered in the order of sending.
            for statement in &effect.apply {
                let mut future: BoxFuture<'_, _> = Box::pin(execute(&tx, statement, fields[index].as_ref()));
                let first = ready(poll!(future.as_mut()));
                sent.push((index, future, first));
            }
            if let Some(already) = effect.already.as_ref().filter(|_| self.ask) {
                let mut future: BoxFuture<'_, _> = Box::pin(ask(&tx, already, fields[index].as_ref()));
                let first = ready(poll!(future.as_mut()));
                sent.push((index, future, first));
            }
        }
        let mut changed = vec![0_u64; events.len()];
        let mut already = vec![false; events.len()];
        for (index, future, first) in sent {
            let answer = match first {
                Some(answer) => answer,
                None => future.await,
            };
            match answer {
                Ok(Answer::Rows(rows)) => changed[index] += rows,
                Ok(Answer::Already(so)) => already[index] = so,
                Err(error) if is_the_events(&error) => return Ok(None),
                Err(error) => return Err(events[index].blame(error)),
            }
        }
        let mut unchanged = 0;
        for index in unanswered {
            if changed[index] > 0 {
                tally.applied += 1;
            } else if already[index] {
                tally.already += 1;
                unchanged += 1;
            } else {
                return Ok(None);
            }
        }
        self.commit(tx, &tally).await?;
        // Worth a query for each event only while some need it.
        self.ask = unchanged > 0;
        Ok(Some(tally))
    }

    /// One event after the other, up to one that is stuck.
    async fn slow(&mut self, green: &mut Session, events: &[Event], final_try: bool) -> Result<Applied> {
        let mut tally = Tally::default();
        let mut newly = Vec::new();
        let mut stuck = None;
        let tx = self.begin(green, events).await?;
        for event in events {
            if let Some(marker) = event.marker {
                tally.markers += 1;
                tally.marker = tally.marker.max(marker);
                continue;
            }
            if self.copied.has(&event.table, event.txid) {
                tally.already += 1;
                continue;
            }
            let key = (event.table.clone(), event.key.clone());
            if self.is_blocked(event) || newly.contains(&key) {
                self.set_aside(&tx, event, "an earlier event of its key is in quarantine").await?;
                tally.quarantined += 1;
                continue;
            }
            let cause = match self.one(&tx, event, &mut tally).await? {
                None => continue,
                Some(cause) => cause,
            };
            if final_try && self.policy(&cause) == OnPoison::Quarantine {
                self.set_aside(&tx, event, &cause.to_string()).await?;
                tally.quarantined += 1;
                newly.push(key);
                continue;
            }
            stuck =
                Some(Stuck { number: event.number, table: event.table.clone(), op: event.op.clone(), cause });
            break;
        }
        if tally.total() > 0 {
            self.commit(tx, &tally).await?;
            self.blocked.extend(newly);
        } else {
            tx.rollback().await?;
        }
        Ok(Applied { tally, stuck })
    }

    /// What the plan wants done about an event that does not apply.
    pub fn policy(&self, cause: &Cause) -> OnPoison {
        match cause {
            Cause::Missing(_) => self.on_missing,
            Cause::Refused(_) => self.on_error,
            Cause::Unmapped => OnPoison::Halt,
        }
    }

    async fn set_aside(&self, tx: &Tx<'_>, event: &Event, reason: &str) -> Result<()> {
        let event = Quarantined {
            number: event.number,
            table: &event.table,
            key: &event.key,
            payload: event.json(),
            reason,
        };
        quarantine::set_aside(tx, self.stream, self.partition, &event).await
    }

    /// One event under a savepoint; counts it, or says why not.
    pub async fn one(&self, tx: &Tx<'_>, event: &Event, tally: &mut Tally) -> Result<Option<Cause>> {
        let Some(effect) = self.effect(event) else {
            return Ok(Some(Cause::Unmapped));
        };
        if effect.ignore {
            tally.ignored += 1;
            return Ok(None);
        }
        tx.batch("savepoint handover_event").await?;
        let outcome = self.attempt(tx, event, effect).await;
        match outcome {
            Ok(Answer::Rows(0)) => {
                tx.batch("rollback to savepoint handover_event").await?;
                Ok(Some(Cause::Missing("it changes nothing, and nothing says that it is so already")))
            }
            Ok(answer) => {
                tx.batch("release savepoint handover_event").await?;
                match answer {
                    Answer::Rows(_) => tally.applied += 1,
                    Answer::Already(_) => tally.already += 1,
                }
                Ok(None)
            }
            Err(error) if is_the_events(&error) => {
                tx.batch("rollback to savepoint handover_event").await?;
                Ok(Some(Cause::Refused(error)))
            }
            Err(error) => Err(event.blame(error)),
        }
    }

    async fn attempt(&self, tx: &Tx<'_>, event: &Event, effect: &PreparedEffect) -> Result<Answer> {
        let fields = self.fields(event)?;
        let mut rows = 0;
        for statement in &effect.apply {
            if let Answer::Rows(n) = execute(tx, statement, fields.as_ref()).await? {
                rows += n;
            }
        }
        if rows == 0
            && let Some(already) = &effect.already
            && let Answer::Already(true) = ask(tx, already, fields.as_ref()).await?
        {
            return Ok(Answer::Already(true));
        }
        Ok(Answer::Rows(rows))
    }
}

fn ready<T>(poll: Poll<T>) -> Option<T> {
    match poll {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// The parameters' values. They are encoded when the statement is first polled.
fn values<'v>(prepared: &Prepared, fields: Option<&'v Fields<'_>>) -> Vec<Option<Cow<'v, str>>> {
    prepared.params.iter().map(|param| fields.and_then(|fields| fields.get(param))).collect()
}

fn params<'p>(values: &'p [Option<Cow<'_, str>>]) -> Vec<&'p (dyn ToSql + Sync)> {
    values.iter().map(|value| value as &(dyn ToSql + Sync)).collect()
}

async fn execute(tx: &Tx<'_>, prepared: &Prepared, fields: Option<&Fields<'_>>) -> Result<Answer> {
    let values = values(prepared, fields);
    Ok(Answer::Rows(tx.execute(&prepared.statement, &params(&values)).await?))
}

async fn ask(tx: &Tx<'_>, prepared: &Prepared, fields: Option<&Fields<'_>>) -> Result<Answer> {
    let values = values(prepared, fields);
    let rows = tx.query(&prepared.statement, &params(&values)).await?;
    let so = rows.first().and_then(|row| row.get::<_, Option<bool>>(0)).unwrap_or(false);
    Ok(Answer::Already(so))
}
